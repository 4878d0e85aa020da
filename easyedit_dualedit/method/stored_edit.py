"""An edit as it is kept: the adapters' keys and values of its target tokens, in few bytes.

At LLaVA-1.5-7B size a target of five tokens takes 22 kB as eight-bit numbers, 41 kB in half
precision, however large picture and prompt are.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from easyedit_dualedit.method.adapter import ProjectedEdit
from easyedit_dualedit.method.config import Modality
from easyedit_dualedit.method.packing import Packed
from easyedit_dualedit.model.answers import exact_match
from easyedit_dualedit.model.inputs import NO_WORD, Query
from easyedit_dualedit.model.shown_content import shown_digest


@dataclass(frozen=True)
class Provenance:
    """Where an edit comes from."""

    time: str
    """When it was made, in UTC, as ISO 8601 writes it."""
    prompt: str
    target: str
    pictures: tuple[str, ...]
    """A hash of what each picture shows."""
    answer: str | None = None
    """What the edited model answered when it was last asked (`EditMemory.check`); None: never."""

    @property
    def second(self) -> str:
        """When it was made, without fractions of a second."""
        return self.time[:19] + self.time[-6:]

    @property
    def takes(self) -> bool | None:
        """Whether that answer was the target; None if it was never asked."""
        return None if self.answer is None else exact_match(self.answer, self.target) == 1.0

    @property
    def question(self) -> tuple[Any, ...]:
        """What two edits of one question have in common."""
        return _question(self.prompt, self.pictures)


@dataclass(frozen=True)
class PackedProjection:
    """Keys and values of one adapter for one edit.

    Shapes: h heads, e edit length, k width of a head.
    """

    keys: Packed
    """[h, e, k]."""
    values: Packed
    """[h, e, k]."""


@dataclass(frozen=True)
class StoredEdit:
    """One edit of a memory; the same one read from a file is equal."""

    id: str
    provenance: Provenance
    key: Tensor = field(compare=False)
    """What the gate compares queries with, float32 [k]."""
    projected: Mapping[Modality, PackedProjection] = field(compare=False)
    words: tuple[int, ...] = ()
    """Answer token that follows each position, `NO_WORD` where none does; empty in edits of
    adapters without a word path."""

    @property
    def stored_bytes(self) -> int:
        """Bytes of its numbers."""
        parts = [part for one in self.projected.values() for part in (one.keys, one.values)]
        key = self.key.numel() * self.key.element_size()
        return key + sum(part.stored_bytes for part in parts)


class StoredProjections:
    """What one adapter needs of stored edits; only those in use are unpacked."""

    def __init__(
        self,
        edits: Sequence[StoredEdit],
        modality: Modality,
        device: torch.device,
        word_vectors: Callable[[Tensor], Tensor | None],
    ):
        """Keep the edits, oldest first, as the adapter of a modality uses them on a device."""
        self._edits = tuple(edit.projected[modality] for edit in edits)
        self._words = tuple(edit.words for edit in edits)
        self._device = device
        self._word_vectors = word_vectors
        self._latest: tuple[list[int], ProjectedEdit] | None = None

    def select(self, rows: Tensor) -> ProjectedEdit:
        """Return the edits with the given indices, long [b]; shorter ones are padded."""
        places, latest = rows.tolist(), self._latest
        if latest is None or latest[0] != places:
            # One question takes many forwards, and not all of them may be in inference mode.
            with torch.inference_mode(False):
                self._latest = latest = (places, self._unpacked(places))
        return latest[1]

    def _unpacked(self, places: Sequence[int]) -> ProjectedEdit:
        chosen = [self._edits[place] for place in places]
        keys = self._padded([edit.keys for edit in chosen])
        values = self._padded([edit.values for edit in chosen])
        lengths = torch.tensor([edit.keys.values.shape[1] for edit in chosen])
        mask = torch.arange(keys.shape[2]) < lengths[:, None]
        words = [torch.tensor(self._words[place], dtype=torch.long) for place in places]
        ids = pad_sequence(words, True, padding_value=NO_WORD).to(self._device)
        vectors = self._word_vectors(ids)
        return ProjectedEdit(keys, values, mask.to(self._device), vectors, is_full=bool(mask.all()))

    def _padded(self, parts: Sequence[Packed]) -> Tensor:
        """Return the tensors of several edits as one, [b, h, e, k], zeros behind short ones."""
        by_token = [part.to(self._device).unpacked().transpose(0, 1) for part in parts]
        return pad_sequence(by_token, batch_first=True).transpose(1, 2)


def unanswered(edits: Sequence[StoredEdit], questions: Set[tuple[Any, ...]]) -> list[StoredEdit]:
    """Return edits, those of some questions as if they had never been asked.

    What an edit's question is answered is not known any longer once another edit of the same
    question has come or gone.
    """
    return [
        replace(edit, provenance=replace(edit.provenance, answer=None))
        if edit.provenance.answer is not None and edit.provenance.question in questions
        else edit
        for edit in edits
    ]


def without(edits: Sequence[StoredEdit], ids: Set[str]) -> list[StoredEdit]:
    """Return edits but for those with some ids."""
    questions = {edit.provenance.question for edit in edits if edit.id in ids}
    return unanswered([edit for edit in edits if edit.id not in ids], questions)


def picture_hashes(request: Query) -> tuple[str, ...]:
    """Return a short hash of what each picture of a request, or its video, shows.

    Raises:
        DataError: if a picture cannot be read.
    """
    return tuple(shown_digest(each)[:16] for each in request.shown)


def question_of(request: Query) -> tuple[Any, ...]:
    """Return what two requests of one question have in common, as `Provenance.question` does.

    Raises:
        DataError: if a picture cannot be read.
    """
    return _question(request.prompt, picture_hashes(request))


def _question(prompt: str, pictures: tuple[str, ...]) -> tuple[Any, ...]:
    return (" ".join(prompt.split()), pictures)
