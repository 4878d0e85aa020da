"""The command line: commands work end to end, a user's mistake is one line and exit code 2."""

import argparse
import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from tiny_data import write_data
from tiny_editors import picture
from tiny_models import tiny_llava
from workplace import INVISIBLE, SHORT, Workplace

from easyedit_dualedit import __version__
from easyedit_dualedit.commands import parser
from easyedit_dualedit.data.records import METRICS
from easyedit_dualedit.measure.run import METRICS_FILE, Run
from easyedit_dualedit.method.archive import Archive
from easyedit_dualedit.train import trainer
from easyedit_dualedit.train.batch_gradient import BatchGradient

SCRIPT = Path(__file__).parents[2] / "run_multimodal_edit.py"
COMMANDS = (
    "demo",
    "train",
    "edit",
    "evaluate",
    "locate",
    "ablate",
    "benchmark",
    "merge",
    "many",
    "edits",
    "chat",
    "app",
    "emoji",
)


def test_train_evaluate_and_edit_work_one_after_the_other(work: Workplace, call: Any):
    work.adapters.unlink()
    done = call(work.train(lr=0.03, word_path=False))
    assert done.code == 0, done.err
    assert sorted(path.name for path in work.adapters.iterdir()) == [
        *("adapters.safetensors", "config.json", "curves"),
    ]
    for kind in ("cosine", "centred", "last-token"):
        assert kind in done.out
    archive = Archive.load(work.adapters)
    assert (archive.config.text_layer, archive.config.vision_layer) == (1, 2)
    items = json.loads(work.data.read_text(encoding="utf-8"))
    assert archive.training_targets == tuple(sorted({item["alt"] for item in items}))
    assert any(bool(value.any()) for key, value in archive.tensors.items() if "output" in key)

    done = call(work.evaluate("--limit", 3, "--name", "three", text_layer=None, vision_layer=None))
    assert done.code == 0, done.err
    folder = work.folder / "outputs" / "three"
    metrics = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
    assert list(metrics) == ["methods", "targets"]
    assert metrics["targets"]["seen"] == 3 and metrics["targets"]["unseen"] == 0
    assert "Of 3 targets, 3 were seen as a whole in training" in " ".join(done.out.split())
    assert list(metrics["methods"]) == ["unedited", "DualEdit"]
    for method in metrics["methods"].values():
        assert list(method) == ["protocols", "by_target"]
        assert sorted(method["protocols"]) == ["generate", "visedit"]
        for values in method["protocols"].values():
            assert list(values) == [*METRICS, "average"]
            for value in values.values():
                assert list(value) == ["mean", "low", "high", "n"]
                assert 0.0 <= value["low"] <= value["mean"] <= value["high"] <= 100.0
                assert value["n"] == 3
    assert len(list((folder / "cases").glob("*.json"))) == 3
    assert "reliability" in done.out
    assert METRICS_FILE in done.out

    done = call(work.edit("--ask", "How many squares are there?", "--ask", "Where is the star?"))
    assert done.code == 0, done.err
    assert "What colour is circle 0?" in done.out
    assert "How many squares are there?" in done.out
    assert "Where is the star?" in done.out
    # Four steps teach nobody a word, where the adapters do not write it themselves.
    assert "the edit does not take: asked 'What colour is circle 0?'" in " ".join(done.out.split())
    assert done.out.count("threshold") == 3
    assert "open" in done.out


def test_an_evaluation_continues_and_repeats_itself_to_the_byte(work: Workplace, call: Any):
    hparams = work.hparams(archive=str(work.adapters))
    metrics = work.folder / "outputs" / "evaluate" / METRICS_FILE
    assert call(work.evaluate("--limit", 2, hparams=hparams)).code == 0
    first = metrics.read_bytes()
    (metrics.parent / "cases" / "00001.json").unlink()
    metrics.unlink()
    again = call(work.evaluate("--limit", 2, hparams=hparams))
    assert again.code == 0, again.err
    assert metrics.read_bytes() == first
    refused = call(work.evaluate("--limit", 3, hparams=hparams))
    assert "records was 2 and is 3" in refused.error
    assert metrics.read_bytes() == first
    assert call(work.evaluate("--limit", 3, "--fresh", hparams=hparams)).code == 0
    assert metrics.read_bytes() != first


def test_an_interrupted_evaluation_says_so_and_continues(
    work: Workplace, call: Any, monkeypatch: pytest.MonkeyPatch
):
    hparams = work.hparams(archive=str(work.adapters))
    whole = work.evaluate("--limit", 3, "--name", "whole", hparams=hparams)
    broken = work.evaluate("--limit", 3, "--name", "broken", hparams=hparams)
    assert call(whole).code == 0
    real = Run.store

    def stopping(self: Run, index: int, case: Any) -> None:
        if index == 0:
            raise KeyboardInterrupt
        real(self, index, case)

    monkeypatch.setattr(Run, "store", stopping)
    stopped = call(broken)
    assert stopped.code == 130
    assert "continues where it stopped" in stopped.err
    assert "Traceback" not in stopped.err
    monkeypatch.setattr(Run, "store", real)
    assert call(broken).code == 0
    folder = work.folder / "outputs"
    assert (folder / "broken" / METRICS_FILE).read_bytes() == (
        folder / "whole" / METRICS_FILE
    ).read_bytes()


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> Callable[[], None]:
    """Interrupt training at a step, with a checkpoint after each; return what undoes it."""
    real = BatchGradient.add
    calls = {"n": 0}

    def stopping(*arguments: Any) -> Any:
        calls["n"] += 1
        if calls["n"] > step:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(trainer, "CHECKPOINT_EVERY", 1)
    monkeypatch.setattr(BatchGradient, "add", stopping)
    return lambda: monkeypatch.setattr(BatchGradient, "add", real)


