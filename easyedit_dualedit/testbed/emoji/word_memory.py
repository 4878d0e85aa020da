"""The tower's last layer as a memory of words: one unit for each entry of ``PatchWords``.

A layer that is trained from chance puts out words that are half their mean, as a thousand arbitrary
vectors have to be learned through it. Here the first matrix of its MLP begins as the classifier of
entries, so that about one unit fires for a patch, and the second, with the projector, as what that
unit is to say.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.testbed.emoji.drawing import Drawings, stack_pixels
from easyedit_dualedit.testbed.emoji.patch_states import patch_states, unit_states
from easyedit_dualedit.testbed.emoji.patch_words import PatchWords
from easyedit_dualedit.testbed.emoji.picture_source import PictureSource
from easyedit_dualedit.testbed.emoji.stage import Stage

logger = logging.getLogger(__name__)

_READ_AT_ONCE = 64
_GROUND_SHARE = 0.15
_WARM_UP = 15
_ENTRY_RATE = 3e-3
_UNIT_RATE, _CODE_RATE, _PROJECTOR_RATE = 5e-4, 0.15, 2e-3
_CODE_DEVIATION = 1.5
_CODE_SCALE = 40.0
_SILENT = -1.0
_RIGHT_WEIGHT = 30.0
_DISTANCE_WEIGHT, _LOGIT_SCALE = 12.0, 20.0
_STEPS_BETWEEN_LINES = 50


@dataclass(frozen=True)
class MemoryPlan:
    """How the last layer is made.

    Attributes:
        pictures: whose patches are read once, below the last layer.
        entry_steps: of the classifier of entries, on all of these patches.
        unit_steps: until its units are above 0 for their own entry alone.
        word_steps: of all that comes after, until it says the decoder's words.
        patches: a step.
    """

    pictures: int = 9000
    entry_steps: int = 250
    unit_steps: int = 150
    word_steps: int = 450
    patches: int = 3072


class WordMemory:
    """The last layer of a tower, without its attention, and the projector behind it."""

    def __init__(self, tower: Any, projector: Any, words: PatchWords, entries: nn.Linear) -> None:
        """Keep the parts; ``entries`` classifies the unit states below the last layer.

        Raises:
            DataError: the layer has fewer units than there are entries.
        """
        self.tower, self.projector, self.words, self.entries = tower, projector, words, entries
        self._layer = getattr(tower, "vision_model", tower).encoder.layers[-1]
        units = self._layer.mlp.fc1.out_features
        if units < len(words.token_of_entry):
            raise DataError(
                f"the tower's layers have {units} units, the names and colors "
                f"{len(words.token_of_entry)} entries; give TowerShape more units"
            )
        self._centre = words.embeddings.mean(0)
        self._directions = functional.normalize(words.embeddings - self._centre, dim=1)

    @torch.no_grad()
    def open(self) -> None:
        """Make the layer pass its states through, and put the classifier into its MLP."""
        layer, count = self._layer, len(self.words.token_of_entry)
        for parameter in layer.self_attn.out_proj.parameters():
            parameter.zero_()
        for norm in (layer.layer_norm1, layer.layer_norm2):
            norm.weight.fill_(1.0)
            norm.bias.zero_()
        first, second = layer.mlp.fc1, layer.mlp.fc2
        first.weight.zero_()
        first.bias.fill_(_SILENT)
        first.weight[:count] = self.entries.weight
        first.bias[:count] = self.entries.bias
        second.weight.normal_(0.0, _CODE_DEVIATION)
        second.weight[:, count:] = 0.0
        second.bias.zero_()
        self.projector.linear_2.bias.copy_(self._centre)

    @torch.no_grad()
    def close(self) -> None:
        """Let the projector read the layer's states as they are."""
        self.projector.linear_1.weight /= _CODE_SCALE

    def groups(self) -> list[tuple[list[nn.Parameter], float]]:
        """Return what is taught to say words, each with its rate."""
        mlp = self._layer.mlp
        return [
            (list(mlp.fc2.parameters()), _CODE_RATE),
            (list(self.projector.parameters()), _PROJECTOR_RATE),
            (list(mlp.fc1.parameters()), _UNIT_RATE),
        ]

    def say(self, states: Tensor) -> Tensor:
        """Return words [n, d] for states [n, width] below the last layer."""
        with torch.autocast("cpu", torch.bfloat16):
            known = self._layer.mlp(unit_states(states))
            said: Tensor = self.projector((states + known) / _CODE_SCALE)
        return said.float()

    def loss(self, states: Tensor, entries: Tensor) -> Tensor:
        """Return how far words are from those of entries, and how near to others."""
        tokens = self.words.token_of_entry[entries]
        said, wanted = self.say(states), self.words.embeddings[tokens]
        distance = (said - wanted).square().sum(-1) / wanted.square().sum(-1)
        entropy = functional.cross_entropy(self._logits(said), tokens)
        return distance.mean() * _DISTANCE_WEIGHT / 2 + entropy / 2

    @torch.no_grad()
    def measure(self, states: Tensor, entries: Tensor) -> dict[str, float]:
        """Return the share of right tokens, and the distance relative to the words' size."""
        tokens = self.words.token_of_entry[entries]
        said, wanted = self.say(states), self.words.embeddings[tokens]
        distance = (said - wanted).square().sum(-1) / wanted.square().sum(-1)
        right = self._logits(said).argmax(-1) == tokens
        return {"token": float(right.float().mean()), "distance": float(distance.mean())}

    def _logits(self, said: Tensor) -> Tensor:
        # Compared without what all tokens share, which would drown what they differ in.
        directions = functional.normalize(said - self._centre, dim=-1)
        return directions @ self._directions.T * _LOGIT_SCALE


