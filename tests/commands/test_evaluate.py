"""The command `evaluate`: what only some records are asked, and what is said where none is."""

import json
from typing import Any

from tiny_data import BOUND, PORTED
from workplace import Workplace

from easyedit_dualedit.experiments.dualedit_rows import DUALEDIT
from easyedit_dualedit.measure.run import METRICS_FILE


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


def test_records_without_the_questions_are_one_clear_error(work: Workplace, call: Any):
    error = call(work.evaluate("--limit", 3, "--protocols", "binding")).error
    assert "none of the 3 records has the field binding" in error
    assert not (work.folder / "outputs" / "evaluate").exists()