def same_adapters(first: Path, second: Path) -> bool:
    one, two = Archive.load(first), Archive.load(second)
    return one.tensors.keys() == two.tensors.keys() and all(
        torch.equal(value, two.tensors[key]) for key, value in one.tensors.items()
    )


def test_an_interrupted_training_continues_to_the_same_adapters(
    work: Workplace, call: Any, monkeypatch: pytest.MonkeyPatch
):
    # Drawn targets have lengths of all sorts, so batches are padded in all sorts of ways.
    hparams = work.hparams(lr=0.01, gate_steps=10, augment_targets=0.5)
    output = work.folder / "continued"
    command = work.train("--output", output, hparams=hparams)
    allow = interrupt_at(monkeypatch, 2)
    stopped = call(command)
    assert stopped.code == 130
    assert sorted(path.name for path in output.iterdir()) == ["curves", "training.pt"]
    allow()
    assert call(command).code == 0
    names = ["adapters.safetensors", "config.json", "curves"]
    assert sorted(path.name for path in output.iterdir()) == names
    whole = work.folder / "whole"
    assert call(work.train("--output", whole, hparams=hparams)).code == 0
    assert same_adapters(output, whole)


def test_the_model_of_the_command_line_comes_before_that_of_the_file(work: Workplace, call: Any):
    work.hparams()
    command = work.evaluate("--limit", 1, "--model", work.model, model_name="/nowhere/at/all")
    assert call(command).code == 0


def test_the_published_preset_trains_and_edits(work: Workplace, call: Any):
    output = work.folder / "published"
    assert call(work.train("--output", output, preset="published")).code == 0
    assert Archive.load(output).config.gate.kind == "last-token"
    done = call(work.edit("--archive", output, preset="published"))
    assert done.code == 0, done.err
    assert "threshold 0.800" in done.out


def test_an_edit_needs_no_picture(work: Workplace, call: Any):
    arguments = work.edit()
    place = arguments.index("--image")
    done = call(arguments[:place] + arguments[place + 2 :])
    assert done.code == 0, done.err


# What a user can do wrong


def test_unknown_keys_are_named_with_a_suggestion(work: Workplace, call: Any):
    for command in (work.edit, work.evaluate, work.train):
        error = call(command(vision_layr=3)).error
        assert "vision_layr" in error
        assert re.search(r"did you mean [a-z_, ]*vision_layer", error)


def test_hyperparameters_that_are_missing_or_no_yaml_are_refused(work: Workplace, call: Any):
    for content, told in ((None, "cannot read"), ("a: [", "not YAML"), ("- a", "not a mapping")):
        path = work.folder / "other.yaml"
        if content is not None:
            path.write_text(content)
        assert told in call(work.evaluate(hparams=path)).error


def test_hyperparameters_have_short_names(work: Workplace, call: Any):
    asked = ["edit", "--prompt", "Which shape is it?", "--target", "a star", "--device", "cpu"]
    by_name = call([*asked, "--hparams", "testbed"])
    assert by_name.code == 0, by_name.err
    assert by_name.out == call(asked).out
    error = call([*asked, "--hparams", "llava-1.5"]).error
    assert "no hyperparameters are called 'llava-1.5'; there are llava-1.5-7b, " in error
    training = ["--data", str(work.data), "--images", str(work.images), "--output", "new"]
    error = call(["train", *training, "--hparams", "testbed-publish", "--device", "cpu"]).error
    assert "there are testbed-published, testbed, " in error


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lr": "fast"}, "lr = 'fast'"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"heads": 3}, "width (16) must be divisible by heads (3)"),
        ({"preset": "best"}, "preset = 'best'"),
        ({"gate": "closed"}, "gate kind = 'closed'"),
        ({"gate": {"kind": "cosine", "threshold": 2}}, "gate threshold = 2"),
        ({"dtype": "int8"}, "dtype = 'int8'"),
        ({"text_layer": "two"}, "text_layer = 'two'"),
        ({"text_layer": -1}, "text_layer = -1"),
        ({"signal": "answer"}, "signal = 'answer'"),
        ({"modalities": ["sound"]}, "modalities"),
        ({"alg_name": "MEND"}, "alg_name = 'MEND'"),
        ({"model_name": ""}, "model_name"),
        pytest.param(*({"modalities": 3}, "modalities")),
        pytest.param(*({"opt": 3}, "opt = 3")),
        pytest.param(*({"val_interval": "often"}, "val_interval = 'often'")),
    ],
)
def test_bad_values_are_named(work: Workplace, call: Any, changes: Any, told: str):
    assert told in call(work.train(**changes)).error


