"""Commands under `torchrun` and `accelerate launch`: the processes that share their work."""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from easyedit_dualedit.errors import ConfigError

if TYPE_CHECKING:
    from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams
    from easyedit_dualedit.processes import Processes
    from easyedit_dualedit.train.config import TrainingConfig


def rank() -> int:
    """Return the number of this process among those that were launched, 0 if it is alone."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def launched(hparams: "DualEditMultimodalHparams") -> "Iterator[Processes]":
    """Yield this process among those that were launched; each has a device of its own inside.

    Args:
        hparams: their device is that of this process, unless it is a CPU or the model is spread.
    """
    from easyedit_dualedit.processes import joined

    with joined(cpu=str(hparams.device) == "cpu") as (processes, device):
        if device is not None and not hparams.model_parallel:
            hparams.device = device
        yield processes


def with_precision(config: "TrainingConfig") -> "TrainingConfig":
    """Return a training in the precision that `accelerate launch --mixed_precision` asks for.

    Raises:
        ConfigError: if it asks for another than bf16.
    """
    wanted = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if wanted in ("no", "bf16"):
        return dataclasses.replace(config, autocast="bfloat16") if wanted == "bf16" else config
    raise ConfigError(
        f"--mixed_precision {wanted}: the frozen model computes in bf16 or in its own precision"
        " (no); choose one of them"
    )
