"""EasyEdit's MEND as a row of the benchmark."""

import contextlib
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.errors import UpstreamError
from easyedit_dualedit.experiments.benchmark import free_memory
from easyedit_dualedit.measure.contender import Bench, Contender, Edited, Method
from easyedit_dualedit.measure.easyedit_rows import joined_row
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.losses import shifted_loss
from easyedit_dualedit.plugin.processors import completed
from easyedit_dualedit.plugin.rows.model_parts import (
    DOWN,
    UP,
    bytes_of,
    count_of,
    mlp_parameters,
    parameter_named,
)
from easyedit_dualedit.plugin.rows.output import HARMLESS
from easyedit_dualedit.plugin.rows.shipped import Shipped, training_hparams
from easyedit_dualedit.plugin.rows.training import (
    TRAINING_REMARKS,
    Training,
    given_archive,
    load_archive,
    require_master,
)
from easyedit_dualedit.plugin.values import device_from

_LAYERS = 3
"""How many layers MEND changes, the last ones, as in every file that EasyEdit ships."""
_HOW_TO_NAME = "name parameters as model.named_parameters() does"

_REMARKS = (
    "Hyperparameters are those that EasyEdit ships for the model's family, or for LLaVA-OneVision"
    " where it ships none, with the parameters of the last three layers' feed-forward blocks as"
    " this model names them.",
    "EasyEdit's executor indexes its list of requests as one request and builds samples of its own"
    " BLIP-2; edits are made by EasyEdit's trained MEND itself.",
    "EasyEdit's trainer scores transformers models one token off (shift=False); it is given"
    " EasyEdit's own loss with shift=True.",
    "EasyEdit's trainer gives MEND's learned step sizes to two optimisers, and the first, at lr,"
    " clears their gradients before the second, at lr_lr; here only the second has them.",
    *TRAINING_REMARKS,
)

_SPACE = {"lr": (1e-6, 1e-5, 1e-4), "edit_lr": (1e-4, 1e-3, 1e-2), "cloc": (1.0, 0.3)}

MEND = Shipped("MEND", "MENDMultimodalTrainingHparams", "TRAINING/MEND/llavaov-7b.yaml")


def mend(host: Host) -> Contender:
    """Return the row of EasyEdit's MEND."""
    return Contender(
        "MEND",
        partial(_make_mend, host),
        check=partial(training_hparams, host, MEND),
        remarks=_REMARKS,
        space=_SPACE,
    )


class TrainedMend:
    """Makes edits with a trained MEND of EasyEdit's, around a model of its own."""

    def __init__(self, alg: Any, encoder: Encoder):
        """Keep the trained MEND and an encoder of its model."""
        self._alg = alg
        self._encoder = encoder
        self._changed = [
            parameter_named(alg.model, name, _HOW_TO_NAME) for name in alg.config.inner_params
        ]
        self._stored = bytes_of(self._changed)
        self.trained_parameters = count_of(alg.outer_parameters())

    @contextlib.contextmanager
    def edit(self, record: Record) -> Iterator[Edited]:
        """Have MEND change the weights for one request, in a copy of the layers concerned."""
        row = joined_row(self._encoder, record.request)
        try:
            with torch.enable_grad(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=HARMLESS)
                edited, _ = self._alg.edit({**row.inputs, "labels": row.labels})
            yield Edited(edited.model, self._stored)
        finally:
            for parameter in self._changed:
                parameter.grad = None
                for name in ("__x__", "__delta__"):
                    parameter.__dict__.pop(name, None)


def _make_mend(host: Host, bench: Bench) -> Method:
    require_master(host, "MEND")
    config = training_hparams(host, MEND, bench.model, bench.settings)
    config.device = device_from(bench.device)
    model, processor = bench.load()
    config.dtype = next(model.parameters()).dtype
    if not config.inner_params:
        config.inner_params = _last_feed_forward_parameters(model)
    archive = given_archive(bench)
    if archive is None:
        training = Training(host, MEND, bench, config, bench.folder / "easyedit-mend")
        if not training.is_done:
            training.run(
                _open_to_gradients(model, config),
                completed(processor, model.config),
                prepare=_mend_trainer,
            )
        archive = training.archive
        # Training has left its hooks on this one.
        del model, processor
        free_memory()
        model, processor = bench.load()
    alg = host.trainers["MEND"](_open_to_gradients(model, config), config, _no_copy)
    load_archive(alg, archive, config.device)
    return TrainedMend(alg.eval(), Encoder(Backbone.of(model), processor))


def _mend_trainer(host: Host, trainer: Any) -> None:
    """Give EasyEdit's trainer of a MEND the right loss, and its step sizes their own optimiser."""
    model = trainer.model
    model.edit_loss_fn = partial(shifted_loss, host.module("trainer.losses").masked_log_probs)
    for group in trainer.opt.param_groups:
        group["params"] = [value for value in group["params"] if value is not model.edit_lrs]


def _open_to_gradients(model: nn.Module, config: Any) -> nn.Module:
    """Return the model with gradients for the parameters that MEND changes, and no others."""
    model.requires_grad_(False)
    for name in config.inner_params:
        parameter_named(model, name, _HOW_TO_NAME).requires_grad_(True)
    return model


def _last_feed_forward_parameters(model: Any) -> list[str]:
    depth = len(Backbone.of(model).layers)
    layers = [mlp_parameters(model, layer) for layer in range(max(depth - _LAYERS, 0), depth)]
    return [names[role] for names in layers for role in (UP, DOWN)]


def _no_copy() -> Any:
    raise UpstreamError("a copy of the model was asked for, which a single edit does not need")
