"""How many positions a language model was made for; a longer row is refused before it runs.

transformers runs it all the same: rotary positions beyond those of the training give nonsense,
learned ones an index error, and the time of attention grows with the square of the tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from easyedit_dualedit.errors import DataError, shortened
from easyedit_dualedit.model.inputs import Query

_QUOTED = 60


@dataclass(frozen=True)
class PositionLimit:
    """The most positions that a row of tokens may take."""

    most: int
    counts_vision: bool = True
    """Whether each token of a picture takes a position; in rotary positions of several axes, as
    Qwen2-VL's, a picture takes as many as its longer side has tokens, which are not counted."""

    @classmethod
    def of(cls, config: Any) -> Self | None:
        """Return the limit that a model's configuration names, or None if it has none.

        Scaled rotary positions reach as far as their factor says; `dynamic` ones, and layers that
        all look through a sliding window, reach anywhere.

        Args:
            config: of the model, or of its language model.
        """
        text = config.get_text_config()
        most = getattr(text, "max_position_embeddings", None)
        if not isinstance(most, int) or most < 1 or _slides_everywhere(text):
            return None
        ropes = _ropes_of(text)
        if any(_kind_of(rope) == "dynamic" for rope in ropes):
            return None
        reach = max([most, *(_reach_of(rope, most) for rope in ropes)])
        return cls(reach, not any("mrope_section" in rope for rope in ropes))

    def require(
        self, queries: Sequence[Query], tokens: Sequence[int], vision: Sequence[Tensor]
    ) -> None:
        """Check that each row fits.

        Args:
            queries: what the rows ask.
            tokens: of each row, the target's among them.
            vision: where each row has the token of a picture or a video, bool of any shape.

        Raises:
            DataError: naming the first that does not.
        """
        for query, count, seen in zip(queries, tokens, vision, strict=True):
            if count <= self.most:
                continue
            pictured = int(seen.sum())
            if not self.counts_vision and count - pictured <= self.most:
                continue
            parts = f" ({pictured} of them vision)" if pictured else ""
            raise DataError(
                f"prompt and target take {count} tokens{parts}, but the language model was made for"
                f" {self.most} positions; shorten the prompt"
                f" {shortened(query.prompt, _QUOTED)!r} ({len(query.prompt):,} characters)"
                + (f" or the target ({len(query.target):,})" if query.target else "")
                + "; if the model reads more than its configuration says, raise"
                " max_position_embeddings there"
            )


def _slides_everywhere(text: Any) -> bool:
    kinds = getattr(text, "layer_types", None)
    if kinds:
        return "full_attention" not in kinds
    slides = getattr(text, "use_sliding_window", True) is not False
    return slides and bool(getattr(text, "sliding_window", None))


def _ropes_of(text: Any) -> list[Mapping[str, Any]]:
    """Return what a configuration says of its rotary positions: once, or for each kind of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        given = getattr(text, name, None)
        if isinstance(given, Mapping) and given:
            nested = [part for part in given.values() if isinstance(part, Mapping)]
            return nested or [given]
    return []


def _kind_of(rope: Mapping[str, Any]) -> Any:
    return rope.get("rope_type", rope.get("type"))


def _reach_of(rope: Mapping[str, Any], most: int) -> int:
    factor = rope.get("factor") or 1
    original = rope.get("original_max_position_embeddings") or most
    return int(original * factor)