@pytest.mark.parametrize("key", ["text_layer", "vision_layer"])
def test_a_layer_that_the_model_does_not_have_is_named(work: Workplace, call: Any, key: str):
    error = call(work.train("--output", work.folder / "new", **{key: 9})).error
    assert f"{key} = 9" in error
    assert "4 decoder layers (0-3)" in error
    assert not (work.folder / "new").exists()


def test_another_layer_than_that_of_the_adapters_is_named(work: Workplace, call: Any):
    error = call(work.edit(text_layer=9)).error
    assert "text_layer is 1 in the archive and 9 in the hyperparameters" in error


@pytest.mark.parametrize("command", ["edit", "evaluate"])
def test_a_missing_archive_is_named(work: Workplace, call: Any, command: str):
    gone = work.folder / "gone"
    error = call(getattr(work, command)("--archive", gone)).error
    assert str(gone) in error
    (work.folder / "empty").mkdir()
    assert "no saved adapters" in call(getattr(work, command)(archive=f"{work.folder}/empty")).error
    unset = call(
        getattr(work, command)(hparams=work.hparams())
        if command == "evaluate"
        else work.edit(archive=None)
    )
    assert "archive is not set" in unset.error


@pytest.mark.parametrize("name", ["adapters.safetensors", "config.json"])
def test_a_damaged_archive_is_named(work: Workplace, call: Any, name: str):
    damaged = work.folder / "damaged"
    damaged.mkdir()
    for path in filter(Path.is_file, work.adapters.iterdir()):
        content = path.read_bytes()
        (damaged / path.name).write_bytes(content[:50] if path.name == name else content)
    assert f"{damaged / name} is damaged" in call(work.edit(archive=str(damaged))).error


def test_the_archive_of_another_model_is_refused(work: Workplace, call: Any):
    other = work.folder / "other"
    tiny = tiny_llava()
    with torch.no_grad():
        for parameter in tiny.model.parameters():
            parameter.mul_(1.5)
    tiny.save(other)
    error = call(work.edit("--model", other)).error
    assert "trained on another model" in error
    assert str(work.adapters) in error


def test_records_with_mistakes_are_named(work: Workplace, call: Any):
    work.rewrite(lambda items: items[2].pop("alt"))
    for command in (work.train, work.evaluate):
        assert "record 2 has no field alt" in call(command()).error
    assert call(work.evaluate("--limit", 2)).code == 0


def test_data_that_is_no_json_or_missing_is_refused(work: Workplace, call: Any):
    work.data.write_text("src,alt\n1,2\n")
    for command in (work.train, work.evaluate):
        assert "is not JSON" in call(command()).error
    work.data.unlink()
    for command in (work.train, work.evaluate):
        assert "cannot read" in call(command()).error


def test_a_template_without_a_place_for_the_question_is_refused(work: Workplace, call: Any):
    assert "template = 'Answer:'" in call(work.evaluate("--template", "Answer:")).error


def test_a_missing_picture_is_named(work: Workplace, call: Any):
    assert "no picture at" in call(work.edit(image=work.images / "gone.png")).error
    (work.images / "1_other.png").unlink()
    for command in (work.train, work.evaluate):
        assert "record 1, field m_loc: no picture at" in call(command()).error


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_a_damaged_picture_is_named(work: Workplace, call: Any, content: bytes | None):
    path = work.images / "1.png"
    path.write_bytes(path.read_bytes()[:60] if content is None else content)
    for arguments in (work.edit(image=path), work.evaluate(), work.train("--limit", 4)):
        assert f"{path} cannot be read as a picture" in call(arguments).error


def test_a_folder_is_a_video_and_no_picture(work: Workplace, call: Any, tmp_path: Path):
    (tmp_path / "a.png").mkdir()
    assert "cannot be read as a picture" in call(work.edit(image=tmp_path / "a.png")).error
    assert "takes none; give its frames" in call(work.edit(image=work.images)).error


@pytest.mark.parametrize("text", ["", " \n"])
def test_empty_prompts_and_targets_are_refused(work: Workplace, call: Any, text: str):
    assert f"prompt = {text!r}" in call(work.edit(prompt=text)).error
    assert f"target = {text!r}" in call(work.edit(target=text)).error
    assert f"prompt = {text!r}" in call(work.edit("--ask", text)).error


def test_a_target_that_is_nothing_to_the_model_is_refused(work: Workplace, call: Any):
    assert "tokenises to nothing" in call(work.edit(target=INVISIBLE)).error
    work.rewrite(lambda items: items[1].update(alt=INVISIBLE * 3))
    for arguments in (work.evaluate(), work.train("--limit", 4)):
        assert "tokenises to nothing" in call(arguments).error


@pytest.mark.parametrize("device", ["gpu", "cuda:97", "99", "-1", "tpu:0", "meta"])
def test_an_unknown_device_is_refused(work: Workplace, call: Any, device: str):
    for command in (work.edit, work.evaluate, work.train):
        assert f"device = '{device}'" in call(command("--device", device)).error