def teach_memory(
    memory: WordMemory,
    source: PictureSource,
    drawings: Drawings,
    plan: MemoryPlan,
    folder: Path,
    seed: int,
) -> dict[str, float]:
    """Make the last layer and the projector say the decoder's words; return shares of right ones.

    Args:
        memory: whose layer and projector are taught in place.
        source: of pictures.
        drawings: of their things.
        plan: how long.
        folder: of the stages' files, from which an interrupted training goes on.
        seed: of chance.
    """
    torch.manual_seed(seed)
    source.source.seed(f"{seed} memory")
    states, entries = _read(memory, source, drawings, plan.pictures, unseen=False)
    in_names = entries < memory.words.name_entries
    kept = in_names | (torch.rand(entries.shape) < _GROUND_SHARE)
    states, entries = states[kept], entries[kept]
    lesson = _Lesson(states, entries, plan.patches, folder, seed)
    classifier = memory.entries

    def scores(part: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return classifier(unit_states(part)).float()  # type: ignore[no-any-return]

    def entry_loss(part: Tensor, wanted: Tensor) -> Tensor:
        return functional.cross_entropy(scores(part), wanted)

    def unit_loss(part: Tensor, wanted: Tensor) -> Tensor:
        found = scores(part)
        right = functional.one_hot(wanted, found.shape[1]).float()
        losses = functional.binary_cross_entropy_with_logits(found, right, reduction="none")
        return (losses * (1 + _RIGHT_WEIGHT * right)).sum(1).mean()

    groups = [(list(classifier.parameters()), _ENTRY_RATE)]
    lesson.run("entries", plan.entry_steps, groups, entry_loss, classifier)
    if not (folder / "tower-units.pt").exists():
        _centre(classifier, scores(states[:4096]), entries[:4096])
    lesson.run("units", plan.unit_steps, groups, unit_loss, classifier)
    memory.open()
    taught = nn.ModuleList([memory.tower, memory.projector])
    lesson.run("words", plan.word_steps, memory.groups(), memory.loss, taught)
    reached = memory.measure(*_read(memory, source, drawings, _READ_AT_ONCE * 4, unseen=True))
    memory.close()
    return reached


@torch.no_grad()
def _read(
    memory: WordMemory, source: PictureSource, drawings: Drawings, count: int, *, unseen: bool
) -> tuple[Tensor, Tensor]:
    """Return the states [n, width] below the last layer, and the entries [n], of all patches."""
    states, entries = [], []
    for start in range(0, count, _READ_AT_ONCE):
        pictures = source.draw(min(_READ_AT_ONCE, count - start), unseen=unseen)
        pixels = torch.from_numpy(stack_pixels(drawings, pictures)).float() / 127.5 - 1.0
        with torch.autocast("cpu", torch.bfloat16):
            found = patch_states(memory.tower, pixels, below_last=True)
        states.append(found.flatten(0, 1).bfloat16())
        entries.append(memory.words.of(pictures)[0].flatten())
    return torch.cat(states), torch.cat(entries)


@torch.no_grad()
def _centre(classifier: nn.Linear, scores: Tensor, entries: Tensor) -> None:
    """Move the scores so that 0 lies between those of right entries and of their rivals."""
    own = scores.gather(1, entries[:, None])[:, 0]
    rival = scores.scatter(1, entries[:, None], -math.inf).max(1).values
    classifier.bias.sub_(((own + rival) / 2).median())


class _Lesson:
    def __init__(
        self, states: Tensor, entries: Tensor, patches: int, folder: Path, seed: int
    ) -> None:
        self._states, self._entries, self._patches = states, entries, patches
        self._folder, self._seed = folder, seed

    def run(
        self,
        name: str,
        steps: int,
        groups: Iterable[tuple[list[nn.Parameter], float]],
        loss: Callable[[Tensor, Tensor], Tensor],
        taught: nn.Module,
    ) -> None:
        """Descend so many steps from where the stage's file was."""
        adam = torch.optim.Adam([{"params": each, "lr": rate} for each, rate in groups])
        peaks = [(group, group["lr"]) for group in adam.param_groups]
        stage = Stage(self._folder / f"tower-{name}.pt", steps, taught=taught, adam=adam)
        generator = torch.Generator().manual_seed(self._seed + stage.step)
        while not stage.is_done:
            waning = 0.5 + 0.5 * math.cos(math.pi * stage.step / steps)
            factor = min(1.0, (stage.step + 1) / _WARM_UP) * max(0.02, waning)
            for group, peak in peaks:
                group["lr"] = peak * factor
            drawn = torch.randint(len(self._states), (self._patches,), generator=generator)
            found = loss(self._states[drawn], self._entries[drawn])
            adam.zero_grad()
            torch.autograd.backward(found)
            adam.step()
            stage.advance()
            if stage.step % _STEPS_BETWEEN_LINES == 0 or stage.is_done:
                logger.info("tower-%s step %d: loss %.3f", name, stage.step, found.item())
