"""What the demo compares: gates and presets of the bundled adapters, edits made by EasyEdit."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from easyedit_dualedit import testbed
from easyedit_dualedit.data.records import Record
from easyedit_dualedit.experiments.dualedit_rows import DUALEDIT
from easyedit_dualedit.measure.evaluation import EditMaker
from easyedit_dualedit.method.config import PUBLISHED_THRESHOLD, GateConfig
from easyedit_dualedit.method.edited_model import EditedModel
from easyedit_dualedit.method.gate import Gate
from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams
from easyedit_dualedit.plugin.values import TESTBED
from easyedit_dualedit.plugin.workbench import Workbench

_PUBLISHED = "published preset (reads the label)"

EditOf = Callable[[Record], EditedModel]

CARRYING = ("unedited", DUALEDIT, _PUBLISHED)
"""Rows of the second table, whose answers no training taught."""


@dataclass(frozen=True)
class DemoAdapters:
    """Folders with the adapters of the two presets."""

    default: Path
    published: Path

    @classmethod
    def bundled(cls) -> "DemoAdapters":
        """Return the adapters shipped with this package."""
        return cls(testbed.adapters_folder("default"), testbed.adapters_folder("published"))


def demo_hparams(archive: Path) -> DualEditMultimodalHparams:
    """Return hyperparameters for the testbed with the adapters in a folder.

    Args:
        archive: folder of saved adapters.
    """
    return DualEditMultimodalHparams.from_dict(
        {
            "model_name": TESTBED,
            "archive": str(archive),
            "device": "cpu",
            "check_edits": False,  # the demo asks about every edit anyway
        }
    )


def demo_methods(workbench: Workbench, adapters: DemoAdapters) -> dict[str, EditMaker]:
    """Return the rows of the demo's table by name, the unedited model first."""
    edit = _Once(_method(workbench, demo_hparams(adapters.default)))
    label_gate = GateConfig(kind="last-token", threshold=PUBLISHED_THRESHOLD)
    return {
        "unedited": lambda _record: None,
        DUALEDIT: edit,
        "DualEdit, last-token gate (reads the label)": _UnderGate(edit, label_gate),
        "DualEdit, gate off": _UnderGate(edit, GateConfig(kind="open")),
        _PUBLISHED: _method(workbench, demo_hparams(adapters.published)),
    }


def _method(workbench: Workbench, hparams: DualEditMultimodalHparams) -> EditOf:
    return lambda record: workbench.edit(record.request, hparams)


class _Once:
    """Makes the edit of a record once, for all rows of the table that share it."""

    def __init__(self, make: EditOf):
        self._make = make
        self._made: tuple[Record, EditedModel] | None = None

    def __call__(self, record: Record) -> EditedModel:
        if self._made is None or self._made[0] is not record:
            self._made = record, self._make(record)
        return self._made[1]


class _UnderGate:
    """The same edit, with another gate."""

    def __init__(self, make: EditOf, gate: GateConfig):
        self._make = make
        self._config = gate
        self._gates: dict[Gate, Gate] = {}

    def __call__(self, record: Record) -> EditedModel:
        edited = self._make(record)
        own = edited.edit_gate
        if own not in self._gates:
            self._gates[own] = own.with_config(self._config)
        return edited.with_gate(self._gates[own])
