"""Names that EasyEdit imports from where transformers no longer has them.

They serve methods and models that cannot run on today's transformers; but `import easyeditor` fails
where the names are missing.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NoReturn

from easyedit_dualedit.errors import UpstreamError

_NAMES = (
    "apply_chunking_to_forward",
    "find_pruneable_heads_and_indices",
    "prune_linear_layer",
)
"""Of the Q-Former, in EasyEdit's release."""

_MASKS = "transformers.modeling_attn_mask_utils"
"""Module that UnKE of EasyEdit's master reads two names of; transformers 5.24 has it no more."""


def supply_missing_names() -> list[str]:
    """Return the names that had to be put into `transformers.modeling_utils`; often none."""
    old_home: Any = importlib.import_module("transformers.modeling_utils")
    new_home: Any = importlib.import_module("transformers.pytorch_utils")
    missing = [name for name in _NAMES if not hasattr(old_home, name)]
    refuse = _dropped("Q-Former", "BLIP-2 of transformers (model_name: blip2-opt-2.7b)")
    for name in missing:
        setattr(old_home, name, getattr(new_home, name, refuse))
    return missing


@contextmanager
def dropped_modules() -> Iterator[None]:
    """Let EasyEdit import a module that transformers has dropped, inside the block alone.

    Outside it stays missing: code that comes with a model may go by that.
    """
    if importlib.util.find_spec(_MASKS) is not None:
        yield
        return
    module: Any = ModuleType(_MASKS)
    refuse = _dropped("UnKE", "transformers 5.23 or older")
    module.AttentionMaskConverter = module._prepare_4d_causal_attention_mask = refuse
    sys.modules[_MASKS] = module
    try:
        yield
    finally:
        del sys.modules[_MASKS]


def _dropped(what: str, instead: str) -> Callable[..., NoReturn]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise UpstreamError(
            f"EasyEdit's {what} needs a function that transformers has dropped; use {instead}"
        )

    return refuse
