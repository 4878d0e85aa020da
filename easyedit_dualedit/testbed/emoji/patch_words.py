"""What every patch of a picture is to say: one token of a name, or the background's color."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from easyedit_dualedit.testbed.emoji.drawing import BACKGROUNDS, GRID, Picture
from easyedit_dualedit.testbed.emoji.things import Thing

NO_COLUMN = 5
"""Column of a patch that no thing covers; those of a thing are 0 to 4."""


class PatchWords:
    """The tokens of names and colors, in the order in which patches say them.

    Column c of a thing, counted from its left edge, says token c of its name, modulo the number of
    tokens; a name of more tokens than columns goes on in the next row. So a row of patches is
    read as text.

    Attributes:
        tokens: ids of all tokens that occur [t].
        embeddings: the decoder's embeddings of them [t, d].
        names: of all things.
    """

    def __init__(self, things: Sequence[Thing], tokenizer: Any, embeddings: Tensor) -> None:
        """Read the tokens of all names, each as after a space, out of all embeddings [v, d]."""
        self.names = [thing.name for thing in things]
        self._number = {name: number for number, name in enumerate(self.names)}

        def ids(text: str) -> list[int]:
            found: list[int] = tokenizer(f" {text}", add_special_tokens=False).input_ids
            return found

        names = [ids(name) for name in self.names]
        grounds = {color: ids(color)[0] for color in BACKGROUNDS}
        occurring = sorted({each for name in names for each in name} | set(grounds.values()))
        place = {token: number for number, token in enumerate(occurring)}
        self.tokens = torch.tensor(occurring)
        self.embeddings = embeddings[self.tokens].detach().float()
        self._names = [[place[token] for token in name] for name in names]
        self._grounds = {color: place[token] for color, token in grounds.items()}

    def of(self, pictures: Sequence[Picture]) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the patches of pictures say and show, each [n, 36].

        Returns:
            Tokens as rows of ``embeddings``; things as numbers of ``names`` and their count for
            none; columns within a thing, ``NO_COLUMN`` for none.
        """
        tokens = torch.empty(len(pictures), GRID, GRID, dtype=torch.long)
        things = torch.full_like(tokens, len(self.names))
        columns = torch.full_like(tokens, NO_COLUMN)
        for index, picture in enumerate(pictures):
            tokens[index] = self._grounds[picture.background]
            for placed in picture.things:
                number = self._number[placed.name]
                name, size = self._names[number], placed.size
                rows = slice(placed.row, placed.row + size)
                across = slice(placed.column, placed.column + size)
                order = torch.arange(size).expand(size, size)
                columns[index, rows, across] = order
                if len(name) > size:
                    order = order + size * torch.arange(size)[:, None]
                tokens[index, rows, across] = torch.tensor(name)[order % len(name)]
                things[index, rows, across] = number
        return tokens.flatten(1), things.flatten(1), columns.flatten(1)
