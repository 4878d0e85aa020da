"""EasyEdit's methods that need no training as rows of the benchmark: LoRA, WISE, GRACE, IKE.

The methods are EasyEdit's own functions, with the hyperparameters that it ships. What keeps them
from working on a model, or the model from being as it was after them, is worked around from
outside, and every such step is a line of the report.
"""

import contextlib
import copy
import dataclasses
import functools
import hashlib
import importlib
import io
import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.errors import ConfigError, DataError, UpstreamError
from easyedit_dualedit.measure.contender import Bench, Contender, Edited
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.model.pictures import open_image
from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.models import ConfigView
from easyedit_dualedit.plugin.patching import Patches
from easyedit_dualedit.plugin.rows.model_parts import (
    DOWN,
    as_expression,
    decoder_prefix,
    layer_in_proportion,
    mlp_parameters,
)
from easyedit_dualedit.settings import as_number, raise_if, unknown_keys

logger = logging.getLogger(__name__)

HF_NAME = "llava-onevision"
"""Model name by which EasyEdit takes its code for transformers models."""

_REFERENCE_DEPTH = 28
"""Decoder layers of LLaVA-OneVision-7B, which EasyEdit's hyperparameters name layers of."""
_ADAPTED = ("q_proj", "v_proj")
_SPARE_TOKENS = 16
"""Kept free of examples, for what is generated."""
_WIDEST_EMBEDDING = 256

_FIXED = frozenset(
    (
        "alg_name",
        "model_name",
        "name",
        "device",
        "dtype",
        "model_parallel",
        "batch_size",
        "max_length",
        "file_type",
        "use_chat_template",
        "exact_match",
        "hidden_act",
        "sequential_edit",
        "save_path",
        "load_path",
        "coco_image",
        "rephrase_image",
        "results_dir",
        "task_name",
        "tokenizer_class",
        "tokenizer_name",
        "pretrained_ckpt",
        "qformer_checkpoint",
        "qformer_name_or_path",
        "state_dict_file",
    )
)
"""Hyperparameters that the bench decides, or that a single edit has no use for."""

_SHIPPED = (
    "Hyperparameters are those that EasyEdit ships for LLaVA-OneVision-7B, with layers and modules"
    " of the decoder in proportion to this model's depth and as this model names them."
)
_PUT_BACK = (
    "EasyEdit leaves frozen parameters, copies of layers and changed attributes in the model; after"
    " an edit all of it is put back from outside."
)

_LORA_REMARKS = (
    _SHIPPED,
    "EasyEdit's AdaLoRA sets no total_step, which PEFT refuses; it is given the number of steps"
    " (EasyEdit reallocates no ranks, so it changes nothing).",
    "EasyEdit leaves LoRA's dropout on after the training; it is off while the model is asked.",
    "EasyEdit turns the whole model into float32 for the edit.",
    _PUT_BACK,
)
_WISE_REMARKS = (
    _SHIPPED,
    "As in EasyEdit's editor, WISE gets the record's own text locality question with its answer as"
    " the example of what to leave alone.",
    "Rows of a batch are padded on the left, since EasyEdit looks for the answer at their end.",
    "EasyEdit keeps the inputs of every edit in lists of its module; they are emptied.",
    _PUT_BACK,
)
_GRACE_REMARKS = (_SHIPPED, _PUT_BACK)
_IKE_REMARKS = (
    "Hyperparameters are those that EasyEdit ships for LLaVA-OneVision-7B: k is 0, so that the new"
    " fact alone is put before every question, as EasyEdit's editor does for k = 0; with the"
    " setting k, the most similar examples of the training records come before it.",
    "Unless the setting sentence_model_name names one, the sentence encoder that EasyEdit looks"
    " examples up with (for k above 0) is a stand-in: the mean of the model's own input embeddings"
    " of the tokens, projected at random to at most 256 numbers.",
    "EasyEdit loads the sentence encoder anew for every edit; it is kept.",
    "Examples that would make a prompt longer than the model's context are left out, the least"
    " similar first.",
)
_IKE_RELEASE_REMARK = (
    "EasyEdit 0.0.1.dev0 puts IKE on CUDA, which is replaced by the model's device, and asks"
    " locality after the very answer that is measured; questions are put as its master does."
)


