"""A watched training: curves, the best state, patience; a kill in the middle changes nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_data import editor_of, fast, write_data
from tiny_models import TinyModel

from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.method.archive import Archive
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.train import trainer, watch
from easyedit_dualedit.train.batch_gradient import BatchGradient
from easyedit_dualedit.train.checkpoint import began_without_validation
from easyedit_dualedit.train.curves import Curves, Line, read_curves
from easyedit_dualedit.train.drawn_targets import answering
from easyedit_dualedit.train.losses import StepLosses
from easyedit_dualedit.train.progress import TrainingProgress
from easyedit_dualedit.train.trainer import batch_indices, train
from easyedit_dualedit.train.validation import Measured
from easyedit_dualedit.train.watch import Watching

CLOCK = ("seconds", "samples_per_second", "peak_gibibytes")
CONFIG = fast(steps=7, batch_size=2, schedule="one-cycle", gate_steps=2)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder = tmp_path_factory.mktemp("data")
    return load_records(write_data(folder, 10), folder)


def watching(records: list[Record], folder: Path, **changes: Any) -> Watching:
    curves = Curves(folder / "curves")
    return Watching(
        records[8:], **{"every": 3, "folder": folder, "curves": curves, "curves_every": 2} | changes
    )


def timeless(folder: Path) -> list[Line]:
    lines = read_curves(folder / "curves")
    return [{name: v for name, v in line.items() if name not in CLOCK} for line in lines]


def trained(tiny: TinyModel, records: list[Record], folder: Path, **changes: Any) -> DualEditor:
    torch.manual_seed(5)
    editor = editor_of(tiny)
    plan = watching(records, folder, **changes)
    path = folder / "training.pt"
    train(editor, records[:8], CONFIG, checkpoint=path, progress=False, watching=plan)
    return editor


@pytest.fixture(scope="module")
def whole(
    llava: TinyModel, records: list[Record], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, DualEditor]:
    """A watched training that nothing has stopped: its folder, and what came of it."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, trained(llava, records, folder)


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


def test_curves_tell_of_every_part(whole: tuple[Path, DualEditor]):
    lines = timeless(whole[0])
    assert [(line["step"], line["part"][0]) for line in lines] == [
        *((0, "v"), (2, "t"), (3, "v"), (4, "t"), (6, "t"), (6, "v"), (7, "t"), (7, "v")),
    ]
    first = lines[0]
    assert first["gate"] == "cosine" and first["records"] == {"all": 2, "seen": 2, "unseen": 0}
    weighted = {name: CONFIG.weights[name] * v for name, v in first["losses"]["all"].items()}
    assert first["loss"]["total"] == pytest.approx(sum(weighted.values()))
    assert set(lines[1]["loss"]) == {"total", *first["losses"]["all"]}
    assert lines[1]["gradient_norm"] > 0 and lines[1]["learning_rate"] > 0


