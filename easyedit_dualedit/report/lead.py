"""Which method is ahead, in the sentence that the terminal, the Markdown and the page share."""

from collections.abc import Callable, Mapping
from typing import Any


def lead_sentence(
    comparison: Mapping[str, Any], mean: float | None, written: Callable[[Any], str]
) -> str:
    """Return which method has the highest average, and by how much.

    Args:
        comparison: of a run's metrics.
        mean: the highest average in percent; None if nobody tells it.
        written: how numbers are written.
    """

    def difference(found: Mapping[str, Any]) -> str:
        ends = f"{written(found['low'])} to {written(found['high'])}"
        return f"{written(found['mean'])} (95 % interval {ends})"

    reached = "," if mean is None else f": {written(mean)}, which is"
    sentence = (
        f"{comparison['best']} has the highest average under {comparison['protocol']}{reached}"
        f" {difference(comparison['difference'])} above {comparison['runner_up']}"
    )
    rival = comparison.get("rival")
    if rival is None or rival == comparison["runner_up"]:
        return sentence + "."
    return f"{sentence}, and {difference(comparison['against'][rival])} above {rival}."
