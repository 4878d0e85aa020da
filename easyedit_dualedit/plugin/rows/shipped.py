"""The hyperparameters that EasyEdit ships for a method, with the settings given instead of some."""

import dataclasses
import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from easyedit_dualedit.errors import ConfigError, UpstreamError
from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.models import HF_NAME
from easyedit_dualedit.settings import as_number, raise_if, unknown_keys

ARCHIVE = "archive"
"""Setting that names an archive of EasyEdit's trainer to use instead of a training."""

_FIXED = (
    *("alg", "alg_name", "archive", "batch_size", "coco_image", "debug", "device", "dtype"),
    *("eval_only", "exact_match", "file_type", "final_eval", "freeze_qformer", "half"),
    *("hidden_act", "load_path", "max_epochs", "max_length", "model_class", "model_name"),
    *("model_parallel", "name", "no_grad_layers", "pretrained_ckpt", "qformer_checkpoint"),
    *("qformer_name_or_path", "rephrase_image", "results_dir", "save", "save_path", "seed"),
    *("sequential_edit", "state_dict_file", "task_name", "tokenizer_class", "tokenizer_name"),
    *("train_base", "use_chat_template", "val_batch_size", "val_interval", "val_steps"),
)
"""Hyperparameters that the bench decides, or that transformers models or a single edit have no use
for."""

_OF_AN_EDIT = {
    "model_name": HF_NAME,
    "batch_size": 1,
    "model_parallel": False,
    "use_chat_template": True,
    "sequential_edit": False,
    "file_type": "image",
    "save_path": None,
    "load_path": None,
}
_OF_A_TRAINING = {
    "model_name": HF_NAME,
    **dict.fromkeys(("batch_size", "val_batch_size", "val_steps"), 1),
    **dict.fromkeys(("final_eval", "eval_only", "debug", "train_base"), False),
    **dict.fromkeys(("half", "model_parallel"), False),
    **dict.fromkeys(("archive", "max_epochs", "no_grad_layers"), None),
    **dict.fromkeys(("coco_image", "rephrase_image"), ""),
}


_FAMILIES = {
    "llava_onevision": "llavaov",
    "qwen2_vl": "qwen2vl",
    "qwen2_5_vl": "qwen2vl",
    "qwen3_vl": "qwen3vl",
    "blip-2": "blip2",
}
"""transformers' type of a model -> how EasyEdit's files for that family begin."""

_DEPTHS = {"llavaov": 28, "qwen2vl": 28, "qwen3vl": 36, "blip2": 32}
"""How a file begins -> decoder layers of the model that it is for."""


