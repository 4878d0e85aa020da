"""States of the first edited layer on disk, so that a later run computes none of them again.

`FOLDER/<fingerprint>/about.json` says what the states beside it were made with: model, weights up
to the layer, versions, and the code of this package. `<digest>.safetensors` holds the states of one
query, by a digest of all that the model reads of it: token ids, answer included, and pixels. So a
changed picture, template, processor, weight or version finds nothing. One file a query, since one
is large enough (on LLaVA-1.5-7B 5 MB), each is written whole or not at all by whichever process
needs it first, and a damaged one costs one query.

States are kept in half precision. Those of a model in bfloat16 or float16 are exact; those of a
float32 model become float16, in the run that computes them too, so that its losses are those of
every later run, but not those of a run without a folder: they differ by less than a thousandth.

A query that is found needs neither the vision tower nor a layer up to the first edited one; its
picture is still opened and prepared once a run, since what the model would read is its name.

A token takes two bytes a number: on LLaVA-1.5-7B 8 kB, a query with a picture (576 image tokens and
30 others) 5.0 MB, and the five queries of a record 20 MB. The published code writes 58 MB.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from easyedit_dualedit import __version__
from easyedit_dualedit.errors import ConfigError, DataError
from easyedit_dualedit.files import digest_of, read_json, write_bytes, write_json
from easyedit_dualedit.method.fingerprint import ModelFingerprint
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.inputs import input_device
from easyedit_dualedit.model.picture_features import Form
from easyedit_dualedit.storage.tensor_check import digest_of_tensors

logger = logging.getLogger(__name__)

ABOUT_FILE = "about.json"
FORMAT = 1

_DAMAGE = (AttributeError, LookupError, TypeError, ValueError)
"""What content raises that is not as it was written."""

KeptStates = tuple[Tensor, Form | None]
"""States of one query, [s, d], and the form of its pictures' features, if it sees any."""


class StateFolder:
    """The states that one model up to one layer gives, by query."""

    def __init__(self, folder: Path, made_of: Mapping[str, Any], device: torch.device):
        """Look at what is there; nothing is written yet.

        Args:
            folder: may be shared between models, runs and processes.
            made_of: plain values; states made with others are not found.
            device: where states are put.
        """
        self._made_of = dict(made_of)
        text = json.dumps(self._made_of, sort_keys=True)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        self._device = device
        self._writes = True
        self.shortcuts: dict[str, bool] | None = None
        """With which shortcuts an earlier run found the states right; None if there was none."""
        try:
            about = read_json(self.folder / ABOUT_FILE)
            if about is not None:
                self.shortcuts = {str(n): bool(v) for n, v in about["shortcuts"].items()}
        except (DataError, KeyError, AttributeError) as error:
            logger.warning("%s is damaged and written anew: %s", self.folder / ABOUT_FILE, error)

    @classmethod
    def of(cls, folder: Path, backbone: Backbone, layer: int) -> Self:
        """Return the states of a model up to a layer; reads all weights that they depend on.

        Raises:
            ConfigError: if the weights are not all there to be read.
        """
        first: Tensor = next(backbone.layers[layer].parameters())
        kind = input_device(backbone.model).type
        config: Any = backbone.model.config
        values = config.to_dict() if hasattr(config, "to_dict") else vars(config)
        settings = {name: value for name, value in values.items() if name != "_name_or_path"}
        described = json.dumps(settings, sort_keys=True, default=str)
        made_of = {
            "format": FORMAT,
            "package": __version__,
            "code": digest_of(Path(__file__).parent),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": kind,
            "autocast": torch.is_autocast_enabled(kind),
            "architecture": dict(ModelFingerprint.of(backbone).architecture),
            "config": hashlib.sha256(described.encode()).hexdigest(),
            "layer": layer,
            "weights": _weights_digest(folder, backbone, layer),
        }
        return cls(folder, made_of, first.device)

    def confirm(self, shortcuts: Mapping[str, bool]) -> None:
        """Say that the states are right with some shortcuts, so that later runs need not check.

        Raises:
            DataError: if the folder cannot be written.
        """
        self.shortcuts = dict(shortcuts)
        about = {"made_of": self._made_of, "shortcuts": self.shortcuts}
        write_json(self.folder / ABOUT_FILE, about)

    def get(self, name: str) -> KeptStates | None:
        """Return what is kept for a query; None if that is nothing, or damaged."""
        path = self._path(name)
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata()
                states = file.get_tensor("states")
            if about["digest"] != _digest_of_file(states, about):
                raise ValueError("its digest is another")
            form = json.loads(about["features"])
            return states.to(self._device, getattr(torch, about["dtype"])), form
        except FileNotFoundError:
            return None
        except (*_DAMAGE, SafetensorError, OSError) as error:
            logger.warning("%s is damaged (%s); its states are computed again", path, error)
            return None

    def put(self, name: str, states: Tensor, form: Form | None) -> Tensor:
        """Keep the states of a query, [s, d], and return them as `get` will.

        Where the disk is full, or the folder cannot be written any longer, a warning says so once.
        """
        kept = _halved(states)
        about = {
            "dtype": str(states.dtype).removeprefix("torch."),
            "features": json.dumps(form),
        }
        about["digest"] = _digest_of_file(kept, about)
        if self._writes:
            try:
                content = save({"states": kept.cpu().contiguous()}, metadata=about)
                write_bytes(self._path(name), content)
            except DataError as error:
                logger.warning("no more states are kept on disk: %s", error)
                self._writes = False
        return kept.to(states.dtype)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def _digest_of_file(states: Tensor, about: Mapping[str, str]) -> str:
    return digest_of_tensors({"states": states}, about["dtype"], about["features"])


def _weights_digest(folder: Path, backbone: Backbone, layer: int) -> str:
    above: Sequence[Any] = backbone.layers[layer + 1 :]
    passed = {id(tensor) for part in above for tensor in (*part.parameters(), *part.buffers())}
    model = backbone.model
    digest = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if id(tensor) in passed:
            continue
        if tensor.is_meta:
            raise ConfigError(
                f"state_cache_folder = {str(folder)!r}: weights of the model are offloaded"
                f" ({name}), so another model could not be told from it; leave state_cache_folder"
                " out, or load the whole model"
            )
        digest.update(digest_of_tensors({name: tensor}).encode())
    return digest.hexdigest()


def _halved(states: Tensor) -> Tensor:
    if states.itemsize <= 2:
        return states
    half = states.to(torch.float16)
    # Some models have a few states beyond the largest float16.
    return half if bool(half.isfinite().all()) else states
