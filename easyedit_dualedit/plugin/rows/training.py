"""A run of EasyEdit's trainer, for its methods that have to be trained.

The training is EasyEdit's: its `MultimodalTrainer` on its `VQADataset`, with the hyperparameters
that it ships. What keeps either from working with transformers models is worked around from
outside, and every such step is a line of the report.
"""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from tqdm import tqdm

from easyedit_dualedit.errors import ConfigError, DataError, UpstreamError
from easyedit_dualedit.files import read_json, write_json, write_text
from easyedit_dualedit.measure.contender import Bench
from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.models import HF_NAME
from easyedit_dualedit.plugin.patching import Patches
from easyedit_dualedit.plugin.rows.output import LOG_FILE, own_output
from easyedit_dualedit.plugin.rows.shipped import ARCHIVE, Shipped
from easyedit_dualedit.plugin.rows.training_records import Convert, TrainingRecords, item_of
from easyedit_dualedit.storage.parsing import parsing

_DONE_FILE = "done.json"
_CONFIGURATIONS = ("easyeditor.", "transformers.")
"""Packages whose configurations lie beside the tensors."""

TRAINING_REMARKS = (
    "The archive holds a configuration object, which torch >= 2.6 refuses to load by default; its"
    " tensors alone are loaded, and the configuration is that of this run.",
    "EasyEdit's trainer saves at validations only and leaves out the last iteration; it is given"
    " one more, and validates once, at the end (it saves whatever the validation says).",
    "EasyEdit puts a space before every answer that it trains on and none before those that it"
    " measures; it trains without, as it measures.",
    "Batches have one record, since EasyEdit's labels are wrong for more; pictures are opened when"
    " they are needed, since EasyEdit would hold all of them open.",
)


class Training:
    """A run of EasyEdit's trainer in a folder of its own."""

    def __init__(
        self, host: Host, shipped: Shipped, bench: Bench, config: Any, folder: Path
    ) -> None:
        """Say what is trained; nothing runs yet.

        Raises:
            ConfigError: if there are no records to train on.
            DataError: if a picture of theirs is none.
        """
        if not bench.training:
            raise ConfigError(
                f"there are no records to train {shipped.method} on; give the benchmark --train, or"
                f" the setting {ARCHIVE} with an archive of EasyEdit's trainer"
            )
        self._host = host
        self._bench = bench
        self._folder = folder.resolve()
        self._config = config
        self._config.results_dir = str(self._folder)
        kept = dataclasses.asdict(config) | {"dtype": str(config.dtype)}
        del kept["device"], kept["results_dir"]
        self._settings = json.loads(json.dumps({**kept, "seed of bench": bench.seed}, default=str))
        self._items = json.dumps([item_of(record) for record in bench.training])
        self._settings["records"] = hashlib.sha256(self._items.encode()).hexdigest()[:16]
        self._settings["model"] = bench.model

    @property
    def archive(self) -> Path:
        """Where EasyEdit's trainer saves."""
        return self._folder / "models" / str(self._config.alg) / str(self._config.model_name)

    @property
    def is_done(self) -> bool:
        """Whether a training with the same settings on the same records has finished here."""
        try:
            done = read_json(self._folder / _DONE_FILE)
        except DataError:
            return False
        return done == self._settings and self.archive.is_file()

    def run(
        self,
        model: nn.Module,
        processor: Any,
        *,
        prepare: Callable[[Host, Any], None] | None = None,
        convert: Convert | None = None,
    ) -> None:
        """Train from the start and save; what an earlier training left here is removed.

        Args:
            model: what EasyEdit's trainer gets in place of the model that it would load.
            processor: of the model.
            prepare: gets EasyEdit and its trainer before the first step.
            convert: turns each part of a batch of EasyEdit's into what `model` is called with.

        Raises:
            UpstreamError: if EasyEdit's trainer saves nothing.
        """
        shutil.rmtree(self._folder, ignore_errors=True)
        data = self._folder / "train.json"
        write_text(data, self._items)
        # The trainer stops before the iteration of this number, and saves when it validates.
        steps = self._config.max_iters
        config = copy_of(self._config, max_iters=steps + 1, val_interval=steps)
        patches = Patches()
        with own_output(self._folder), contextlib.ExitStack() as undo:
            undo.callback(patches.undo)
            module = self._host.module("trainer.BaseTrainer")
            patches.replace(module, "get_model", lambda _config: model)
            self._host.module("trainer.utils").set_dropout(model, config.dropout)
            view = copy_of(config, model_name=HF_NAME, name=resolved(self._bench.model))
            records = TrainingRecords(self._host, view, data, processor, steps + 1, convert)
            transformers.set_seed(self._bench.seed)
            trainer = self._host.package.MultimodalTrainer(config, records, records)
            if prepare is not None:
                prepare(self._host, trainer)
            bar = undo.enter_context(
                tqdm(
                    total=steps,
                    desc=f"training {config.alg}",
                    unit="step",
                    disable=not self._bench.progress,
                )
            )
            trainer.train_step = _counted(trainer.train_step, bar)
            trainer.run()
        if not self.archive.is_file():
            raise UpstreamError(
                f"EasyEdit's trainer of {config.alg} saved nothing in {self._folder}; what it said"
                f" is in {LOG_FILE} there"
            )
        write_json(self._folder / _DONE_FILE, self._settings)


