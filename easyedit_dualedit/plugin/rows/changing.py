"""What EasyEdit's methods have in common that change the model: LoRA, WISE, GRACE.

Each edits a model of its own through EasyEdit's own function, and all of it is put back afterwards.
"""

import contextlib
import copy
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import nn

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.errors import DataError, UpstreamError
from easyedit_dualedit.measure.contender import Bench, Edited
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.inputs import input_device, open_image
from easyedit_dualedit.model.video_frames import read_clip
from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.rows.model_parts import (
    DOWN,
    as_expression,
    layer_in_proportion,
    mlp_parameters,
    parameter_named,
)
from easyedit_dualedit.plugin.rows.output import quiet
from easyedit_dualedit.plugin.rows.shipped import Shipped, edit_hparams, shipped_depth
from easyedit_dualedit.plugin.rows.unchanged import unchanged

logger = logging.getLogger(__name__)

SHIPPED_REMARK = (
    "Hyperparameters are those that EasyEdit ships for the model's family, or for"
    " LLaVA-OneVision-7B where it ships none, with layers and modules of the decoder in proportion"
    " to this model's depth and as this model names them."
)
PUT_BACK_REMARK = (
    "EasyEdit leaves frozen parameters, copies of layers and changed attributes in the model; after"
    " an edit all of it is put back from outside."
)


class ChangingMethod(ABC):
    """A method of EasyEdit's that changes the model it gets, around a model of its own."""

    shipped: Shipped
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
        self._config = edit_hparams(host, self.shipped, bench.model, bench.settings)
        self._depth = shipped_depth(host, self.shipped, bench.model)
        self._model, self._processor = bench.load()
        self._backbone = Backbone.of(self._model)
        self._config.device = str(input_device(self._backbone.model))
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
                    name = self.shipped.method
                    logger.warning("%s cannot make the edit of %s: %s", name, record.index, line)
                made()
            if edited is None:
                raise UpstreamError(
                    f"EasyEdit's {self.shipped.method} made none of {len(records)} edits: {line}"
                )
            yield Edited(edited, self._stored_bytes(edited))

    def _applied(self, request: Mapping[str, Any], config: Any) -> Any:
        """Return what EasyEdit makes of the model."""
        apply = self._host.editors[self.shipped.method]
        with quiet(), torch.enable_grad():
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
        """Return a request as EasyEdit's editor prepares it."""
        query = record.request
        if not query.shown:
            raise DataError(
                f"record {record.index} has a request without a picture, which EasyEdit's"
                f" multimodal {self.shipped.method} cannot edit; leave it out"
            )
        if query.video is not None:
            clip = read_clip(query.video, getattr(self._processor, "video_processor", None))
            frames = [Image.fromarray(pixels) for pixels in clip.pixels]
            shown = {"prompt": query.prompt, "target": query.target}
            return {**shown, "image": frames, "file_type": "video"}
        images = [open_image(picture) for picture in query.pictures]
        several = len(images) > 1
        return {
            "prompt": query.prompt,
            "target": query.target,
            "image": images if several else images[0],
            "file_type": "multi-image" if several else "image",
        }

    def _weight(self, given: frozenset[str]) -> nn.Parameter:
        """Return the weight that is changed, and have EasyEdit find it."""
        if "inner_params" not in given:
            named = re.search(r"layers[.\[](\d+)", self._config.inner_params[0])
            if named is None:
                raise UpstreamError(
                    f"EasyEdit's file for {self.shipped.method} names no layer but"
                    f" {self._config.inner_params[0]!r}; name a weight (setting inner_params)"
                )
            depth = len(self._backbone.layers)
            layer = layer_in_proportion(int(named[1]), self._depth, depth)
            names = mlp_parameters(self._model, layer)
            self._config.inner_params = [as_expression(names[DOWN])]
        return parameter_named(
            self._model,
            self._config.inner_params[0],
            "name one weight as in model.language_model.layers[3].mlp.down_proj.weight",
        )

    @abstractmethod
    def _prepare(self, given: frozenset[str]) -> None:
        """Fit the hyperparameters to the model; set `trained_parameters`.

        Args:
            given: settings of the user's, which stay as they are.
        """

    @abstractmethod
    def _stored_bytes(self, edited: Any) -> int:
        """Return what an edit takes to keep, in bytes."""
