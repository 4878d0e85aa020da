"""Two runs beside each other, as tables and as a page."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from easyedit_dualedit.experiments.comparison import ChangedCase, Comparison, Difference
from easyedit_dualedit.report.markup import Element, element
from easyedit_dualedit.report.page.wording import counted, metric_name
from easyedit_dualedit.report.table import Cell, Table, numbers, texts

PAGE_FILE = "results.html"
"""Name of a benchmark's page in its folder, which a case of a comparison links to."""

_COLUMNS = [*texts("method", "protocol", "metric"), *numbers("first", "second")]
_COLUMNS += [*numbers("difference", "cases better", "cases worse"), *texts("verdict")]


def summary_lines(comparison: Comparison) -> list[str]:
    """Return in sentences what became better and worse, and what could not be compared."""
    by_verdict: dict[str, list[Difference]] = {}
    for difference in comparison.differences:
        by_verdict.setdefault(difference.verdict, []).append(difference)
    what = f" of {_methods(comparison)}" if len(comparison.names) == 1 else ""
    worse = sum(case.is_worse for case in comparison.changed)
    lines = [
        f"{counted(comparison.shared, 'case')}{what} in both runs;"
        f" {counted(worse, 'answer')} became worse, {len(comparison.changed) - worse:,} better."
    ]
    for verdict, words in (
        ("better", "Better in the second run, beyond chance"),
        ("worse", "Worse in the second run, beyond chance"),
    ):
        lines.append(f"{words}: {_told(comparison, by_verdict.get(verdict, []))}.")
    unsure = len(by_verdict.get("unsure", []))
    same = len(by_verdict.get("same", []))
    lines.append(
        f"{counted(unsure, 'number')} changed within what chance may do (the 95 % interval of the"
        f" difference holds 0), {same:,} did not change."
    )
    for run, alone, left_out in zip(
        comparison.runs, comparison.alone, comparison.left_out, strict=True
    ):
        if alone or left_out:
            told = [*([counted(alone, "case")] if alone else []), *left_out]
            lines.append(f"Only in {run.folder}: {', '.join(told)}.")
    otherwise, asked = comparison.unedited
    if otherwise:
        lines.append(
            f"The unedited model itself answers {otherwise:,} of {asked:,} questions otherwise, so"
            " more than the method differs between the runs."
        )
    return lines


def differences_table(comparison: Comparison, *, changed_only: bool = False) -> Table:
    """Return the table of numbers, a row for each method, protocol and metric."""
    chosen = [each for each in comparison.differences if not changed_only or each.verdict != "same"]
    rows = [
        [
            *(each.method, each.protocol, metric_name(each.metric)),
            f"{each.first:.1f}",
            f"{each.second:.1f}",
            _signed(each),
            str(each.better),
            str(each.worse),
            each.verdict,
        ]
        for each in chosen
    ]
    clear = [place for place, each in enumerate(chosen) if each.verdict in ("better", "worse")]
    one, two = (run.folder for run in comparison.runs)
    title = "Percent, and the difference in points with its 95 % interval, paired by case"
    table = Table(_COLUMNS, rows, title, f"first: {one}\nsecond: {two}", bold=clear)
    return _without_method(comparison, table)


def changed_table(comparison: Comparison, most: int | None = None) -> Table:
    """Return the table of questions that are answered better or worse, worse ones first."""
    columns = texts("record", "method", "question", "asked", "target", "first", "second", "change")
    rows = [
        [
            _record(case),
            case.method,
            metric_name(case.question),
            str(case.query.get("prompt", "")),
            str(case.query.get("target") or ""),
            *case.answers,
            _changes(case),
        ]
        for case in comparison.changed[:most]
    ]
    left = len(comparison.changed) - len(rows)
    caption = f"{left:,} more in the files that --output writes" if left else ""
    table = Table(columns, rows, "Answers that became worse or better", caption)
    return _without_method(comparison, table)


def comparison_markdown(comparison: Comparison) -> str:
    """Return everything as Markdown."""
    one, two = (run.folder for run in comparison.runs)
    parts = [f"# {two} compared with {one}\n"]
    parts += [f"- {line}\n" for line in summary_lines(comparison)]
    table = differences_table(comparison)
    parts += [f"\n## Numbers\n\n{table.title}.\n\n{table.markdown()}"]
    if comparison.changed:
        table = changed_table(comparison)
        parts += [f"\n## {table.title}\n\n{table.markdown()}"]
    return "".join(parts)


def comparison_csv(comparison: Comparison) -> str:
    """Return the numbers as CSV, with all their digits."""
    titles = ("method", "protocol", "metric", "first", "second", "difference", "low", "high", "n")
    rows = [
        [
            *(each.method, each.protocol, each.metric, each.first, each.second),
            *(each.change.mean, each.change.low, each.change.high, each.change.n),
            *(each.better, each.worse, each.verdict),
        ]
        for each in comparison.differences
    ]
    return Table(texts(*titles, "better", "worse", "verdict"), rows).csv()


