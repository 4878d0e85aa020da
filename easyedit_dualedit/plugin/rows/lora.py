"""EasyEdit's LoRA as a row of the benchmark: low-rank adapters, trained on the request by PEFT."""

import copy
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from easyedit_dualedit.errors import UpstreamError
from easyedit_dualedit.measure.contender import Contender
from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.patching import Patches
from easyedit_dualedit.plugin.rows.changing import PUT_BACK_REMARK, SHIPPED_REMARK, ChangingMethod
from easyedit_dualedit.plugin.rows.model_parts import bytes_of, count_of, decoder_prefix
from easyedit_dualedit.plugin.rows.shipped import Shipped, edit_hparams
from easyedit_dualedit.plugin.rows.unchanged import unchanged

_ADAPTED = ("q_proj", "v_proj")

# AdaLoRA's scales begin at nearly zero, where EasyEdit's SGD moves them for no rate that converges.
_SPACE = {
    "lora_type": ("adalora", "lora"),
    "lr": (1e-1, 3e-2, 1e-2, 3e-3),
    "num_steps": (5, 10, 20),
}

_REMARKS = (
    SHIPPED_REMARK,
    "EasyEdit's AdaLoRA sets no total_step, which PEFT refuses; it is given the number of steps"
    " (EasyEdit reallocates no ranks, so it changes nothing).",
    "EasyEdit leaves LoRA's dropout on after the training; it is off while the model is asked.",
    "EasyEdit turns the whole model into float32 for the edit.",
    PUT_BACK_REMARK,
)

LORA = Shipped("LoRA", "LoRAMultimodalHyperParams", "LoRA/llavaov-7b.yaml")


def lora(host: Host) -> Contender:
    """Return the row of EasyEdit's LoRA."""
    return Contender(
        "LoRA",
        partial(LoraMethod, host),
        check=partial(edit_hparams, host, LORA),
        remarks=_REMARKS,
        space=_SPACE,
    )


class LoraMethod(ChangingMethod):
    """EasyEdit's LoRA: low-rank adapters, trained on the request with PEFT."""

    shipped = LORA

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
        self.trained_parameters = count_of(adapter)

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
        return bytes_of(_adapter(edited))


def _adapter(edited: Any) -> list[Tensor]:
    return [value for value in edited.parameters() if value.requires_grad]
