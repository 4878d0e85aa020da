"""The page of figures, of what runs of `benchmarks.speed` and `benchmarks.device` have stored."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.trials import table
from easyedit_dualedit.files import read_json, write_text
from easyedit_dualedit.report.table import Table, texts

_COUNTS = {
    "decoder_layers": "decoder layers",
    "frozen_rows": "rows of frozen layers",
    "lm_head": "lm_head passes",
    "lm_head_positions": "lm_head positions",
    "vision": "vision passes",
    "bytes_written": "bytes written",
    "reads": "values read back",
}
_TIMES = {
    "cpu_ms": "CPU ms",
    "wall_ms": "wall ms",
    "least_cpu_ms": "fastest, CPU ms",
    "gflop": "GFLOP",
    "least_ms": "limit, ms",
    "limit_percent": "% of the limit",
    "samples_per_second": "samples/s",
    "runs": "runs",
}
_FORWARDS = {
    "plain_cpu_ms": "plain CPU ms",
    "plain_wall_ms": "plain wall ms",
    "edited_cpu_ms": "edited CPU ms",
    "edited_wall_ms": "edited wall ms",
    "plain_operations": "plain operations",
    "added_operations": "added",
    "median_overhead_percent": "overhead %",
    "plain_again_percent": "of plain over itself %",
    "limit_percent": "% of the limit",
}


def page_of(path: Path) -> str:
    """Return the page at a path, from the figures stored beside it."""
    found = folder_of(path).glob("*.json")
    stored = sorted(found, key=lambda file: (file.stem != "published", file.name))
    sections = [section_of(run) for file in stored if (run := read_json(file)) is not None]
    return "\n".join([_INTRODUCTION, *sections])


def folder_of(path: Path) -> Path:
    """Return where the figures lie of which the page at a path is made."""
    return path.with_suffix("")


def write_page(path: Path) -> None:
    """Make the page at a path anew."""
    write_text(path, page_of(path))


_INTRODUCTION = """\
# Speed and memory

No figure here is typed by hand: each section is made of those that the command below its title has
stored, or, where a remark says so, another run.

Models have random weights. Losses of a training step: request, text rephrase, image rephrase, image
locality. Times are medians of the runs of one process on one pinned core (not pinned on a GPU);
plain and edited forwards take turns, and the overhead is the median of the ratios of neighbours;
the same ratio of plain forwards to others is what this machine's noise makes of nothing. GFLOP are
those of matrix products, attention and convolutions, backward included. The limit is the time that
they would take at the rate of one large matrix product of the same type: what no code can go below.
Samples a second are records, by the time that the core worked (on a GPU: that passed). Operations
are those on tensors, views included, that one forward runs; an edit adds some, each of which a
forward runs cold. Values are read back where Python waits for numbers in a tensor, each time a stop
on a GPU; more rows or tokens add none. Beside imports, weights, caches and what a backward pass
needs, peak memory is code of libraries that training is the first to run, what a step needs for a
moment, and holes in the heap: with MALLOC_TRIM_THRESHOLD_=131072 glibc leaves few of them, and is
slower.
"""


def section_of(found: Mapping[str, Any]) -> str:
    """Return the section of one run."""
    machine = ", ".join(f"{name} {value}" for name, value in found["machine"].items())
    model = ", ".join(f"{name} {value}" for name, value in found["model"].items())
    batch = found["model"]["batch"]
    lines = [
        f"## {found['shapes']}, {found['device']}",
        "",
        f"`{found['command']}`",
        "",
        *([found["remark"], ""] if "remark" in found else []),
        f"Machine: {machine}.",
        "",
        f"Model: {model}.",
        "",
        f"Work, for a batch of {found['counted batch']} (counted on a model of the same depth and"
        f" as many tokens, hidden size {found['counted hidden size']}):",
        "",
        *_table("work", _COUNTS, found["counts"]),
        "",
        f"Times, for a batch of {batch}; one large product reaches"
        f" {found['gflop_per_second']} GFLOP/s:",
        "",
        *_table("work", _TIMES, found["times"]),
    ]
    if "computed" in found:
        lines += [
            "",
            "**Computed, not measured** (a training step takes too long here, or too much memory):"
            f" arithmetic of a step of {batch}, from models of the same width and fewer layers.",
            "",
            *_table("work", {"gflop": "GFLOP", "least_ms": "limit, ms"}, found["computed"]),
        ]
    lines += ["", *_table("forward", _FORWARDS, found["forwards"])]
    lines += ["", "What bounds them, % of the time:", "", *_shares("work", found["shares"])]
    lines += ["", *_shares("parts of an edit", {"edit": found["parts"]})]
    if "routing" in found:
        lines += ["", "Routing a query among edits, of a forward of one row with a picture:", ""]
        lines += _table("query", {"wall_ms": "ms", "percent": "% of it"}, found["routing"])
    lines += ["", "Peak memory of each process, MiB, after:", ""]
    lines += _shares("process", found["peak_mib"])
    if "trials" in found:
        lines += ["", "What was tried there:", "", table(found["trials"]).rstrip()]
    return "\n".join(lines) + "\n"


def _shares(title: str, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    return _table(title, dict(zip(columns, columns, strict=True)), rows)


def _table(
    title: str, columns: Mapping[str, str], rows: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    cells = [
        [name, *("-" if row.get(key) is None else row[key] for key in columns)]
        for name, row in rows.items()
    ]
    return Table(texts(title, *columns.values()), cells).markdown().splitlines()
