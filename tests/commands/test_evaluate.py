"""The command `evaluate`: what only some records are asked, and what is said where none is."""

import json
from pathlib import Path
from typing import Any

from PIL import Image
from tiny_data import BOUND, PORTED
from workplace import Workplace

from easyedit_dualedit.experiments.dualedit_rows import DUALEDIT
from easyedit_dualedit.measure.run import METRICS_FILE, QUERIES_FOLDER


def bound(items: list[Any]) -> None:
    items[0]["binding"] = BOUND
    items[1]["binding"] = {name: BOUND[name] for name in ("beside_q", "beside_a")}
    items[1]["port_new"] = [PORTED]


def test_binding_and_portability_are_measured_of_the_records_that_have_them(
    work: Workplace, call: Any
):
    work.rewrite(bound)
    done = call(work.evaluate("--limit", 3, "--protocols", "binding", "portability"))
    assert done.code == 0, done.err
    folder = work.folder / "outputs" / "evaluate"
    metrics = json.loads((folder / METRICS_FILE).read_text())["methods"]
    assert list(metrics) == ["unedited", DUALEDIT]
    for method in metrics.values():
        found = method["protocols"]["binding"]
        assert {name: value["n"] for name, value in found.items()} == {
            "text_untouched": 1,
            "picture_old": 1,
            "picture_new": 1,
            "picture_neither": 1,
            "beside_untouched": 2,
        }
        assert method["protocols"]["portability"]["exact_match"]["n"] == 1
    unedited = metrics["unedited"]["protocols"]["binding"]
    assert unedited["text_untouched"]["mean"] == unedited["beside_untouched"]["mean"] == 100
    shown = " ".join(done.out.split())
    assert "old binding persists" in shown and "(2 edits)" in shown
    again = call(work.evaluate("--limit", 3, "--protocols", "portability", "binding"))
    assert again.code == 0, again.err
    # Other questions are another run, and so are none.
    work.rewrite(lambda items: items[0]["binding"].update(picture_old="the moon"))
    assert (
        "questions was"
        in call(work.evaluate("--limit", 3, "--protocols", "binding", "portability")).error
    )
    assert "other settings" in call(work.evaluate("--limit", 3)).error


def test_close_queries_are_drawn_again_where_a_picture_changed_and_when_fresh(
    work: Workplace, call: Any
):
    command = work.evaluate("--limit", 2, "--specificity")
    drawn = work.folder / "outputs" / "evaluate" / QUERIES_FOLDER

    def files() -> dict[Path, int]:
        assert call(command).code == 0
        return {path: path.stat().st_mtime_ns for path in drawn.rglob("*.json")}

    first = files()
    assert first and files() == first
    picture = work.images / json.loads(work.data.read_text())[0]["image"]
    Image.new("RGB", (32, 32), "black").save(picture)
    second = files()
    assert len(second) == 2 * len(first)
    command.append("--fresh")
    third = files()
    assert len(third) == len(first) and not third.items() & second.items()


def test_records_without_the_questions_are_one_clear_error(work: Workplace, call: Any):
    error = call(work.evaluate("--limit", 3, "--protocols", "binding")).error
    assert "none of the 3 records has the field binding" in error
    assert not (work.folder / "outputs" / "evaluate").exists()
