"""The gradient of a batch, from as many of its records at once as memory has room for.

Every answer token of the batch counts alike, in whichever part it is: however many records run at
once, the gradient is that of the whole batch, but for rounding.
"""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from easyedit_dualedit.data.records import METRICS, Record, metric_queries
from easyedit_dualedit.data.scope import IN_SCOPE
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.inputs import Query, input_device
from easyedit_dualedit.model.row_budget import RowBudget
from easyedit_dualedit.processes import Processes
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.losses import StepLosses, TokenSums, losses_of
from easyedit_dualedit.train.step import TrainingStep, metrics_read


class BatchGradient:
    """Adds the gradients of batches to those of an editor's adapters."""

    def __init__(
        self,
        editor: DualEditor,
        step: TrainingStep,
        config: TrainingConfig,
        budget: RowBudget | None = None,
    ):
        """Have seen no batch yet.

        Args:
            editor: whose adapters are trained.
            step: computes the losses.
            config: of the training.
            budget: of tokens that run at once; None is what the memory has room for.

        Raises:
            BackboneError: if less memory is allowed than the weights take.
        """
        self._editor, self._step, self._config = editor, step, config
        recomputes = config.checkpoint_activations
        self._budget = budget or RowBudget.for_training(
            editor.backbone, step.first_layer, recomputes=recomputes
        )
        self.at_once = 0
        """Records of the last batch that ran at once at most."""

    def add(self, records: Sequence[Record]) -> StepLosses:
        """Add the gradient of a batch, over the number of batches in a step; return its losses.

        Nothing is asked of other processes between the parts, of which each has its own number.

        Args:
            records: this process's share of the batch.

        Raises:
            torch.OutOfMemoryError: if there is no room for a single record.
        """
        processes, weights = Processes.current(), self._config.weights
        tokens = self._tokens(records)
        counts = processes.total(self._answer_tokens(records))
        total = torch.zeros((), device=counts.device)
        values = torch.zeros(2, len(METRICS), device=counts.device)
        self.at_once = 0

        def work(places: list[int]) -> None:
            answers = self._step.answers([records[place] for place in places], self._config)
            sums = TokenSums.of(answers, counts)
            part = sums.total(weights)
            self._add_gradient(part / self._config.accumulate)
            total.add_(part.detach().to(total.device))
            values.add_(sums.values.to(values.device))
            self.at_once = max(self.at_once, len(places))

        self._budget.run(range(len(records)), tokens, work)
        self._step.prepared = {}
        return losses_of(total, values, weights, processes)

    def _add_gradient(self, loss: Tensor) -> None:
        """Add a gradient once all of it is there: what memory ends in has added none of it."""
        if not loss.requires_grad:  # text alone, say, which no vision adapter reaches
            return
        parameters = [each for each in self._editor.adapters.parameters() if each.requires_grad]
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, found, strict=True):
            if gradient is None:
                continue
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                parameter.grad.add_(gradient)

    def _tokens(self, records: Sequence[Record]) -> list[int]:
        """Return how many tokens each record has; the pixels that are read for it are kept."""
        self._step.prepared = {}
        metrics = metrics_read(self._config)
        every = [metric_queries(records, metric) for metric in metrics]
        together = [query for queries in every for query in queries]
        device = input_device(self._editor.backbone.model).type
        casts = self._config.autocast != "none" or torch.is_autocast_enabled(device)
        self._step.frozen.read(together, self._step.prepared, casts=casts)
        return [self._tokens_of(queries, casts) for queries in zip(*every, strict=True)]

    def _tokens_of(self, queries: Sequence[Query], casts: bool) -> int:
        """Return the tokens of a record's rows; questions about one picture share its beginning."""
        encoder, step = self._editor.encoder, self._step
        rows: dict[Hashable, list[tuple[int, int]]] = {}
        for query in queries:
            key = query.shown_keys
            prompt = step.frozen.prompts.get(query, (key, casts), step.prepared)
            ids = prompt.tokens["input_ids"]
            seen = encoder.vision_positions(ids).nonzero()
            beginning = int(seen[-1]) + 1 if len(seen) else 0
            length = len(ids) + _answer_length(self._editor, query)
            rows.setdefault(key, []).append((beginning, length))
        shared = step.frozen.shares and not step.is_plain
        return sum(_width(part, shared=shared) for part in rows.values())

    def _answer_tokens(self, records: Sequence[Record]) -> Tensor:
        """Return how many answer tokens each metric has that is trained on, [m]."""
        counts = [0] * len(METRICS)
        for place, metric in enumerate(METRICS):
            if not self._config.weights[metric]:
                continue
            ended = self._config.end_of_answer and metric in IN_SCOPE
            lengths = [
                _answer_length(self._editor, query) for query in metric_queries(records, metric)
            ]
            counts[place] = sum(length + ended for length in lengths if length)
        device = next(self._editor.adapters.parameters()).device
        return torch.tensor(counts, dtype=torch.float32, device=device)


def _answer_length(editor: DualEditor, query: Query) -> int:
    return len(editor.encoder.target_ids(query.target)) if query.target else 0


def _width(rows: Sequence[tuple[int, int]], *, shared: bool) -> int:
    """Return the tokens of rows with one picture, whose beginnings and lengths are given."""
    lengths = sum(length for _, length in rows)
    if not shared:
        return lengths
    return lengths - sum(beginning for beginning, _ in rows[1:])
