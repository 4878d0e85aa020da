"""The command `compare`: what got better and what worse from one run to another."""

import argparse

from easyedit_dualedit.commands.arguments import given_path

HELP = "compare two runs of benchmark, evaluate, demo or many"
DESCRIPTION = (
    "Compare two folders of results on the same records: each number in both, their difference"
    " with a paired interval over the cases that both have, and the questions whose answers became"
    " better or worse. The first run is the yardstick."
)
_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("first", type=given_path, metavar="RUN", help="such as outputs/benchmark")
    parser.add_argument("second", type=given_path, metavar="RUN", help="what is judged")
    parser.add_argument(
        "--method", metavar="NAME", help="only this one of the first run (default: all in both)"
    )
    parser.add_argument(
        "--against", metavar="NAME", help="the second run's method, if its name is another"
    )
    parser.add_argument(
        "--output",
        type=given_path,
        metavar="FOLDER",
        help="write comparison.html, comparison.md and comparison.csv there",
    )


def run(arguments: argparse.Namespace) -> None:
    """Print how the runs differ and, if asked to, write it."""
    from rich.text import Text

    from easyedit_dualedit.commands.console import console
    from easyedit_dualedit.experiments.comparison import compare
    from easyedit_dualedit.experiments.stored_run import StoredRun
    from easyedit_dualedit.files import require_writable, write_text
    from easyedit_dualedit.report.comparison import (
        changed_table,
        comparison_csv,
        comparison_markdown,
        comparison_page,
        differences_table,
        summary_lines,
    )
    from easyedit_dualedit.report.page import write_document

    if arguments.output is not None:
        require_writable(arguments.output)
    runs = [StoredRun.read(folder) for folder in (arguments.first, arguments.second)]
    found = compare(*runs, method=arguments.method, against=arguments.against)
    shown = console()
    table = differences_table(found, changed_only=True)
    if table.rows:
        shown.print(table.for_terminal())
    if found.changed:
        shown.print(changed_table(found, _SHOWN).for_terminal())
    for line in summary_lines(found):
        shown.print(Text(line))
    folder = arguments.output
    if folder is not None:
        write_text(folder / "comparison.md", comparison_markdown(found))
        write_text(folder / "comparison.csv", comparison_csv(found))
        write_document(folder / "comparison.html", *comparison_page(found, folder))
        shown.print(f"written: {folder / 'comparison.html'}, comparison.md and comparison.csv")
