"""How a training does on records that it is not trained on: losses, and what answers are worth.

The gate decides by states of the unedited model, which no training changes: it is asked once, and
then what the adapters do is measured with it and with the gate held open. Nothing here draws random
numbers or keeps states for a training step, so a training goes on as if it had not been measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from easyedit_dualedit.data.records import METRICS, Record, metric_queries
from easyedit_dualedit.data.scope import IN_SCOPE
from easyedit_dualedit.data.training_targets import TrainingTargets, targets_of
from easyedit_dualedit.errors import CalibrationError
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.row_budget import RowBudget
from easyedit_dualedit.processes import Processes
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.gate_reading import read_gate_states
from easyedit_dualedit.train.held_out import apart
from easyedit_dualedit.train.losses import AnswerTokens
from easyedit_dualedit.train.step import TrainingStep

GROUPS = ("all", "seen", "unseen")
"""All records, and those whose target is one of the training's, or none."""


@dataclass(frozen=True)
class Measured:
    """What was measured at one step. Each is group -> metric -> value; groups without any lack."""

    loss: dict[str, dict[str, float]]
    """Mean over the records in nats, the gate held open."""
    adapters: dict[str, dict[str, float]]
    """Share of the records, 0 to 1, the gate held open."""
    gated: dict[str, dict[str, float]]
    """Share of the records, 0 to 1, with the gate's decisions."""
    total_loss: float
    """The losses of all records, summed with the weights of the training."""

    @property
    def score(self) -> float:
        """The mean of the five metrics of all records, with the gate's decisions, 0 to 1."""
        return sum(self.gated["all"].values()) / len(METRICS)


class Validation:
    """Measures an editor on some records, as its adapters are at the moment.

    An answer counts in scope if the edited model finds every token of it likeliest, the end of the
    turn included where that is trained: greedy decoding then says it. Out of scope it counts if
    every likeliest token is still that of the unedited model.
    """

    def __init__(
        self,
        editor: DualEditor,
        records: Sequence[Record],
        training: Sequence[Record],
        config: TrainingConfig,
        *,
        targets: Sequence[str] | None = None,
        progress: bool = False,
    ):
        """Ask the gate of the editor, and the unedited model, once.

        Args:
            editor: with the gate that decides; without one that is calibrated it is held open.
            records: to validate on, at least one.
            training: records that are trained on.
            config: of the training; here all metrics have a weight.
            targets: of the records that steps draw; None is those of `training`.
            progress: whether to show bars.
        """
        self._editor, self._progress = editor, progress
        self._records = list(records)
        weights: dict[str, Any] = {f"{metric}_weight": 1.0 for metric in METRICS}
        self._config = replace(config, **weights)
        self._weights = config.weights
        self._steps = TrainingStep(editor, budget=0, state_budget=0)
        self._budget = RowBudget.of(editor.backbone)
        self._counts = _counting(records, training)
        known = TrainingTargets.of(targets_of(training) if targets is None else targets)
        seen = torch.tensor([known.has(record.request.target or "") for record in records])
        self._members = dict(zip(GROUPS, (torch.ones_like(seen), seen, ~seen), strict=True))
        self._opens = _decisions(editor, records, config.autocast, progress)
        self._unedited = self._answers(is_edited=False)[1]
        in_scope = torch.tensor([metric in IN_SCOPE for metric in METRICS])
        # Where the gate stays closed the unedited model answers, and agrees with itself.
        self._unedited = torch.where(in_scope, self._unedited, 1.0)

    @property
    def about(self) -> dict[str, Any]:
        """Which gate decides, how many records each group has, and for which queries it opens.

        The latter is the share of the records, 0 to 1, by metric.
        """
        records = {name: int(mask.sum()) for name, mask in self._members.items()}
        if self._opens is None:
            return {"gate": "open", "records": records}
        opens = self._means(self._opens.double())["all"]
        return {"gate": self._editor.gate.kind, "records": records, "opens": opens}

    def measure(self) -> Measured:
        """Return how the adapters do now."""
        losses, right = self._answers(is_edited=True)
        opens = self._opens
        gated = right if opens is None else torch.where(opens, right, self._unedited)
        loss, adapters, with_gate = (self._means(values) for values in (losses, right, gated))
        total = sum(self._weights[metric] * value for metric, value in loss["all"].items())
        return Measured(loss, adapters, with_gate, total)

    def _means(self, values: Tensor) -> dict[str, dict[str, float]]:
        means: dict[str, dict[str, float]] = {}
        for group, members in self._members.items():
            for place, metric in enumerate(METRICS):
                chosen = values[members & self._counts[:, place], place]
                if len(chosen):
                    means.setdefault(group, {})[metric] = float(chosen.double().mean())
        return means

    @torch.no_grad()
    def _answers(self, *, is_edited: bool) -> tuple[Tensor, Tensor]:
        """Return loss, and 1 where all is right, of each record and metric, [n, m].

        Processes share the batches, which are the same whatever their number is.
        """
        shape = (len(self._records), len(METRICS))
        sums = torch.zeros(3, *shape, dtype=torch.float64)
        size = self._config.batch_size
        processes = Processes.current()

        def ask(places: list[int]) -> None:
            batch = [self._records[place] for place in places]
            found = self._steps.answers(batch, self._config, is_edited=is_edited)
            sums[:, places] = _by_query(found, len(batch))

        batches = list(processes.share(range(0, len(self._records), size)))
        name = "validation" if is_edited else "validation, unedited"
        for start in tqdm(batches, name, unit="batch", disable=not self._progress, leave=False):
            self._budget.run_together(range(len(self._records))[start : start + size], ask)
        device = self._editor.gate.mean.device
        loss, wrong, count = processes.total(sums.to(device)).cpu()
        return loss / count.clamp(min=1), (wrong == 0).double()


