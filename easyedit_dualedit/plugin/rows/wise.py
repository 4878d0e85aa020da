"""EasyEdit's WISE as a row of the benchmark: a second weight beside one of the model's."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.errors import UpstreamError
from easyedit_dualedit.measure.contender import Contender
from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.rows.changing import PUT_BACK_REMARK, SHIPPED_REMARK, ChangingMethod
from easyedit_dualedit.plugin.rows.model_parts import bytes_of
from easyedit_dualedit.plugin.rows.shipped import Shipped, edit_hparams

_SPACE = {
    "edit_lr": (1.0, 3.0, 0.3, 0.1),
    "n_iter": (10, 20, 40, 70),
    "mask_ratio": (0.2, 0.5),
    "act_ratio": (0.4, 0.2, 0.88),
}

_REMARKS = (
    SHIPPED_REMARK,
    "As in EasyEdit's editor, WISE gets the record's own text locality question with its answer as"
    " the example of what to leave alone.",
    "Rows of a batch are padded on the left, since EasyEdit looks for the answer at their end.",
    "EasyEdit keeps the inputs of every edit in lists of its module; they are emptied.",
    PUT_BACK_REMARK,
)

WISE = Shipped("WISE", "WISEMultimodalHyperParams", "WISE/llavaov-7b.yaml")


def wise(host: Host) -> Contender:
    """Return the row of EasyEdit's WISE."""
    return Contender(
        "WISE",
        partial(WiseMethod, host),
        check=partial(edit_hparams, host, WISE),
        reads_label=True,
        remarks=_REMARKS,
        space=_SPACE,
    )


class WiseMethod(ChangingMethod):
    """EasyEdit's WISE: a second weight beside one of the model's, and a router between them."""

    shipped = WISE

    def _prepare(self, given: frozenset[str]) -> None:
        if self._backbone.family.needs_picture:
            raise UpstreamError(
                f"{type(self._model).__name__} needs a picture for every question, and EasyEdit's"
                " WISE puts its example of what to leave alone, which has none, into one batch with"
                " the request; leave WISE out for this model"
            )
        weight = self._weight(given)
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
        return bytes_of([adapter.new_weight]) + mask
