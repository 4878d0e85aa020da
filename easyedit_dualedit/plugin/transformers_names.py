"""Three functions that EasyEdit's release imports from where transformers no longer has them.

They serve the Q-Former, which cannot be built on today's transformers; but `import easyeditor`
fails where the names are missing.
"""

import importlib
from typing import Any, NoReturn

from easyedit_dualedit.errors import UpstreamError

_NAMES = (
    "apply_chunking_to_forward",
    "find_pruneable_heads_and_indices",
    "prune_linear_layer",
)


def supply_missing_names() -> list[str]:
    """Return the names that had to be put into `transformers.modeling_utils`; often none."""
    old_home: Any = importlib.import_module("transformers.modeling_utils")
    new_home: Any = importlib.import_module("transformers.pytorch_utils")
    missing = [name for name in _NAMES if not hasattr(old_home, name)]
    for name in missing:
        setattr(old_home, name, getattr(new_home, name, _dropped))
    return missing


def _dropped(*_: Any, **__: Any) -> NoReturn:
    raise UpstreamError(
        "EasyEdit's Q-Former needs a function that transformers has dropped; use BLIP-2 of"
        " transformers (model_name: blip2-opt-2.7b)"
    )
