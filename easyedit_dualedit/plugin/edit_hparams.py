"""Hyperparameters in the form in which EasyEdit reads them: mutable, one attribute each.

EasyEdit writes into them (it sets `batch_size` to 1, `config.max_iters`, `inner_params`), so they
are shells around this package's frozen configuration, which `dualedit_config` makes.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.method.config import DualEditConfig
from easyedit_dualedit.model.loading import QUANTIZATIONS, SPREAD, dtype_from
from easyedit_dualedit.plugin.hparams_files import find_hparams
from easyedit_dualedit.plugin.other_methods import OTHER_METHODS, keys_of_others
from easyedit_dualedit.plugin.trainer_hparams import TrainerHparams
from easyedit_dualedit.plugin.values import (
    ALG_NAME,
    SHORT_NAMES,
    archive_path,
    device_from,
    model_path,
)
from easyedit_dualedit.settings import as_number, is_seed, read_yaml, type_problems, unknown_keys

_METHOD_KEYS = (
    "width",
    "heads",
    "signal",
    "last_prompt_token",
    "word_path",
    "answer_tokens",
    "modalities",
    "gate",
    "backbone",
)


@dataclass
class DualEditMultimodalHparams(TrainerHparams):
    """What `MultimodalEditor` and EasyEdit's datasets read, and what DualEdit itself needs.

    EasyEdit's evaluation hands them to its trainer, which trains nothing then (`eval_only`).

    Raises:
        ConfigError: naming every value that is not allowed, on construction.
    """

    model_name: str
    """Path or hub id of the model; `testbed` is the model shipped with this package, `emoji` the
    one that `emoji get` puts together."""
    text_layer: int | None = None
    """Layer of the text adapter; may be left out if `archive` is a folder of saved adapters."""
    vision_layer: int | None = None
    archive: str | None = None
    """Trained adapters: a folder written by `DualEditor.save`, or a checkpoint of EasyEdit's
    trainer."""

    alg_name: str = ALG_NAME
    alg: str = ALG_NAME
    name: str | None = None
    """Where EasyEdit's datasets and trainer load from; the same as `model_name` unless given."""
    model_class: str = "AutoModelForImageTextToText"
    tokenizer_class: str = "AutoTokenizer"
    tokenizer_name: str | None = None
    device: Any = None
    """cpu, cuda, cuda:<index>, an index, or auto (`model_parallel`); None is the first CUDA device,
    or else the CPU."""
    dtype: Any = "float32"
    """float32, bfloat16, float16, or auto: bfloat16 where the device computes with it, else
    float32."""
    model_parallel: bool = False
    """Spread the model over all devices there are (`device_map="auto"`)."""
    quantization: str | None = None
    """4bit or 8bit: weights of the frozen model in fewer bits, by bitsandbytes."""
    exact_match: bool = False
    max_length: int = 30
    results_dir: str = "./results"
    check_edits: bool = True
    """Whether each edit that EasyEdit makes is asked about at once, and a warning tells of those
    that do not take."""

    coco_image: str = ""
    """Folder that the `image` and `m_loc` of a record are relative to."""
    rephrase_image: str = ""
    """Folder that the `image_rephrase` of a record is relative to."""
    allow_outside: bool = False
    """Whether `ADSDataset` and `ComprehendEditDataset` take names of pictures that are absolute or
    lead out of their folder."""

    width: int | None = None
    heads: int | None = None
    signal: str | None = None
    last_prompt_token: bool | None = None
    word_path: bool | None = None
    answer_tokens: bool | None = None
    modalities: list[str] | None = None
    gate: Any = None
    """A kind, or a mapping of `kind` and `threshold`."""
    backbone: dict[str, Any] | None = None
    """Answers for a model that does not give them itself: see `BackboneConfig`."""

    # EasyEdit reads these whatever the model; only its own BLIP-2 and MiniGPT-4 use them.
    qformer_name_or_path: str | None = None
    qformer_checkpoint: str | None = None
    freeze_qformer: bool = True
    state_dict_file: str | None = None
    pretrained_ckpt: str | None = None

    folder: ClassVar[str] = "DualEdit"
    """Of `hparams/`: where short names are looked up."""

    def __post_init__(self) -> None:
        problems = self._normalise()
        if problems:
            raise ConfigError("; ".join(problems))

    @classmethod
    def from_hparams(cls, hparams_name_or_path: str | Path) -> Self:
        """Return the hyperparameters of a YAML file; `.yaml` may be left out, as in EasyEdit.

        Args:
            hparams_name_or_path: a path, or the short name of a file that travels with this
                package, such as `llava-1.5-7b`.

        Raises:
            ConfigError: if the file cannot be read, or naming every key and value in it that is
                not allowed.
        """
        path = find_hparams(hparams_name_or_path, cls.folder)
        return cls.from_dict(read_yaml(path), source=str(path))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "the hyperparameters") -> Self:
        """Return the hyperparameters that a mapping describes.

        Fractions may be strings such as "1e-4", which YAML does not read as a number.

        Raises:
            ConfigError: naming every unknown key, missing key and value that is not allowed.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        problems = keys_of_others(values, source)
        own = {key: value for key, value in values.items() if key not in OTHER_METHODS}
        problems += unknown_keys(own, known, source)
        numbers = {f.name for f in dataclasses.fields(cls) if f.type in (float, float | None)}
        given = {
            key: as_number(value) if key in numbers else value
            for key, value in values.items()
            if key in known
        }
        wrong = type_problems(given, {f.name: f.type for f in dataclasses.fields(cls)})
        if wrong:
            raise ConfigError("; ".join([*problems, *wrong]))
        if "model_name" not in given:
            problems.append(f"{source} has no model_name; give the path or hub id of the model")
            given["model_name"] = "unknown"
        try:
            hparams = cls(**given)
        except ConfigError as error:
            problems.append(str(error))
        if problems:
            raise ConfigError("; ".join(problems))
        return hparams

    def dualedit_config(self) -> DualEditConfig:
        """Return the frozen configuration of the method.

        Raises:
            ConfigError: if a layer is missing, or naming every value that is not allowed.
        """
        missing = [key for key in ("text_layer", "vision_layer") if getattr(self, key) is None]
        if len(missing) == 1:
            raise ConfigError(
                f"{missing[0]} is not set; give the decoder layers of both adapters, or neither"
                " with an archive that is a folder of saved adapters"
            )
        if self.text_layer is None or self.vision_layer is None:
            raise ConfigError(
                "text_layer and vision_layer are not set; give the decoder layers of the two"
                " adapters, or an archive that is a folder of saved adapters"
            )
        return DualEditConfig.preset(
            self.preset,
            text_layer=self.text_layer,
            vision_layer=self.vision_layer,
            **self.explicit(),
        )

    @property
    def placement(self) -> dict[str, Any]:
        """How `load_model` should place the model."""
        device = SPREAD if self.model_parallel else self.device
        return {"device": device, "dtype": self.dtype, "quantization": self.quantization}

    def explicit(self) -> dict[str, Any]:
        """Return the method's settings that were given, without layers and presets."""
        return {key: getattr(self, key) for key in _METHOD_KEYS if getattr(self, key) is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `from_dict` turns into equal hyperparameters."""
        values = dataclasses.asdict(self)
        values["dtype"] = str(self.dtype).removeprefix("torch.")
        return values

    def _normalise(self) -> list[str]:
        problems = []
        for key in ("alg_name", "alg"):
            if str(getattr(self, key)).upper() != ALG_NAME.upper():
                problems.append(
                    f"{key} = {getattr(self, key)!r}: these are hyperparameters of {ALG_NAME}"
                )
            setattr(self, key, ALG_NAME)
        if str(self.device).strip().lower() == SPREAD:
            self.device, self.model_parallel = None, True
        device = "cpu"
        try:
            device = self.device = device_from(self.device)
        except ValueError as error:
            problems.append(str(error))
        try:
            self.dtype = dtype_from(self.dtype, device)
        except ValueError as error:
            problems.append(str(error))
        if not is_seed(self.seed):
            problems.append(f"seed = {self.seed!r}: a whole number from 0 to {2**32 - 1}")
        if self.quantization is not None and self.quantization not in QUANTIZATIONS:
            problems.append(
                f"quantization = {self.quantization!r}: one of {', '.join(QUANTIZATIONS)}, or null"
            )
        if not isinstance(self.model_name, str) or not self.model_name.strip():
            problems.append(f"model_name = {self.model_name!r}: the path or hub id of a model")
        else:
            if self.model_name in SHORT_NAMES and self.name:
                self.model_name = str(self.name)  # what the short name stands for is here
            self.model_name = model_path(self.model_name)
            self.name = self.model_name if self.name is None else model_path(str(self.name))
            self.tokenizer_name = self.tokenizer_name or self.name
        self.archive = None if self.archive is None else archive_path(str(self.archive))
        if self.archive is None or (self.text_layer, self.vision_layer) != (None, None):
            try:
                self.dualedit_config()
            except ConfigError as error:
                problems.append(str(error))
        return list(dict.fromkeys(problems + self.training_problems()))
