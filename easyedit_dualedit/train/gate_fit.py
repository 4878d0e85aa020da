"""Trains the projection of a `learned` gate on states that were read.

It asks what a memory of many edits asks: which of all the edits of a large batch is meant, or none.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from easyedit_dualedit.data.records import METRICS
from easyedit_dualedit.data.scope import IN_SCOPE, OTHER_IMAGE, SCOPE
from easyedit_dualedit.errors import CalibrationError
from easyedit_dualedit.method.gate_keys import GateForm, GateProjection
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.gate_whitening import Whitening
from easyedit_dualedit.train.scope_states import ScopeStates

_BATCH = 1024
"""Edits that a query is told apart from in one step."""
_WARM_UP = 0.1
_LARGEST_NORM = 1.0
_FIRST_SCALE = 20.0
_FIRST_NONE = 0.7
_REQUEST = METRICS[0]


@dataclass(frozen=True)
class Fitting:
    """A way to train a projection."""

    form: GateForm
    learning_rate: float
    most_steps: int | None = None
    """None for as many as `gate_steps` says."""
    dropout: float = 0.0
    """Share of the inputs that a step does not see."""
    whitens: bool = False
    """Whether it sees the inputs through a `Whitening`."""

    def steps(self, config: TrainingConfig) -> int:
        """Return the number of steps."""
        return min(config.gate_steps, self.most_steps or config.gate_steps)


FITTINGS = (
    Fitting("two-layer", learning_rate=2e-3),
    Fitting("linear-pair", learning_rate=5e-3, most_steps=150, dropout=0.5, whitens=True),
)
"""What is tried. The first serves where there are many records for the width of the model, as on
the testbed; the second where there are few, as for every real model."""


def fit_projection(
    states: ScopeStates, fitting: Fitting, config: TrainingConfig, *, progress: bool
) -> GateProjection:
    """Return a trained projection, drawn from the global random state.

    Args:
        states: of the records that teach.
        fitting: how to train it.
        config: of the training.
        progress: whether to show a bar.

    Raises:
        CalibrationError: if states are NaN or infinite.
    """
    device, steps = states.partners.device, fitting.steps(config)
    projection = GateProjection(states.gate[_REQUEST].shape[-1], fitting.form).to(device)
    inputs = {kind: projection.inputs(states.gate[kind], states.vision[kind]) for kind in SCOPE}
    if not all(bool(each.isfinite().all()) for each in inputs.values()):
        raise CalibrationError(
            "states to train the gate on hold NaN or infinity: the model's own answers to the"
            " records do, too; load it in another dtype (float32 or bfloat16 for float16)"
        )
    whitening = _whitening(inputs) if fitting.whitens else None
    if whitening is not None:
        inputs = {kind: whitening.apply(each) for kind, each in inputs.items()}
    states = replace(states, gate=inputs, vision={}, text={})

    def project(inputs: Tensor) -> Tensor:
        seen = functional.dropout(inputs, fitting.dropout) if fitting.dropout else inputs
        return projection.keys(seen)

    scale = nn.Parameter(torch.tensor(math.log(_FIRST_SCALE), device=device))
    none = nn.Parameter(torch.tensor(_FIRST_NONE, device=device))
    rate = fitting.learning_rate
    optimiser = torch.optim.Adam([*projection.parameters(), scale, none], lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _pace(step, steps))
    name = f"gate, {fitting.form}"
    bar = tqdm(range(steps), desc=name, unit="step", disable=not progress)
    for _ in bar:
        rows = torch.randperm(len(states))[:_BATCH]
        batch = states.select(rows)
        loss = _routing_loss(project, projection.similarity, batch, scale.exp(), none)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(projection.parameters(), _LARGEST_NORM)
        optimiser.step()
        schedule.step()
        bar.set_postfix(loss=f"{float(loss.detach()):.4f}")
    first = projection.layers[0]
    if whitening is not None and isinstance(first, nn.Linear):
        whitening.fold(first)
    return projection


def _whitening(inputs: Mapping[str, Tensor]) -> Whitening:
    request = inputs[_REQUEST]
    rephrases = [inputs[kind] for kind in METRICS if kind in IN_SCOPE and kind != _REQUEST]
    return Whitening.of(request, torch.cat([each - request for each in rephrases]))


def _routing_loss(
    project: Callable[[Tensor], Tensor],
    compare: Callable[[Tensor, Tensor], Tensor],
    batch: ScopeStates,
    scale: Tensor,
    none: Tensor,
) -> Tensor:
    """Return the mean cross-entropy of finding a query's own edit among all of a batch, or none.

    The logits of a query are its scaled similarities to every edit, and one learned number that
    stands for none of them.

    Args:
        project: makes keys of inputs.
        compare: returns the similarities of keys of queries to those of edits.
        batch: whose `gate` are inputs.
        scale: of the similarities.
        none: the learned number.
    """
    edits = project(batch.gate[_REQUEST])
    count = len(edits)
    rows = torch.arange(count, device=edits.device)
    losses = []
    for kind in SCOPE:
        own = kind == _REQUEST
        queries = edits if own else project(batch.gate[kind])
        logits = scale * compare(queries, edits)  # [n, n]
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
