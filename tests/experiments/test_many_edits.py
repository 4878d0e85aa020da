"""Many edits in one model: groups, cases that are resumed, and the report."""

import argparse
import json
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from tiny_data import write_data
from tiny_editors import trained_editor
from tiny_models import TinyModel
from tqdm import tqdm
from workplace import Workplace

from easyedit_dualedit.commands import many
from easyedit_dualedit.data.records import METRICS, Record, load_records
from easyedit_dualedit.experiments import gate_rates as routing
from easyedit_dualedit.experiments import many_edits as module
from easyedit_dualedit.experiments.many_edits import (
    Group,
    SharedMemory,
    UneditedAnswers,
    groups_of,
    measure_group,
    point_of,
    steps_of,
    untouched,
)
from easyedit_dualedit.measure.run import Run
from easyedit_dualedit.measure.target_split import TargetSplit
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.report.many_edits import report_of


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    return load_records(write_data(tmp_path, 12), tmp_path)


@pytest.fixture
def editor(llava: TinyModel) -> DualEditor:
    return trained_editor(llava, gate={"kind": "cosine", "threshold": 0.99999})


def measured(editor: DualEditor, group: Group, folder: Path) -> dict[str, Any] | None:
    unedited = UneditedAnswers(editor.backbone.model, editor.encoder, Run(folder / "unedited", {}))
    with tqdm(disable=True) as bar:
        run = Run(folder / group.name, {})
        method = SharedMemory(editor, "float32")
        measure_group(method, group, unedited, editor.encoder, run, bar=bar)
    return point_of(folder, [group])


