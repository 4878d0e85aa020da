"""An edit takes as long to add to many as to none; `--adds 5000` adds that many one by one."""

import time
from dataclasses import replace
from statistics import fmean, median

import pytest
from tiny_editors import picture, trained_editor
from tiny_models import TinyModel

from easyedit_dualedit.method.edit_memory import EditMemory
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.inputs import Query

SLOWER = 1.2
"""How many times as long it may take."""

GATE = {"kind": "cosine", "threshold": 0.9999}


@pytest.fixture
def editor(llava: TinyModel) -> DualEditor:
    return trained_editor(llava, gate=GATE)


def seconds_to_add(memory: EditMemory, place: int) -> float:
    """Return the processor's time for one edit, which other processes do not change."""
    request = Query(f"What is in picture {place}?", PICTURE, "blue circle")
    start = time.process_time()
    memory.add(request)
    return time.process_time() - start


PICTURE = picture("red")


def test_an_edit_takes_as_long_to_add_to_five_thousand_as_to_none(editor: DualEditor):
    many, none = EditMemory(editor), EditMemory(editor)
    many.add(Query("What is it?", PICTURE, "blue circle"))
    (edit,) = many
    held = [
        replace(edit, id=str(place), provenance=replace(edit.provenance, prompt=f"What? {place}"))
        for place in range(5000)
    ]
    many._hold(held)
    times = [[seconds_to_add(memory, place) for memory in (many, none)] for place in range(60)]
    assert (len(many), len(none)) == (5060, 60)
    to_many, to_none = (median(each) for each in zip(*times, strict=True))
    assert to_many <= SLOWER * to_none


def test_edits_added_one_by_one_take_as_long_at_the_end(
    editor: DualEditor, request: pytest.FixtureRequest
):
    count = int(request.config.getoption("--adds"))
    memory = EditMemory(editor)
    times = [seconds_to_add(memory, place) for place in range(count)]
    assert len(memory) == count
    first, last = times[: count // 5], times[-count // 5 :]
    told = [f"{1000 * how(part):.2f} ms" for how in (fmean, median) for part in (first, last)]
    if count < 1000:  # too few for more than a glance on a machine that does other work
        assert median(last) <= 3 * median(first), told
        return
    assert median(last) <= SLOWER * median(first), told
    assert fmean(last) <= SLOWER * fmean(first), told
