"""Image generality by whether the unedited model answers both pictures alike."""

from typing import Any

from easyedit_dualedit.report.alike_pictures import alike_table


def case(request: str, rephrase: str, right: float) -> dict[str, Any]:
    methods = {"unedited": 0.0, "DualEdit": right}
    return {
        "before": {"reliability": request, "image_generality": rephrase},
        "methods": {
            name: {"values": {"generate": {"image_generality": value}}}
            for name, value in methods.items()
        },
    }


CASES = [
    case("a dog", "A  Dog ", 1.0),
    case("cat", "cat", 0.0),
    case("cat", "cats", 1.0),
    case("", "bird", 0.0),
    case("ox", "cow", 0.0),
]


def test_edits_are_parted_by_what_is_said_to_both_pictures():
    table = alike_table(CASES)
    assert table is not None
    unedited, edited = table.rows
    assert unedited[:2] == ["unedited", "2"] and unedited[2].startswith("0.0 ")
    assert [edited[place] for place in (0, 1, 3)] == ["DualEdit", "2", "3"]
    assert edited[2].startswith("50.0 ") and edited[4].startswith("33.3 ")


def test_where_all_are_alike_or_none_is_there_is_nothing_to_part():
    assert alike_table(CASES[:2]) is None
    assert alike_table(CASES[2:]) is None
