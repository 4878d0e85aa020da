"""Stored edits have the shape that the adapters and the gate of an editor work with."""

from collections.abc import Sequence

import torch

from easyedit_dualedit.errors import ArchiveError
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.gate import Gate
from easyedit_dualedit.method.stored_edit import StoredEdit


def require_fit(
    edits: Sequence[StoredEdit], editor: DualEditor, gate: Gate, source: object
) -> None:
    """Check heads, widths, keys and words of edits from a file.

    Raises:
        ArchiveError: naming the first edit that does not fit.
    """
    adapters = editor.adapters
    used = {modality: adapters[modality] for modality in adapters.modalities}
    shapes = {name: (each.heads, each.width // each.heads) for name, each in used.items()}
    states = torch.zeros(1, editor.backbone.hidden_size, device=gate.mean.device)
    key = gate.key(states).shape[-1]
    for edit in edits:
        have = {
            modality: (part.keys.values.shape[0], part.keys.values.shape[2])
            for modality, part in edit.projected.items()
        }
        has_words = bool(edit.words) == adapters.has_words
        if have != shapes or edit.key.shape != (key,) or not has_words:
            raise ArchiveError(
                f"edit {edit.id} in {source} does not fit the adapters: heads and width {have}, a"
                f" key of {len(edit.key)} and {len(edit.words)} words, where they have {shapes}"
                f" and a key of {key}; take a copy of the folder"
            )
