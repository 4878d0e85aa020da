"""Tells which models EasyEdit can load by itself, and which it needs our help with."""

import importlib
import logging
from typing import Any

from easyedit_dualedit.errors import ModelLoadError
from easyedit_dualedit.model.loading import SPREAD
from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams
from easyedit_dualedit.plugin.processors import completed
from easyedit_dualedit.testbed.emoji.places import require_model

logger = logging.getLogger(__name__)

AUTO_CLASS = "AutoModelForImageTextToText"

HF_NAME = "llava-onevision"
"""Model name by which EasyEdit takes its code for transformers models."""

OWN_MODELS = ("blip2", "minigpt4")
"""Names of models that EasyEdit builds from its own code."""


class ConfigView:
    """A configuration that reads as another one, with some attributes replaced.

    Writing an attribute writes to the other one.
    """

    def __init__(self, config: Any, **replaced: Any):
        """Show `config` with `replaced` attributes."""
        self.__dict__.update(replaced, _config=config)

    def __getattr__(self, name: str) -> Any:
        """Return the other configuration's attribute."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["_config"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set the other configuration's attribute."""
        setattr(self.__dict__["_config"], name, value)


def is_ours(config: Any) -> bool:
    """Return True for hyperparameters of DualEdit, also behind a `ConfigView`."""
    while isinstance(config, ConfigView):
        config = vars(config)["_config"]
    return isinstance(config, DualEditMultimodalHparams)


def bridged_path(host: Host, config: Any) -> str | None:
    """Return where to load a model from that EasyEdit cannot load by itself, or None.

    Raises:
        ModelLoadError: if hyperparameters of DualEdit name no model that can be edited.
    """
    model_name = getattr(config, "model_name", None)
    require_model(str(model_name))
    if is_ours(config) and host.edition == "master" and model_name in OWN_MODELS:
        _require_ports(str(model_name))
    if not isinstance(model_name, str):
        return None
    if _is_known(host, model_name) and not _is_placed(config, model_name):
        return None
    name = getattr(config, "name", None)
    candidates = [model_name] if model_name not in OWN_MODELS else []
    if isinstance(name, str) and name not in candidates:
        candidates.append(name)
    for candidate in candidates:
        if _is_image_text_model(candidate):
            return candidate
    if isinstance(config, DualEditMultimodalHparams):
        raise ModelLoadError(
            f"no vision-language model at {' or '.join(map(repr, candidates)) or repr(model_name)}:"
            " give the folder of a transformers image-text-to-text model, or its hub id (which"
            " needs a network the first time)"
        )
    return None


def known_to_host(host: Host, config: Any) -> Any:
    """Return a configuration whose model EasyEdit's own data sets read pictures for.

    A model that EasyEdit cannot load by itself goes by the name of one that it can.

    Raises:
        ModelLoadError: as `bridged_path`.
    """
    path = bridged_path(host, config)
    return config if path is None else ConfigView(config, model_name=HF_NAME, name=path)


def load_processor(path: str) -> Any:
    """Return the processor in a model folder, completed where its family's own lacks something.

    Raises:
        ModelLoadError: if there is none.
    """
    transformers: Any = importlib.import_module("transformers")
    try:
        processor = transformers.AutoProcessor.from_pretrained(path)
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise ModelLoadError(
            f"the processor in {path} cannot be loaded ({error}); save the model's processor beside"
            " the model"
        ) from error
    return completed(processor, config)


def _require_ports(name: str) -> None:
    version: str = importlib.import_module("transformers").__version__
    if int(version.partition(".")[0]) >= 5:
        raise ModelLoadError(
            f"model_name = {name!r} is EasyEdit's own port, which cannot be built on transformers"
            f" {version}; use BLIP-2 of transformers (model_name: blip2-opt-2.7b, which is"
            " Salesforce/blip2-opt-2.7b, or a folder of it), or transformers==4.57.6"
        )


def _is_known(host: Host, model_name: str) -> bool:
    if host.edition == "pypi":
        return False
    if model_name in OWN_MODELS or "llava-onevision" in model_name.lower():
        return True
    return bool(host.module("util.vl_utils").is_qwen_vl_model(model_name))


def _is_placed(config: Any, model_name: str) -> bool:
    """Return whether a model is to be placed as EasyEdit places none of those that it knows."""
    if not is_ours(config) or model_name in OWN_MODELS:
        return False
    placement = config.placement
    return placement["quantization"] is not None or placement["device"] == SPREAD


_FOUND: set[str] = set()
"""Paths and hub ids that are image-text models; what is none today may be one tomorrow."""


def _is_image_text_model(path: str) -> bool:
    if path in _FOUND:
        return True
    auto: Any = importlib.import_module("transformers.models.auto.modeling_auto")
    transformers: Any = importlib.import_module("transformers")
    try:
        # Left open, the question of remote code would be put to the user at the terminal.
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        logger.debug("no transformers model at %s: %s", path, error)
        return False
    if type(config) not in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return False
    _FOUND.add(path)
    return True
