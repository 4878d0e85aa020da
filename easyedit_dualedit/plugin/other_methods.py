"""Keys of the YAML files that EasyEdit ships for other methods, which a copied file still has."""

from collections.abc import Mapping
from typing import Any

from easyedit_dualedit.plugin.values import ALG_NAME

_MEND = """edit_lr lr_scale one_sided n_hidden hidden_dim init norm combine x_only delta_only act
rank mlp_class shared"""
_SERAC = """small_name cls_name cls_class supervised soft_weighting checkpoint_grad cross_attend
cos freeze square bound_embeds use_all_negatives freeze_cntr dist_heads lora edit_bs log_errors
unlikelihood"""

OTHER_METHODS: Mapping[str, str] = {
    **dict.fromkeys(_SERAC.split(), "SERAC"),
    **dict.fromkeys(_MEND.split(), "MEND"),
}
"""Key of a file for another trained method -> that method; none of them is DualEdit's."""


def keys_of_others(values: Mapping[str, Any], source: str) -> list[str]:
    """Return one line if there are keys that only EasyEdit's other methods have."""
    theirs = [key for key in values if key in OTHER_METHODS]
    if not theirs:
        return []
    methods = " and ".join(sorted({OTHER_METHODS[key] for key in theirs}))
    return [
        f"{source} has keys of {methods} that mean nothing to {ALG_NAME}; leave out"
        f" {', '.join(theirs)}"
    ]
