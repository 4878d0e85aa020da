"""What a model reads of a question, tokenised once."""

from collections.abc import Hashable
from dataclasses import dataclass

from torch import Tensor

from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Batch, Query
from easyedit_dualedit.train.picture_features import PIXELS
from easyedit_dualedit.train.state_folder import digest_of_tensors

_MOST = 20_000
"""Prompts that are kept."""

Loaded = tuple[Query, dict[str, Tensor], dict[str, Tensor]]
"""A query, the tokens of its prompt, and the inputs that are not one number a token."""


@dataclass(frozen=True)
class Prompt:
    """What the model reads of a query before its answer, without its pixels."""

    tokens: dict[str, Tensor]
    small: dict[str, Tensor]
    """Inputs that are not one number a token."""
    digest: str
    """Of those, of the pixels, and of whether it is read under autocast; may be empty."""

    def name_in(self, batch: Batch, row: int) -> str:
        """Return a digest of all that the model reads of a row, answer included, and of how."""
        real = batch.layout.real[row]
        own = {name: batch.inputs[name][row][real] for name in self.tokens}
        return digest_of_tensors(own, self.digest)


class Prompts:
    """Prompts of the questions that were asked last."""

    def __init__(self, encoder: Encoder, *, names: bool = False):
        """Keep nothing yet.

        Args:
            encoder: tokenises.
            names: whether prompts have digests, which takes time.
        """
        self._encoder = encoder
        self._names = names
        self._held: dict[Hashable, Prompt] = {}

    def get(
        self, query: Query, key: tuple[Hashable, bool], loaded: dict[Hashable, Loaded]
    ) -> Prompt:
        """Return what the model reads of a query; what is tokenised for it goes to `loaded`.

        Args:
            query: whose prompt.
            key: tells its pictures from others, and whether it is read under autocast.
            loaded: by such keys.
        """
        place = (query.prompt, key)
        held = self._held.get(place)
        if held is None:
            tokens, other = self._encoder.tokenised(query)
            loaded.setdefault(key, (query, tokens, other))
            small = {name: value for name, value in other.items() if name not in PIXELS}
            digest = digest_of_tensors(other, str(key[1])) if self._names else ""
            held = Prompt(tokens, small, digest)
            if len(self._held) >= _MOST:
                self._held.pop(next(iter(self._held)))
            self._held[place] = held
        return held