def test_a_missing_model_is_refused(work: Workplace, call: Any):
    for command in (work.edit, work.evaluate, work.train):
        error = call(command("--model", work.folder / "gone")).error
        assert "no vision-language model can be loaded" in error
        assert str(work.folder / "gone") in error


def test_too_little_data_is_refused(work: Workplace, call: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("easyedit_dualedit.model.loading.load_model", _unexpected)
    error = call(work.train("--limit", 3, "--output", work.folder / "new")).error
    assert "3 records are fewer than a batch of 4" in error


@pytest.mark.parametrize("command", ["evaluate", "benchmark", "locate", "ablate", "many", "demo"])
def test_a_run_in_the_place_of_a_file_is_refused(
    work: Workplace, call: Any, monkeypatch: pytest.MonkeyPatch, command: str
):
    monkeypatch.setattr("easyedit_dualedit.model.loading.load_model", _unexpected)
    (work.folder / "outputs").write_text("a file")
    error = call([command, "--output", str(work.folder / "outputs")]).error
    assert "cannot write to" in error


def _unexpected(*_: Any, **__: Any) -> None:
    pytest.fail("no model is needed to see that")


def test_a_damaged_case_is_named(work: Workplace, call: Any):
    hparams = work.hparams(archive=str(work.adapters))
    assert call(work.evaluate("--limit", 1, hparams=hparams)).code == 0
    case = work.folder / "outputs" / "evaluate" / "cases" / "00000.json"
    case.write_bytes(case.read_bytes()[:100])
    assert f"{case} is damaged" in call(work.evaluate("--limit", 1, hparams=hparams)).error


def test_a_damaged_checkpoint_is_named_in_one_line(work: Workplace, call: Any):
    output = work.folder / "new"
    output.mkdir()
    (output / "training.pt").write_bytes(b"no checkpoint")
    error = call(work.train("--output", output)).error
    assert f"the checkpoint {output / 'training.pt'} is damaged" in error


def test_a_checkpoint_of_other_settings_is_refused(
    work: Workplace, call: Any, monkeypatch: pytest.MonkeyPatch
):
    output = work.folder / "new"
    allow = interrupt_at(monkeypatch, 1)
    assert call(work.train("--output", output)).code == 130
    allow()
    error = call(work.train("--output", output, lr=0.5)).error
    assert "another configuration (learning_rate was 0.01 and is 0.5)" in error


def test_a_checkpoint_is_not_continued_with_other_adapters_or_pictures(
    work: Workplace, call: Any, monkeypatch: pytest.MonkeyPatch
):
    output = work.folder / "new"
    allow = interrupt_at(monkeypatch, 1)
    assert call(work.train("--output", output)).code == 130
    allow()
    error = call(work.train("--output", output, "--archive", work.adapters)).error
    assert "another configuration (other adapters)" in error
    picture = sorted(work.images.glob("*.png"))[0]
    held = picture.read_bytes()
    Image.new("RGB", (20, 20), "purple").save(picture)
    assert "another configuration (other pictures)" in call(work.train("--output", output)).error
    picture.write_bytes(held)
    assert call(work.train("--output", output)).code == 0


def test_a_checkpoint_of_other_data_is_refused(
    work: Workplace, call: Any, monkeypatch: pytest.MonkeyPatch
):
    output = work.folder / "new"
    allow = interrupt_at(monkeypatch, 1)
    assert call(work.train("--output", output)).code == 130
    allow()
    work.rewrite(lambda items: items[0].update(alt="yellow"))
    assert "training.pt" in call(work.train("--output", output)).error


def test_a_checkpoint_of_another_model_is_refused(
    work: Workplace, call: Any, monkeypatch: pytest.MonkeyPatch
):
    output, other = work.folder / "new", work.folder / "other"
    hparams = work.hparams(**SHORT)
    allow = interrupt_at(monkeypatch, 1)
    assert call(work.train("--output", output, hparams=hparams)).code == 130
    allow()
    tiny = tiny_llava()
    with torch.no_grad():
        for parameter in tiny.model.parameters():
            parameter.mul_(1.5)
    tiny.save(other)
    command = work.train("--output", output, "--model", other, hparams=hparams)
    assert "training.pt" in call(command).error


def test_other_data_of_the_same_name_is_another_run(work: Workplace, call: Any):
    hparams = work.hparams(archive=str(work.adapters))
    assert call(work.evaluate("--limit", 1, hparams=hparams)).code == 0
    work.rewrite(lambda items: items[0].update(alt="yellow", src="What is this?"))
    assert "other settings" in call(work.evaluate("--limit", 1, hparams=hparams)).error


def test_a_truncated_picture_is_told_before_anything_runs_and_mended(
    work: Workplace, call: Any, monkeypatch: pytest.MonkeyPatch
):
    hparams = work.hparams(archive=str(work.adapters))
    command = work.evaluate("--limit", 3, hparams=hparams)
    path = work.images / json.loads(work.data.read_text(encoding="utf-8"))[2]["image"]
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    loader = "easyedit_dualedit.commands.editors.load_model"
    with monkeypatch.context() as patched:
        patched.setattr(loader, lambda *_, **__: pytest.fail("a model was loaded"))
        told = call(command).error
    assert f"{path} cannot be read as a picture" in told and "the same command goes on" in told
    path.write_bytes(whole)
    assert call(command).code == 0
    folder = work.folder / "outputs" / "evaluate" / "cases"
    before = {case.name: case.stat().st_mtime_ns for case in folder.iterdir()}
    picture("black", (50, 50)).save(path)
    assert call(command).code == 0, "a picture is not the run"
    changed = {
        case.name for case in folder.iterdir() if case.stat().st_mtime_ns != before[case.name]
    }
    shows = {
        f"{place:05d}.json"
        for place, item in enumerate(json.loads(work.data.read_text(encoding="utf-8"))[:3])
        if path.name in (item["image"], item["image_rephrase"], item["m_loc"])
    }
    assert changed == shows


def test_other_pictures_of_the_same_name_are_measured_anew(work: Workplace, call: Any):
    hparams = work.hparams(archive=str(work.adapters))
    assert call(work.evaluate("--limit", 1, hparams=hparams)).code == 0
    case = work.folder / "outputs" / "evaluate" / "cases" / "00000.json"
    before = json.loads(case.read_text(encoding="utf-8"))["pictures"]
    other = work.folder / "other"
    write_data(other)
    picture("black", (50, 50)).save(other / "0.png")
    command = work.evaluate("--limit", 1, "--images", other, hparams=hparams)
    assert call(command).code == 0
    assert json.loads(case.read_text(encoding="utf-8"))["pictures"] != before


def test_a_training_that_could_not_be_saved_is_not_lost(
    work: Workplace, call: Any, monkeypatch: pytest.MonkeyPatch
):
    output = work.folder / "new"
    command = work.train("--output", output, hparams=work.hparams(**SHORT))
    monkeypatch.setattr(trainer, "CHECKPOINT_EVERY", 1)

    def full(*_arguments: Any, **_options: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("easyedit_dualedit.storage.described_tensors.save_file", full)
        done = call(command)
    assert done.code == 2 and "cannot save adapters" in done.err.splitlines()[-1]
    interrupt_at(monkeypatch, 0)
    assert call(command).code == 0


def test_an_output_that_cannot_be_written_is_refused_before_training(
    work: Workplace, call: Any, monkeypatch: pytest.MonkeyPatch
):
    output = work.folder / "file"
    output.write_text("a file")
    interrupt_at(monkeypatch, 0)
    assert str(output) in call(work.train("--output", output)).error


def test_the_command_line_mends_a_device_of_the_file_that_is_not_here(work: Workplace, call: Any):
    done = call(work.evaluate("--limit", 1, "--device", "cpu", device="cuda:97"))
    assert done.code == 0, done.err


def test_a_model_of_the_command_line_is_enough(work: Workplace, call: Any):
    done = call(work.evaluate("--limit", 1, "--model", work.model, model_name=None))
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("accumulated", "most", "batches"), [(1, None, 4), (2, None, 4), (1, 1000, 4), (1, 3, 3)]
)
def test_epochs_are_passes_over_the_records(
    work: Workplace,
    call: Any,
    monkeypatch: pytest.MonkeyPatch,
    accumulated: int,
    most: int | None,
    batches: int,
):
    hparams = work.folder / "epochs.yaml"
    given = {
        "batch_size": 4,
        "max_epochs": 2,
        "gate_steps": 10,
        "accumulate_bs": accumulated,
        "val_interval": 2,
    }
    values = yaml.safe_load(work.hparams(**given).read_text())
    hparams.write_text(yaml.safe_dump(values | {"max_iters": most}))
    steps = []
    real = BatchGradient.add
    monkeypatch.setattr(BatchGradient, "add", lambda *a: steps.append(1) or real(*a))
    arguments = work.train("--output", work.folder / "new", hparams=hparams)
    place = arguments.index("--steps")
    done = call(arguments[:place] + arguments[place + 2 :])
    assert done.code == 0 and len(steps) == batches, done.err


def test_answers_that_look_like_markup_are_shown(work: Workplace, call: Any):
    done = call(work.edit(prompt="What is this? [/INST]", target="[red]"))
    assert done.code == 0, done.err
    assert "What is this? [/INST]" in done.out
    work.rewrite(lambda items: items[0].update(src="What is this? [/INST]"))
    done = call(work.evaluate("--limit", 1))
    assert done.code == 0, done.err
    assert "What is this? [/INST]" in done.out


def test_a_prompt_with_the_image_token_is_refused_or_works(work: Workplace, call: Any):
    done = call(work.edit(prompt="<image> What is this?"))
    assert done.code == 0 or done.error


def test_bytes_that_are_no_text_are_refused(work: Workplace, call: Any):
    assert call(work.edit(prompt="What is \udcff this?")).error
    assert call(work.edit(target="\udcff")).error


# What argparse says


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_text(call: Any, command: str):
    done = call([command, "--help"])
    assert done.code == 0
    assert done.out.startswith(f"usage: run_multimodal_edit.py {command}")
    assert len(done.out.splitlines()) > 8
    options = re.findall(r"^  (--[a-z-]+)", done.out, re.M)
    groups = ("edits", "emoji")  # of commands, each with options of its own
    assert ("--fresh" in options) == (command not in ("edit", "merge", "chat", "app", *groups))
    assert ("--hparams" in options) == (command not in ("demo", "merge", *groups))
    for line in re.split(r"\n(?=  -)", done.out)[1:]:
        assert re.search(r"\s{2,}\S+ ", line.strip()), f"no help for {line.strip()}"


def test_help_waits_for_nothing_that_is_slow_to_import():
    code = (
        "import sys\n"
        "from easyedit_dualedit.commands.parser import build_parser\n"
        "build_parser().format_help()\n"
        "print(*sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=SCRIPT.parent, check=True
    )
    loaded = set(found.stdout.split())
    assert "easyedit_dualedit.commands.chat" in loaded
    assert not loaded & {"torch", "transformers", "numpy", "rich", "PIL", "easyeditor", "gradio"}


def test_the_help_names_every_command(call: Any):
    done = call(["--help"])
    assert done.code == 0
    for command in COMMANDS:
        assert re.search(rf"^    {command}\s+[a-z]", done.out, re.M)
    assert call(["-h"]).out == done.out


def test_the_version_is_that_of_the_package(call: Any):
    done = call(["--version"])
    assert (done.code, done.out.strip()) == (0, __version__)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train"], "--output"),
        (["edit", "--prompt", "a"], "--target"),
        (["evaluate", "--data", "a"], "--images"),
        (["evaluate", "--data", "a", "--images", "b", "--limit", "0"], "at least 1"),
        (["evaluate", "--data", "a", "--images", "b", "--limit", "many"], "'many'"),
        (["train", "--data", "a", "--images", "b", "--output", "c", "--steps", "-3"], "'-3'"),
        (["demo", "--count", "1.5"], "'1.5'"),
        (["demo", "--nonsense"], "--nonsense"),
        (["--nonsense"], "--nonsense"),
        (["evalute"], "evalute"),
    ],
)
def test_arguments_that_are_wrong_exit_with_code_2(call: Any, arguments: list[str], told: str):
    done = call(arguments)
    assert done.code == 2
    assert done.out == ""
    assert told in done.err.splitlines()[-1]
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ([], "demo"),
        (["--count", "3"], "demo"),
        (["--verbose"], "demo"),
        (["--verbose", "--count", "3"], "demo"),
        (["demo"], "demo"),
        (["--verbose", "evaluate", "--data", "a", "--images", "b"], "evaluate"),
        pytest.param(*(["--name", "evaluate"], "demo")),
        pytest.param(*(["--output", "train", "--name", "edit"], "demo")),
        pytest.param(*(["--count", "3", "--verbose"], "demo")),
        pytest.param(*(["demo", "--verbose"], "demo")),
    ],
)
def test_without_a_command_it_is_the_demo(
    call: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str], command: str
):
    chosen = []
    for name in COMMANDS:
        module = importlib.import_module(f"easyedit_dualedit.commands.{name}")
        monkeypatch.setattr(module, "run", lambda _parsed, name=name: chosen.append(name))
    assert call(arguments).code == 0
    assert chosen == [command]


