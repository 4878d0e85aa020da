"""What a benchmark's page shows of how its adapters came about, kept in the run's folder."""

import json
from pathlib import Path
from typing import Any

from easyedit_dualedit.commands.training_folder import CURVES_FOLDER
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.files import read_json, write_json, write_text
from easyedit_dualedit.storage.parsing import json_in
from easyedit_dualedit.train.curves import LINES_FILE, read_curves

BACKGROUND_FOLDER = "background"
_LAYERS, _ABLATION = "locate.json", "ablation.json"


def keep_background(folder: Path, archive: Path | None, studies: list[Path]) -> None:
    """Copy into a run's folder what its page shows of layers and training.

    Args:
        folder: of the run.
        archive: the adapters; a training leaves its curves in them.
        studies: folders of `locate`, `ablate` or `train`.

    Raises:
        DataError: if a folder holds none of it, or a file is damaged.
    """
    kept = folder / BACKGROUND_FOLDER
    curves = [] if archive is None else [archive / CURVES_FOLDER]
    for study in studies:
        known = False
        for name in (_LAYERS, _ABLATION):
            if (study / name).is_file():
                write_json(kept / name, json_in(study / name, "make it again"))
                known = True
        here = [part for part in (study, study / CURVES_FOLDER) if (part / LINES_FILE).is_file()]
        curves += here
        if not (known or here):
            raise DataError(
                f"{study} holds nothing of locate ({_LAYERS}), ablate ({_ABLATION}) or train"
                f" ({CURVES_FOLDER}/{LINES_FILE}); give a folder that one of them wrote"
            )
    for part in curves:
        if (part / LINES_FILE).is_file():
            lines = read_curves(part)
            write_text(kept / LINES_FILE, "".join(json.dumps(line) + "\n" for line in lines))


def background_in(folder: Path) -> dict[str, Any]:
    """Return what was kept, as the page takes it: `layers`, `ablation` and `curves`.

    Raises:
        DataError: if a file is damaged.
    """
    kept = folder / BACKGROUND_FOLDER
    found: dict[str, Any] = {"layers": read_json(kept / _LAYERS)}
    if (kept / _ABLATION).is_file():
        found["ablation"] = json_in(kept / _ABLATION, "remove it")
    if (kept / LINES_FILE).is_file():
        found["curves"] = read_curves(kept)
    return {name: value for name, value in found.items() if value}
