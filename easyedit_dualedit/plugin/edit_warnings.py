"""Warnings of edits that do not take, made by EasyEdit: see `method/edit_check.py`."""

import logging
from collections.abc import Sequence

import torch

from easyedit_dualedit.measure.metrics import named_tokens
from easyedit_dualedit.method.edit_check import EditCheck
from easyedit_dualedit.method.edited_model import EditedModel
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.hooks import undisturbed
from easyedit_dualedit.model.inputs import Batch, Query

logger = logging.getLogger(__name__)


def warn_of_edits(edited: EditedModel, requests: Sequence[Query]) -> None:
    """Log a warning for each request that the edited model does not answer with its target."""
    _warn(edited.check(requests))


def warn_of_port_edits(
    edited: EditedModel, editor: DualEditor, requests: Sequence[Query], batch: Batch
) -> None:
    """Log a warning for each request whose target an edited port does not name.

    EasyEdit's ports do not generate, so the target is fed in: up to the first token that differs,
    what they name is the greedy answer. Its end is not looked at.

    Args:
        edited: the edited port.
        editor: whose edits they are.
        requests: one for each row.
        batch: the requests with their targets.
    """
    with torch.no_grad(), undisturbed(editor.backbone.model):
        logits = edited(layout=batch.layout, **batch.inputs).logits
        routing = edited.route(layout=batch.layout, **batch.inputs)
    checks = []
    for row, (request, named) in enumerate(
        zip(requests, named_tokens(logits, batch.target), strict=True)
    ):
        target = batch.inputs["input_ids"][row][batch.target[row]].tolist()
        agree = [a == b for a, b in zip(named, target, strict=True)]
        answer = named if all(agree) else named[: agree.index(False) + 1]
        text = editor.encoder.tokenizer.decode(list(answer), skip_special_tokens=True).strip()
        similarity, is_open = float(routing.similarity[row]), bool(routing.is_open[row])
        checks.append(EditCheck(request, text, similarity, is_open))
    _warn(checks)


def _warn(checks: Sequence[EditCheck]) -> None:
    for check in checks:
        if not check.takes:
            logger.warning(
                "%s (check_edits: false in the hyperparameters asks no more)", check.told()
            )
