"""EasyEdit's IKE as a row of the benchmark: the new fact, and maybe examples, before a question."""

import contextlib
import copy
import functools
import hashlib
import importlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.errors import ConfigError, UpstreamError
from easyedit_dualedit.measure.contender import Bench, Contender, Edited
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Query, input_device
from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.models import ConfigView
from easyedit_dualedit.plugin.patching import Patches
from easyedit_dualedit.plugin.rows.output import quiet
from easyedit_dualedit.plugin.rows.shipped import Shipped, edit_hparams

logger = logging.getLogger(__name__)

_SPARE_TOKENS = 16
"""Kept free of examples, for what is generated."""
_WIDEST_EMBEDDING = 256

_REMARKS = (
    "Hyperparameters are those that EasyEdit ships for the model's family, or for"
    " LLaVA-OneVision-7B where it ships none. Where k is 0, as in all but BLIP-2's, the new fact"
    " alone is put before every question, as EasyEdit's editor does; above 0, so many most similar"
    " examples of the training records come before it.",
    "Unless the setting sentence_model_name names one, the sentence encoder that EasyEdit looks"
    " examples up with (for k above 0) is a stand-in: the mean of the model's own input embeddings"
    " of the tokens, projected at random to at most 256 numbers.",
    "EasyEdit loads the sentence encoder anew for every edit; it is kept.",
    "Examples that would make a prompt longer than the model's context are left out, the least"
    " similar first.",
)
_SPACE = {"k": (0, 1, 2, 4, 8, 16)}
_RELEASE_REMARK = (
    "EasyEdit 0.0.1.dev0 puts IKE on CUDA, which is replaced by the model's device, and asks"
    " locality after the very answer that is measured; questions are put as its master does."
)

IKE = Shipped("IKE", "IKEMultimodalHyperParams", "IKE/llavaov_7b.yaml", {"k": 0})


def ike(host: Host) -> Contender:
    """Return the row of EasyEdit's IKE."""
    more = (_RELEASE_REMARK,) if host.edition == "pypi" else ()
    return Contender(
        "IKE",
        partial(IkeMethod, host),
        check=partial(edit_hparams, host, IKE),
        remarks=(*_REMARKS, *more),
        space=_SPACE,
    )


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
        self._config = edit_hparams(host, IKE, bench.model, bench.settings)
        if self._config.k < 0:
            raise ConfigError(f"k = {self._config.k!r}: a number of examples, 0 or above")
        self._model, self._processor = bench.load()
        backbone = Backbone.of(self._model)
        self._encoder = Encoder(backbone, self._processor)
        self._config.device = str(input_device(backbone.model))
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
            with quiet():
                examples: list[str] = self._host.editors["IKE"](
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
        return examples

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
        with tempfile.TemporaryDirectory(dir=path.parent) as made, quiet():
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
        with tempfile.TemporaryDirectory(dir=path.parent) as made, quiet():
            # A copy, since the encoder switches off truncation and padding.
            own = type(tokenizer).from_str(tokenizer.to_str())
            embedding = modules.StaticEmbedding(own, embedding_weights=weight)
            model = library.SentenceTransformer(modules=[embedding], device="cpu")
            model.save(f"{made}/model")
            os.replace(f"{made}/model", path)
        return path


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
