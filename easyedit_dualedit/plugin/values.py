"""Turns what a YAML file says of devices, dtypes and models into what EasyEdit uses."""

from typing import Any

import torch

from easyedit_dualedit import testbed
from easyedit_dualedit.testbed.emoji import places as emoji

ALG_NAME = "DualEdit"
"""Value of `alg_name` and `alg` in hyperparameters; the trainer looks up its upper case."""

TESTBED = "testbed"
"""Model name that stands for the small model shipped with this package."""

EMOJI = emoji.NAME
"""Model name that stands for the emoji model, which is put together on a user's machine."""

SHORT_NAMES = {
    "blip2-opt-2.7b": "Salesforce/blip2-opt-2.7b",
    "blip2-opt-6.7b": "Salesforce/blip2-opt-6.7b",
    "gemma-3-4b": "google/gemma-3-4b-it",
    "internvl3-8b": "OpenGVLab/InternVL3-8B-hf",
    "llava-1.5-7b": "llava-hf/llava-1.5-7b-hf",
    "llava-1.5-13b": "llava-hf/llava-1.5-13b-hf",
    "paligemma2-3b": "google/paligemma2-3b-mix-224",
    "qwen2.5-vl-7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    "smolvlm-2.2b": "HuggingFaceTB/SmolVLM-Instruct",
}
"""Names that papers use for models that EasyEdit does not load itself -> their hub ids."""


def device_from(value: Any) -> str:
    """Return a device that exists here: "cpu" or "cuda:<index>".

    EasyEdit passes a device on as it is given, where "0" is no device and 0 means CUDA's.

    Args:
        value: "cpu", "cuda", "cuda:1", an index as a number or a string, or None for the first
            CUDA device if there is one and else the CPU.

    Raises:
        ValueError: saying what is wrong and what to set instead.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if value is None:
        return "cuda:0" if count else "cpu"
    text = str(value).strip().lower()
    if text.endswith(".0"):
        text = text[:-2]
    if text.isdigit():
        text = f"cuda:{text}"
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise ValueError(f"device = {value!r}: cpu, cuda, cuda:<index> or an index") from error
    if device.type == "cpu":
        return "cpu"
    if device.type != "cuda" or isinstance(value, bool):
        raise ValueError(f"device = {value!r}: cpu, cuda, cuda:<index> or an index")
    index = device.index or 0
    if index >= count:
        raise ValueError(
            f"device = {value!r}, but PyTorch sees {count} CUDA devices; set device: cpu"
            + (f", or an index below {count}" if count else "")
        )
    return f"cuda:{index}"


def archive_path(name: str) -> str:
    """Return the path that an archive's name means; `testbed` and `emoji` are shipped adapters."""
    shipped = {TESTBED: testbed.adapters_folder, EMOJI: emoji.adapters_folder}
    return str(shipped[name]("default")) if name in shipped else name


def model_path(name: str) -> str:
    """Return the path or hub id that a model name means; `testbed` and `emoji` are ours."""
    if name == TESTBED:
        return str(testbed.model_folder())
    if name == EMOJI:
        return str(emoji.model_folder())
    # A trailing slash would leave EasyEdit's checkpoint without a name.
    return SHORT_NAMES.get(name, name.rstrip("/") or name)
