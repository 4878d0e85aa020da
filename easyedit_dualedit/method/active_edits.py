"""The edits in force in one edited model: which of them concerns a row, and what it changes there.

An `EditSignal` is one edit as it was read from the model. `ActiveEdits` holds several, read or
stored, in the form in which a forward uses them.
"""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.method.adapter import DualAdapters, ProjectedEdit, add_at
from easyedit_dualedit.method.config import Modality
from easyedit_dualedit.method.gate import Gate, Routing
from easyedit_dualedit.method.stored_edit import StoredEdit, StoredProjections, question_of
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.hooks import lasting_tensors, record, undisturbed
from easyedit_dualedit.model.inputs import CACHE_NAMES, NO_WORD, Query, TokenLayout

_NOT_FOR_ROUTING = (*CACHE_NAMES, "use_cache", "labels", "logits_to_keep", "cache_position")


@dataclass(frozen=True, eq=False)
class EditSignal:
    """States of one edit request in the unedited model (paper section 4).

    Shapes: e positions that carry the edit, d hidden size.
    """

    states: Mapping[int, Tensor]
    """Layer -> states at the positions that carry the edit, [e, d]."""
    gate_state: Tensor
    """State of the last prompt token at the text layer, [d]."""
    last_state: Tensor
    """State of the last target token at the text layer, [d]; only `last-token` gates read it."""
    vision_state: Tensor
    """Mean state of the image tokens at the text layer, [d]; zeros without a picture."""
    text_state: Tensor
    """What the prompt says there (`Gate.said`), [d + l]; zeros with a picture."""
    words: Tensor
    """Answer token that follows each of those positions, long [e]; `NO_WORD` where none does."""
    request: Query | None = None
    """What was asked for, where it is known."""

    @cached_property
    def question(self) -> tuple[Any, ...] | None:
        """What two edits of one question have in common; None where it is not known.

        A picture that has gone since it was read says no longer which question it was.
        """
        try:
            return None if self.request is None else question_of(self.request)
        except DataError:
            return None


class Projections(Protocol):
    """What one adapter needs of several edits."""

    def select(self, rows: Tensor) -> ProjectedEdit:
        """Return the edits with the given indices, long [b]."""


