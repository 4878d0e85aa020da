"""Logits of a call at chosen positions alone: those of whole rows would fill a GPU.

A row of 3,700 tokens and 152,000 words is a gigabyte of logits in half precision, of which an
answer needs a handful of rows.
"""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import output_head
from easyedit_dualedit.model.hooks import Hooks


def logits_at(backbone: Backbone, at: Tensor, call: Callable[[], Any]) -> Tensor:
    """Return the logits that a call gives at some positions, row by row, [n, v].

    The lm_head sees nothing else, if the call runs that of the model as it is written; a call that
    runs other code gives whole rows, of which the same positions are taken.

    Args:
        backbone: parts of the model.
        at: True at those positions, bool [b, s].
        call: runs the model, edited or not, and returns logits [b, s, v] or an output that has
            them.
    """
    head = output_head(backbone)
    narrowed = _Narrowed(at)
    with Hooks() as hooks:
        if head is not None:
            hooks.narrow(head, narrowed)
        output = call()
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits[0] if narrowed.has_run else logits[at.to(logits.device)]


def last_position(inputs: Tensor) -> Tensor:
    """Return True at the end of each row, bool [b, s]: where a prompt padded on the left ends."""
    at = torch.zeros_like(inputs, dtype=torch.bool)
    at[:, -1] = True
    return at


class _Narrowed:
    """A hook before the lm_head that leaves out all but chosen positions."""

    def __init__(self, at: Tensor):
        self._at = at
        self._owner = threading.get_ident()
        self.has_run = False

    def __call__(self, _head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if threading.get_ident() != self._owner or not args:
            return None
        hidden = args[0]
        if hidden.shape[:-1] != self._at.shape:
            return None
        self.has_run = True
        return (hidden[self._at.to(hidden.device)][None], *args[1:])
