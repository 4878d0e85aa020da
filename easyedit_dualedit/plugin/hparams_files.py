"""The YAML files of hyperparameters that travel with this package, and how a name finds one."""

from difflib import SequenceMatcher
from pathlib import Path

from easyedit_dualedit.errors import ConfigError

_SUFFIXES = (".yaml", ".yml")


def find_hparams(name_or_path: str | Path, folder: str) -> Path:
    """Return the YAML file that a path or a short name such as `llava-1.5-7b` means.

    A file at the path comes first; `.yaml` may be left out, as in EasyEdit. The path of no file is
    returned as it is, for its reader to say so.

    Args:
        name_or_path: as a user gives it.
        folder: of `hparams/` that short names are looked up in.

    Raises:
        ConfigError: if a name without a folder or a suffix is none of those shipped.
    """
    path = Path(name_or_path)
    completed = path if path.suffix in _SUFFIXES else Path(f"{path}.yaml")
    for candidate in (path, completed):
        if candidate.is_file():
            return candidate
    if path.name == str(name_or_path) and path.suffix not in _SUFFIXES:
        return shipped_hparams(path.name, folder)
    return completed


def shipped_hparams(name: str, folder: str) -> Path:
    """Return the YAML file of a short name among those that travel with this package.

    Raises:
        ConfigError: if there is none, naming those that there are, the nearest first.
    """
    known = {path.stem: path for path in sorted((_shipped() / folder).glob("*.yaml"))}
    if name not in known:
        nearest = sorted(known, key=lambda stem: -SequenceMatcher(None, stem, name.lower()).ratio())
        raise ConfigError(
            f"no hyperparameters are called {name!r}; there are {', '.join(nearest)}; or give the"
            " path of a YAML file"
        )
    return known[name]


def _shipped() -> Path:
    """Return `hparams/`: in an installed package, or beside the package in a clone."""
    installed = Path(__file__).parents[1] / "hparams"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "hparams"
