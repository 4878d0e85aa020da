"""EasyEdit's GRACE as a row of the benchmark: values that replace a layer's output near a key."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from easyedit_dualedit.errors import UpstreamError
from easyedit_dualedit.measure.contender import Contender
from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.rows.changing import PUT_BACK_REMARK, SHIPPED_REMARK, ChangingMethod
from easyedit_dualedit.plugin.rows.model_parts import bytes_of
from easyedit_dualedit.plugin.rows.shipped import Shipped, edit_hparams

_SPACE = {
    "edit_lr": (1.0, 3.0, 0.3, 0.1),
    "n_iter": (20, 50, 100),
    "eps": (1.0, 0.3, 3.0, 10.0),
}

GRACE = Shipped("GRACE", "GraceHyperParams", "GRACE/llavaov-7b.yaml")


def grace(host: Host) -> Contender:
    """Return the row of EasyEdit's GRACE."""
    return Contender(
        "GRACE",
        partial(GraceMethod, host),
        check=partial(edit_hparams, host, GRACE),
        remarks=(SHIPPED_REMARK, PUT_BACK_REMARK),
        space=_SPACE,
    )


class GraceMethod(ChangingMethod):
    """EasyEdit's GRACE: a value that replaces a layer's output near the key of the request."""

    shipped = GRACE

    def _prepare(self, given: frozenset[str]) -> None:
        weight = self._weight(given)
        self.trained_parameters = int(weight.shape[0])

    def _applied(self, request: Mapping[str, Any], config: Any) -> Any:
        try:
            return super()._applied(request, config)
        except IndexError as error:
            raise UpstreamError(
                f"EasyEdit's GRACE reads a layer's input by row and position, and a layer of"
                f" {type(self._model).__name__} gets all rows in one ({error}); leave GRACE out for"
                " this model, or name another weight (setting inner_params)"
            ) from error
        finally:
            for module in self._model.modules():
                if type(module).__name__ == "GRACEAdapter":
                    module.training = False  # an edit that fails leaves it learning

    def _stored_bytes(self, edited: Any) -> int:
        name = edited.layer.replace("[", ".").replace("]", "")
        adapter = self._model.get_submodule(name)
        return bytes_of([adapter.keys, adapter.values, adapter.epsilons])