def test_the_script_runs_on_its_own():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--help"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd="/",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "usage: run_multimodal_edit.py" in done.stdout
    for command in COMMANDS:
        assert command in done.stdout


def test_the_tiny_model_of_these_tests_reads_the_invisible_as_nothing(work: Workplace):
    from easyedit_dualedit.model.loading import load_model

    _, processor = load_model(str(work.model))
    assert processor.tokenizer(INVISIBLE, add_special_tokens=False)["input_ids"] == []


def test_gates_and_specificity_are_rows_and_columns(work: Workplace, call: Any):
    done = call(work.evaluate("--limit", 2, "--gates", "cosine", "open", "--specificity"))
    assert done.code == 0, done.err
    folder = work.folder / "outputs" / "evaluate"
    metrics = json.loads((folder / METRICS_FILE).read_text())["methods"]
    assert list(metrics) == ["unedited", "DualEdit, cosine gate", "DualEdit, open gate"]
    for method in metrics.values():
        for values in method["protocols"].values():
            assert {*METRICS, "average", "RI", "NI", "CI"} <= set(values)
    assert metrics["unedited"]["protocols"]["generate"]["RI"]["mean"] == 100
    assert "RI" in done.out and "NI = " in done.out
    # Without them the run is another one.
    assert "other settings" in call(work.evaluate("--limit", 2)).error


