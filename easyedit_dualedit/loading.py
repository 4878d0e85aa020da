"""Loads a vision-language model and its processor, or says in one line why it cannot."""

from typing import Any

import torch

from easyedit_dualedit.errors import ModelLoadError
from easyedit_dualedit.torchvision_ops import define_missing_operators


def load_model(
    path: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Any, Any]:
    """Return a model, in evaluation mode, and its processor.

    Args:
        path: folder written by `save_pretrained`, or a hub id.
        device: "cpu", "cuda:0", ... or "auto" to spread the model over what there is.
        dtype: of the model's weights.

    Raises:
        ModelLoadError: if there is no image-text-to-text model, or a file of it is damaged.
    """
    define_missing_operators()
    from transformers import AutoModelForImageTextToText, AutoProcessor

    placement = {"device_map": "auto"} if device == "auto" else {}
    try:
        processor: Any = AutoProcessor.from_pretrained(path)  # type: ignore[no-untyped-call]
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            path, dtype=dtype, output_loading_info=True, **placement
        )
    except Exception as error:  # transformers lets safetensors', JSON's and its own errors through
        line = " ".join(str(error).split())
        raise ModelLoadError(
            f"no vision-language model can be loaded from {path!r} ({type(error).__name__}:"
            f" {line[:300]}); give a folder written by save_pretrained, with its processor"
        ) from error
    model, info = loaded
    # transformers fills what is missing with random numbers and only warns.
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelLoadError(
            f"the weights in {path!r} lack {len(missing)} of the model's, such as {missing[0]};"
            " they are incomplete or belong to another config.json"
        )
    if device != "auto":
        model = model.to(device)
    return model.eval(), processor
