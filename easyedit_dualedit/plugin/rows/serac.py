"""EasyEdit's multimodal SERAC as a row of the benchmark.

Its `SERAC_MULTI` speaks to EasyEdit's own BLIP-2: sample dictionaries with texts and a picture, and
a model with a visual encoder and a Q-Former. Here a wrapper speaks that dialect for any
transformers model.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.measure.contender import Bench, Contender, Edited, Method
from easyedit_dualedit.measure.easyedit_rows import joined_row
from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.processors import completed
from easyedit_dualedit.plugin.rows.counterfactual import counterfactual_model
from easyedit_dualedit.plugin.rows.dialect import DialectModel
from easyedit_dualedit.plugin.rows.model_parts import count_of
from easyedit_dualedit.plugin.rows.output import own_output
from easyedit_dualedit.plugin.rows.shipped import Shipped, training_hparams
from easyedit_dualedit.plugin.rows.small_models import name_small_models, vocabulary_of
from easyedit_dualedit.plugin.rows.training import (
    TRAINING_REMARKS,
    Training,
    given_archive,
    load_archive,
    require_master,
)
from easyedit_dualedit.plugin.values import device_from

_REMARKS = (
    "EasyEdit's SERAC_MULTI for transformers models fails before its first answer, so it runs"
    " through its BLIP-2 branch: a wrapper gives the model's own image features as the Q-Former's,"
    " and texts are the whole prompts as the chat template writes them.",
    "Hyperparameters are those that EasyEdit ships for BLIP-2.",
    "Without small_name and cls_name, counterfactual model (OPT) and scope classifier (DistilBERT)"
    " start untrained, of at most OPT-125M's and DistilBERT's size, with the model's own"
    " vocabulary: SERAC mixes probabilities token by token. small_name = own takes a copy of the"
    " model's own language model, a folder any causal language model with the same tokens.",
    "EasyEdit draws the projection of the picture into the counterfactual model anew for every"
    " edit and never trains it; that is left so, so the counterfactual model hardly sees.",
    "The scope classifier reads the whole row: with the answer fed in, that answer too.",
    "EasyEdit's generate for this method fails on pictures; answers are made greedily from its"
    " forwards.",
    *TRAINING_REMARKS,
)

_SPACE = {"lr": (1e-5, 1e-4, 1e-3), "cloc": (1.0, 0.3), "cedit": (0.1, 1.0)}

SERAC = Shipped("SERAC_MULTI", "SERACMultimodalTrainingHparams", "TRAINING/SERAC/blip2.yaml")
_OPT_NAME = "opt"
"""Name of the language model, by which EasyEdit makes the counterfactual model an OPT."""

_PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


def serac(host: Host) -> Contender:
    """Return the row of EasyEdit's multimodal SERAC."""
    return Contender(
        "SERAC",
        partial(_make_serac, host),
        check=partial(training_hparams, host, SERAC),
        reads_label=True,
        remarks=_REMARKS,
        space=_SPACE,
    )


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
    config = training_hparams(host, SERAC, bench.model, bench.settings)
    config.device = device_from(bench.device)
    config.model_name = "blip2"  # by which EasyEdit takes its branch for sample dictionaries
    for name in {"small_name", "cls_name"} - bench.settings.keys():
        setattr(config, name, "")
    model, processor = bench.load()
    config.dtype = next(model.parameters()).dtype
    config.name = _OPT_NAME
    dialect = DialectModel(model.requires_grad_(False), processor)
    archive, training = given_archive(bench), None
    folder = bench.folder / "easyedit-serac"
    if archive is None:
        # Before the settings name the folders of small models that are made here.
        training = Training(host, SERAC, bench, config, folder)
        archive = training.archive
    name_small_models(config, dialect.encoder, bench)
    with _counterfactual(host, config, vocabulary_of(model)) as make:
        if training and not training.is_done:
            training.run(dialect, completed(processor, model.config), convert=dialect.samples_of)
        with own_output(folder.resolve()):
            alg = make(dialect, config, None)
    load_archive(alg, archive, config.device)
    return TrainedSerac(alg.eval(), dialect)


@contextlib.contextmanager
def _counterfactual(host: Host, config: Any, tokens: int) -> Iterator[Callable[..., Any]]:
    """Yield EasyEdit's SERAC; its trainer makes it with a counterfactual model that is no OPT."""
    shipped = host.trainers[SERAC.method]
    given = counterfactual_model(config.small_name, tokens)
    if given is None:
        yield shipped
        return
    host.module("trainer.utils").set_dropout(given[0], config.dropout)
    make = partial(shipped, replacement=given[0], replacement_tok=given[1])
    host.trainers[SERAC.method] = make
    try:
        yield make
    finally:
        host.trainers[SERAC.method] = shipped


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