def test_specificity_draws_from_the_records_it_is_given(work: Workplace, call: Any):
    others = work.images / "others.json"
    items = json.loads(work.data.read_text())[6:]
    others.write_text(json.dumps(items))
    assert "--specificity" in call(work.evaluate("--limit", 2, "--others", others)).error
    assert "--allow-outside goes with --data" in call(["evaluate", "--allow-outside"]).error
    done = call(work.evaluate("--limit", 2, "--specificity", "--others", others))
    assert done.code == 0, done.err
    prompts = {item["src"] for item in items}
    for path in (work.folder / "outputs" / "evaluate" / "cases").glob("*.json"):
        queries = json.loads(path.read_text())["queries"]
        assert {queries[kind]["prompt"] for kind in ("similar_text", "similar_image")} <= prompts


@pytest.mark.parametrize("command", ["evaluate", "locate", "ablate"])
def test_the_testbeds_records_are_for_the_testbed(work: Workplace, call: Any, command: str):
    hparams = work.hparams(archive=str(work.adapters) if command == "evaluate" else None)
    error = call([command, "--hparams", str(hparams), "--output", str(work.folder)]).error
    assert "give --data" in error


def test_locate_proposes_layers_that_training_accepts(work: Workplace, call: Any):
    done = call(work.locate("--limit", 3))
    assert done.code == 0, done.err
    folder = work.folder / "outputs" / "locate"
    found = json.loads((folder / "locate.json").read_text())
    assert [entry["layer"] for entry in found["layers"]] == [0, 1, 2, 3]
    assert found["layers"][0]["vision"]["kl"]["n"] == 3
    proposed = yaml.safe_load((folder / "train.yaml").read_text())
    assert {key: proposed[key] for key in found["proposal"]} == found["proposal"]
    assert str(found["proposal"]["text_layer"]) in done.out
    assert (folder / "locate.csv").is_file()
    refused = call(["compare", str(folder), str(folder)])
    assert refused.code == 2 and "holds no run (it is one of locate)" in refused.error
    command = work.train("--output", folder / "adapters", hparams=folder / "train.yaml")
    assert call(command).code == 0
    command = work.evaluate("--limit", 1, hparams=folder / "apply.yaml")
    assert call([*command, "--archive", str(folder / "adapters")]).code == 0
    saved = json.loads((folder / "adapters" / "config.json").read_text())["config"]
    assert saved["vision_layer"] == found["proposal"]["vision_layer"]
    # Another share is another proposal from the same samples, other noise is another run.
    assert call(work.locate("--limit", 3, "--share", 1)).code == 0
    assert "other settings" in call(work.locate("--limit", 3, "--noise", 1)).error
    for key, value in (("dtype", "bfloat16"), ("backbone", {"answer_prefix": "so: "})):
        other = work.hparams(**SHORT | {key: value})
        assert f"other settings: {key}" in call(work.locate("--limit", 3, hparams=other)).error