def _by_query(answers: AnswerTokens, count: int) -> Tensor:
    """Return sum of the losses, wrong tokens and all tokens by record and metric, [3, n, m]."""
    values = torch.stack([answers.loss, ~answers.right, torch.ones_like(answers.loss)]).cpu()
    place = (answers.record * len(METRICS) + answers.metric).cpu()
    sums = torch.zeros(3, count * len(METRICS), dtype=torch.float64)
    return sums.index_add(1, place, values.double()).view(3, count, len(METRICS))


def _counting(records: Sequence[Record], training: Sequence[Record]) -> Tensor:
    """Return True for the queries that count, bool [n, m].

    Questions and pictures of locality that are trained on do not, unless all of a kind are.
    """
    counts = torch.ones(len(records), len(METRICS), dtype=torch.bool)
    for place, metric in enumerate(METRICS):
        if metric not in IN_SCOPE:
            fresh = apart(metric_queries(records, metric), metric_queries(training, metric))
            if any(fresh):
                counts[:, place] = torch.tensor(fresh)
    return counts


@torch.no_grad()
def _decisions(
    editor: DualEditor, records: Sequence[Record], autocast: str, progress: bool
) -> Tensor | None:
    """Return whether the gate opens for each query, bool [n, m]; None if it is not calibrated."""
    gate, count = editor.gate, len(records)
    try:
        gate.threshold_among(1)
    except CalibrationError:
        return None
    queries = [query for metric in METRICS for query in metric_queries(records, metric)]
    read = read_gate_states(editor, queries, autocast=autocast, progress=progress)
    parts = [read.of(place * count, (place + 1) * count) for place in range(len(METRICS))]
    states = [part.last if gate.kind == "last-token" else part.gate for part in parts]
    means = [(part.vision, part.text) if gate.kind == "learned" else () for part in parts]
    keys = gate.key(states[0], *means[0])
    own = torch.arange(count, device=keys.device)
    opens = [
        gate.route(state, keys, own, *mean).is_open
        for state, mean in zip(states, means, strict=True)
    ]
    return torch.stack(opens, 1).cpu()
