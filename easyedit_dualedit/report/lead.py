"""Which method is ahead, in the sentence that the terminal, the Markdown and the page share."""

from collections.abc import Callable, Mapping
from typing import Any


def lead_sentence(
    comparison: Mapping[str, Any], mean: float | None, written: Callable[[Any], str]
) -> str:
    """Return which method has the highest average and by how much, or which two share it.

    Args:
        comparison: of a run's metrics.
        mean: the highest average in percent; None if nobody tells it.
        written: how numbers are written.
    """

    def difference(found: Mapping[str, Any]) -> str:
        ends = f"{written(found['low'])} to {written(found['high'])}"
        return f"{written(found['mean'])} (95 % interval {ends})"

    best, second, found = (comparison[name] for name in ("best", "runner_up", "difference"))
    where = f"the highest average under {comparison['protocol']}"
    if found["mean"] == 0:
        reached = "" if mean is None else f": {written(mean)}"
        ends = f"{written(found['low'])} to {written(found['high'])}"
        sentence = f"{best} and {second} share {where}{reached} (95 % interval of 0, {ends})"
    else:
        reached = "," if mean is None else f": {written(mean)}, which is"
        sentence = f"{best} has {where}{reached} {difference(found)} above {second}"
    rival = comparison.get("rival")
    if rival is None or rival == second:
        return sentence + "."
    return f"{sentence}, and {difference(comparison['against'][rival])} above {rival}."
