"""What EasyEdit's trainer is asked to do, looked at before it loads a model."""

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from easyedit_dualedit.data.training_targets import normalised_target
from easyedit_dualedit.errors import ConfigError, DataError, UpstreamError
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.plugin.archives import TrainedAdapters
from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.models import is_ours


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
            _require_records({"train_set": train_set, "val_set": val_set})
            if config.eval_only and config.archive is None:
                raise ConfigError(
                    "eval_only is true and archive is not set, so there is nothing to evaluate; set"
                    " archive to trained adapters, or eval_only to false"
                )
            if not config.eval_only:
                _require_optimiser(config)
                _require_checkpoint(host, config, len(train_set))
        original(self, config, train_set, val_set)
        if is_ours(config) and not config.eval_only:
            _note_targets(self.model.editor, train_set, goes_on=config.archive is not None)

    return __init__


def _note_targets(editor: DualEditor, train_set: Any, *, goes_on: bool) -> None:
    """Let adapters say what they are trained on, if the data set and the training before do."""
    # What a dataset gives by index holds open pictures; what it was made of does not.
    items = getattr(train_set, "_data", None)
    told = isinstance(items, list) and all("target" in item for item in items)
    before = editor.training_targets if goes_on else ()
    editor.training_targets = None
    if told and before is not None:
        targets = {normalised_target(str(item["target"])) for item in items or ()}
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


def _require_checkpoint(host: Host, config: Any, records: int) -> None:
    """Raise ConfigError if the training validates, and so saves, nothing that it then loads."""
    if not config.final_eval or (config.debug and not config.save):
        return
    iterations = config.max_iters
    if config.max_epochs is not None:
        most = config.max_epochs * records
        iterations = most if iterations is None else min(iterations, most)
    # Both editions round to whole epochs; master makes at least one.
    epochs = round(iterations / (records / config.batch_size))
    epochs = max(epochs, 1) if host.edition == "master" else epochs
    steps = min(iterations - 1, epochs * math.ceil(records / config.batch_size))
    if config.val_interval > steps:
        can = f"val_interval to at most {steps}" if steps > 0 else "max_iters higher"
        raise ConfigError(
            f"val_interval = {config.val_interval}, but max_iters = {iterations} and {records}"
            f" records round to {epochs} epochs of {max(steps, 0)} steps together, so that EasyEdit"
            f" would save nothing and then look for it; set {can}, or final_eval to false"
        )
