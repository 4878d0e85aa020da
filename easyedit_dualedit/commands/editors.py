"""The editor that a command's hyperparameters name, and a model's answer to a question."""

from typing import Any

import torch

from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.answers import answer_limit, greedy_answers
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.model.loading import load_model
from easyedit_dualedit.plugin.archives import TrainedAdapters
from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams

_LONGEST = 64
"""Tokens of an answer that is shown."""


def editor_of(hparams: DualEditMultimodalHparams) -> DualEditor:
    """Return the editor that hyperparameters name.

    Raises:
        ArchiveError: if there are no adapters, or they are of another model.
        ModelLoadError: if the model cannot be loaded.
    """
    adapters = TrainedAdapters.read(hparams.archive)
    model, processor = load_model(hparams.model_name, **hparams.placement)
    return adapters.editor(model, processor, hparams)


@torch.no_grad()
def answer_to(model: Any, encoder: Encoder, query: Query) -> str:
    """Return a model's greedy answer to a question, cut where it is far longer than a target."""
    batch = encoder.encode([query], with_target=False)
    limit = max(_LONGEST, answer_limit(encoder, query))
    (text,) = greedy_answers(model, encoder, batch, [limit])
    return text