def test_few_edits_are_measured_in_groups_of_other_records(records: list[Record]):
    groups = groups_of(records * 20, (100, 10, 1))
    assert [group.count for group in groups] == [1] * 100 + [10] * 10 + [100]
    for count in (1, 10, 100):
        places = [group.place for group in groups if group.count == count]
        assert places == list(range(max(1, 100 // count)))
        assert all(len(group.records) == count for group in groups if group.count == count)
    assert groups_of(records, (100,)) == []
    for count in (30, 40, 60):
        assert sum(len(group.records) for group in groups_of(records * 20, (count,))) >= 100


def test_edits_are_asked_after_all_of_them_and_cases_are_kept(
    editor: DualEditor, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    group = groups_of(records, (12,))[0]
    first = measured(editor, group, tmp_path / "run")
    assert first is not None and first["edits"] == first["asked"] == 12
    assert first["open"]["reliability"] == 100.0, "the request itself opens an exact gate"
    assert first["average"] == pytest.approx(sum(first[metric] for metric in METRICS) / 5)
    paths = sorted((tmp_path / "run" / group.name / "cases").glob("*.json"))
    assert len(paths) == 12
    kept = {path: path.read_bytes() for path in paths[1:]}
    paths[0].unlink()
    assert point_of(tmp_path / "run", [group]) is None
    assert measured(editor, group, tmp_path / "run") == first
    assert all(path.read_bytes() == content for path, content in kept.items())
    monkeypatch.setattr(SharedMemory, "many", None)
    assert measured(editor, group, tmp_path / "run") == first, "nothing is edited again"


def test_the_bar_tells_of_each_question_and_edit_and_ends_at_its_end(
    editor: DualEditor, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    group = groups_of(records, (4,))[0]
    unedited = UneditedAnswers(editor.backbone.model, editor.encoder, Run(tmp_path / "u", {}))
    run, many = Run(tmp_path / group.name, {}), SharedMemory.many
    at_edits = []

    def noted(method: SharedMemory, edited: Sequence[Record], made: Callable[[], object]) -> Any:
        at_edits.append(bar.n)
        return many(method, edited, made)

    monkeypatch.setattr(SharedMemory, "many", noted)
    for removed in ("*.json", "00000.json", "none"):
        for path in (run.folder / "cases").glob(removed):
            path.unlink()
        with tqdm(total=steps_of(group), file=StringIO()) as bar:
            method = SharedMemory(editor, "float32")
            measure_group(method, group, unedited, editor.encoder, run, bar=bar)
        assert bar.n == steps_of(group) == 12
    # Before the edits: a question for each record; then two steps of three records are done, and
    # a question; the third time nothing is missing.
    assert at_edits == [4, 2 * 3 + 1]


def test_a_point_is_split_by_targets_seen_in_training(
    editor: DualEditor, records: list[Record], tmp_path: Path
):
    groups = groups_of(records, (4,))[:2]
    for group in groups:
        measured(editor, group, tmp_path)
    split = TargetSplit("a test", (0, 1, 6), (2, 3, 4, 5, 7, 11), (11,))
    point = point_of(tmp_path, groups, split)
    assert point is not None
    found = point["by_target"]["generate"]
    # Record 11 is in neither group.
    assert {group: values["reliability"]["n"] for group, values in found.items()} == {
        "seen": 3,
        "unseen": 5,
    }
    seen = [
        json.loads(path.read_text())["values"]["text_generality"]
        for path in tmp_path.glob("00004-*/cases/*.json")
        if int(path.stem) in split.seen
    ]
    assert found["seen"]["text_generality"]["mean"] == pytest.approx(100 * sum(seen) / 3)
    without = point_of(tmp_path, groups, "nobody knows")
    assert without is not None and "by_target" not in without


def test_a_gate_that_stays_closed_changes_no_bit(editor: DualEditor, records: list[Record]):
    found = untouched(editor, records, "int8")
    assert found["closed"] > 0
    assert found["different"] == found["after_removal"] == 0


def test_bits_that_differ_are_counted(
    editor: DualEditor, records: list[Record], monkeypatch: pytest.MonkeyPatch
):
    from easyedit_dualedit.method.edited_model import EditedModel

    call = EditedModel.__call__

    def wrong(self: EditedModel, *args: Any, **inputs: Any) -> Any:
        output = call(self, *args, **inputs)
        output.logits = output.logits + 1e-4
        return output

    monkeypatch.setattr(EditedModel, "__call__", wrong)
    found = untouched(editor, records, "float32")
    assert found["different"] == found["closed"] > 0
    assert found["after_removal"] == 3 * len(records)


def command(work: Workplace, *more: object) -> list[str]:
    hparams = work.hparams(archive=str(work.adapters), gate={"kind": "cosine", "threshold": 0.9999})
    records = next(work.data.glob("*.json")) if work.data.is_dir() else work.data
    return [
        str(part)
        for part in (
            "many", "--hparams", hparams, "--data", records, "--images", work.images,
            "--counts", 1, 3, "--methods", "dualedit", "--output", work.folder / "out", *more,
        )
    ]  # fmt: skip


def test_a_report_that_cannot_be_written_is_told_before_anything_is_measured(
    work: Workplace, call: Any
):
    refused = call(command(work, "--report", work.folder))
    assert refused.code == 2 and "is a folder; name a file in it" in refused.error
    assert not (work.folder / "out" / "many" / "cases").exists()


def test_the_command_writes_a_report_and_continues(work: Workplace, call: Any):
    called = call(command(work))
    assert called.code == 0, called.error
    folder = work.folder / "out" / "many"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [point["edits"] for point in metrics["points"]["DualEdit"]] == [1, 3]
    assert [row["precision"] for row in metrics["sizes"]] == ["float32", "float16", "int8"]
    sizes = [row["bytes_per_edit"] for row in metrics["sizes"]]
    assert sizes == sorted(sizes, reverse=True) and sizes[2] < 0.6 * sizes[0]
    report = (folder / "many_edits.md").read_text()
    # What is said of our own records may not be true of these.
    assert "Every scene" not in report and "```" not in report
    assert report == report_of(metrics, plots="](many_edits.png)" in report)
    # The adapters know their targets: all of these were seen.
    assert metrics["targets"]["seen"] == 8 and metrics["targets"]["unseen"] == 0
    told = "Of 8 targets, 8 were seen as a whole in training (known from the adapters in"
    assert told in report and told in " ".join(called.out.split())
    for heading in (
        "Quality",
        "Targets seen in training, and others",
        "Bits",
        "What routing costs",
        "Quality against size",
    ):
        assert f"## {heading}\n" in report
    items = json.loads(work.data.read_text(encoding="utf-8"))
    some = work.folder / "some.json"
    some.write_text(json.dumps(items[:2]), encoding="utf-8")
    parted = call(command(work, "--training-records", some))
    assert parted.code == 0, parted.err
    assert (
        "| never seen as a whole | 4 | DualEdit, 1 edits |"
        in (folder / "many_edits.md").read_text()
    )
    again = call(command(work))
    assert again.code == 0
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    case = next(folder.rglob("dualedit/00001-000/cases/*.json"))
    case.write_text(case.read_text().replace('"values"', '"stale"'))
    assert call(command(work, "--fresh")).code == 0
    assert "stale" not in case.read_text(), "a fresh run measures again"


def test_a_run_goes_on_only_with_the_gate_and_the_precision_that_it_was_begun_with(
    work: Workplace, call: Any
):
    assert call(command(work)).code == 0
    metrics = work.folder / "out" / "many" / "metrics.json"
    before = metrics.read_bytes()
    given = {"archive": str(work.adapters), "gate": {"kind": "cosine", "threshold": 0.9999}}
    for key, value in (("gate", {"kind": "open"}), ("dtype", "bfloat16")):
        other = call([*command(work), "--hparams", str(work.hparams(**given | {key: value}))])
        assert f"other settings: {key}" in other.error
    same = work.hparams(**given, batch_size=3, results_dir="elsewhere")
    assert call([*command(work), "--hparams", str(same)]).code == 0
    assert metrics.read_bytes() == before


def test_a_limit_holds_for_what_is_routed_among(tmp_path: Path):
    """Of our own models ten thousand records would be drawn for it."""
    records: list[Record] = []
    arguments = argparse.Namespace(data=None, limit=1)
    assert many._routed(arguments, "testbed", records, tmp_path) is records
    assert not list(tmp_path.iterdir())


def test_other_counts_make_anew_what_depends_on_them(
    work: Workplace, call: Any, monkeypatch: pytest.MonkeyPatch
):
    def measured_at(*counts: int) -> dict[str, Any]:
        called = call(command(work, "--counts", *counts))
        assert called.code == 0, called.err
        found: dict[str, Any] = json.loads((work.folder / "out/many/metrics.json").read_text())
        assert list(found["rates"]) == [str(count) for count in counts]
        return found

    first = measured_at(1)
    monkeypatch.setattr(many, "_SIZES_AT", 2)
    second = measured_at(1, 3)
    assert second["costs"] == first["costs"]
    assert second["untouched"]["after_removal"] == 0
    # The number that sizes are compared at is none of the counts.
    assert [(row["precision"], row["edits"]) for row in second["sizes"]] == [
        ("float32", 2),
        ("float16", 2),
        ("int8", 2),
    ]
    assert [point["edits"] for point in second["points"]["DualEdit"]] == [1, 3]
    monkeypatch.setattr(routing, "routing_rates", None)
    assert measured_at(1, 3) == second, "what is there for these counts is kept"


def test_bits_are_counted_anew_with_more_edits(
    work: Workplace, call: Any, monkeypatch: pytest.MonkeyPatch
):
    asked = []

    def noted(editor: DualEditor, records: Sequence[Record], *more: Any) -> Any:
        asked.append(len(records))
        return untouched(editor, records, *more)

    monkeypatch.setattr(module, "untouched", noted)
    for counts in ((1,), (1, 3), (1, 3)):
        assert call(command(work, "--counts", *counts)).code == 0
    assert asked == [1, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--counts", "999"], "needs as many records"),
        (["--methods", "magic"], "no methods ['magic']"),
    ],
)
def test_bad_arguments_are_one_line(work: Workplace, call: Any, options: list[str], message: str):
    called = call(command(work, *options))
    assert message in called.error
