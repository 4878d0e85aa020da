"""Where the emoji model, the packages that it is made of and its records lie on this machine."""

import os
from pathlib import Path

from easyedit_dualedit.errors import ModelLoadError

NAME = "emoji"
"""Name of the model in hyperparameters, and of its files of hyperparameters."""

FOLDER_VARIABLE = "DUALEDIT_EMOJI"
"""Environment variable with the folder to use instead of the one in the user's cache."""

GET_COMMAND = "python -m easyedit_dualedit emoji get"
"""What fetches the packages and puts the model together."""


def emoji_folder() -> Path:
    """Return the folder that all that is fetched or made on this machine lies in, if there is any.

    It is what `DUALEDIT_EMOJI` says, or `easyedit-dualedit/emoji` in the user's cache.
    """
    given = os.environ.get(FOLDER_VARIABLE)
    if given:
        return Path(given).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "easyedit-dualedit" / "emoji"


def model_folder() -> Path:
    """Return the folder of the assembled model; EasyEdit knows its family by the name."""
    return emoji_folder() / "llava-onevision-emoji"


def records_folder() -> Path:
    """Return the folder of the records that commands use where they are given none."""
    return emoji_folder() / "records"


def adapters_folder(preset: str) -> Path:
    """Return the folder of the adapters trained for the model under a preset, as shipped.

    Args:
        preset: "default" or "published".
    """
    return Path(__file__).parent / "adapters" / preset


def has_model() -> bool:
    """Return whether the model is there; it is put together elsewhere and then moved, whole."""
    return (model_folder() / "config.json").is_file()


def require_model(path: str) -> None:
    """Refuse to go on where the emoji model is named and was not put together yet.

    Args:
        path: of any model.

    Raises:
        ModelLoadError: naming the command that does it.
    """
    if path == str(model_folder()) and not has_model():
        raise ModelLoadError(
            f"the emoji model is not on this machine yet (there is no {path}); get it with:"
            f" {GET_COMMAND}"
        )
