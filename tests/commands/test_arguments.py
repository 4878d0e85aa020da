"""Arguments that several commands have, and texts of the command line that are amounts."""

import argparse

import pytest
import torch

from easyedit_dualedit.commands import parser
from easyedit_dualedit.commands.arguments import add_model, memory
from easyedit_dualedit.commands.hparams import read_hparams
from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.model.row_memory import allowed_bytes
from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams
from easyedit_dualedit.plugin.training_hparams import DualEditMultimodalTrainingHparams


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("20GiB", 20 * 2**30),
        ("1.5GiB", 3 * 2**29),
        ("800MiB", 800 * 2**20),
        ("24 GB", 24 * 10**9),
        ("4096", 4096),
    ],
)
def test_an_amount_of_memory(text: str, value: int):
    assert memory(text) == value


@pytest.mark.parametrize("text", ["", "GiB", "much", "-1GiB", "0", "nanGiB", "infMiB", "5 apples"])
def test_what_is_no_amount_of_memory_is_told(text: str):
    with pytest.raises(argparse.ArgumentTypeError, match="20GiB"):
        memory(text)


@pytest.mark.parametrize("kind", [DualEditMultimodalHparams, DualEditMultimodalTrainingHparams])
def test_the_dtype_may_be_given_instead_of_that_of_the_hyperparameters(
    kind: type[DualEditMultimodalHparams],
):
    options = argparse.ArgumentParser()
    add_model(options, "")
    assert read_hparams(options.parse_args([]), kind).dtype == torch.float32
    assert read_hparams(options.parse_args(["--dtype", "bfloat16"]), kind).dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="dtype"):
        read_hparams(options.parse_args(["--dtype", "int7"]), kind)


@pytest.mark.parametrize("command", ["evaluate", "train", "benchmark", "many", "edits add"])
def test_every_command_that_packs_rows_is_told_the_memory(
    command: str, monkeypatch: pytest.MonkeyPatch
):
    seen: list[int | None] = []
    module = parser._COMMANDS[command.split()[0]]
    monkeypatch.setattr(module, "run", lambda _arguments: seen.append(allowed_bytes()))
    needed = {"train": ["--output", "adapters"], "edits add": ["--edits", "edits"]}
    options = needed.get(command, [])
    assert parser.main([*command.split(), *options, "--memory", "20GiB"]) == 0
    assert parser.main([*command.split(), *options]) == 0
    assert seen == [20 * 2**30, None] and allowed_bytes() is None
