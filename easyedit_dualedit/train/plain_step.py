"""The losses of one training step, as the paper has them: whole forwards, one for each purpose.

`TrainingStep` gives the same losses in less time; this is what it must equal, and what it falls
back on where a model cannot be run from a layer on.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from easyedit_dualedit.data.records import METRICS, Record, metric_queries
from easyedit_dualedit.data.scope import IN_SCOPE
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.inputs import IGNORED, Batch
from easyedit_dualedit.processes import Processes
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.losses import (
    AnswerTokens,
    StepLosses,
    answer_logits,
    step_losses,
    token_divergence,
)


def plain_losses(
    editor: DualEditor,
    records: Sequence[Record],
    config: TrainingConfig,
    processes: Processes | None = None,
) -> StepLosses:
    """Return the losses of one batch of edits, with the gate held open.

    Each edit is tried on its own queries: cross-entropy of the answer where the edit should answer
    (request and rephrases), divergence from the unedited model where it should not.
    """
    answers = plain_answers(editor, records, config)
    return step_losses(answers, config.weights, processes)


def plain_answers(
    editor: DualEditor, records: Sequence[Record], config: TrainingConfig, *, is_edited: bool = True
) -> AnswerTokens:
    """Return the answer tokens of one batch of edits, the gate held open, or of no edits at all."""
    model = editor.backbone.model
    edits = editor.read(metric_queries(records, "reliability"))
    weights = config.weights
    in_scope = [metric for metric in METRICS if weights[metric] and metric in IN_SCOPE]
    out_of_scope = [metric for metric in METRICS if weights[metric] and metric not in IN_SCOPE]
    found = []
    for metrics in filter(None, (in_scope, out_of_scope)):
        queries = [query for metric in metrics for query in metric_queries(records, metric)]
        ends = config.end_of_answer and metrics is in_scope
        batch = editor.encoder.encode(queries, end_of_answer=ends)
        if is_edited:
            own_edit = torch.arange(len(edits)).repeat(len(metrics))
            edited = editor.edited(edits, assignment=own_edit, gate=editor.open_gate())
            after = _answer_end(edited, batch, layout=batch.layout)
        else:
            after = _answer_end(model, batch)
        predicted, expected = answer_logits(after, batch.labels)
        if metrics is in_scope:
            losses = functional.cross_entropy(predicted.float(), expected, reduction="none")
        else:
            with torch.no_grad():
                before = answer_logits(_answer_end(model, batch), batch.labels)[0]
            losses = token_divergence(before, predicted)
            expected = before.argmax(-1)
        row = _answer_rows(after, batch)
        numbers = torch.tensor([METRICS.index(metric) for metric in metrics], device=row.device)
        right = predicted.argmax(-1) == expected
        found.append(AnswerTokens(losses, right, numbers[row // len(records)], row % len(records)))
    return AnswerTokens.joined(found)


def _answer_rows(logits: Tensor, batch: Batch) -> Tensor:
    """Return the row of each answer token, in the order of `answer_logits`, long [n]."""
    return (batch.labels[:, -logits.shape[1] :][:, 1:] != IGNORED).nonzero()[:, 0]


def _answer_end(model: Any, batch: Batch, **extra: Any) -> Tensor:
    """Return the logits at the end of all rows, from before the first answer token on, [b, k, v].

    Rows are padded on the left, so the answers of all of them stand there.
    """
    answer = batch.labels != IGNORED
    width = answer.shape[1] - int(answer.any(0).to(torch.uint8).argmax())
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        extra["logits_to_keep"] = width + 1
    logits: Tensor = model(**batch.inputs, use_cache=False, **extra).logits
    return logits[:, -width - 1 :]
