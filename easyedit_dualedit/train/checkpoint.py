"""The state of a training that was stopped, so that the same command continues it."""

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.errors import ArchiveError
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.fingerprint import ModelFingerprint
from easyedit_dualedit.settings import is_whole
from easyedit_dualedit.storage.parsing import parsing
from easyedit_dualedit.storage.tensor_check import Expected
from easyedit_dualedit.train.config import TrainingConfig

logger = logging.getLogger(__name__)

_TEACHES_NOTHING = (
    *("gate_steps", "gate_records"),
    *("feature_cache_bytes", "state_cache_bytes", "state_cache_folder", "picture_workers"),
    *("checkpoint_activations", "compile_layers"),
)
"""Settings of a training that are not about what the adapters learn, but for rounding."""

_BEFORE = {"text_only": 0.0}
"""What trainings did before there was a setting for it; their checkpoints say nothing of it."""

WATCH = "watch"
"""Name of the part that says how a training does, and whether it validates."""

_PRECISION = "autocast"
"""The setting that changes losses by rounding that can be measured."""


class Stateful(Protocol):
    """What has a state of numbers, texts and tensors."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Take over a state.

        Raises:
            Exception: of any kind, if it is none.
        """


class Checkpoint:
    """One file with adapters and optimiser, and with what the run was about."""

    def __init__(
        self,
        path: Path | None,
        editor: DualEditor,
        optimiser: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        records: Sequence[Record],
        config: TrainingConfig,
        further: Mapping[str, Stateful] | None = None,
        pictures: str | None = None,
    ):
        """Keep what is stored; without a path nothing is stored or restored.

        Args:
            path: of the file.
            editor: whose adapters are trained.
            optimiser: of the training.
            schedule: of its rate.
            records: that are trained on.
            config: of the training.
            further: what else has a state; a file from before it was there leaves it as it is.
            pictures: tells the files of the records' pictures from others, if anything does.
        """
        self._path = path
        self._parts: dict[str, Stateful] = {
            "adapters": editor.adapters,
            "optimiser": optimiser,
            "schedule": schedule,
        }
        self._adapters, self._optimiser = editor.adapters, optimiser
        self._further = dict(further or {})
        self._run: dict[str, Any] = {
            "editor": editor.config.to_dict(),
            "training": asdict(config),
            "records": records_digest(records),
            "model": list(ModelFingerprint.of(editor.backbone).first_weights),
            "pictures": pictures,
            # Adapters of nobody are drawn by the seed; those of an archive are not.
            "adapters": None if editor.training_targets is None else _digest(editor.adapters),
        }

    def store(self, step: int) -> None:
        """Write the state after `step` steps, whole or not at all.

        Raises:
            ArchiveError: if the file cannot be written.
        """
        if self._path is None:
            return
        temporary = self._path.with_name(self._path.name + ".part")
        parts = {**self._parts, **self._further}
        values = {name: part.state_dict() for name, part in parts.items()}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"step": step, "run": self._run, **values}, temporary)
            os.replace(temporary, self._path)
        except (OSError, RuntimeError) as error:
            line = " ".join(str(error).split())
            raise ArchiveError(f"cannot write the checkpoint {self._path}: {line}") from error

    def restore(self) -> int:
        """Load the stored state, if there is one, and return its number of steps.

        Raises:
            ArchiveError: if the file is damaged, or belongs to another run.
        """
        if self._path is None or not self._path.is_file():
            return 0
        with parsing(f"the checkpoint {self._path}", "remove it", ArchiveError):
            saved = torch.load(self._path, map_location="cpu", weights_only=True)
            run, step = saved["run"], saved["step"]
            there = _decisive(run)
            if not is_whole(step, 0):
                raise ValueError(f"step = {step!r}")
        here = _decisive(self._run)
        # Files from before a key was there say nothing about it.
        differing = sorted(key for key in here if key in there and there[key] != here[key])
        if differing:
            told = ", ".join(_difference(key, there[key], here[key]) for key in differing)
            raise ArchiveError(
                f"the checkpoint {self._path} belongs to a run with another configuration"
                f" ({told}); remove it to start anew (train --fresh does),"
                " or restore what it was"
            )
        before, now = run["training"].get(_PRECISION), self._run["training"][_PRECISION]
        if before != now:
            logger.warning(
                "%s was made with %s: %s, and goes on with %s", self._path, _PRECISION, before, now
            )
        with parsing(f"the checkpoint {self._path}", "remove it", ArchiveError):
            for name, part in self._parts.items():
                part.load_state_dict(saved[name])
            _require_numbers(self._adapters, self._optimiser)
            for name, part in self._further.items():
                if name in saved:
                    part.load_state_dict(saved[name])
        logger.info("continuing %s at step %d", self._path, step)
        return int(step)


def began_without_validation(path: Path) -> bool:
    """Return whether a file is the checkpoint of a training that holds no records out.

    Those of earlier versions all are; they go on with all records.
    """
    if not path.is_file():
        return False
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return not saved[WATCH]["validates"] if WATCH in saved else "step" in saved
    except Exception:  # restoring it says what is wrong
        return False


def _require_numbers(adapters: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    held = dict(adapters.named_parameters())
    for name, parameter in held.items():
        for part, value in {"weights": parameter, **optimiser.state.get(parameter, {})}.items():
            shape = parameter.shape if part != "step" else torch.Size(())
            wrong = Expected(tuple(shape)).problem(torch.as_tensor(value).detach())
            if wrong:
                raise ValueError(f"{name}, {part} {wrong}")


def _difference(name: str, there: Any, here: Any) -> str:
    """Return what a run was begun with and is continued with, as far as it can be read."""
    if not isinstance(there, Mapping) or not isinstance(here, Mapping):
        return f"other {name}"
    keys = [key for key in here if there.get(key) != here[key]]
    return ", ".join(f"{key} was {there.get(key)!r} and is {here[key]!r}" for key in keys)


def _digest(adapters: nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for tensor in adapters.state_dict().values():
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _decisive(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a run decides what its adapters learn: they are trained with the gate open."""
    editor = dict(run.get("editor", {}))
    training = {**_BEFORE, **run.get("training", {})}
    editor.pop("gate", None)
    for name in (*_TEACHES_NOTHING, _PRECISION):
        training.pop(name, None)
    return {**run, "editor": editor, "training": training}


def records_digest(records: Sequence[Record], *, with_pictures: bool = False) -> str:
    """Return a short hash of what the queries of records say.

    Args:
        records: in order.
        with_pictures: hash the contents of the pictures too, not only their names.
    """
    digest = hashlib.blake2b(digest_size=8)
    for record in records:
        for query in record.queries:
            digest.update(repr((query.prompt, query.target)).encode())
            for file in query.files:
                if isinstance(file, Path):
                    digest.update(file.name.encode())
                    if with_pictures:
                        digest.update(file.read_bytes())
    return digest.hexdigest()