def test_a_line_is_the_mean_of_the_steps_since_the_line_before(
    llava: TinyModel, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    steps: list[StepLosses] = []
    real = BatchGradient.add

    def add(*arguments: Any) -> StepLosses:
        steps.append(real(*arguments))
        return steps[-1]

    monkeypatch.setattr(BatchGradient, "add", add)
    trained(llava, records, tmp_path)
    lines = [line for line in timeless(tmp_path) if line["part"] == "training"]
    assert [line["step"] for line in lines] == [2, 4, 6, 7]
    for line, part in zip(lines, (steps[:2], steps[2:4], steps[4:6], steps[6:]), strict=True):
        for name, values in (("loss", "by_metric"), ("accuracy", "accuracy")):
            for metric, value in getattr(part[0], values).items():
                mean = sum(getattr(step, values)[metric] for step in part) / len(part)
                assert line[name][metric] == pytest.approx(mean), (line["step"], metric)
                assert part[0].by_metric.keys() == line["loss"].keys() - {"total"}
                assert value >= -1e-6, "a divergence of nothing is rounding on either side of 0"


def test_watching_changes_no_step(
    llava: TinyModel, records: list[Record], whole: tuple[Path, DualEditor]
):
    torch.manual_seed(5)
    alone = editor_of(llava)
    train(alone, records[:8], CONFIG, progress=False)
    assert same(Archive.load(whole[0] / "last").tensors, alone.state_dict())


def test_a_kill_anywhere_changes_nothing(
    llava: TinyModel,
    records: list[Record],
    whole: tuple[Path, DualEditor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    unbroken, editor = whole
    # After every step, so that checkpoints fall between the lines of the curves.
    monkeypatch.setattr(trainer, "CHECKPOINT_EVERY", 1)
    real, real_add = BatchGradient.add, Curves.add
    calls = {"step": 0, "line": 0}

    def failing(*arguments: Any) -> StepLosses:
        calls["step"] += 1
        if calls["step"] % 3 == 0:
            raise KeyboardInterrupt
        return real(*arguments)

    def failing_add(self: Curves, line: Line) -> None:
        real_add(self, line)
        calls["line"] += 1
        if calls["line"] in (1, 4):  # written, but no checkpoint knows of it
            raise KeyboardInterrupt

    monkeypatch.setattr(BatchGradient, "add", failing)
    monkeypatch.setattr(Curves, "add", failing_add)
    kills = 0
    while True:
        try:
            broken = trained(llava, records, tmp_path)
            break
        except KeyboardInterrupt:
            kills += 1
            assert kills < 12
    assert kills >= 4
    assert same(broken.state_dict(), editor.state_dict())
    assert timeless(tmp_path) == timeless(unbroken)
    for name in ("best", "last"):
        pair = [Archive.load(folder / name).tensors for folder in (tmp_path, unbroken)]
        assert same(*pair)


def scores(values: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have validation measure these averages, one after another."""
    left = iter(values)

    def measure(_self: object) -> Measured:
        shares = {"all": dict.fromkeys(("a", "b", "c", "d", "e"), next(left))}
        return Measured({"all": {"a": 1.0}}, shares, shares, 1.0)

    monkeypatch.setattr(watch.Validation, "measure", measure)


def test_the_best_state_is_what_is_left(
    llava: TinyModel, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    scores([0.1, 0.9, 0.9, 0.2], monkeypatch)
    editor = trained(llava, records, tmp_path)
    lines = [line for line in read_curves(tmp_path / "curves") if line["part"] == "validation"]
    assert [line["is_best"] for line in lines] == [True, True, False, False]
    assert same(Archive.load(tmp_path / "best").tensors, editor.state_dict())
    last = Archive.load(tmp_path / "last")
    assert not same(last.tensors, editor.state_dict())
    assert last.training_targets == editor.training_targets


def test_patience_ends_a_training(
    llava: TinyModel,
    records: list[Record],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    scores([0.1, 0.9, 0.2, 0.2], monkeypatch)
    trained(llava, records, tmp_path, patience=3)
    assert read_curves(tmp_path / "curves")[-1]["step"] == 6
    # The same command has nothing left to do.
    monkeypatch.setattr(BatchGradient, "add", lambda *_: pytest.fail("it was over"))
    torch.manual_seed(5)
    editor = editor_of(llava)
    path, plan = tmp_path / "training.pt", watching(records, tmp_path, patience=3)
    train(editor, records[:8], CONFIG, checkpoint=path, progress=True, watching=plan)
    assert "ends after step 6: nothing better since step 3" in capfd.readouterr().err
    assert same(Archive.load(tmp_path / "best").tensors, editor.state_dict())


def test_only_the_targets_of_steps_that_were_kept_count_as_trained(
    llava: TinyModel, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    scores([0.1, 0.9, 0.2, 0.2, 0.2], monkeypatch)
    named = [answering(record, f"thing {place}") for place, record in enumerate(records)]
    plan = watching(named, tmp_path, patience=3, every=1)
    editor = editor_of(llava)
    train(editor, named[:8], CONFIG, progress=False, watching=plan)

    def drawn(steps: int) -> tuple[str, ...]:
        places = {place for step in range(steps) for place in batch_indices(step, 8, CONFIG)}
        return tuple(sorted(f"thing {place}" for place in places))

    assert read_curves(tmp_path / "curves")[-1]["step"] == 4, "patience ended it"
    assert editor.training_targets == Archive.load(tmp_path / "best").training_targets == drawn(1)
    assert Archive.load(tmp_path / "last").training_targets == drawn(4) != drawn(1)


def test_the_best_state_is_looked_for_anew_once_the_gate_is_another(
    llava: TinyModel, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Scores of two gates do not compare."""
    scores([0.1, 0.9, 0.5, 0.6, 0.4], monkeypatch)
    real, path = BatchGradient.add, tmp_path / "training.pt"

    def until_step_4(*arguments: Any) -> StepLosses:
        if read_curves(tmp_path / "curves")[-1]["step"] >= 4:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(BatchGradient, "add", until_step_4)
        trained(llava, records, tmp_path)
    torch.manual_seed(5)
    editor = editor_of(llava)
    other = replace(CONFIG, gate_steps=3)
    plan = watching(records, tmp_path)
    train(editor, records[:8], other, checkpoint=path, progress=False, watching=plan)
    lines = [line for line in read_curves(tmp_path / "curves") if line["part"] == "validation"]
    told = [(line["step"], line["average"], line["is_best"]) for line in lines]
    assert told == [(0, 0.1, True), (3, 0.9, True), (3, 0.5, True), (6, 0.6, True), (7, 0.4, False)]
    assert same(Archive.load(tmp_path / "best").tensors, editor.state_dict())


def test_a_gate_that_is_made_anew_after_the_last_step_is_measured(
    llava: TinyModel,
    records: list[Record],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    scores([0.1, 0.9, 0.5, 0.6, 0.4], monkeypatch)
    trained(llava, records, tmp_path)
    editor, plan = editor_of(llava), watching(records, tmp_path)
    path, other = tmp_path / "training.pt", replace(CONFIG, gate_steps=3)
    train(editor, records[:8], other, checkpoint=path, progress=False, watching=plan)
    lines = [line for line in read_curves(tmp_path / "curves") if line["part"] == "validation"]
    assert (lines[-1]["step"], lines[-1]["average"], lines[-1]["is_best"]) == (7, 0.4, True)
    assert "the adapters of step 3, the best with the earlier one" in caplog.text
    assert same(Archive.load(tmp_path / "best").tensors, editor.state_dict())


def test_checkpoints_say_whether_they_validate(
    llava: TinyModel, records: list[Record], whole: tuple[Path, DualEditor], tmp_path: Path
):
    assert not began_without_validation(tmp_path / "training.pt")
    assert (whole[0] / "training.pt").is_file()
    assert not began_without_validation(whole[0] / "training.pt")
    path = tmp_path / "alone.pt"
    train(editor_of(llava), records, CONFIG, checkpoint=path, progress=False)
    assert began_without_validation(path)
    values = torch.load(path, weights_only=True)
    # As earlier versions wrote it.
    torch.save({k: v for k, v in values.items() if k not in ("watch", "gate")}, path)
    assert began_without_validation(path)
    editor = editor_of(llava)
    train(editor, records, CONFIG, checkpoint=path, progress=False)
    assert editor.gate.threshold


def test_what_validation_takes_before_the_first_step_is_left_out(
    llava: TinyModel, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Asking the unedited model and the gate is part of it, beside every validation itself."""
    left_out: list[float] = []
    monkeypatch.setattr(TrainingProgress, "leave_out", lambda _, seconds: left_out.append(seconds))
    trained(llava, records, tmp_path)
    validations = [line for line in timeless(tmp_path) if line["part"] == "validation"]
    assert len(left_out) == len(validations) + 1
