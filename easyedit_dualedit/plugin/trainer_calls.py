"""What EasyEdit's trainer is asked to do, looked at before it loads a model."""

import functools
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from easyedit_dualedit.data.training_targets import normalised_target
from easyedit_dualedit.errors import ConfigError, DataError, UpstreamError
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.plugin.archives import TrainedAdapters
from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.models import ConfigView, is_ours
from easyedit_dualedit.plugin.picture_items import require_texts_in

logger = logging.getLogger(__name__)


def loading_folders(original: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return EasyEdit's `load_archive` that reads folders of saved adapters, too."""

    @functools.wraps(original)
    def load_archive(path: str) -> Any:
        if not Path(path).is_dir():
            return original(path)
        return {
            "model": TrainedAdapters.read(path).archive.tensors,
            "opt": {},
            "lr_opt": None,
        }, path

    return load_archive


def checking_first(host: Host, original: Callable[..., None]) -> Callable[..., None]:
    """Return `BaseTrainer.__init__` that refuses what cannot come to a good end.

    What it then prepares says which targets it is trained on.
    """

    @functools.wraps(original)
    def __init__(self: Any, config: Any, train_set: Any, val_set: Any) -> None:
        if is_ours(config):
            _require_single_rows(host, config)
            sets = (
                {"val_set": val_set}
                if config.eval_only
                else {"train_set": train_set, "val_set": val_set}
            )
            _require_records({"train_set": train_set, "val_set": val_set})
            for name, data in sets.items():
                require_texts_in(name, data)
            if config.eval_only and config.archive is None:
                raise ConfigError(
                    "eval_only is true and archive is not set, so there is nothing to evaluate; set"
                    " archive to trained adapters, or eval_only to false"
                )
            if not config.eval_only:
                _require_optimiser(config)
                length = TrainingLength.of(host, config, len(train_set))
                _require_checkpoint(config, len(train_set), length)
                _tell_unread(self, config)
            torch.manual_seed(config.seed)
        original(self, config, train_set, val_set)
        if is_ours(config) and not config.eval_only:
            if config.grad_clip == 0:
                # To EasyEdit 0 is the norm that gradients are cut down to.
                self.config = ConfigView(config, grad_clip=math.inf)
            drawn = getattr(self, "drawn", {})
            goes_on = config.archive is not None
            _note_targets(self.model.editor, train_set, drawn, goes_on=goes_on)

    return __init__


def _note_targets(
    editor: DualEditor, train_set: Any, drawn: Mapping[int, str], *, goes_on: bool
) -> None:
    """Let adapters say what they are trained on, if the data set and the training before do."""
    # What a dataset gives by index holds open pictures; what it was made of does not.
    items = getattr(train_set, "_data", None)
    told = isinstance(items, list) and all("target" in item for item in items)
    before = editor.training_targets if goes_on else ()
    editor.training_targets = None
    if told and before is not None:
        given = (str(item["target"]) for item in items or ())
        trained = (drawn.get(place, target) for place, target in enumerate(given))
        targets = set(map(normalised_target, trained))
        editor.training_targets = tuple(sorted({*before, *targets}))


def _require_single_rows(host: Host, config: Any) -> None:
    read = ("val_batch_size",) if config.eval_only else ("batch_size", "val_batch_size")
    sizes = [name for name in read if getattr(config, name) > 1]
    if host.edition == "pypi" and sizes:
        given = " and ".join(f"{name} = {getattr(config, name)}" for name in sizes)
        raise UpstreamError(
            f"{given}: EasyEdit 0.0.1.dev0 makes batches of one record only; set"
            f" {' and '.join(sizes)} to 1 (accumulate_bs adds up the gradients of several), or use"
            " EasyEdit's master"
        )


def _require_records(sets: Mapping[str, Any]) -> None:
    for name, records in sets.items():
        if records is None or not len(records):
            raise DataError(
                f"{name} is {'None' if records is None else 'empty'}; give a data set of EasyEdit's"
                " for pictures, such as VQADataset(path, config=hparams)"
            )


def _require_optimiser(config: Any) -> None:
    if config.archive is not None and Path(config.archive).is_dir():
        raise ConfigError(
            f"archive = {config.archive!r} is a folder of adapters, which EasyEdit's trainer can"
            " evaluate (eval_only: true) but not go on from; give a checkpoint that it wrote"
        )


@dataclass(frozen=True)
class TrainingLength:
    """How long EasyEdit's trainer works."""

    iterations: int
    """What `max_iters` and `max_epochs` come to."""
    epochs: int
    steps: int
    """Batches that are trained on."""

    @classmethod
    def of(cls, host: Host, config: Any, records: int) -> Self:
        """Return the length of a training on so many records."""
        iterations = config.max_iters
        if config.max_epochs is not None:
            most = config.max_epochs * records
            iterations = most if iterations is None else min(iterations, most)
        # Both editions round to whole epochs; master makes at least one.
        epochs = round(iterations / (records / config.batch_size))
        epochs = max(epochs, 1) if host.edition == "master" else epochs
        steps = min(iterations - 1, epochs * math.ceil(records / config.batch_size))
        return cls(iterations, epochs, max(steps, 0))


def _tell_unread(trainer: Any, config: Any) -> None:
    """Warn of what EasyEdit's own trainer takes no notice of."""
    training = config.training_config()
    unread = {
        "schedule": training.schedule != "constant",
        "augment_targets": training.augment_targets > 0,
    }
    follows = getattr(trainer, "follows_recipe", False)
    names = [name for name, is_set in unread.items() if is_set and not follows]
    if config.text_only:
        logger.warning("text_only = %r is for the command `train` alone", config.text_only)
    if names:
        logger.warning(
            "%s takes no notice of %s; DualEditTrainer and the command `train` do",
            type(trainer).__name__,
            " and ".join(f"{name} = {getattr(training, name)!r}" for name in names),
        )


def _require_checkpoint(config: Any, records: int, length: TrainingLength) -> None:
    """Raise ConfigError if the training validates, and so saves, nothing that it then loads."""
    if not config.final_eval or (config.debug and not config.save):
        return
    steps = length.steps
    if config.val_interval > steps:
        can = f"val_interval to at most {steps}" if steps > 0 else "max_iters higher"
        raise ConfigError(
            f"val_interval = {config.val_interval}, but max_iters = {length.iterations} and"
            f" {records} records round to {length.epochs} epochs of {steps} steps together, so that"
            f" EasyEdit would save nothing and then look for it; set {can}, or final_eval to false"
        )