def test_ablate_writes_a_table_and_shows_what_is_done(work: Workplace, call: Any):
    hparams = work.hparams(**SHORT)
    done = call(work.ablate("--variants", "both adapters", hparams=hparams))
    assert done.code == 0, done.err
    folder = work.folder / "outputs" / "ablate"
    rows = json.loads((folder / "ablation.json").read_text())
    assert [row["gate"] for row in rows] == ["open", "cosine", "centred", "learned", "last-token"]
    done = call(work.ablate("--variants", "--pairs", "0,1", hparams=hparams))
    assert done.code == 0, done.err
    rows = json.loads((folder / "ablation.json").read_text())
    assert [row["variant"] for row in rows][:2] == ["layers 0 and 1"] * 2 and len(rows) == 7
    assert "both adapters" in done.out
    assert (folder / "ablation.csv").is_file()
    # Of the data file, two steps take some records.
    (seen,) = {Archive.load(path.parent).training_targets for path in folder.rglob("config.json")}
    measured = [item["alt"] for item in json.loads(work.data.read_text(encoding="utf-8"))[:2]]
    count = sum(target in (seen or ()) for target in measured)
    told = f"Of 2 targets, {count} were seen as a whole in training (known from the records"
    assert told in (folder / "ablation.md").read_text() and told in " ".join(done.out.split())
    # Pairs that are done are shown like other variants.
    done = call(work.ablate("--variants", "--pairs", "1,2", hparams=hparams))
    assert done.code == 0 and "layers 0 and 1" in done.out
    rows = json.loads((folder / "ablation.json").read_text())
    names = dict.fromkeys(row["variant"] for row in rows)
    assert list(names) == ["layers 1 and 2", "both adapters", "layers 0 and 1"]
    # What was done under other settings is no row of this table, and stops only its own variant.
    slower = work.hparams(**SHORT | {"lr": 0.001})
    done = call(work.ablate("--variants", "--pairs", "0,2", hparams=slower))
    assert done.code == 0 and "both adapters" not in done.out
    command = work.ablate("--variants", "both adapters", hparams=slower)
    assert "other settings" in call(command).error
    assert call([*command, "--fresh"]).code == 0
    rounded = work.hparams(**SHORT | {"lr": 0.001, "dtype": "bfloat16"})
    command = work.ablate("--variants", "both adapters", hparams=rounded)
    told = "other settings: dtype was 'float32' and is 'bfloat16'"
    assert told in call(command).error
    # Adapters that were trained on other pictures are others.
    shown = json.loads(work.data.read_text(encoding="utf-8"))[-1]["image"]
    picture("purple").save(work.images / shown)
    command = work.ablate("--variants", "both adapters", hparams=slower)
    assert "training_pictures was" in call(command).error


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--layers", "2", "9"], "decoder layers 0-3"),
        (["--draws", "40"], "rows = 96"),
        (["--noise", "nan"], "noise = nan"),
    ],
)
def test_bad_input_of_locate_is_one_line(work: Workplace, call: Any, options: list[str], told: str):
    assert told in call(work.locate(*options)).error


