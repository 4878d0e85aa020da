"""EasyEdit's multimodal SERAC as a row of the benchmark.

Its `SERAC_MULTI` speaks to EasyEdit's own BLIP-2: sample dictionaries with texts and a picture, and
a model with a visual encoder and a Q-Former. Here a wrapper speaks that dialect for any
transformers model.
"""

import contextlib
import copy
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.files import write_json
from easyedit_dualedit.measure.contender import Bench, Contender, Edited, Method
from easyedit_dualedit.measure.easyedit_rows import joined_row
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import IGNORED
from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.rows.training import (
    TRAINING_REMARKS,
    Algorithm,
    Training,
    completed,
    count_of,
    given_archive,
    hyperparameters,
    load_archive,
    own_output,
    require_master,
    resolved,
)

_REMARKS = (
    "EasyEdit's SERAC_MULTI for transformers models fails before its first answer, so it runs"
    " through its BLIP-2 branch: a wrapper gives the model's own image features as the Q-Former's,"
    " and texts are the whole prompts as the chat template writes them.",
    "Hyperparameters are those that EasyEdit ships for BLIP-2.",
    "Without small_name and cls_name, counterfactual model (OPT) and scope classifier (DistilBERT)"
    " start untrained, of at most OPT-125M's and DistilBERT's size, with the model's own"
    " vocabulary: SERAC mixes probabilities token by token.",
    "EasyEdit draws the projection of the picture into the counterfactual model anew for every"
    " edit and never trains it; that is left so, so the counterfactual model hardly sees.",
    "The scope classifier reads the whole row: with the answer fed in, that answer too.",
    "EasyEdit's generate for this method fails on pictures; answers are made greedily from its"
    " forwards.",
    "The archive holds a configuration object, which torch >= 2.6 refuses to load by default; it"
    " is loaded with weights_only=False, as it was written by this run.",
    *TRAINING_REMARKS,
)

_SERAC = Algorithm(
    "SERAC_MULTI",
    "SERACMultimodalTrainingHparams",
    "SERAC/blip2",
    "blip2",
    {"small_name": "", "cls_name": ""},
)
_OPT_NAME = "opt"
"""Name of the language model, by which EasyEdit makes the counterfactual model an OPT."""

_LONGEST_TEXT = 512
_WIDTH, _HEAD = 768, 64
_SAVED_FILE = "saved.json"
_PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


def serac(host: Host) -> Contender:
    """Return the row of EasyEdit's multimodal SERAC."""
    return Contender("SERAC", partial(_make_serac, host), reads_label=True, remarks=_REMARKS)