@dataclass(frozen=True)
class ActiveEdits:
    """Edits in the form in which a forward uses them; never changed, only replaced."""

    adapters: DualAdapters
    gate: Gate
    edits: tuple[EditSignal | StoredEdit, ...]
    """Oldest first."""
    keys: Tensor
    """Gate keys, [n, k]."""
    projected: Mapping[Modality, Projections]
    """Keys and values of each adapter in use; empty without edits."""
    assignment: Tensor | None = None
    """The only edit that each row may use, long [b]; None lets the gate choose among all."""
    newest: Tensor | None = None
    """Place of the newest edit of each one's question, long [n]; None where each is the newest."""
    watch: Callable[[Routing], None] | None = None
    """Is told each decision."""

    @classmethod
    @lasting_tensors()
    def of(
        cls,
        signals: Sequence[EditSignal],
        adapters: DualAdapters,
        gate: Gate,
        assignment: Tensor | None = None,
    ) -> Self:
        """Return `signals`, oldest first, as adapters and gate see them; gradients pass.

        Where the gate chooses, of those of one question the newest alone applies.
        """
        if not signals:
            return cls(adapters, gate, (), gate.mean.new_empty(0, len(gate.mean)), {}, assignment)
        projected: dict[Modality, Projections] = {}
        is_full = len({len(signal.words) for signal in signals}) == 1
        words = adapters.word_vectors(
            pad_sequence([signal.words for signal in signals], True, padding_value=NO_WORD)
        )
        for modality in adapters.modalities:
            layer = adapters.layer_of[modality]
            states, mask = stacked([signal.states[layer] for signal in signals])
            made = adapters[modality].project(states, mask, words)
            projected[modality] = replace(made, is_full=is_full)
        newest = None
        if assignment is None and len(signals) > 1:
            newest = _newest([signal.question for signal in signals], gate.mean.device)
        keys = keys_of(signals, gate)
        return cls(adapters, gate, tuple(signals), keys, projected, assignment, newest)

    @classmethod
    @lasting_tensors()
    def of_stored(
        cls,
        stored: Sequence[StoredEdit],
        adapters: DualAdapters,
        gate: Gate,
        assignment: Tensor | None = None,
    ) -> Self:
        """Return stored edits, oldest first; of those of one question the newest alone applies."""
        device = gate.mean.device
        if not stored:
            return cls(adapters, gate, (), torch.empty(0, 0, device=device), {}, assignment)
        # Edits that were kept before the gate had text keys have shorter ones.
        keys = pad_sequence([edit.key for edit in stored], True).to(device)
        newest = _newest([edit.provenance.question for edit in stored], device)
        projected: dict[Modality, Projections] = {
            modality: StoredProjections(stored, modality, device, adapters.word_vectors)
            for modality in stored[0].projected
        }
        return cls(adapters, gate, tuple(stored), keys, projected, assignment, newest)

    @classmethod
    def together(cls, parts: Sequence["ActiveEdits"], assignment: Tensor | None = None) -> Self:
        """Return the edits of several models of one editor, in their order.

        Raises:
            DataError: if they are of different editors, or some are stored and some are not.
        """
        adapters, gate = parts[0].adapters, parts[0].gate
        if any(part.adapters is not adapters or part.gate is not gate for part in parts):
            raise DataError("the models have different editors; give models of one editor")
        edits = [edit for part in parts for edit in part.edits]
        signals = [edit for edit in edits if isinstance(edit, EditSignal)]
        stored = [edit for edit in edits if isinstance(edit, StoredEdit)]
        if signals and stored:
            raise DataError("edits that were stored and edits that were only read do not mix")
        if stored:
            return cls.of_stored(stored, adapters, gate, assignment)
        return cls.of(signals, adapters, gate, assignment)

    def with_gate(self, gate: Gate) -> Self:
        """Return the same edits under another gate.

        Raises:
            DataError: if edits are stored: of them only their gate's own keys are known.
        """
        signals = [edit for edit in self.edits if isinstance(edit, EditSignal)]
        if len(signals) < len(self.edits):
            raise DataError("stored edits keep their gate; read them anew for another")
        return replace(self, gate=gate, keys=keys_of(signals, gate) if signals else self.keys)

    def __len__(self) -> int:
        """Return the number of edits."""
        return len(self.edits)

    @property
    def gate_layer(self) -> int:
        """The layer whose states the gate reads."""
        return self.adapters.layer_of["text"]

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that are changed, without repeats."""
        layer_of = self.adapters.layer_of
        return tuple(dict.fromkeys(layer_of[name] for name in self.adapters.modalities))

    @property
    def changes_before_gate(self) -> bool:
        """Whether a layer below the gate's is changed: its states are then no longer unedited."""
        return min(self.layers) < self.gate_layer

    def decide(self, hidden: Tensor, layout: TokenLayout) -> Routing:
        """Return which edit applies to each row, from the states of the gate's layer, [b, s, d].

        Raises:
            DataError: if the rows do not fit the assignment.
            CalibrationError: if the gate has no threshold.
        """
        keys, device = self.keys, self.gate.mean.device
        keys = keys if keys.device == device else keys.to(device)
        routing = self.gate.decide(hidden, layout, keys, self.assignment)
        if self.newest is not None and self.assignment is None:
            # In half precision, keys of one question differ by what was read beside it.
            chosen = routing.edit_index
            newest = self.newest.to(chosen.device)[chosen.clamp(min=0)]
            routing = replace(routing, edit_index=torch.where(chosen < 0, chosen, newest))
        if self.watch is not None:
            self.watch(routing)
        return routing

    def decide_ahead(
        self, backbone: Backbone, inputs: Mapping[str, Any], layout: TokenLayout
    ) -> Routing:
        """Return which edit applies to each row of a call, by an unedited forward that ends early.

        Args:
            backbone: parts of the model.
            inputs: of the call.
            layout: what each position of it is.

        Raises:
            DataError: if the rows do not fit the assignment.
            CalibrationError: if the gate has no threshold.
        """
        plain = {key: value for key, value in inputs.items() if key not in _NOT_FOR_ROUTING}
        mask = plain.get("attention_mask")
        if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
            # Made for the cache that is left out.
            plain["attention_mask"] = layout.real.long()
        with (
            torch.no_grad(),
            undisturbed(backbone.model),
            record(backbone.layers, [self.gate_layer], stop=True) as states,
        ):
            backbone.model(**plain, use_cache=False)
        return self.decide(states[self.gate_layer], layout)

    def changed(
        self, layer: int, hidden: Tensor, layout: TokenLayout, open_rows: Mapping[int, int]
    ) -> Tensor:
        """Return the output of a layer, changed by the edits of some rows.

        Args:
            layer: one of `layers`.
            hidden: its output, [b, s, d]; not modified.
            layout: what each position is.
            open_rows: index of each row that an edit concerns -> index of the edit.
        """
        chosen = torch.tensor(list(open_rows.values()), device=self.keys.device)
        for modality in self.adapters.modalities:
            if self.adapters.layer_of[modality] == layer:
                positions = self.adapters.positions(modality, layout)
                adapter, rows = self.adapters[modality], list(open_rows)
                edit = _like(self.projected[modality].select(chosen), adapter.query.weight)
                # A picture stands in the prompt, before any answer.
                answered = layout.answered if modality == "text" else None
                hidden = add_at(hidden, positions, adapter, edit, rows, answered)
        return hidden


