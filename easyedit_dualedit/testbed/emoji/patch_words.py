"""What every patch of a picture is to say: one token of a name, or the background's color."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from easyedit_dualedit.testbed.emoji.drawing import BACKGROUNDS, GRID, Picture
from easyedit_dualedit.testbed.emoji.things import Thing


class PatchWords:
    """The tokens of names and colors, in the order in which patches say them.

    A patch says the token of its thing's name that its own place in the picture gives, modulo the
    number of tokens, so that a row of patches is read as text, beginning anywhere in the name. A
    patch knows its place for certain, and the edge of a thing only where the drawing reaches it.

    An *entry* is a place in a thing's name, or a color; every patch has one.

    Attributes:
        names: of all things.
        token_of_entry: rows of ``embeddings`` [k]; entries of names first, then those of colors.
        name_entries: how many entries are places in names.
        tokens: ids of all tokens that occur [t].
        embeddings: the decoder's embeddings of them [t, d].
    """

    def __init__(self, things: Sequence[Thing], tokenizer: Any, embeddings: Tensor) -> None:
        """Read the tokens of all names, each as after a space, out of all embeddings [v, d]."""
        self.names = [thing.name for thing in things]
        self._number = {name: number for number, name in enumerate(self.names)}

        def ids(text: str) -> list[int]:
            found: list[int] = tokenizer(f" {text}", add_special_tokens=False).input_ids
            return found

        names = [ids(name) for name in self.names]
        said = [token for name in names for token in name]
        said += [ids(color)[0] for color in BACKGROUNDS]
        occurring = sorted(set(said))
        place = {token: number for number, token in enumerate(occurring)}
        self.tokens = torch.tensor(occurring)
        self.embeddings = embeddings[self.tokens].detach().float()
        self.token_of_entry = torch.tensor([place[token] for token in said])
        self._lengths = [len(name) for name in names]
        self._first = [0, *torch.tensor(self._lengths).cumsum(0).tolist()]
        self.name_entries = self._first[-1]
        self._grounds = {
            color: self.name_entries + number for number, color in enumerate(BACKGROUNDS)
        }

    def of(self, pictures: Sequence[Picture]) -> tuple[Tensor, Tensor]:
        """Return what the patches of pictures say and show, each [n, 36].

        Returns:
            Entries; things as numbers of ``names``, and their count for none.
        """
        entries = torch.empty(len(pictures), GRID, GRID, dtype=torch.long)
        things = torch.full_like(entries, len(self.names))
        for index, picture in enumerate(pictures):
            entries[index] = self._grounds[picture.background]
            for placed in picture.things:
                number, size = self._number[placed.name], placed.size
                rows = slice(placed.row, placed.row + size)
                across = slice(placed.column, placed.column + size)
                length = self._lengths[number]
                order = _places(size, length)[rows, across] % length
                entries[index, rows, across] = self._first[number] + order
                things[index, rows, across] = number
        return entries.flatten(1), things.flatten(1)


def _places(size: int, length: int) -> Tensor:
    """Return the place in a name of so many tokens that each patch of a picture gives [6, 6].

    A name that is longer than the rows of a thing goes on in the next row.
    """
    across, down = torch.arange(GRID), torch.arange(GRID)[:, None]
    if length <= size:
        return across.expand(GRID, GRID)
    return across % size + size * down
