"""What the demo compares: gates and presets of the bundled adapters, edits made by EasyEdit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easyedit_dualedit import testbed
from easyedit_dualedit.experiments.dualedit_rows import DUALEDIT
from easyedit_dualedit.measure.evaluation import EditMaker
from easyedit_dualedit.method.config import PUBLISHED_THRESHOLD
from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams
from easyedit_dualedit.plugin.values import TESTBED
from easyedit_dualedit.plugin.workbench import Workbench

_PUBLISHED = "published preset (reads the label)"

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


def demo_hparams(archive: Path, gate: Any = None) -> DualEditMultimodalHparams:
    """Return hyperparameters for the testbed with the adapters in a folder.

    Args:
        archive: folder of saved adapters.
        gate: kind, or mapping of kind and threshold; None is the one that was saved.
    """
    return DualEditMultimodalHparams.from_dict(
        {
            "model_name": TESTBED,
            "archive": str(archive),
            "device": "cpu",
            "gate": gate,
            "check_edits": False,  # the demo asks about every edit anyway
        }
    )


def demo_methods(workbench: Workbench, adapters: DemoAdapters) -> dict[str, EditMaker]:
    """Return the rows of the demo's table by name, the unedited model first."""
    label_gate = {"kind": "last-token", "threshold": PUBLISHED_THRESHOLD}
    return {
        "unedited": lambda _record: None,
        DUALEDIT: _method(workbench, demo_hparams(adapters.default)),
        "DualEdit, last-token gate (reads the label)": _method(
            workbench, demo_hparams(adapters.default, label_gate)
        ),
        "DualEdit, gate off": _method(workbench, demo_hparams(adapters.default, "open")),
        _PUBLISHED: _method(workbench, demo_hparams(adapters.published)),
    }


def _method(workbench: Workbench, hparams: DualEditMultimodalHparams) -> EditMaker:
    return lambda record: workbench.edit(record.request, hparams)
