"""Loads a vision-language model and its processor, or says in one line why it cannot."""

import importlib.util
import logging
from typing import Any, Literal

import torch

from easyedit_dualedit.errors import ModelLoadError
from easyedit_dualedit.model.torchvision_ops import define_missing_operators
from easyedit_dualedit.settings import not_one_of

logger = logging.getLogger(__name__)

Quantization = Literal["4bit", "8bit"]
QUANTIZATIONS: tuple[Quantization, ...] = ("4bit", "8bit")

SPREAD = "auto"
"""Device that stands for all there are: accelerate places each part of the model."""

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float": torch.float32,
    "float16": torch.float16,
    "fp16": torch.float16,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}


def load_model(
    path: str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str = torch.float32,
    quantization: Quantization | None = None,
) -> tuple[Any, Any]:
    """Return a model, in evaluation mode, and its processor.

    Half precision that the device only imitates is logged as a warning.

    Args:
        path: folder written by `save_pretrained`, or a hub id.
        device: "cpu", "cuda:0", ... or "auto" to spread the model over what there is.
        dtype: of the model's weights, or of what they compute in if they are quantised; a name of
            one, or "auto", as well.
        quantization: store the weights of linear layers in 4 or 8 bits, by bitsandbytes.

    Raises:
        ModelLoadError: if there is no image-text-to-text model, a file of it is damaged, the device
            cannot be used, or the dtype or quantisation is unknown or its library not installed.
    """
    device = str(device)
    if isinstance(dtype, str):
        try:
            dtype = dtype_from(dtype, device)
        except ValueError as error:
            raise ModelLoadError(str(error)) from None
    placement = placement_of(device, dtype, quantization)
    if device != SPREAD:
        require_device(device)
    define_missing_operators()
    from transformers import AutoModelForImageTextToText, AutoProcessor

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
    if not placement:
        model = model.to(device)
        if not computes_with(device, dtype):
            name = str(dtype).removeprefix("torch.")
            logger.warning(
                "%s has no %s of its own and imitates it, many times slower than float32; use dtype"
                " float32 here if the memory allows it",
                "this CPU" if device == "cpu" else device,
                name,
            )
    return model.eval(), processor


def require_device(device: str) -> None:
    """Check that numbers can be made and read on a device, before a model is read for it.

    Args:
        device: "cpu", "cuda:0", ...

    Raises:
        ModelLoadError: saying what PyTorch says of it.
    """
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # PyTorch raises assertions, too, and each backend its own errors
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelLoadError(
            f"device = {device!r} cannot be used ({lines[0][:160]}); give cpu, cuda, cuda:<index>,"
            " another device that PyTorch has here, or auto to spread the model over what there is"
        ) from error


def dtype_from(value: Any, device: str = "cpu") -> torch.dtype:
    """Return the dtype that a name such as "bfloat16" or "torch.float16" means.

    Args:
        value: a name, a dtype, or "auto" for bfloat16 where the device computes with it, else
            float32.
        device: as `device_from` returns it.

    Raises:
        ValueError: if it is none of those that models are loaded in.
    """
    if isinstance(value, torch.dtype) and value in _DTYPES.values():
        return value
    name = str(value).strip().lower().removeprefix("torch.")
    if name == "auto":
        return torch.bfloat16 if computes_with(device, torch.bfloat16) else torch.float32
    if name not in _DTYPES:
        raise ValueError(f"dtype = {value!r}: auto, or one of {', '.join(sorted(_DTYPES))}")
    return _DTYPES[name]


def computes_with(device: str, dtype: torch.dtype) -> bool:
    """Return whether a device multiplies matrices of a dtype itself, rather than imitate it.

    CPUs without AVX-512 take up to 80 times as long for large products in bfloat16.

    Args:
        device: "cpu", "cuda:0", ...
        dtype: float32, bfloat16 or float16.
    """
    kind = device.partition(":")[0]
    if kind == "cuda" and dtype == torch.bfloat16:
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return True
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    operators = torch.ops.mkldnn
    if dtype == torch.bfloat16:
        return bool(operators._is_mkldnn_bf16_supported())
    return bool(operators._is_mkldnn_fp16_supported())


def placement_of(
    device: str, dtype: torch.dtype, quantization: Quantization | None
) -> dict[str, Any]:
    """Return what `from_pretrained` needs to spread or quantise a model; empty if neither.

    Raises:
        ModelLoadError: if the quantisation is unknown, or bitsandbytes, which it needs, is not
            installed.
    """
    if quantization is None:
        return {"device_map": "auto"} if device == SPREAD else {}
    if quantization not in QUANTIZATIONS:
        allowed = not_one_of("quantization", quantization, QUANTIZATIONS)
        raise ModelLoadError(f"{allowed}; or None for weights as they are")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelLoadError(
            f"quantization = {quantization!r} needs bitsandbytes, which is not installed: pip"
            " install bitsandbytes, or leave quantization out"
        )
    from transformers import BitsAndBytesConfig

    settings: Any = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=quantization == "4bit",
        load_in_8bit=quantization == "8bit",
        bnb_4bit_compute_dtype=dtype,
    )
    # Quantised weights are placed as they are read; moving them later is refused.
    return {
        "quantization_config": settings,
        "device_map": "auto" if device == SPREAD else {"": device},
    }
