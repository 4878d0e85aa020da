"""Enters DualEdit in EasyEdit's registries, and takes it out again."""

import importlib
import logging
from collections.abc import MutableMapping
from typing import Any

from easyedit_dualedit.errors import RegistrationError
from easyedit_dualedit.plugin.host import Host, find_host
from easyedit_dualedit.plugin.patching import Patches
from easyedit_dualedit.plugin.values import ALG_NAME

logger = logging.getLogger(__name__)

_OURS = "easyedit_dualedit."
_patches: list[Patches] = []


def register() -> Host:
    """Make `alg_name: DualEdit` known to EasyEdit, and return the EasyEdit that knows it now.

    A second call changes nothing. EasyEdit's registries are changed in place, since its modules
    hold references to them.

    Raises:
        EasyEditNotFoundError: if EasyEdit is not importable.
        RegistrationError: if another method is registered under the name.
    """
    host = find_host()
    _require_free(host.editors, ALG_NAME, "ALG_MULTIMODAL_DICT")
    _require_free(host.trainers, ALG_NAME.upper(), "ALG_TRAIN_DICT")
    if is_registered():
        return host
    # Importing these imports EasyEdit: they subclass its classes.
    apply = importlib.import_module("easyedit_dualedit.plugin.apply")
    editable = importlib.import_module("easyedit_dualedit.plugin.editable")
    hparams = importlib.import_module("easyedit_dualedit.plugin.hparams")
    trainer = importlib.import_module("easyedit_dualedit.plugin.trainer")
    bridges = importlib.import_module("easyedit_dualedit.plugin.bridges")
    patches = Patches()
    try:
        bridges.apply_bridges(host, patches)
        # So that a script may import them from easyeditor, as it does those of other methods.
        for name in ("DualEditMultimodalHparams", "DualEditMultimodalTrainingHparams"):
            patches.replace(host.package, name, getattr(hparams, name))
        patches.replace(host.package, "DualEditTrainer", trainer.DualEditTrainer)
    except BaseException:
        patches.undo()
        raise
    _patches.append(patches)
    host.editors[ALG_NAME] = apply.apply_dualedit_to_multimodal_model
    host.trainers[ALG_NAME.upper()] = editable.DualEditEditable
    host.editor_names.add(ALG_NAME)
    host.trainer_names.add(ALG_NAME.upper())
    logger.debug("registered %s with EasyEdit (%s) at %s", ALG_NAME, host.edition, host.folder)
    return host


def unregister() -> None:
    """Undo `register`: EasyEdit is as it was. Does nothing if DualEdit is not registered."""
    if not _patches:
        return
    host = find_host()
    for registry, key in ((host.editors, ALG_NAME), (host.trainers, ALG_NAME.upper())):
        if _is_ours(registry.get(key)):
            del registry[key]
    host.editor_names.discard(ALG_NAME)
    host.trainer_names.discard(ALG_NAME.upper())
    while _patches:
        _patches.pop().undo()


def is_registered() -> bool:
    """Return True between `register` and `unregister`."""
    return bool(_patches)


def _require_free(registry: MutableMapping[str, Any], key: str, name: str) -> None:
    present = registry.get(key)
    if present is None or _is_ours(present):
        return
    raise RegistrationError(
        f"EasyEdit's {name} already has a method {key!r}: {_where(present)}. Remove that entry, or"
        " use that method instead of this package's"
    )


def _is_ours(method: Any) -> bool:
    return method is not None and _where(method).startswith(_OURS)


def _where(method: Any) -> str:
    module = getattr(method, "__module__", type(method).__module__)
    return f"{module}.{getattr(method, '__qualname__', type(method).__qualname__)}"
