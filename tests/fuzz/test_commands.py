"""Command lines: done, or told in one line with exit code 2; nothing half-written is left."""

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from nasty import JSONS, seeds, yaml_value
from workplace import Workplace

ARGUMENTS = (
    *("", " ", "a", "\0", "a" * 5000, "[/b]", "-1", "0", "1" * 5000, "/", ".", "..", "/dev/null"),
    *("/proc/self/mem", "a/../..", "é", "\udcff", "--", "-h", "--fresh", "{}", "%s", "nan", "0/0"),
)


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no command come as far as a model: that takes seconds, and is not what is tried."""
    from easyedit_dualedit.errors import ModelLoadError

    def refuse(*_: Any, **__: Any) -> None:
        raise ModelLoadError("no model is loaded here")

    # Not `load_model` itself: a module that is first imported here would keep the stand-in.
    monkeypatch.setattr("easyedit_dualedit.model.loading.define_missing_operators", refuse)


def line_of(source: random.Random, work: Workplace) -> list[str]:
    """Return a command line in which something is wrong."""
    hparams = work.hparams() if source.random() < 0.5 else work.folder / "wrong.yaml"
    (work.folder / "wrong.yaml").write_text(
        f"model_name: a\nlr: {yaml_value(source)}\nseed: {yaml_value(source)}\n", "utf-8"
    )
    (work.folder / "wrong.json").write_bytes(source.choice(JSONS))
    data = source.choice((work.data, work.folder / "wrong.json"))
    common = ["--hparams", hparams, "--data", data, "--images", work.images]
    edits = ["--edits", work.folder / "edits"]
    output = ["--output", work.folder / "outputs"]
    lines: list[list[object]] = [
        ["train", *common, "--output", work.folder / "trained"],
        ["evaluate", *common, *output],
        ["locate", *common, *output],
        ["ablate", *common, *output, "--measured", data],
        ["many", *common, *output, "--counts", "2"],
        ["benchmark", *common, *output, "--set", f"mend.lr={yaml_value(source)}"],
        ["edits", "add", *common, *edits],
        ["edits", "list", *edits],
        ["edits", "remove", *edits, "a"],
        ["edits", "export", *edits, "--output", work.folder / "copy"],
        ["chat", "--hparams", hparams, *edits],
        ["merge", work.folder / "outputs", *output],
        ["edit", "--hparams", hparams, "--prompt", "a", "--target", "b"],
    ]
    line = [str(each) for each in source.choice(lines)]
    for _ in range(source.choice((0, 1, 1, 2))):
        place = source.randrange(1, len(line))
        if source.random() < 0.5:
            line[place] = source.choice(ARGUMENTS)
        else:
            del line[place]
    return line


@pytest.mark.usefixtures("unloaded")
def test_command_lines(fuzzing: Any, work: Workplace, call: Any):
    @fuzzing("commands")
    @given(seeds)
    def holds(seed: int) -> None:
        line = line_of(random.Random(seed), work)
        called = call(line)
        assert called.code in (0, 2), (line, called)
        assert "Traceback" not in called.err, (line, called.err)
        assert "is not known to fail so" not in called.err, (line, called.err)
        left = [path for path in work.folder.rglob("*") if path.suffix == ".part"]
        left += [path for path in work.folder.rglob(".saving-*")]
        assert not left, (line, left)

    holds()
    assert Path.cwd().joinpath("easyedit_dualedit").is_dir()
