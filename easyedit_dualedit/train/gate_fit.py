"""Trains the projection of a `learned` gate on states that were read.

It asks what a memory of many edits asks: which of all the edits of a large batch is meant, or none.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from easyedit_dualedit.data.records import METRICS
from easyedit_dualedit.data.scope import IN_SCOPE, OTHER_IMAGE, SCOPE
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.gate import GateProjection
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.scope_states import ScopeStates

_BATCH = 1024
"""Edits that a query is told apart from in one step."""
_LEARNING_RATE = 2e-3
_WARM_UP = 0.1
_LARGEST_NORM = 1.0
_FIRST_SCALE = 20.0
_FIRST_NONE = 0.7
_REQUEST = METRICS[0]


def fit_projection(
    editor: DualEditor, states: ScopeStates, config: TrainingConfig, *, progress: bool
) -> None:
    """Train the projection of a gate anew, by the global random state.

    Args:
        editor: whose gate.
        states: of the records that teach.
        config: of the training.
        progress: whether to show a bar.
    """
    projection = editor.gate.projection
    projection.reset()  # so that the result depends on the seed alone
    device = editor.gate.mean.device
    scale = nn.Parameter(torch.tensor(math.log(_FIRST_SCALE), device=device))
    none = nn.Parameter(torch.tensor(_FIRST_NONE, device=device))
    optimiser = torch.optim.Adam([*projection.parameters(), scale, none], lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: _pace(step, config.gate_steps)
    )
    steps = tqdm(range(config.gate_steps), desc="gate", unit="step", disable=not progress)
    for _ in steps:
        rows = torch.randperm(len(states))[:_BATCH]
        loss = _routing_loss(projection, states.select(rows), scale.exp(), none)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(projection.parameters(), _LARGEST_NORM)
        optimiser.step()
        schedule.step()
        steps.set_postfix(loss=f"{float(loss.detach()):.4f}")


def _routing_loss(
    projection: GateProjection, batch: ScopeStates, scale: Tensor, none: Tensor
) -> Tensor:
    """Return the mean cross-entropy of finding a query's own edit among all of a batch, or none.

    The logits of a query are its scaled cosines to every edit, and one learned number that stands
    for none of them.
    """
    edits = projection(batch.gate[_REQUEST], batch.vision[_REQUEST])
    count = len(edits)
    rows = torch.arange(count, device=edits.device)
    losses = []
    for kind in SCOPE:
        own = kind == _REQUEST
        queries = edits if own else projection(batch.gate[kind], batch.vision[kind])
        logits = scale * (queries @ edits.T)  # [n, n]
        if kind in IN_SCOPE and not own:
            # Which query is meant by an edit, too.
            losses.append(functional.cross_entropy(logits.T, rows) / 2)
        if kind == OTHER_IMAGE:
            shown = batch.partners
            logits = logits.masked_fill((rows == shown[:, None]), -math.inf)
        logits = torch.cat([logits, (scale * none).expand(count, 1)], 1)
        label = rows if kind in IN_SCOPE else torch.full_like(rows, count)
        loss = functional.cross_entropy(logits, label, reduction="none")[batch.counts[kind]]
        if len(loss):
            losses.append(loss.mean())
    return torch.stack(losses).sum() / len(SCOPE)


def _pace(step: int, steps: int) -> float:
    """Return the share of the step size: up in a line, then down along a cosine."""
    warm = max(1, int(_WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