@dataclass(frozen=True)
class Algorithm:
    """A method in EasyEdit's registry, and where its hyperparameters are."""

    name: str
    """As in `ALG_MULTIMODAL_DICT`."""
    module: str
    """EasyEdit's module that holds the class of its hyperparameters."""
    hparams_class: str
    shipped: str
    """File in EasyEdit's folder hparams."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """The numbers in that file, for an EasyEdit without the folder."""


LORA = Algorithm(
    "LoRA",
    "models.lora.lora_multimodal_hparams",
    "LoRAMultimodalHyperParams",
    "LoRA/llavaov-7b.yaml",
    {
        "lora_type": "adalora",
        "layers": [],
        "num_steps": 5,
        "lr": 0.1,
        "sh_lr": 0.9,
        "weight_decay": 0.0,
        "kl_factor": 0,
        "norm_constraint": False,
        "target_modules": [],
        "rank": 8,
        "lora_alpha": 32,
        "lora_dropout": 0.1,
    },
)
WISE = Algorithm(
    "WISE",
    "models.wise.wise_multimodal_hparams",
    "WISEMultimodalHyperParams",
    "WISE/llavaov-7b.yaml",
    {
        "mask_ratio": 0.2,
        "edit_lr": 1.0,
        "n_iter": 10,
        "norm_constraint": 1.0,
        "alpha": 5.0,
        "beta": 20.0,
        "gamma": 10.0,
        "act_ratio": 0.4,
        "save_freq": 500,
        "merge_freq": 1000,
        "merge_alg": "ties",
        "objective_optimization": "only_label",
        "inner_params": [],
        "densities": 0.53,
        "weights": 1.0,
        "retrieve": True,
        "replay": False,
        "hidden_act": "silu",
    },
)
GRACE = Algorithm(
    "GRACE",
    "models.grace.grace_hparams",
    "GraceHyperParams",
    "GRACE/llavaov-7b.yaml",
    {
        "inner_params": [],
        "edit_lr": 1.0,
        "n_iter": 20,
        "eps": 1.0,
        "dist_fn": "euc",
        "val_init": "cold",
        "val_train": "sgd",
        "val_reg": "None",
        "reg": "early_stop",
        "replacement": "replace_last",
        "eps_expand": "coverage",
        "num_pert": 8,
        "dropout": 0.0,
    },
)
IKE = Algorithm(
    "IKE",
    "models.ike.ike_hparams",
    "IKEMultimodalHyperParams",
    "IKE/llavaov_7b.yaml",
    {"k": 0},
)

_LAYERS = {"WISE": 23, "GRACE": 18}
"""Layers that EasyEdit's hyperparameters name, of `_REFERENCE_DEPTH`."""


def baselines(host: Host) -> list[Contender]:
    """Return a row for each of LoRA, WISE, GRACE and IKE that this EasyEdit has."""
    rows = {"LoRA": lora, "WISE": wise, "GRACE": grace, "IKE": ike}
    return [row(host) for name, row in rows.items() if name in host.editors]


def lora(host: Host) -> Contender:
    """Return the row of EasyEdit's LoRA."""
    return Contender("LoRA", partial(LoraMethod, host), remarks=_LORA_REMARKS)


def wise(host: Host) -> Contender:
    """Return the row of EasyEdit's WISE."""
    return Contender("WISE", partial(WiseMethod, host), reads_label=True, remarks=_WISE_REMARKS)


def grace(host: Host) -> Contender:
    """Return the row of EasyEdit's GRACE."""
    return Contender("GRACE", partial(GraceMethod, host), remarks=_GRACE_REMARKS)


def ike(host: Host) -> Contender:
    """Return the row of EasyEdit's IKE."""
    more = (_IKE_RELEASE_REMARK,) if host.edition == "pypi" else ()
    return Contender("IKE", partial(IkeMethod, host), remarks=(*_IKE_REMARKS, *more))


