"""The report of many edits, in Markdown; every figure comes from what was measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from easyedit_dualedit.data.records import METRICS
from easyedit_dualedit.data.scope import HARD, IN_SCOPE, SCOPE
from easyedit_dualedit.experiments.many_edits import PROTOCOL
from easyedit_dualedit.report.table import Table, numbers
from easyedit_dualedit.report.target_split import split_line, split_table

_TIMED = {
    "seconds": lambda value: "-" if value is None else f"{1e6 * value:.0f}",
    "share": lambda value: "-" if value is None else f"{100 * value:.2f}",
}

_COMMAND = (
    "EASYEDIT_HOME=/path/to/EasyEdit python run_multimodal_edit.py many --report docs/many_edits.md"
)
"""What makes figures of records that are drawn here."""

_SCENES = (
    "Every scene of these records is another one, so no edit says anything about another's picture."
    " "
)
"""What is true of records that are drawn here, and may be of no others."""


def report_of(metrics: Mapping[str, Any], *, plots: bool = True) -> str:
    """Return the report of what `many` measured.

    Args:
        metrics: as the command writes them.
        plots: whether to show the plots beside it.
    """
    settings = metrics["settings"]
    is_own = settings.get("own_records", True)
    scenes = _SCENES if is_own else ""
    parts = [
        "# Many edits in one model",
        "Edits are made one after the other and none is undone; all of them are asked afterwards,"
        " under `generate`: free greedy answers, exact match, locality as the same text before and"
        f" after. {scenes}Points of fewer than a hundred edits are means over groups of other"
        " records, each in a model of its own.",
        f"```bash\n{_COMMAND}\n```" if is_own else "",
        f"Made with version {settings['version']}, torch {settings['torch']}, transformers"
        f" {settings['transformers']}, EasyEdit {settings['easyedit']}; {settings['records']}"
        f" records; {settings['machine']}.",
        "## Quality",
        _quality(metrics["points"]),
        "![Average of the five metrics by number of edits](many_edits.png)" if plots else "",
        *_split(metrics),
        "EasyEdit's methods run with the hyperparameters that it ships for a 7B model, as in"
        " [results.md](results.md); a row that is missing was left out, or could not be run.",
        '"% failed" are edits at which a method raised an error; the next one was made then.',
        "## What the gate does as edits grow in number",
        "Of queries in scope, the share that the gate routes to their own edit; of all others, the"
        " share for which it opens for any edit at all, in percent. `other_image`,"
        " `other_question` and `no_image` share half of an edit; of `other_image`, the edit whose"
        " picture is shown does not count.",
        _gate(metrics["rates"]),
        "## Bits",
        _bits(metrics["untouched"]),
        "## What routing costs",
        _costs(metrics["costs"]),
        "## Quality against size",
        _sizes(metrics),
        "![Average by bytes an edit](many_edits_sizes.png)" if plots else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _quality(points: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    rows = [
        [
            name,
            f"{point['edits']:,}",
            f"{point['asked']:,}",
            *(f"{point[metric]:.1f}" for metric in METRICS),
            f"{point['average']:.1f}",
            f"{point['bytes_per_edit'] / 1000:.1f}",
            f"{point['refused']:.1f}",
        ]
        for name, found in points.items()
        for point in found
    ]
    metrics = [metric.replace("_", " ") for metric in METRICS]
    return _markdown(
        ["method", "edits", "asked", *metrics, "average", "kB an edit", "% failed"], rows
    )


def many_split_table(metrics: Mapping[str, Any]) -> Table | None:
    """Return the table by targets seen in training: a row for each group, method and number.

    None where that is not known, or all targets are alike.
    """
    points = {
        f"{name}, {point['edits']:,} edits": point
        for name, found in metrics["points"].items()
        for point in found
    }
    return split_table({"methods": points, "targets": metrics.get("targets")}, PROTOCOL)


def _split(metrics: Mapping[str, Any]) -> list[str]:
    line, table = split_line(metrics), many_split_table(metrics)
    shown = [] if table is None else [table.markdown().rstrip()]
    return ["## Targets seen in training, and others", line, *shown] if line else []


def _gate(rates: Mapping[str, Mapping[str, float]]) -> str:
    hard = [kind for kind in SCOPE if kind in HARD]
    kinds = [*IN_SCOPE, *(kind for kind in METRICS if kind not in IN_SCOPE), *hard]
    rows = [
        [f"{int(count):,}", *(f"{100 * found[kind]:.1f}" for kind in kinds)]
        for count, found in sorted(rates.items(), key=lambda item: int(item[0]))
    ]
    return _markdown(["edits", *(kind.replace("_", " ") for kind in kinds)], rows)


def _bits(found: Mapping[str, int]) -> str:
    return (
        f"With all edits in the model, the gate stays closed for {found['closed']:,} locality"
        f" queries; the logits of {found['different']:,} of them differ from the unedited model's"
        f" in any bit. With all edits removed again, the logits of {found['after_removal']:,}"
        " queries in scope do."
    )


def _costs(costs: Mapping[str, Any]) -> str:
    forward = 1e3 * costs["forward_seconds"]
    timed = {
        (name, what): {int(count): float(value) for count, value in costs[name][what].items()}
        for name in ("closed", "open")
        for what in _TIMED
    }
    counts = sorted(set().union(*timed.values()))
    rows = [
        [f"{count:,}", *(_TIMED[what](found.get(count)) for (_, what), found in timed.items())]
        for count in counts
    ]
    return (
        f"One query at batch 1, medians; a forward of the unedited model takes {forward:.1f} ms."
        " Routing is everything that the gate adds to it: the mean over the image tokens, the"
        " query's key, the products, the choice; each decision is made once before it is timed. The"
        " edits are those of the data, on the testbed of"
        " training records, which are many; the queries are image localities and rephrased"
        " questions of some of them, those that the gate decides rightly.\n\n"
        + _markdown(
            [
                "edits",
                "no edit concerns it: microseconds",
                "% of a forward",
                "one does: microseconds",
                "% of a forward",
            ],
            rows,
        )
        + "\n\nThe keys of all edits are compared with the query's in one product."
    )


def _sizes(metrics: Mapping[str, Any]) -> str:
    rows = [
        [
            row["precision"],
            f"{row['bytes_per_edit'] / 1000:.2f}",
            *(f"{row[metric]:.1f}" for metric in METRICS),
            f"{row['average']:.2f}",
        ]
        for row in metrics["sizes"]
    ]
    names = [metric.replace("_", " ") for metric in METRICS]
    count = metrics["sizes"][0]["edits"] if metrics["sizes"] else 0
    return (
        f"{count} edits. The default is `{metrics['default_precision']}`, the smallest that is"
        " within half a point of the largest.\n\n"
        + _markdown(["stored as", "kB an edit", *names, "average"], rows)
    )


def _markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return Table(numbers(*titles), rows).markdown().rstrip()