def comparison_page(comparison: Comparison, folder: Path) -> tuple[str, Element, Element]:
    """Return the title, header and main part of the page.

    Args:
        comparison: what it shows.
        folder: that the page will lie in; links to the runs' own pages are relative to it.
    """
    one, two = (run.folder for run in comparison.runs)
    same_name = one.name == two.name
    title = f"{two if same_name else two.name} compared with {one if same_name else one.name}"
    lines = [element("p", line) for line in summary_lines(comparison)]
    runs = element(
        "dl",
        element("div", element("dt", "first"), element("dd", *_run_link(one, folder))),
        element("div", element("dt", "second"), element("dd", *_run_link(two, folder))),
        class_="facts",
    )
    header = element("header", element("h1", title), runs, *lines)
    main = element("main", _section("numbers", "Numbers", _shown_numbers(comparison)))
    answers: Sequence[Element] = [element("p", "No answer became better or worse.")]
    if comparison.changed:
        table = changed_table(comparison)
        rows = [
            [Cell(_case_links(case, (one, two), folder)), *row[1:-1], _verdict(row[-1], case)]
            for row, case in zip(table.rows, comparison.changed, strict=True)
        ]
        answers = [Table(table.columns, rows, table.title).html("Changed answers")]
    main.append(_section("answers", "Answers", answers))
    return title, header, main


def _shown_numbers(comparison: Comparison) -> list[Element]:
    """Return a table for each method and protocol: what changed first, for narrow screens."""
    text = "Percent, and the difference in points with its 95 % interval, paired by case."
    groups: dict[str, list[list[Any]]] = {}
    for each in comparison.differences:
        name = f"{each.method}, {each.protocol}" if len(comparison.names) > 1 else each.protocol
        verdict = element("span", each.verdict, class_=f"verdict {_kind(each.verdict)}")
        means = (f"{each.first:.1f}", f"{each.second:.1f}")
        row = [metric_name(each.metric), _signed(each), Cell([verdict]), *means]
        groups.setdefault(name, []).append([*row, str(each.better), str(each.worse)])
    columns = [*texts("metric"), *numbers("difference"), *texts("verdict")]
    columns += numbers("first", "second", "cases better", "cases worse")
    return [
        element("p", text),
        *(Table(columns, rows, name).html(name) for name, rows in groups.items()),
    ]


def _kind(verdict: str) -> str:
    return {"better": "good", "worse": "bad"}.get(verdict, "quiet")


def _verdict(text: Any, case: ChangedCase) -> Cell:
    kind = "bad" if case.is_worse else "good"
    return Cell([element("span", str(text), class_=f"verdict {kind}")])


def _section(name: str, title: str, content: Sequence[Element]) -> Element:
    heading = element("h2", title, id=f"{name}-title")
    return element("section", heading, *content, id=name, aria_labelledby=f"{name}-title")


def _run_link(run: Path, folder: Path) -> list[Element | str]:
    address = _address(run, folder)
    return [element("a", str(run), href=address)] if address else [str(run)]


def _case_links(case: ChangedCase, runs: Sequence[Path], folder: Path) -> list[Element | str]:
    """Return a record's number, and links to it on the pages that the runs have."""
    shown: list[Element | str] = [_record(case)]
    for run, name in zip(runs, ("first", "second"), strict=True):
        address = _address(run, folder)
        if address:
            link = element("a", name, href=f"{address}#case={case.place[1]}")
            shown += [" ", link]
    return shown


def _address(run: Path, folder: Path) -> str:
    """Return the address of a run's page, seen from a folder; empty if it has none."""
    page = run / PAGE_FILE
    if not page.is_file():
        return ""
    return quote(Path(os.path.relpath(page.resolve(), folder.resolve())).as_posix())


def _record(case: ChangedCase) -> str:
    group, index = case.place
    return f"{index} (group {int(group)})" if group else str(index)


def _changes(case: ChangedCase) -> str:
    told = ", ".join(f"{protocol} {100 * change:+.0f}" for protocol, change in case.changes.items())
    return f"{'worse' if case.is_worse else 'better'}: {told}"


def _signed(difference: Difference) -> str:
    change = difference.change
    if difference.verdict == "same":
        return "0"
    return f"{change.mean:+.1f} ({change.low:+.1f} to {change.high:+.1f})"


def _told(comparison: Comparison, differences: Sequence[Difference]) -> str:
    """Return which numbers differ how, by method, if there are several, and protocol."""
    groups: dict[str, list[str]] = {}
    for each in differences:
        name = f"{each.method}, {each.protocol}" if len(comparison.names) > 1 else each.protocol
        groups.setdefault(name, []).append(f"{metric_name(each.metric)} {_signed(each)}")
    return "; ".join(f"{name}: {', '.join(told)}" for name, told in groups.items()) or "nothing"


def _methods(comparison: Comparison) -> str:
    """Return what is compared where it is one method, which no column then names."""
    (first,) = comparison.names.items()
    return first[0] if first[0] == first[1] else f"{first[0]} (first) and {first[1]} (second)"


def _without_method(comparison: Comparison, table: Table) -> Table:
    """Return a table without its column of methods, which all rows have in common."""
    place = next(i for i, column in enumerate(table.columns) if column.title == "method")
    if len(comparison.names) > 1:
        return table

    def cut(cells: Sequence[Any]) -> list[Any]:
        return [*cells[:place], *cells[place + 1 :]]

    rows = [cut(row) for row in table.rows]
    return replace(table, columns=cut(table.columns), rows=rows)
