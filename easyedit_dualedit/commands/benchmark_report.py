"""What a benchmark writes: what it is about, and its reports once every case is there."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from easyedit_dualedit.commands.benchmark_background import background_in
from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.experiments.benchmark_folder import UNEDITED, cases_of
from easyedit_dualedit.experiments.results import costs, metrics_of, missing, stored_names
from easyedit_dualedit.files import read_json, write_json, write_text
from easyedit_dualedit.measure.run import METRICS_FILE
from easyedit_dualedit.report.benchmark import (
    benchmark_csv,
    benchmark_markdown,
    costs_table,
    headline,
    measured_protocols,
    protocol_table,
)
from easyedit_dualedit.report.page import write_page
from easyedit_dualedit.report.page.thumbnails import names_of
from easyedit_dualedit.report.target_split import split_line, split_table
from easyedit_dualedit.report.tuning import tuning_table

PLAN_FILE = "plan.json"
_COSTS_FILE = "costs.json"


def keep_plan(folder: Path, about: Mapping[str, Any]) -> None:
    """Write what the run is about, keeping the methods that were measured in it before."""
    earlier = read_json(folder / PLAN_FILE)
    merged = dict(about)
    if earlier is not None:
        stored = set(stored_names(folder)) if (folder / "methods").is_dir() else set()
        before = [name for name in earlier["order"] if name in stored]
        merged["order"] = [*before, *(name for name in about["order"] if name not in before)]
        merged["contenders"] = {**earlier["contenders"], **about["contenders"]}
        if merged.get("tuning") and earlier.get("tuning"):
            methods = {**earlier["tuning"]["methods"], **merged["tuning"]["methods"]}
            merged["tuning"] = {**merged["tuning"], "methods": methods}
    write_json(folder / PLAN_FILE, merged)


def add_seconds(folder: Path, seconds: float) -> None:
    """Add what a call took to what the run has taken."""
    earlier = read_json(folder / _COSTS_FILE) or {}
    total = (earlier.get("seconds") or 0.0) + seconds
    write_json(folder / _COSTS_FILE, {**earlier, "seconds": total})


def write_reports(folder: Path, shown: Console, images: Path | None) -> None:
    """Write numbers, tables and the page of a run, or print which cases are still missing.

    Args:
        folder: of the run.
        shown: where to print.
        images: folder of the pictures for the page.

    Raises:
        ConfigError: if the folder does not say what it is about.
    """
    plan = read_json(folder / PLAN_FILE)
    if plan is None:
        raise ConfigError(f"{folder} holds no {PLAN_FILE}; run the benchmark again")
    indices, names = plan.pop("indices"), plan.pop("order")
    metrics = metrics_of(folder, names, indices, plan)
    if metrics is None:
        lacking = missing(folder, names, indices)
        shown.print(
            f"not complete: {', '.join(f'{name} lacks {n}' for name, n in lacking.items())} of"
            f" {len(indices)} cases; run the other shards, or this command without --shard"
        )
        return
    spent = costs(folder, names, indices)
    write_json(folder / METRICS_FILE, metrics)
    seconds = (read_json(folder / _COSTS_FILE) or {}).get("seconds")
    write_json(folder / _COSTS_FILE, {"seconds": seconds, "methods": spent})
    write_text(folder / "results.md", benchmark_markdown(metrics, spent))
    write_text(folder / "results.csv", benchmark_csv(metrics))
    cases = {name: cases_of(folder, name, indices) for name in (UNEDITED, *names)}
    methods = {name: {**entry, "costs": spent[name]} for name, entry in metrics["methods"].items()}
    write_page(
        folder / "results.html",
        {**metrics, **background_in(folder), "methods": methods, "seconds": seconds},
        cases,
        pictures=_pictures(cases[UNEDITED], images),
    )
    choices = tuning_table(metrics)
    if choices is not None:
        shown.print(choices.for_terminal())
    for protocol in measured_protocols(metrics):
        shown.print(protocol_table(metrics, protocol).for_terminal())
        split = split_table(metrics, protocol)
        if split is not None:
            shown.print(split.for_terminal())
    shown.print(costs_table(spent).for_terminal())
    if split_line(metrics):
        shown.print(Text(split_line(metrics)))
    shown.print(headline(metrics))
    shown.print(
        f"written: {folder / 'results.html'}, and beside it results.md, results.csv,"
        f" {METRICS_FILE}, {_COSTS_FILE} and one JSON per case"
    )


def require_pictures(images: Path | None) -> None:
    """Check that a folder of pictures is there, if one is given.

    Raises:
        ConfigError: if it is not.
    """
    if images is not None and not images.is_dir():
        raise ConfigError(f"--images {images}: there is no such folder; give that of the pictures")


def _pictures(cases: Sequence[Mapping[str, Any]], images: Path | None) -> dict[str, Path]:
    require_pictures(images)
    if images is None:
        return {}
    queries = [query for case in cases for query in case["queries"].values()]
    return {name: images / name for query in queries for name in names_of(query)}