def _like(edit: ProjectedEdit, weight: Tensor) -> ProjectedEdit:
    """Return an edit in the dtype and on the device of an adapter, which may be others by now."""
    if (edit.keys.dtype, edit.keys.device) == (weight.dtype, weight.device):
        return edit
    words = None if edit.words is None else edit.words.to(weight)
    keys, values, mask = edit.keys.to(weight), edit.values.to(weight), edit.mask.to(weight.device)
    return replace(edit, keys=keys, values=values, mask=mask, words=words)


def _newest(questions: Sequence[tuple[Any, ...] | None], device: torch.device) -> Tensor | None:
    """Return the last place of each one's question, long [n]; None where no question comes twice.

    None among the questions is one that is not known, like no other.
    """
    known = [place if asked is None else asked for place, asked in enumerate(questions)]
    last = {asked: place for place, asked in enumerate(known)}
    if len(last) == len(known):
        return None
    return torch.tensor([last[asked] for asked in known], device=device)


@dataclass(frozen=True)
class Decision:
    """Which edit concerns each row of a prompt."""

    open_rows: Mapping[int, int]
    """Row that an edit concerns -> the edit."""
    answered: Tensor
    """Answer tokens that were read with the prompt, of each row, long [b]."""
    cached: int
    """Tokens that the cache held after it."""

    @cached_property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, padding included."""
        return self.cached - int(self.answered.amax())

    def repeated(self, rows: int) -> Mapping[int, int]:
        """Return the open rows where rows were repeated in place, as many as given in all."""
        times = max(1, rows // len(self.answered))
        return {
            row * times + place: edit
            for row, edit in self.open_rows.items()
            for place in range(times)
        }

    def continued(self, rows: int, width: int, cached: int) -> TokenLayout:
        """Return what the positions of a step are.

        Args:
            rows: of the step.
            width: tokens of each.
            cached: tokens that the cache holds before it.
        """
        times = max(1, rows // len(self.answered))
        before = self.answered.repeat_interleave(times) + (cached - self.cached)
        return TokenLayout.of_answer(before, width)


class DecisionMark:
    """Is put on the cache that holds a prompt's keys and values; copies of the cache keep it."""

    def __deepcopy__(self, _: Any) -> "DecisionMark":
        """Return the mark itself."""
        return self


Decisions = MutableMapping[DecisionMark, Decision]
"""What was decided for a prompt, for as long as a cache has its mark."""


@lasting_tensors()
def keys_of(signals: Sequence[EditSignal], gate: Gate) -> Tensor:
    """Return what a gate compares queries with, [n, k]."""
    reads_label = gate.config.kind == "last-token"
    states = [signal.last_state if reads_label else signal.gate_state for signal in signals]
    means = zip(*((signal.vision_state, signal.text_state) for signal in signals), strict=True)
    return gate.key(torch.stack(states), *map(torch.stack, means))


def stacked(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return states of different lengths as one tensor [n, e, d] and its mask, bool [n, e].

    The mask is True at real positions.
    """
    lengths = torch.tensor([len(item) for item in states], device=states[0].device)
    padded = pad_sequence(list(states), batch_first=True)
    positions = torch.arange(padded.shape[1], device=padded.device)
    return padded, positions < lengths[:, None]
