"""A stage of the making that goes on where it was when it is started again."""

import logging
import os
import time
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_SAVES = 120.0


class Stage:
    """The file of a stage, with its step and whatever has a state."""

    def __init__(self, file: Path, steps: int, **stateful: Any) -> None:
        """Take up the stage where its file says it was.

        Args:
            file: of the stage; made when first saved.
            steps: of the whole stage.
            stateful: objects with ``state_dict`` and ``load_state_dict``, by name.
        """
        self.file, self.steps, self.step, self.seconds = file, steps, 0, 0.0
        self._stateful = stateful
        if file.exists():
            saved = torch.load(file, weights_only=True)
            self.step, self.seconds = saved["step"], saved["seconds"]
            for name, each in stateful.items():
                each.load_state_dict(saved[name])
            if self.step < steps:
                logger.info("%s goes on at step %d of %d", file.stem, self.step, steps)
        self._since = self._saved = time.monotonic()

    @property
    def is_done(self) -> bool:
        """True once all steps were made."""
        return self.step >= self.steps

    def advance(self) -> None:
        """Count one step, and save from time to time and at the end."""
        self.step += 1
        now = time.monotonic()
        self.seconds += now - self._since
        self._since = now
        if self.is_done or now - self._saved > _SECONDS_BETWEEN_SAVES:
            self.save()
            self._saved = now

    def save(self) -> None:
        """Write the file, whole or not at all."""
        saved = {name: each.state_dict() for name, each in self._stateful.items()}
        temporary = self.file.with_suffix(".part")
        self.file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({**saved, "step": self.step, "seconds": self.seconds}, temporary)
        os.replace(temporary, self.file)