class _Changing:
    """A method of EasyEdit's that changes the model it gets, around a model of its own."""

    algorithm: Algorithm
    trained_parameters: int
    refused = 0
    """Edits of the last `many` at which EasyEdit failed."""

    def __init__(self, host: Host, bench: Bench):
        """Load the model and read the hyperparameters.

        Raises:
            ConfigError: if a setting is unknown or no number where one is needed.
            UpstreamError: if the model lacks what the hyperparameters name.
        """
        self._host = host
        self._config = hyperparameters(host, self.algorithm, bench)
        self._model, self._processor = bench.load()
        self._backbone = Backbone.of(self._model)
        self._config.device = str(self._backbone.device)
        self._prepare(frozenset(bench.settings))

    @contextlib.contextmanager
    def edit(self, record: Record) -> Iterator[Edited]:
        """Have EasyEdit edit the model for the request of a record, and put it back afterwards."""
        request = self._request(record)
        with unchanged(self._model):
            edited = self._applied(request, self._config)
            yield Edited(edited, self._stored_bytes(edited))

    @contextlib.contextmanager
    def many(self, records: Sequence[Record], made: Callable[[], object]) -> Iterator[Edited]:
        """Have EasyEdit make the edits of all records one after the other, as `sequential_edit`.

        An edit at which EasyEdit fails is counted in `refused`, and the next one is made.

        Raises:
            UpstreamError: if it fails at every one.
        """
        self.refused = 0
        edited = None
        with unchanged(self._model):
            for record in records:
                try:
                    edited = self._applied(self._request(record), self._config)
                except RuntimeError as error:
                    self.refused += 1
                    line = " ".join(str(error).split())[:200]
                    name = self.algorithm.name
                    logger.warning("%s cannot make the edit of %s: %s", name, record.index, line)
                made()
            if edited is None:
                raise UpstreamError(
                    f"EasyEdit's {self.algorithm.name} made none of {len(records)} edits: {line}"
                )
            yield Edited(edited, self._stored_bytes(edited))

    def _applied(self, request: Mapping[str, Any], config: Any) -> Any:
        """Return what EasyEdit makes of the model."""
        apply = self._host.editors[self.algorithm.name]
        with _quiet(), torch.enable_grad():
            # A copy, since methods write to their hyperparameters.
            edited, _ = apply(
                self._model,
                self._processor,
                [dict(request)],
                copy.copy(config),
                copy=False,
                return_orig_weights=True,
                keep_original_weight=False,
            )
        return edited

    def _request(self, record: Record) -> dict[str, Any]:
        return _request_of(record, self.algorithm.name)

    def _name_weight(self, given: frozenset[str]) -> str:
        """Return the weight that is changed, and have EasyEdit find it."""
        if "inner_params" not in given:
            layer = layer_in_proportion(
                _LAYERS[self.algorithm.name], _REFERENCE_DEPTH, len(self._backbone.layers)
            )
            names = mlp_parameters(self._model, layer)
            self._config.inner_params = [as_expression(names[DOWN])]
        expression: str = self._config.inner_params[0]
        name = expression.replace("[", ".").replace("]", "")
        try:
            self._model.get_parameter(name)
        except AttributeError as error:
            raise ConfigError(
                f"inner_params has {expression!r}, which {type(self._model).__name__} has not; name"
                " one weight as in model.language_model.layers[3].mlp.down_proj.weight"
            ) from error
        return name

    def _prepare(self, given: frozenset[str]) -> None:
        raise NotImplementedError

    def _stored_bytes(self, edited: Any) -> int:
        raise NotImplementedError


class LoraMethod(_Changing):
    """EasyEdit's LoRA: low-rank adapters, trained on the request with PEFT."""

    algorithm = LORA

    def _prepare(self, given: frozenset[str]) -> None:
        if "target_modules" not in given:
            prefix = decoder_prefix(self._model, self._backbone)
            # Master's list holds patterns, and PEFT takes patterns as one text only.
            pattern = rf"{re.escape(prefix)}\.\d+\.(?:.+\.)?(?:{'|'.join(_ADAPTED)})"
            if not any(re.fullmatch(pattern, name) for name, _ in self._model.named_modules()):
                raise UpstreamError(
                    f"the decoder layers of {type(self._model).__name__} have no projections named"
                    f" {' or '.join(_ADAPTED)}, which EasyEdit's LoRA adapts; name others (setting"
                    " target_modules)"
                )
            self._config.target_modules = pattern
        # Attached once without a step, for what PEFT counts.
        nothing = {"prompt": ".", "target": ".", "image": None, "file_type": "image"}
        untrained = copy.copy(self._config)
        untrained.num_steps = 0
        with unchanged(self._model):
            adapter = _adapter(self._applied(nothing, untrained))
        self.trained_parameters = sum(value.numel() for value in adapter)

    def _applied(self, request: Mapping[str, Any], config: Any) -> Any:
        module = self._host.module("models.lora.lora_main")
        steps = max(int(config.num_steps), 1)
        patches = Patches()
        patches.wrap(module, "AdaLoraConfig", lambda made: partial(made, total_step=steps))
        try:
            return super()._applied(request, config).eval()
        finally:
            patches.undo()

    def _stored_bytes(self, edited: Any) -> int:
        return _bytes_of(_adapter(edited))


