"""Quirks of data files: each is counted, none is mended."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny_data import PORTED, changed_data, write_data
from tiny_editors import picture

from easyedit_dualedit.data.quirks import quirks
from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.model.inputs import Query


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[Callable[[list[Any]], Any]], Path]:
    """Return a function that writes the data file again after a change of its items."""
    return partial(changed_data, tmp_path)


QUIRKS = (
    "text-locality prompt with the prefix 'nq question: '",
    "newline in a target",
    "newline in a prompt",
    "white space around a target",
    "rephrase equal to its source",
    "target equal to the prediction",
    "text beyond ASCII",
    "rephrased picture equal to the edit's",
    "picture and prompt of another record, different target",
    "picture, prompt and target of another record",
)


def without_quirks(items: list[Any]) -> None:
    """Change items so that they have no quirk."""
    for item in items:
        item["loc"] = "where is the star"
        item["image_rephrase"] = item["m_loc"]


def test_every_quirk_is_counted_with_zeros(changed: Any, tmp_path: Path):
    assert quirks([]) == dict.fromkeys(QUIRKS, 0)
    assert list(quirks([])) == list(QUIRKS)
    path = changed(without_quirks)
    assert quirks(load_records(path, tmp_path, template="Ä:\n{}")) == dict.fromkeys(QUIRKS, 0)
    counts = quirks(load_records(write_data(tmp_path), tmp_path))
    assert counts == dict.fromkeys(QUIRKS, 0) | {QUIRKS[0]: 8, QUIRKS[7]: 8}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"loc": "nq question: who"}, {QUIRKS[0]}),
        ({"alt": "a\nb"}, {QUIRKS[1]}),
        ({"loc_ans": "a\rb"}, {QUIRKS[1]}),
        ({"m_loc_a": "a\n"}, {QUIRKS[1], QUIRKS[3]}),
        ({"port_new": [PORTED]}, {QUIRKS[3]}),
        ({"port_new": [PORTED | {"port_q": "a\nb", "port_a": "é"}]}, {QUIRKS[2], QUIRKS[6]}),
        ({"rephrase": "a\n\nb"}, {QUIRKS[2]}),
        ({"rephrase": "a\n"}, set()),
        ({"alt": " a"}, {QUIRKS[3]}),
        ({"rephrase": "What colour is circle 1? "}, {QUIRKS[4]}),
        ({"pred": "New_York, NY", "alt": "new york, ny"}, {QUIRKS[5]}),
        ({"pred": "é"}, {QUIRKS[6]}),
        ({"m_loc_q": "où?"}, {QUIRKS[6]}),
        ({"image_rephrase": "1.png"}, {QUIRKS[7]}),
    ],
)
def test_a_quirk_of_one_record_counts_once(
    changed: Any, tmp_path: Path, change: dict[str, Any], expected: set[str]
):
    def spoil(items: list[Any]) -> None:
        without_quirks(items)
        items[1].update(change)

    counts = quirks(load_records(changed(spoil), tmp_path, template="Ä:\n{}"))
    assert counts == dict.fromkeys(QUIRKS, 0) | dict.fromkeys(expected, 1)


def test_records_with_one_picture_and_prompt_are_counted(changed: Any, tmp_path: Path):
    def repeat(items: list[Any]) -> None:
        for item, alt in zip(items, ["a", "b", "b ", "c", "c", "d", "d", "d"], strict=True):
            item["alt"] = alt
            item["src"] = "What?"
            item["image"] = "0.png" if alt.strip() in ("a", "b") else "1.png"
        items[6]["image"] = "2.png"
        items[7]["src"] = "Which?"

    counts = quirks(load_records(changed(repeat), tmp_path))
    # 0.png: a, b, b; 1.png: c, c, d, and d with another prompt; 2.png: d.
    assert counts[QUIRKS[8]] == 3 + 3
    assert counts[QUIRKS[9]] == 2 + 2


def test_quirks_of_records_with_pictures_in_memory_are_counted():
    query = Query("What?", picture(), "blue")
    records = [Record(index, *[query] * 5, prediction="red") for index in range(2)]
    counts = quirks(records)
    assert counts["picture, prompt and target of another record"] == 2
    assert counts["picture and prompt of another record, different target"] == 0
    assert counts["rephrased picture equal to the edit's"] == 2