@dataclass(frozen=True)
class Shipped:
    """Where EasyEdit keeps the hyperparameters of a method."""

    method: str
    """Its name in EasyEdit's registry of editors, or in that of trainers."""
    hparams_class: str
    file: str
    """In EasyEdit's folder hparams, for a family that has no file of its own beside it."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """The numbers in that file, for an EasyEdit without the folder; none where it is needed."""


def edit_hparams(host: Host, shipped: Shipped, model: str, settings: Mapping[str, Any]) -> Any:
    """Return EasyEdit's hyperparameters for one edit: shipped ones, and those given instead.

    Args:
        host: EasyEdit.
        shipped: where it keeps them.
        model: folder or hub id of the model that is edited.
        settings: hyperparameters that are given.

    Raises:
        ConfigError: if one is given that there is not, that the bench decides, or that is of
            another type than the shipped one.
        UpstreamError: if there is neither EasyEdit's file of them nor values for it.
    """
    config = _read(host, shipped, model)
    _change(config, settings, shipped.method)
    for name, value in {**_OF_AN_EDIT, "alg_name": shipped.method}.items():
        if hasattr(config, name):
            setattr(config, name, value)
    return config


def training_hparams(host: Host, shipped: Shipped, model: str, settings: Mapping[str, Any]) -> Any:
    """Return EasyEdit's hyperparameters for a training: shipped ones, and those given instead.

    The device is left to the caller.

    Args:
        host: EasyEdit.
        shipped: where it keeps them.
        model: folder or hub id of the model that is trained for.
        settings: hyperparameters that are given, and maybe an archive.

    Raises:
        ConfigError: if one is given that there is not, that the bench decides, or that is of
            another type than the shipped one.
        UpstreamError: if there is neither EasyEdit's file of them nor values for it.
    """
    config = _read(host, shipped, model)
    given = {name: value for name, value in settings.items() if name != ARCHIVE}
    _change(config, given, shipped.method, ARCHIVE)
    if "inner_params" not in given:
        config.inner_params = []
    if config.max_iters < 1:
        raise ConfigError(f"max_iters = {config.max_iters!r}: a whole number of at least 1")
    vars(config).update(_OF_A_TRAINING)
    return config


def shipped_file(host: Host, shipped: Shipped, model: str) -> Path:
    """Return EasyEdit's file of a method for a model's family, or the one that stands in for it.

    Args:
        host: EasyEdit; the file may be missing there.
        shipped: of the method.
        model: folder or hub id of the model.
    """
    usual = host.folder.parent / "hparams" / shipped.file
    begins = _FAMILIES.get(_type_of(model))
    own = usual.parent.glob(f"{begins}*.yaml") if begins else ()
    return min(own, key=lambda path: len(path.name), default=usual)


def shipped_depth(host: Host, shipped: Shipped, model: str) -> int:
    """Return the decoder layers of the model whose layers a method's file names."""
    name = shipped_file(host, shipped, model).name
    return next(depth for begins, depth in _DEPTHS.items() if name.startswith(begins))


@functools.cache
def _type_of(model: str) -> str:
    transformers: Any = importlib.import_module("transformers")
    try:
        return str(transformers.AutoConfig.from_pretrained(model).model_type)
    except (OSError, ValueError):
        return ""  # loading the model says what is wrong with it


def _read(host: Host, shipped: Shipped, model: str) -> Any:
    kind = getattr(host.package, shipped.hparams_class)
    path = shipped_file(host, shipped, model)
    if path.is_file():
        return kind.from_hparams(str(path))
    if not shipped.values:
        raise UpstreamError(
            f"EasyEdit at {host.folder.parent} has no hparams/{shipped.file}, which holds the"
            f" hyperparameters of {shipped.method}; use a whole clone of master"
        )
    # Of what has no default, the numbers are all; names and paths are never used.
    required = {f.name: "." for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING}
    return kind(**required | dict(shipped.values))


def _change(config: Any, given: Mapping[str, Any], method: str, *more: str) -> None:
    """Set hyperparameters to values that are given; `more` are settings that are none of them."""
    known = [f.name for f in dataclasses.fields(config) if f.name not in _FIXED]
    raise_if(unknown_keys(given, [*known, *more], f"the settings of {method}"))
    problems: list[str] = []
    for name, value in given.items():
        try:
            setattr(config, name, _like(name, value, getattr(config, name)))
        except ConfigError as error:
            problems.append(str(error))
    raise_if(problems)


def _like(name: str, value: Any, shipped: Any) -> Any:
    """Return a given value as the type of the shipped one; "1e-4" is text in YAML."""
    if not isinstance(shipped, int | float):
        return value
    number = as_number(value)
    if isinstance(shipped, bool):
        # A number, too: EasyEdit ships False for a bound that may be one.
        if not isinstance(number, int | float):
            raise ConfigError(f"{name} = {value!r}: true or false")
        return number
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ConfigError(f"{name} = {value!r}: a number, such as {shipped!r}")
    if isinstance(shipped, int) and not float(number).is_integer():
        raise ConfigError(f"{name} = {value!r}: a whole number, such as {shipped!r}")
    return type(shipped)(number)
