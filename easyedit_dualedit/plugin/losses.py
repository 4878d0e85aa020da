"""EasyEdit's loss on the answer, as it has to be called for a transformers model."""

from collections.abc import Callable
from typing import Any

from torch import Tensor


def shifted_loss(
    masked_log_probs: Callable[..., Any],
    config: Any,
    logits: Tensor,
    labels: Tensor,
    **options: Any,
) -> Any:
    """Return what EasyEdit's loss makes of logits that predict the token after them.

    For transformers models EasyEdit compares each token with the logits at the token itself, and
    without `multimodal` it shifts the logits and leaves the labels.

    Args:
        masked_log_probs: of EasyEdit's trainer.
        config: EasyEdit's hyperparameters.
        logits: [b, s, v].
        labels: token ids at the positions of the answer, -100 elsewhere, [b, s].
        options: others of EasyEdit's.
    """
    options |= {"shift": True, "multimodal": True}
    return masked_log_probs(config, logits, labels.to(logits.device), **options)