class DialectModel(nn.Module):
    """A transformers model that is called as EasyEdit's SERAC calls its BLIP-2.

    The parts that SERAC takes the picture through hand on the image features that the language
    model gets, so that no second pass through the vision tower is needed.
    """

    def __init__(self, base: nn.Module, processor: Any):
        """Keep the model.

        Raises:
            BackboneError: if the model or the processor lacks what an editor needs.
        """
        super().__init__()
        self.base = base
        self.encoder = Encoder(Backbone.of(base), processor)
        self.ln_vision = nn.Identity()
        self.visual_encoder = nn.Identity()
        self.query_tokens = torch.zeros(1, 1, 1)
        self.config: Any = base.config
        # Not a module: it has no parameters of its own.
        self.Qformer = SimpleNamespace(
            config=SimpleNamespace(hidden_size=self.encoder.backbone.hidden_size),
            bert=_handing_on,
        )

    def samples(self, inputs: Mapping[str, Tensor], labels: Tensor | None = None) -> dict[str, Any]:
        """Return a sample dictionary for one row of a model's inputs.

        Args:
            inputs: with `input_ids`, [1, s].
            labels: the answer's ids at its positions and IGNORED elsewhere, [1, s].
        """
        ids = inputs["input_ids"]
        text = ids[0][(ids != self.encoder.backbone.image_token_id)[0]]
        shown = bool((ids == self.encoder.backbone.image_token_id).any())
        full = torch.full_like(ids, IGNORED) if labels is None else labels.to(ids.device)
        return {
            "text_input": [self.encoder.tokenizer.decode(text, clean_up_tokenization_spaces=False)],
            # The features take its place when the model is called.
            "image": ids if shown else None,
            "labels": full[full != IGNORED][None],
            "inputs": dict(inputs),
            "row_labels": full,
        }

    def samples_of(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return a sample dictionary for inputs with `labels` among them."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return self.samples(inputs, batch["labels"])

    def forward(self, samples: dict[str, Any]) -> Any:
        """Return the model's output with `labels` and `attention_mask` beside `logits`.

        The picture of the samples is replaced by its features, which SERAC asks for next.
        """
        inputs = samples["inputs"]
        seen: list[Tensor] = []

        def keep(_module: nn.Module, _args: Any, given: dict[str, Any]) -> None:
            seen.append(given["inputs_embeds"])

        handle = self.encoder.backbone.decoder.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            output = self.base(**inputs)
        finally:
            handle.remove()
        ids = inputs["input_ids"]
        if samples["image"] is not None:
            # EasyEdit's linear projection is in 32 bits whatever the model's are.
            samples["image"] = seen[0][ids == self.encoder.backbone.image_token_id].float()[None]
        output.labels = samples["row_labels"]
        output.attention_mask = torch.ones_like(ids)
        return output

    @staticmethod
    def maybe_autocast() -> Any:
        """Return a context that changes nothing."""
        return contextlib.nullcontext()


def _handing_on(*, encoder_hidden_states: Tensor, **_: Any) -> Any:
    return SimpleNamespace(last_hidden_state=encoder_hidden_states)


@dataclass(frozen=True)
class _Answer:
    logits: Tensor


class CounterfactualModel:
    """A model with one edit of SERAC's, called as transformers models are."""

    def __init__(self, edited: Any, dialect: DialectModel):
        """Combine EasyEdit's edited SERAC with the model that it speaks to."""
        self._edited = edited
        self._dialect = dialect

    def __call__(self, **inputs: Tensor) -> _Answer:
        """Return logits [1, s, v]: logarithms of the mixed probabilities."""
        with torch.no_grad():
            return _Answer(self._edited(self._dialect.samples(inputs)).logits)

    def generate(self, *, max_new_tokens: int, do_sample: bool = False, **inputs: Tensor) -> Tensor:
        """Return the prompt and the greedy answer, long [1, s + n].

        Args:
            max_new_tokens: most tokens of the answer.
            do_sample: False; it is there as callers of transformers' `generate` give it.
            inputs: a model's inputs for one prompt.
        """
        del do_sample
        ends = _end_tokens(self._dialect.base, self._dialect.encoder.tokenizer)
        for _ in range(max_new_tokens):
            token = self(**inputs).logits[:, -1:].argmax(-1)
            inputs = _longer(inputs, token)
            if int(token) in ends:
                break
        return inputs["input_ids"]


class TrainedSerac:
    """Makes edits with a trained SERAC of EasyEdit's; the model itself is never changed."""

    def __init__(self, alg: Any, dialect: DialectModel):
        """Keep the trained SERAC and the model that it speaks to."""
        self._alg = alg
        self._dialect = dialect
        self.trained_parameters = count_of(alg.outer_parameters())

    @contextlib.contextmanager
    def edit(self, record: Record) -> Iterator[Edited]:
        """Have SERAC keep one request, and answer what is like it by its counterfactual model."""
        row = joined_row(self._dialect.encoder, record.request)
        edited, _ = self._alg.edit(self._dialect.samples(row.inputs, row.labels))
        kept = "".join([*edited.cache_inputs, *edited.cache_labels])
        yield Edited(CounterfactualModel(edited, self._dialect), len(kept.encode()))


def _make_serac(host: Host, bench: Bench) -> Method:
    require_master(host, "SERAC")
    config = hyperparameters(host, _SERAC, bench)
    model, processor = bench.load()
    config.dtype = next(model.parameters()).dtype
    config.name = _OPT_NAME
    dialect = DialectModel(model.requires_grad_(False), processor)
    archive = given_archive(bench)
    folder = bench.folder / "easyedit-serac"
    if archive is None:
        # Before the settings name the folders of small models that are made here.
        training = Training(host, _SERAC, bench, config, folder)
        _name_small_models(config, dialect, bench)
        if not training.is_done:
            training.run(dialect, completed(processor, model), convert=dialect.samples_of)
        archive = training.archive
    else:
        _name_small_models(config, dialect, bench)
    with own_output(folder.resolve()):
        alg = host.trainers["SERAC_MULTI"](dialect, config, None)
    load_archive(alg, archive, config.device)
    return TrainedSerac(alg.eval(), dialect)


def _name_small_models(config: Any, dialect: DialectModel, bench: Bench) -> None:
    """Fill in folders of untrained small models where the settings name none.

    Raises:
        ConfigError: if a counterfactual model is named whose vocabulary is not the model's.
    """
    folder = bench.folder.resolve() / "easyedit-serac-parts"
    tokens = _vocabulary(dialect.base)
    if config.small_name:
        config.small_name = resolved(str(config.small_name))
        found = transformers.AutoConfig.from_pretrained(config.small_name)
        if found.vocab_size != tokens:
            raise ConfigError(
                f"small_name = {config.small_name!r} has a vocabulary of {found.vocab_size} tokens"
                f" and the model one of {tokens}: SERAC mixes their probabilities, so they must be"
                " the same; leave small_name out to have one made"
            )
    else:
        config.small_name = str(folder / "opt")
    if config.cls_name:
        config.cls_name = resolved(str(config.cls_name))
    else:
        config.cls_name = str(folder / "distilbert")
    backbone, tokenizer = dialect.encoder.backbone, dialect.encoder.tokenizer
    width = min(backbone.hidden_size, _WIDTH)
    heads = max(1, width // _HEAD)
    width -= width % heads
    depth = len(backbone.layers)
    longest = int(getattr(dialect.config.get_text_config(), "max_position_embeddings", 0))
    special = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")
    }
    if special["pad_token_id"] is None:
        special["pad_token_id"] = special["eos_token_id"]
    small: dict[str, Callable[[], Any]] = {
        "opt": lambda: transformers.OPTForCausalLM(
            transformers.OPTConfig(
                vocab_size=tokens,
                hidden_size=width,
                word_embed_proj_dim=width,
                ffn_dim=4 * width,
                num_hidden_layers=min(depth, 12),
                num_attention_heads=heads,
                # A picture and two questions.
                max_position_embeddings=min(max(2 * longest, 2048), 16384),
                **special,
            )
        ),
        "distilbert": lambda: transformers.DistilBertModel(
            transformers.DistilBertConfig(
                vocab_size=tokens,
                dim=width,
                hidden_dim=4 * width,
                n_layers=min(depth, 6),
                n_heads=heads,
                max_position_embeddings=_LONGEST_TEXT,
                pad_token_id=special["pad_token_id"],
            )
        ),
    }
    transformers.set_seed(bench.seed)
    for name, make in small.items():
        if str(folder / name) in (config.small_name, config.cls_name):
            _save(make(), tokenizer, folder / name)


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a small model with a tokenizer of its own, unless it is there."""
    if (folder / _SAVED_FILE).is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = copy.deepcopy(tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    # Others, such as token types, are more than these models take.
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / _SAVED_FILE, {})


def _vocabulary(model: Any) -> int:
    """Return how many tokens a model gives logits for."""
    head = model.get_output_embeddings()
    return int(model.config.get_text_config().vocab_size if head is None else head.weight.shape[0])


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    known = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if known is None:
        known = tokenizer.eos_token_id
    return set(known) if isinstance(known, list) else {known}


def _longer(inputs: Mapping[str, Tensor], token: Tensor) -> dict[str, Tensor]:
    """Return inputs with one more token, [1, 1]."""
    longer = dict(inputs)
    length = inputs["input_ids"].shape[1]
    for name in _PER_TOKEN:
        if name in inputs:
            one = {"input_ids": token, "attention_mask": torch.ones_like(token)}
            more = one.get(name, inputs[name][:, length - 1 :])
            longer[name] = torch.cat([inputs[name], more.to(inputs[name])], 1)
    return longer
