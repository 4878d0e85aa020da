"""A small benchmark: a method that shakes a tiny model, and what it is measured on."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tiny_models import tiny_llava

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.experiments.plan import Plan
from easyedit_dualedit.measure.contender import Bench, Contender, Edited

MEASURED = ("generate", "visedit", "easyedit")


class Shaken:
    """Adds noise to the head while an edit is in force: another draw for each edit."""

    trained_parameters = 7

    def __init__(self, bench: Bench, *, fails_at: int | None = None, leaks: bool = False):
        self._model, _ = bench.load()
        self._fails_at = fails_at
        self._leaks = leaks

    @contextmanager
    def edit(self, record: Record) -> Iterator[Edited]:
        if record.index == self._fails_at:
            raise ValueError("cannot be\nedited")
        head = self._model.lm_head.weight
        saved = head.detach().clone()
        with torch.no_grad():
            head.add_(torch.randn_like(head))
        yield Edited(self._model, 40 + record.index)
        with torch.no_grad():
            head.copy_(saved)


def contender(name: str, **options: Any) -> Contender:
    return Contender(name, partial(Shaken, **options))


def plan_of(records: list[Record], folder: Path, **changes: Any) -> Plan:
    def load() -> tuple[Any, Any]:
        tiny = tiny_llava(seed=4, layers=1)
        return tiny.model, tiny.processor

    return Plan("tiny", load, records, MEASURED, images=folder / "data", **changes)


def contents(folder: Path) -> dict[str, Any]:
    """Return every case of a run but for its times."""
    found = {}
    for path in sorted(folder.glob("methods/*/cases/*.json")):
        case = json.loads(path.read_text())
        case.pop("seconds")
        found[str(path.relative_to(folder))] = case
    return found
