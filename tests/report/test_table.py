"""One table reads the same at a terminal, in Markdown, in CSV and on a page."""

import csv
import io
from xml.etree.ElementTree import tostring

from rich.console import Console

from easyedit_dualedit.report.markup import element
from easyedit_dualedit.report.table import Cell, Column, Table, mean_and_interval, numbers, texts

TABLE = Table(
    [*texts("method"), *numbers("text\ngenerality")],
    [["A | B", "98.2 ±0.4"], ["[red]x[/red]", 1.25]],
    title="percent [of] all",
    caption="what it means",
)


def shown(table: Table, *, styles: bool = False) -> str:
    console = Console(width=60, record=True, file=io.StringIO(), force_terminal=True)
    console.print(table.for_terminal())
    return console.export_text(styles=styles)


def test_markdown_has_titles_in_one_line_and_escapes_what_ends_a_cell():
    assert TABLE.markdown() == (
        "| method | text generality |\n"
        "|---|---|\n"
        "| A \\| B | 98.2 ±0.4 |\n"
        "| [red]x[/red] | 1.25 |\n"
    )


def test_csv_keeps_cells_as_they_are():
    found = list(csv.DictReader(io.StringIO(TABLE.csv())))
    assert found == [
        {"method": "A | B", "text generality": "98.2 ±0.4"},
        {"method": "[red]x[/red]", "text generality": "1.25"},
    ]
    third = Table(numbers("a"), [[1 / 3]]).csv()
    assert float(third.splitlines()[1]) == 1 / 3


def test_a_terminal_shows_texts_as_they_are_and_numbers_on_the_right():
    lines = [line.strip() for line in shown(TABLE).splitlines()]
    assert lines[0] == "percent [of] all" and lines[-1] == "what it means"
    assert "│ [red]x[/red] │       1.25 │" in lines
    assert "┃ method       ┃ generality ┃" in lines


def test_a_terminal_can_draw_lines_and_show_rows_bold():
    rows = [["a"], ["b"], ["c"]]
    assert shown(Table(texts("x"), rows)).count("├") == 0
    assert shown(Table(texts("x"), rows, lines_after=[0])).count("├") == 1
    styled = shown(Table(texts("x"), rows, bold=[1]), styles=True)
    assert "\x1b[1mb" in styled and "\x1b[2ma" in styled and "\x1b[2mc" in styled


def test_a_long_name_is_broken_at_a_terminal():
    found = shown(Table([Column("name", widest=10)], [["one two three four"]]))
    assert "│ one two    │" in found and "│ three four │" in found


def test_a_page_has_heads_with_a_scope_and_texts_that_are_no_markup():
    found = tostring(TABLE.html("Numbers"), encoding="unicode")
    assert found == (
        '<div class="scrolling" role="region" aria-label="Numbers" tabindex="0"><table>'
        "<caption>percent [of] all</caption><thead><tr>"
        '<th scope="col">method</th><th scope="col" class="number">text generality</th>'
        "</tr></thead><tbody>"
        '<tr><th scope="row">A | B</th><td class="number">98.2 ±0.4</td></tr>'
        '<tr><th scope="row">[red]x[/red]</th><td class="number">1.25</td></tr>'
        "</tbody></table></div>"
    )


def test_a_page_can_show_more_in_a_cell_and_mark_a_column():
    cells = [Cell(["a ", element("b", "<c>")], "a hint", "gap", 2)]
    columns = [*texts("x"), Column("y", is_number=True, mark="1"), *texts("z")]
    found = tostring(Table(columns, [["r", *cells]]).html("l"), encoding="unicode")
    assert '<th scope="col" class="number">y<sup>1</sup></th>' in found
    assert '<td colspan="2" class="gap" title="a hint">a <b>&lt;c&gt;</b></td>' in found


def test_a_mean_stands_with_its_interval():
    value = {"mean": 12.34, "low": 11.0, "high": 14.0}
    assert mean_and_interval(value) == "12.3 (11.0–14.0)"
    assert mean_and_interval(value, digits=3) == "12.340 (11.000–14.000)"