def given_archive(bench: Bench) -> Path | None:
    """Return the archive that the settings name, or None.

    Raises:
        ConfigError: if there is no such file.
    """
    given = bench.settings.get(ARCHIVE)
    if given is None:
        return None
    path = Path(str(given))
    if not path.is_file():
        raise ConfigError(f"{ARCHIVE} = {given!r} is no file; give one that the trainer saved")
    return path


def load_archive(alg: Any, path: Path, device: str) -> None:
    """Load what EasyEdit's trainer saved.

    Raises:
        UpstreamError: if it does not fit.
    """
    archive = tensors_of(path, device)
    try:
        alg.load_state_dict(archive["model"])
    except (AssertionError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        line = " ".join(str(error).split())[:300]
        raise UpstreamError(
            f"{path} does not hold what EasyEdit's {type(alg).__name__} needs ({line}); give an"
            " archive that was trained for this model with the same hyperparameters"
        ) from error
    alg.to(device)


class _Inert:
    """Stands for a configuration that a file names: it holds values, and nothing runs."""


def tensors_of(path: Path, device: str) -> dict[str, Any]:
    """Return what a file of EasyEdit's trainer holds; no code that the file names is run.

    Raises:
        UpstreamError: if it is damaged, or names more than configurations.
    """
    remedy = "give one that EasyEdit's trainer saved"
    with parsing(path, remedy, UpstreamError, wrong="cannot be read as tensors"):
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        inert: list[Any] = [(_Inert, name) for name in named if name.startswith(_CONFIGURATIONS)]
        with torch.serialization.safe_globals(inert):
            values = torch.load(path, map_location=device, weights_only=True)
        return dict(values)


def require_master(host: Host, name: str) -> None:
    """Refuse EasyEdit's release.

    Raises:
        UpstreamError: if it is the release.
    """
    if host.edition == "pypi":
        raise UpstreamError(
            f"EasyEdit 0.0.1.dev0 cannot train its multimodal {name} here: its package has no"
            " hyperparameters for that, and its MEND moves to CUDA whatever device is asked for;"
            " use a clone of EasyEdit's master (EASYEDIT_HOME)"
        )


def copy_of(config: Any, **changes: Any) -> Any:
    """Return hyperparameters with changes; their values are shared."""
    changed = dataclasses.replace(config)
    vars(changed).update(vars(config) | changes)
    return changed


def resolved(model: str) -> str:
    """Return the whole path of a model's folder; a hub id stays as it is."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model


def _counted(step: Callable[[Any], Any], bar: "tqdm[Any]") -> Callable[[Any], Any]:
    def counting(batch: Any) -> Any:
        result = step(batch)
        bar.update()
        return result

    return counting
