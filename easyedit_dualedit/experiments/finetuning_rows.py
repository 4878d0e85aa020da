"""Plain fine-tuning as rows of the benchmark: of the last decoder layer, and of the vision side."""

import contextlib
import inspect
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.errors import BackboneError
from easyedit_dualedit.measure.contender import Bench, Contender, Edited, Method
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import IGNORED, Batch
from easyedit_dualedit.settings import as_number, is_number, is_whole, raise_if, unknown_keys
from easyedit_dualedit.train.losses import answer_cross_entropy

logger = logging.getLogger(__name__)

LAST_LAYER = "FT, last layer"
VISION_SIDE = "FT, vision side"

_SPACE = {
    "learning_rate": (5e-4, 1e-3, 2e-4, 1e-4, 5e-5, 2e-5),
    "steps": (25, 10, 50),
    "loss_below": (1e-2, 1e-1),
}


@dataclass(frozen=True)
class FineTuningConfig:
    """How long and how fast one edit is trained.

    Raises:
        ConfigError: naming every value that is not allowed.
    """

    steps: int = 25
    """Optimiser steps at most."""
    learning_rate: float = 5e-4
    """Adam's step size."""
    loss_below: float = 1e-2
    """Loss, in nats a token, at which training stops."""
    end_of_answer: bool = True
    """Whether the loss also asks for the end-of-turn token after the target."""

    def __post_init__(self) -> None:
        problems = []
        if not is_whole(self.steps, 1):
            problems.append(f"steps = {self.steps!r}: a whole number, 1 or above")
        if not is_number(self.learning_rate, 0.0, math.inf) or self.learning_rate == 0:
            problems.append(f"learning_rate = {self.learning_rate!r}: a number above 0")
        if not is_number(self.loss_below, 0.0, math.inf):
            problems.append(f"loss_below = {self.loss_below!r}: a number, 0 or above")
        if not isinstance(self.end_of_answer, bool):
            problems.append(f"end_of_answer = {self.end_of_answer!r}: true or false")
        raise_if(problems)


