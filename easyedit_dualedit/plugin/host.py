"""Finds EasyEdit, imports it, and says which edition it is.

EasyEdit comes as a clone of its GitHub master, which is not a package, or as its one release on
PyPI. Both are a package named `easyeditor`, so a process has one of them. This is the only place
that decides which.
"""

import importlib
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import MutableMapping, MutableSet
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from easyedit_dualedit.errors import EasyEditNotFoundError
from easyedit_dualedit.model.torchvision_ops import define_missing_operators
from easyedit_dualedit.plugin.transformers_names import dropped_modules, supply_missing_names

logger = logging.getLogger(__name__)

Edition = Literal["master", "pypi"]

HOME_VARIABLE = "EASYEDIT_HOME"
"""Environment variable that names a clone of EasyEdit; it wins over everything else."""

_BLOCKING = "CUDA_LAUNCH_BLOCKING"

_HOW_TO_GET_IT = (
    "get EasyEdit in one of two ways: clone its GitHub repository (zjunlp/EasyEdit) and set"
    f" {HOME_VARIABLE} (or PYTHONPATH) to the clone, or run"
    ' `pip install "easyedit-dualedit[easyedit]"` and then'
    " `pip install --no-deps easyeditor==0.0.1.dev0`"
)


@dataclass(frozen=True)
class Host:
    """An imported EasyEdit and the registries that a method is entered in."""

    edition: Edition
    package: ModuleType
    editors: MutableMapping[str, Any]
    """Apply functions by `alg_name`, which `MultimodalEditor` looks up."""
    trainers: MutableMapping[str, Any]
    """Model classes by the upper-case `alg`, which `MultimodalTrainer` looks up."""
    editor_names: MutableSet[str]
    """Names that master lists for its readers; empty on the other edition."""
    trainer_names: MutableSet[str]

    @property
    def folder(self) -> Path:
        """The folder of the package."""
        return Path(str(self.package.__file__)).parent

    def module(self, name: str) -> ModuleType:
        """Return the module `easyeditor.<name>`.

        The attribute of that name may be a class, since EasyEdit's packages import everything
        from their modules.
        """
        return importlib.import_module(f"easyeditor.{name}")


def find_host() -> Host:
    """Return the EasyEdit of this process, importing it the first time.

    A clone named by EASYEDIT_HOME comes first, then what Python's path finds first.

    Raises:
        EasyEditNotFoundError: if there is none, EASYEDIT_HOME is no clone, or something that
            EasyEdit imports is missing.
    """
    if "easyeditor" not in sys.modules:
        _put_home_first()
        location = _locate()
        define_missing_operators()
        supply_missing_names()
        with dropped_modules():
            _import(location)
    package = sys.modules["easyeditor"]
    _check_home(package)
    return _describe(package)


def is_available() -> bool:
    """Return True if some edition of EasyEdit can be found; imports nothing."""
    if "easyeditor" in sys.modules:
        return True
    home = os.environ.get(HOME_VARIABLE)
    return bool(home) or importlib.util.find_spec("easyeditor") is not None


def easyedit_folder() -> Path | None:
    """Return the folder of the package that `find_host` would import; imports nothing."""
    home = os.environ.get(HOME_VARIABLE)
    if home and "easyeditor" not in sys.modules:
        return Path(home).expanduser() / "easyeditor"
    spec = importlib.util.find_spec("easyeditor")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _put_home_first() -> None:
    home = os.environ.get(HOME_VARIABLE)
    if not home:
        return
    folder = Path(home).expanduser().resolve()
    if not (folder / "easyeditor" / "__init__.py").is_file():
        raise EasyEditNotFoundError(
            f"{HOME_VARIABLE} is {home!r}, where there is no easyeditor/__init__.py; set it to the"
            " top folder of a clone of EasyEdit, or unset it"
        )
    if sys.path[:1] != [str(folder)]:
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()


def _locate() -> Path:
    spec = importlib.util.find_spec("easyeditor")
    if spec is None or spec.origin is None:
        raise EasyEditNotFoundError(f"EasyEdit is not importable; {_HOW_TO_GET_IT}")
    return Path(spec.origin).parent


def _import(location: Path) -> None:
    blocking = os.environ.get(_BLOCKING)
    try:
        with warnings.catch_warnings():
            # Of modules that EasyEdit imports under names that have since moved.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            importlib.import_module("easyeditor")
    except ImportError as error:
        missing = getattr(error, "name", None) or str(error)
        raise EasyEditNotFoundError(
            f"EasyEdit at {location} cannot be imported: {error}. If {missing} is missing, install"
            ' what EasyEdit needs with `pip install "easyedit-dualedit[easyedit]"`'
        ) from error
    finally:
        # Importing GRACE makes every CUDA kernel of the process wait for the one before.
        if blocking is None:
            os.environ.pop(_BLOCKING, None)
        else:
            os.environ[_BLOCKING] = blocking


def _check_home(package: ModuleType) -> None:
    home = os.environ.get(HOME_VARIABLE)
    folder = Path(str(package.__file__)).resolve().parent
    if home and folder.parent != Path(home).expanduser().resolve():
        logger.warning(
            "%s is %s, but easyeditor was already imported from %s, which is what is used",
            HOME_VARIABLE,
            home,
            folder,
        )


def _describe(package: ModuleType) -> Host:
    algorithms: Any = importlib.import_module("easyeditor.util.alg_dict")
    trainers: Any = importlib.import_module("easyeditor.util.alg_train_dict")
    return Host(
        edition="master" if hasattr(algorithms, "MULTIMODAL_DS_DICT") else "pypi",
        package=package,
        editors=algorithms.ALG_MULTIMODAL_DICT,
        trainers=trainers.ALG_TRAIN_DICT,
        editor_names=getattr(algorithms, "MULTIMODAL_EDIT_ALGS", set()),
        trainer_names=getattr(trainers, "MULTIMODAL_TRAIN_ALGS", set()),
    )
