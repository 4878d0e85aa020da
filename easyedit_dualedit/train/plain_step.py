"""The losses of one training step, as the paper has them: whole forwards, one for each purpose.

`TrainingStep` gives the same losses in less time; this is what it must equal, and what it falls
back on where a model cannot be run from a layer on.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from easyedit_dualedit.data.records import METRICS, Record, metric_queries
from easyedit_dualedit.data.scope import IN_SCOPE
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.inputs import IGNORED, Batch
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.losses import (
    StepLosses,
    answer_cross_entropy,
    answer_divergence,
    answer_logits,
)
from easyedit_dualedit.train.processes import Processes


def plain_losses(
    editor: DualEditor, records: Sequence[Record], config: TrainingConfig
) -> StepLosses:
    """Return the losses of one batch of edits, with the gate held open.

    Each edit is tried on its own queries: cross-entropy of the answer where the edit should answer
    (request and rephrases), divergence from the unedited model where it should not.
    """
    model = editor.backbone.model
    edits = editor.read(metric_queries(records, "reliability"))
    weights = {metric: float(getattr(config, f"{metric}_weight")) for metric in METRICS}
    in_scope = [metric for metric in METRICS if weights[metric] and metric in IN_SCOPE]
    out_of_scope = [metric for metric in METRICS if weights[metric] and metric not in IN_SCOPE]
    sums, counts, right = ([torch.zeros(())] * len(METRICS) for _ in range(3))
    for metrics in filter(None, (in_scope, out_of_scope)):
        queries = [query for metric in metrics for query in metric_queries(records, metric)]
        ends = config.end_of_answer and metrics is in_scope
        batch = editor.encoder.encode(queries, end_of_answer=ends)
        own_edit = torch.arange(len(edits)).repeat(len(metrics))
        edited = editor.edited(edits, assignment=own_edit, gate=editor.open_gate())
        after = _answer_end(edited, batch, layout=batch.layout)
        before = after
        if metrics is out_of_scope:
            with torch.no_grad():
                before = _answer_end(model, batch)
        parts = [values.chunk(len(metrics)) for values in (before, after, batch.labels)]
        for metric, unedited, logits, labels in zip(metrics, *parts, strict=True):
            predicted, expected = answer_logits(logits, labels)
            if metric in IN_SCOPE:
                loss = answer_cross_entropy(logits, labels)
            else:
                loss = answer_divergence(unedited, logits, labels)
                expected = answer_logits(unedited, labels)[0].argmax(-1)
            place = METRICS.index(metric)
            counts[place] = loss.new_tensor(len(expected))
            sums[place] = loss * counts[place]
            right[place] = (predicted.argmax(-1) == expected).sum().to(loss.dtype)

    def stacked(values: list[Tensor]) -> Tensor:
        return torch.stack([value.to(loss.device) for value in values])

    return Processes.current().losses(stacked(sums), stacked(counts), stacked(right), weights)


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