class WiseMethod(_Changing):
    """EasyEdit's WISE: a second weight beside one of the model's, and a router between them."""

    algorithm = WISE

    def _prepare(self, given: frozenset[str]) -> None:
        weight = self._model.get_parameter(self._name_weight(given))
        self._config.dtype = self._model.dtype
        self.trained_parameters = round(self._config.mask_ratio * weight.numel())

    def _request(self, record: Record) -> dict[str, Any]:
        locality = record.text_locality
        return super()._request(record) | {
            "locality_prompt": locality.prompt,
            "locality_ground_truth": locality.target or "",
        }

    def _applied(self, request: Mapping[str, Any], config: Any) -> Any:
        module = self._host.module("models.wise.WISE")
        tokenizer = self._processor.tokenizer
        side = tokenizer.padding_side
        tokenizer.padding_side = "left"
        try:
            return super()._applied(request, config)
        finally:
            tokenizer.padding_side = side
            module.edit_history.clear()
            module.merge_group_edit_history.clear()

    def _stored_bytes(self, edited: Any) -> int:
        adapter = edited.get_adapter_layer()
        # Of the mask, which EasyEdit keeps as 64-bit numbers, a bit a weight is needed.
        mask: int = (adapter.weight_mask.numel() + 7) // 8
        return _bytes_of([adapter.new_weight]) + mask


class GraceMethod(_Changing):
    """EasyEdit's GRACE: a value that replaces a layer's output near the key of the request."""

    algorithm = GRACE

    def _prepare(self, given: frozenset[str]) -> None:
        weight = self._model.get_parameter(self._name_weight(given))
        self.trained_parameters = int(weight.shape[0])

    def _applied(self, request: Mapping[str, Any], config: Any) -> Any:
        try:
            return super()._applied(request, config)
        finally:
            for module in self._model.modules():
                if type(module).__name__ == "GRACEAdapter":
                    module.training = False  # an edit that fails leaves it learning

    def _stored_bytes(self, edited: Any) -> int:
        name = edited.layer.replace("[", ".").replace("]", "")
        adapter = self._model.get_submodule(name)
        return _bytes_of([adapter.keys, adapter.values, adapter.epsilons])


