"""In which precision the frozen model computes during a training."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def precision(device: str, autocast: str) -> AbstractContextManager[Any]:
    """Return the context in which the frozen model computes as a training configuration says.

    Args:
        device: type of the device, such as "cuda".
        autocast: as in `TrainingConfig`; "none" leaves whatever holds outside.
    """
    return nullcontext() if autocast == "none" else torch.autocast(device, torch.bfloat16)