def test_samples_that_are_no_samples_are_one_line(work: Workplace, call: Any):
    work.rewrite(lambda items: items[1].update(src=float("nan")))
    assert "record 1, field src: nan" in call(work.locate()).error
    work.rewrite(lambda items: items.clear())
    assert "at least one record" in call(work.locate()).error


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--variants", "both"], "no variants ['both']"),
        (["--variants"], "nothing to measure"),
        (["--variants", "--pairs", "1,7"], "vision_layer = 7"),
    ],
)
def test_bad_input_of_ablate_is_one_line(work: Workplace, call: Any, options: list[str], told: str):
    assert told in call(work.ablate(*options)).error


def test_evaluate_splits_by_the_targets_of_a_file_of_training_records(
    work: Workplace, call: Any, tmp_path: Path
):
    items = json.loads(work.data.read_text(encoding="utf-8"))
    first = [item for item in items if item["alt"] == items[0]["alt"]]
    # Its pictures are not opened, and may be anywhere.
    first = [item | {"image": f"/elsewhere/{item['image']}"} for item in first]
    (tmp_path / "trained.json").write_text(json.dumps(first), encoding="utf-8")
    options = ["--training-records", tmp_path / "trained.json", "--limit", 4]
    done = call(work.evaluate(*options))
    assert done.code == 0, done.err
    folder = work.folder / "outputs" / "evaluate"
    seen = [place for place, item in enumerate(items[:4]) if item["alt"] == items[0]["alt"]]
    assert 0 < len(seen) < 4
    metrics = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
    assert metrics["targets"]["source"] == "known from trained.json"
    found = metrics["methods"]["DualEdit"]["by_target"]["visedit"]
    for group, places in (("seen", seen), ("unseen", [n for n in range(4) if n not in seen])):
        cases = [
            json.loads((folder / "cases" / f"{place:05d}.json").read_text()) for place in places
        ]
        for metric in METRICS[:3]:
            values = [case["methods"]["DualEdit"]["values"]["visedit"][metric] for case in cases]
            assert found[group][metric]["mean"] == pytest.approx(100 * sum(values) / len(values))
            assert found[group][metric]["n"] == len(places)
    assert "never seen as a whole" in done.out
    # The split decides no result: a run goes on under another, or without one.
    old = json.loads((work.adapters / "config.json").read_text())
    del old["training_targets"]
    shutil.copytree(work.adapters, tmp_path / "old")
    (tmp_path / "old" / "config.json").write_text(json.dumps(old))
    done = call(work.evaluate("--limit", 4, "--name", "old", archive=str(tmp_path / "old")))
    assert "No split by targets seen in training: the adapters in" in " ".join(done.out.split())
    assert "give --training-records FILE" in " ".join(done.out.split())


def test_a_torch_that_cannot_be_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def run(_: argparse.Namespace) -> None:
        raise ImportError("libtorch_cpu.so: cannot open shared object file")

    monkeypatch.setattr(parser._COMMANDS["locate"], "run", run)
    monkeypatch.setitem(sys.modules, "easyedit_dualedit.model.row_memory", None)
    monkeypatch.delitem(sys.modules, "torch")
    assert parser.main(["locate"]) != 0
    told = capsys.readouterr().err
    assert told.startswith("error: ImportError: libtorch_cpu.so") and told.count("\n") == 1


@pytest.mark.parametrize("command", ["evaluate", "train", "many", "benchmark", "locate", "ablate"])
def test_a_template_needs_data(command: str, work: Workplace, call: Any):
    output = ["--output", str(work.folder / "outputs")]
    error = call([command, "--hparams", "testbed", "--template", "{} Answer:", *output]).error
    assert "--template '{} Answer:' goes with --data" in error


def test_many_edits_of_a_model_of_ours_may_be_limited(work: Workplace, call: Any):
    options = ["--counts", "1", "--limit", "0"]
    assert call(["many", "--hparams", "testbed", *options]).code == 2
    folder = work.folder / "few"
    options = ["--counts", "5", "--limit", "3", "--output", str(folder)]
    assert "needs as many records" in call(["many", "--hparams", "testbed", *options]).error


def test_options_without_effect_are_refused(work: Workplace, call: Any):
    many = ["many", "--hparams", "testbed", "--output", str(work.folder / "many")]
    assert "--images goes with --data" in call([*many, "--images", "x"]).error
    assert "no methods ['nope']" in call([*many, "--methods", "nope"]).error
    assert "--ask-image is the picture of --ask" in call(work.edit("--ask-image", "x.png")).error
    for command in (work.locate, work.ablate):
        assert "--archive: " in call(command("--archive", "x")).error
