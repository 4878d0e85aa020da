"""The gate's part of a training, which a continued training does not repeat."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.method.config import GateKind
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.gate_calibration import Calibration
from easyedit_dualedit.processes import Processes
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.gate_trainer import make_gate

_TEXT_KEYS = 3
"""Version of the rules by which text keys are fitted; none had them before the first."""


class GateStage:
    """The gate of an editor, made once."""

    def __init__(
        self,
        editor: DualEditor,
        records: Sequence[Record],
        config: TrainingConfig,
        *,
        keeps: bool = False,
    ):
        """Have made nothing yet.

        Args:
            editor: whose gate is made.
            records: that teach it.
            config: of the training.
            keeps: whether the gate that the editor has stays instead.
        """
        self._keeps = keeps
        self._editor, self._records, self._config = editor, records, config
        self._made_of: Mapping[str, Any] | None = None
        self.calibrations: dict[GateKind, Calibration] = {}
        """How each kind does, once it is made."""

    def run(self, *, progress: bool) -> bool:
        """Make the gate, unless a state that was loaded has it from the same settings.

        Returns:
            Whether it was made now.
        """
        is_due = self._made_of != self._settings and not self._keeps
        if is_due:
            self.calibrations = make_gate(
                self._editor, self._records, self._config, progress=progress
            )
            self._made_of = self._settings
        # Each has made the same from the same states, but for the last bits on another device.
        Processes.current().agree(self._editor.gate.state_dict().values())
        return is_due

    def state_dict(self) -> dict[str, Any]:
        """Return the gate, what it was made of, and how it does."""
        return {
            "made_of": self._made_of,
            "calibrations": {kind: asdict(each) for kind, each in self.calibrations.items()},
            "weights": self._editor.gate.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a gate, if it was made and its settings are still the same."""
        if state["made_of"] == self._settings:
            self._editor.gate.load_state_dict(state["weights"])
            found = state["calibrations"]
            self.calibrations = {kind: Calibration(**values) for kind, values in found.items()}
            self._made_of = state["made_of"]

    @property
    def _settings(self) -> dict[str, Any]:
        """What decides the gate, but for the records."""
        config = self._config
        return {
            "gate": asdict(self._editor.config.gate),
            "steps": config.gate_steps,
            "records": config.gate_records,
            "autocast": config.autocast,
            # A gate that was made before it had them, or by other rules, is made anew.
            "text_keys": _TEXT_KEYS,
        }