class IkeMethod:
    """EasyEdit's IKE: the new fact, and maybe examples, before every question."""

    trained_parameters = 0

    def __init__(self, host: Host, bench: Bench):
        """Load the model and, if there are to be examples, encode the training records.

        Raises:
            ConfigError: if a setting is unknown, or there are no records to take examples from.
            UpstreamError: if no stand-in for the sentence encoder can be made.
        """
        self._host = host
        self._config = hyperparameters(host, IKE, bench)
        if self._config.k < 0:
            raise ConfigError(f"k = {self._config.k!r}: a number of examples, 0 or above")
        self._model, self._processor = bench.load()
        backbone = Backbone.of(self._model)
        self._encoder = Encoder(backbone, self._processor)
        self._config.device = str(backbone.device)
        text = self._model.config.get_text_config()
        self._context: int | None = getattr(text, "max_position_embeddings", None)
        if self._config.k:
            self._prepare_examples(bench)

    @contextlib.contextmanager
    def edit(self, record: Record) -> Iterator[Edited]:
        """Look up the context of the request of a record; the model is not changed."""
        request = record.request
        fact = f"New Fact: {request.prompt} {request.target}\nPrompt: "
        if self._config.k == 0:
            examples, lead = [], f"{fact}{request.prompt}\n\n"
            if hasattr(self._config, "template"):
                lead = self._config.template.format(prompt=request.prompt, target=request.target)
        else:
            # The last one is the fact itself.
            *examples, own = self._looked_up(request)
            lead = own + fact
        context = "".join(examples) + lead
        asked = partial(self._asked, examples, lead)
        yield Edited(self._model, len(context.encode()), asked)

    def _asked(self, examples: Sequence[str], lead: str, query: Query) -> Query:
        alone = replace(query, prompt=lead + query.prompt)
        kept = list(examples)
        if kept and self._context is not None:
            width = self._encoder.encode([alone]).inputs["input_ids"].shape[1] + _SPARE_TOKENS
            tokenizer = self._encoder.tokenizer
            counts = [len(tokenizer(e, add_special_tokens=False)["input_ids"]) for e in kept]
            while kept and width + sum(counts[: len(kept)]) > self._context:
                kept.pop()
            if len(kept) < len(examples):
                logger.debug("IKE: %d of %d examples fit", len(kept), len(examples))
        return replace(alone, prompt="".join(kept) + alone.prompt)

    def _looked_up(self, request: Query) -> list[str]:
        module = self._host.module("models.ike.ike_main")
        patches = Patches()
        patches.replace(module, "SentenceTransformer", self._sentence_model)
        if self._host.edition == "pypi":
            device = torch.device(self._config.device)
            patches.replace(module, "torch", ConfigView(torch, device=lambda _name: device))
        try:
            with _quiet():
                found: list[str] = self._host.editors["IKE"](
                    self._model,
                    self._processor,
                    {"prompt": request.prompt, "target": request.target, "image": request.image},
                    copy.copy(self._config),
                    copy=False,
                    return_orig_weights=True,
                    keep_original_weight=False,
                    train_ds=(),
                )
        finally:
            patches.undo()
        return found

    def _prepare_examples(self, bench: Bench) -> None:
        if not bench.training:
            raise ConfigError(
                f"k = {self._config.k}, but there are no training records to take examples from;"
                " give the benchmark --train, or k = 0"
            )
        items = [_example(record) for record in bench.training]
        folder = bench.folder.resolve()
        if "sentence_model_name" not in bench.settings:
            self._config.sentence_model_name = str(self._stand_in(bench, folder))
        name = str(self._config.sentence_model_name)
        digest = hashlib.sha256(json.dumps([name, items]).encode()).hexdigest()[:16]
        self._config.results_dir = str(folder)
        self._config.task_name = f"examples-{digest}"
        self._load = functools.lru_cache(maxsize=1)(_load_sentence_model)
        path = folder / "IKE" / "embedding" / f"{self._config.task_name}_embeddings.pkl"
        if path.is_file():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        utilities = self._host.module("models.ike.util")
        encode = getattr(utilities, "encode_ike_facts_multimodal", utilities.encode_ike_facts)
        with tempfile.TemporaryDirectory(dir=path.parent) as made, _quiet():
            config = copy.copy(self._config)
            config.results_dir = made
            encode(self._load(name), items, config)
            # The release names the file otherwise than its apply function looks for it.
            (written,) = Path(made).rglob("*.pkl")
            os.replace(written, path)

    def _sentence_model(self, name: str) -> Any:
        return self._load(name)

    def _stand_in(self, bench: Bench, folder: Path) -> Path:
        """Return the folder of a sentence encoder made of the model's own embeddings."""
        digest = hashlib.sha256(bench.model.encode()).hexdigest()[:12]
        path = folder / "IKE" / f"sentence-model-{digest}"
        if path.is_dir():
            return path
        tokenizer = getattr(self._encoder.tokenizer, "backend_tokenizer", None)
        if tokenizer is None:
            raise UpstreamError(
                f"{type(self._encoder.tokenizer).__name__} is no fast tokenizer, so no sentence"
                " encoder can be made from the model; name one (setting sentence_model_name)"
            )
        weight = self._model.get_input_embeddings().weight.detach().float().cpu()
        if weight.shape[1] > _WIDEST_EMBEDDING:
            generator = torch.Generator().manual_seed(0)
            weight = weight @ torch.randn(weight.shape[1], _WIDEST_EMBEDDING, generator=generator)
        library: Any = importlib.import_module("sentence_transformers")
        modules: Any = _first_module(
            "sentence_transformers.sentence_transformer.modules", "sentence_transformers.models"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as made, _quiet():
            # A copy, since the encoder switches off truncation and padding.
            own = type(tokenizer).from_str(tokenizer.to_str())
            embedding = modules.StaticEmbedding(own, embedding_weights=weight)
            model = library.SentenceTransformer(modules=[embedding], device="cpu")
            model.save(f"{made}/model")
            os.replace(f"{made}/model", path)
        return path


def hyperparameters(host: Host, algorithm: Algorithm, bench: Bench) -> Any:
    """Return EasyEdit's hyperparameters for one edit: shipped ones, and those given instead.

    Raises:
        ConfigError: if one is given that there is not, that the bench decides, or that is no
            number where the shipped one is.
    """
    kind = getattr(host.module(algorithm.module), algorithm.hparams_class)
    path = host.folder.parent / "hparams" / algorithm.shipped
    if path.is_file():
        config: Any = kind.from_hparams(str(path))
    else:
        # Of what has no default, the numbers are all; names and paths are never used.
        required = {
            f.name: "." for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING
        }
        config = kind(**required | dict(algorithm.values))
    known = [f.name for f in dataclasses.fields(config) if f.name not in _FIXED]
    raise_if(unknown_keys(bench.settings, known, f"the settings of {algorithm.name}"))
    problems: list[str] = []
    for name, value in bench.settings.items():
        try:
            setattr(config, name, _like(name, value, getattr(config, name)))
        except ConfigError as error:
            problems.append(str(error))
    raise_if(problems)
    forced = {
        "model_name": HF_NAME,
        "alg_name": algorithm.name,
        "batch_size": 1,
        "model_parallel": False,
        "use_chat_template": True,
        "sequential_edit": False,
        "file_type": "image",
        "save_path": None,
        "load_path": None,
    }
    for name, value in forced.items():
        if hasattr(config, name):
            setattr(config, name, value)
    return config


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put back all that a model is made of afterwards, whatever was done to it.

    These are its modules, parameters, buffers, hooks, attributes, configurations, and what its
    parameters require and hold by reference: values written into a parameter in place stay.
    """
    holders: dict[int, dict[Any, Any]] = {}

    def hold(values: dict[Any, Any]) -> None:
        holders[id(values)] = values
        for value in list(values.values()):
            if isinstance(value, dict):
                holders[id(value)] = value
            elif _is_config(value) and id(vars(value)) not in holders:
                hold(vars(value))

    for module in model.modules():
        hold(vars(module))
    contents = [(values, dict(values)) for values in holders.values()]
    parameters = [(p, p.data, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        yield
    finally:
        for values, content in contents:
            values.clear()
            values.update(content)
        for parameter, data, required, gradient in parameters:
            parameter.data = data
            parameter.requires_grad_(required)
            parameter.grad = gradient


def _is_config(value: Any) -> bool:
    return not isinstance(value, nn.Module) and hasattr(value, "to_diff_dict")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # EasyEdit prints, and on import has every library log what it does.
    talkative = logging.getLogger("sentence_transformers")
    level = talkative.level
    talkative.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        talkative.setLevel(level)


def _request_of(record: Record, name: str) -> dict[str, Any]:
    """Return a request as EasyEdit's editor prepares it."""
    query = record.request
    if not query.pictures:
        raise DataError(
            f"record {record.index} has a request without a picture, which EasyEdit's multimodal"
            f" {name} cannot edit; leave it out"
        )
    images = [open_image(picture) for picture in query.pictures]
    several = len(images) > 1
    return {
        "prompt": query.prompt,
        "target": query.target,
        "image": images if several else images[0],
        "file_type": "multi-image" if several else "image",
    }


def _example(record: Record) -> dict[str, str]:
    """Return a training record with the names of both editions of EasyEdit."""
    target = record.request.target or ""
    return {
        "prompt": record.request.prompt,
        "target": target,
        "target_new": target,
        "rephrase_prompt": record.text_rephrase.prompt,
        "locality_prompt": record.text_locality.prompt,
        "locality_ground_truth": record.text_locality.target or "",
    }


def _adapter(edited: Any) -> list[Tensor]:
    return [value for value in edited.parameters() if value.requires_grad]


def _bytes_of(tensors: Sequence[Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in tensors)


def _load_sentence_model(name: str) -> Any:
    library: Any = importlib.import_module("sentence_transformers")
    try:
        return library.SentenceTransformer(name)
    except (OSError, ValueError) as error:
        line = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"sentence_model_name = {name!r} cannot be loaded ({line}); give the folder of a"
            " sentence-transformers model, or its hub id"
        ) from error


def _first_module(*names: str) -> Any:
    for name in names:
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    raise UpstreamError(
        f"sentence-transformers has none of {', '.join(names)}; install version 5.0 or later"
    )


def _like(name: str, value: Any, shipped: Any) -> Any:
    """Return a given value as the type of the shipped one; "1e-4" is text in YAML."""
    if isinstance(shipped, bool) or not isinstance(shipped, int | float):
        return value
    number = as_number(value)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ConfigError(f"{name} = {value!r}: a number, such as {shipped!r}")
    if isinstance(shipped, int) and number != int(number):
        raise ConfigError(f"{name} = {value!r}: a whole number, such as {shipped!r}")
    return type(shipped)(number)
