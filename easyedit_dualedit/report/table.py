"""One table, written for a terminal, as Markdown, as CSV and as HTML."""

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from rich.table import Table as RichTable
from rich.text import Text

from easyedit_dualedit.report.markup import Element, element


@dataclass(frozen=True)
class Column:
    """A title, and how the cells below it stand."""

    title: str
    """May have several lines, for a terminal; files and pages have it in one."""
    is_number: bool = False
    """Whether the cells stand on the right."""
    widest: int | None = None
    """Letters of a line at a terminal; None is as many as there are."""
    mark: str = ""
    """Small number of a note, on a page."""


@dataclass(frozen=True)
class Cell:
    """What a page shows in a cell, where that is more than a text."""

    content: Sequence[Element | str]
    hint: str = ""
    """Shown while a pointer rests on the cell."""
    kind: str = ""
    """Class of the cell, instead of that of its column."""
    columns: int = 1
    """How many columns it fills."""


@dataclass(frozen=True)
class Table:
    """Rows of cells under titles.

    Table([*texts("method"), *numbers("average")], [["DualEdit", "98.2"]]).markdown()
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    """Texts or numbers, for a page also `Cell`s."""
    title: str = ""
    caption: str = ""
    """Below the table, at a terminal."""
    bold: Collection[int] | None = None
    """Rows that a terminal shows bold, all others dim; None is no row either."""
    lines_after: Collection[int] = ()
    """Rows that a terminal draws a line after."""

    def for_terminal(self, *, title_on_the_left: bool = False) -> RichTable:
        """Return the table as rich prints it; no text of it can become markup."""
        table = RichTable(
            title=Text(self.title, "table.title") if self.title else None,
            caption=Text(self.caption, "table.caption") if self.caption else None,
            title_justify="left" if title_on_the_left else "center",
        )
        for column in self.columns:
            table.add_column(
                Text(column.title),
                justify="right" if column.is_number else "left",
                max_width=column.widest,
            )
        for place, row in enumerate(self.rows):
            style = None if self.bold is None else "bold" if place in self.bold else "dim"
            cells = [Text(str(cell)) for cell in row]
            table.add_row(*cells, style=style, end_section=place in self.lines_after)
        return table

    def markdown(self) -> str:
        """Return the table as lines of Markdown."""

        def line(cells: Sequence[Any]) -> str:
            return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |\n"

        return (
            line(self._titles)
            + "|"
            + "---|" * len(self.columns)
            + "\n"
            + "".join(map(line, self.rows))
        )

    def csv(self) -> str:
        """Return the table as CSV, numbers with all their digits."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self._titles, *self.rows])
        return text.getvalue()

    def html(self, label: str) -> Element:
        """Return the table as an element that scrolls by itself where the page is too narrow.

        The first cell of a row is its header.

        Args:
            label: what a screen reader calls it.
        """
        head = element("tr")
        for column, title in zip(self.columns, self._titles, strict=True):
            cell = element("th", title, scope="col")
            if column.is_number:
                cell.set("class", "number")
            if column.mark:
                cell.append(element("sup", column.mark))
            head.append(cell)
        body = element("tbody")
        for first, *others in self.rows:
            cells = [_html_cell("th", first, "", {"scope": "row"})]
            # A cell that fills several columns may stand for none: a row then has one more.
            for cell, column in zip_longest(others, self.columns[1 : len(others) + 1]):
                kind = "number" if column is not None and column.is_number else ""
                cells.append(_html_cell("td", cell, kind, {}))
            body.append(element("tr", *cells))
        table = element("table", element("caption", self.title), element("thead", head), body)
        return element(
            "div", table, class_="scrolling", role="region", aria_label=label, tabindex="0"
        )

    @property
    def _titles(self) -> list[str]:
        return [column.title.replace("\n", " ") for column in self.columns]


def texts(*titles: str) -> list[Column]:
    """Return columns of texts."""
    return [Column(title) for title in titles]


def numbers(*titles: str) -> list[Column]:
    """Return columns of numbers."""
    return [Column(title, is_number=True) for title in titles]


def mean_and_interval(value: Mapping[str, float], digits: int = 1) -> str:
    """Return a mean and its 95 % interval, such as 98.2 (97.6–98.7)."""
    mean, low, high = (f"{value[name]:.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} ({low}–{high})"


def _html_cell(tag: str, cell: Any, kind: str, attributes: dict[str, str]) -> Element:
    shown = cell if isinstance(cell, Cell) else Cell([str(cell)])
    if shown.columns > 1:
        attributes["colspan"] = str(shown.columns)
    if shown.kind or kind:
        attributes["class"] = shown.kind or kind
    if shown.hint:
        attributes["title"] = shown.hint
    return element(tag, *shown.content, **attributes)
