"""Image generality where the unedited model sees the same in both pictures, and where it does not.

An edit can follow a thing to another picture only if the model takes it for the same thing there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from easyedit_dualedit.measure.intervals import interval
from easyedit_dualedit.model.answers import exact_match
from easyedit_dualedit.report.table import Table, mean_and_interval, numbers, texts

_REQUEST, _METRIC = "reliability", "image_generality"
_PROTOCOL = "generate"


def alike_table(cases: Sequence[Mapping[str, Any]]) -> Table | None:
    """Return image generality by whether the unedited model answers both pictures alike.

    Answers are compared as exact match compares them. None where all are alike, or none is.

    Args:
        cases: of a run of `evaluate` or the demo.
    """
    groups: dict[bool, list[Mapping[str, Any]]] = {True: [], False: []}
    for case in cases:
        request, other = (case["before"][each] for each in (_REQUEST, _METRIC))
        groups[bool(exact_match(request, other))].append(case)
    if not all(groups.values()):
        return None
    rows = [
        [
            name,
            *(
                cell
                for group in groups.values()
                for cell in (f"{len(group):,}", mean_and_interval(_image_generality(group, name)))
            ),
        ]
        for name in cases[0]["methods"]
    ]
    titles = ("edits", "both answered\nalike", "edits", "answered\notherwise")
    return Table(
        [*texts("method"), *numbers(*titles)],
        rows,
        title=f"{_PROTOCOL}, image generality by what the unedited model says to both pictures",
    )


def _image_generality(cases: Sequence[Mapping[str, Any]], method: str) -> Mapping[str, Any]:
    values = [case["methods"][method]["values"][_PROTOCOL][_METRIC] for case in cases]
    return interval(values).to_dict()