class FineTuning:
    """Makes an edit by training some parameters of the model on its request alone.

    Adam steps copies in float32: in float16 the squares of gradients vanish, and a step divides by
    them; in bfloat16 small steps vanish.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        parameters: Mapping[str, nn.Parameter],
        config: FineTuningConfig,
        backbone: Backbone | None = None,
    ):
        """Keep what is trained; nothing is changed yet.

        Args:
            model: a transformers image-text-to-text model; it is changed while an edit is in force.
            processor: of the model.
            parameters: the model's parameters to train, by name.
            config: steps, rate.
            backbone: parts of the model, if a user said anything of it.

        Raises:
            BackboneError: if there are none, or their values are quantised.
        """
        if not parameters:
            raise BackboneError(f"{type(model).__name__} has no such parameters to fine-tune")
        for name, parameter in parameters.items():
            if not parameter.is_floating_point():
                raise BackboneError(
                    f"{name} is stored as {parameter.dtype}, which cannot be fine-tuned; load the"
                    " model without quantization"
                )
        backbone = backbone or Backbone.of(model)
        backbone.require_gradients()
        self._model: Any = model
        self._encoder = Encoder(backbone, processor)
        self._parameters = list(parameters.values())
        self._config = config
        self.trained_parameters = sum(value.numel() for value in self._parameters)

    @contextlib.contextmanager
    def edit(self, record: Record) -> Iterator[Edited]:
        """Train on the request of a record, and put the parameters back afterwards."""
        batch = self._encoder.encode([record.request], end_of_answer=self._config.end_of_answer)
        before = [parameter.detach().clone() for parameter in self._parameters]
        try:
            with _only(self._model, self._parameters), torch.enable_grad():
                self._train(batch)
            stored = sum(value.numel() * value.element_size() for value in self._parameters)
            yield Edited(self._model, stored)
        finally:
            with torch.no_grad():
                for parameter, value in zip(self._parameters, before, strict=True):
                    parameter.copy_(value)

    def _train(self, batch: Batch) -> None:
        copies = [_copy_to_train(parameter) for parameter in self._parameters]
        optimiser = torch.optim.Adam(copies, lr=self._config.learning_rate)
        answer = int((batch.labels != IGNORED).sum())
        options: dict[str, Any] = {"use_cache": False}
        if "logits_to_keep" in inspect.signature(self._model.forward).parameters:
            options["logits_to_keep"] = answer + 1
        for step in range(self._config.steps):
            for parameter in self._parameters:
                parameter.grad = None
            logits = self._model(**batch.inputs, **options).logits
            loss = answer_cross_entropy(logits, batch.labels)
            value = float(loss.detach())
            if value < self._config.loss_below:
                break
            if not math.isfinite(value):
                logger.warning("fine-tuning ends at step %d: the loss is %s", step, value)
                break
            loss.backward()  # type: ignore[no-untyped-call]
            _step(optimiser, copies, self._parameters)


def last_layer_parameters(backbone: Backbone) -> dict[str, nn.Parameter]:
    """Return every parameter of the last decoder layer, by its name in the layer."""
    return dict(backbone.layers[-1].named_parameters())


def vision_parameters(backbone: Backbone) -> dict[str, nn.Parameter]:
    """Return every parameter outside the text decoder, its embeddings and its head, by name.

    Of most models these are the vision tower and what projects its features to tokens.
    """
    model: Any = backbone.model
    parts = [backbone.decoder, model.get_input_embeddings(), model.get_output_embeddings()]
    text = {id(value) for part in parts if part is not None for value in part.parameters()}
    return {name: value for name, value in model.named_parameters() if id(value) not in text}


def finetuning_contenders() -> list[Contender]:
    """Return fine-tuning of the last decoder layer and of the vision side."""
    places: dict[str, Callable[[Backbone], dict[str, nn.Parameter]]] = {
        LAST_LAYER: last_layer_parameters,
        VISION_SIDE: vision_parameters,
    }
    remark = (
        "Fine-tuning of this package, not EasyEdit's: Adam on the cross-entropy of the answer and"
        " of the end of the turn, at most 25 steps of 5e-4, less once the loss is below 0.01."
    )
    return [
        Contender(
            name,
            partial(_make, name, chosen),
            partial(_config_of, name),
            remarks=(remark,),
            space=_SPACE,
        )
        for name, chosen in places.items()
    ]


def _config_of(name: str, _model: str, settings: Mapping[str, Any]) -> FineTuningConfig:
    known = [field.name for field in fields(FineTuningConfig)]
    raise_if(unknown_keys(settings, known, f"the settings of {name}"))
    return FineTuningConfig(**{key: as_number(value) for key, value in settings.items()})


def _make(name: str, chosen: Callable[[Backbone], dict[str, nn.Parameter]], bench: Bench) -> Method:
    config = _config_of(name, bench.model, bench.settings)
    model, processor = bench.load()
    backbone = bench.backbone_of(model)
    return FineTuning(model, processor, chosen(backbone), config, backbone)


def _copy_to_train(parameter: nn.Parameter) -> Tensor:
    """Return what the optimiser steps: a copy in float32, or the parameter if it is that."""
    return parameter if parameter.dtype == torch.float32 else parameter.detach().float()


@torch.no_grad()
def _step(
    optimiser: torch.optim.Optimizer, copies: Sequence[Tensor], parameters: Sequence[nn.Parameter]
) -> None:
    """Step copies by the gradients of parameters, which take the values of the copies."""
    for copy, parameter in zip(copies, parameters, strict=True):
        if copy is not parameter:
            copy.grad = None if parameter.grad is None else parameter.grad.float()
    optimiser.step()
    for copy, parameter in zip(copies, parameters, strict=True):
        if copy is not parameter:
            parameter.copy_(copy)


@contextlib.contextmanager
def _only(model: nn.Module, parameters: list[nn.Parameter]) -> Iterator[None]:
    """Let gradients reach some parameters alone, and leave none behind."""
    modes = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    was_training = model.training
    model.eval()
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, required in modes:
            parameter.requires_grad_(required)
        for parameter in parameters:
            parameter.grad = None
        model.train(was_training)
