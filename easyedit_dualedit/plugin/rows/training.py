"""EasyEdit's MEND as a row of the benchmark, and the run of EasyEdit's trainer that it needs.

The training is EasyEdit's: its `MultimodalTrainer` on its `VQADataset`, with the hyperparameters
that it ships. What keeps either from working with transformers models is worked around from
outside, and every such step is a line of the report.
"""

import contextlib
import dataclasses
import gc
import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.errors import ConfigError, DataError, UpstreamError
from easyedit_dualedit.files import read_json, write_json, write_text
from easyedit_dualedit.measure.contender import Bench, Contender, Edited, Method
from easyedit_dualedit.measure.easyedit_rows import joined_row
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.families import family_of
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.model.pictures import open_image
from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.patching import Patches
from easyedit_dualedit.plugin.processors import CompleteProcessor
from easyedit_dualedit.plugin.rows.model_parts import DOWN, UP, mlp_parameters
from easyedit_dualedit.plugin.values import device_from

HF_NAME = "llava-onevision"
"""Model name by which EasyEdit takes its code for transformers models."""

ARCHIVE = "archive"
"""Setting that names an archive of EasyEdit's trainer to use instead of a training."""

_DONE_FILE = "done.json"
_LOG_FILE = "easyedit.log"
_PRINTED_FILE = "printed.log"
_HARMLESS = "Full backward hook is firing"
_PICTURES = ("image", "image_rephrase", "multimodal_locality_image")

_LAYERS = 3
"""How many layers MEND changes, the last ones, as in every file that EasyEdit ships."""

_FIXED = (
    *("alg", "archive", "batch_size", "coco_image", "debug", "device", "eval_only", "final_eval"),
    *("freeze_qformer", "half", "max_epochs", "model_class", "model_name", "model_parallel"),
    *("name", "no_grad_layers", "pretrained_ckpt", "qformer_checkpoint", "qformer_name_or_path"),
    *("rephrase_image", "results_dir", "save", "seed", "state_dict_file", "tokenizer_class"),
    *("tokenizer_name", "train_base", "val_batch_size", "val_interval", "val_steps"),
)
"""Hyperparameters that the bench decides, or that transformers models have no use for."""

TRAINING_REMARKS = (
    "EasyEdit's trainer saves at validations only and leaves out the last iteration; it is given"
    " one more, and validates once, at the end (it saves whatever the validation says).",
    "EasyEdit puts a space before every answer that it trains on and none before those that it"
    " measures; it trains without, as it measures.",
    "Batches have one record, since EasyEdit's labels are wrong for more; pictures are opened when"
    " they are needed, since EasyEdit would hold all of them open.",
)

_MEND_REMARKS = (
    "Hyperparameters are those that EasyEdit ships for LLaVA-OneVision, with the parameters of the"
    " last three layers' feed-forward blocks as this model names them.",
    "EasyEdit's executor indexes its list of requests as one request and builds samples of its own"
    " BLIP-2; edits are made by EasyEdit's trained MEND itself.",
    "EasyEdit's trainer scores transformers models one token off (shift=False); it is given"
    " EasyEdit's own loss with shift=True.",
    "EasyEdit's trainer gives MEND's learned step sizes to two optimisers, and the first, at lr,"
    " clears their gradients before the second, at lr_lr; here only the second has them.",
    "The archive holds a configuration object, which torch >= 2.6 refuses to load by default; it"
    " is loaded with weights_only=False, as it was written by this run.",
    *TRAINING_REMARKS,
)


def mend(host: Host) -> Contender:
    """Return the row of EasyEdit's MEND."""
    return Contender("MEND", partial(_make_mend, host), remarks=_MEND_REMARKS)


Convert = Callable[[Any], Any]


@dataclass(frozen=True)
class Algorithm:
    """A method that EasyEdit's trainer trains."""

    name: str
    """As in `ALG_TRAIN_DICT`."""
    hparams_class: str
    shipped: str
    """Hyperparameters in EasyEdit's hparams/TRAINING, without the ending."""
    model_name: str
    """By which EasyEdit chooses the branch of its code."""
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Values of ours instead of those shipped."""


_MEND = Algorithm("MEND", "MENDMultimodalTrainingHparams", "MEND/llavaov-7b", HF_NAME)


class TrainedMend:
    """Makes edits with a trained MEND of EasyEdit's, around a model of its own."""

    def __init__(self, alg: Any, encoder: Encoder):
        """Keep the trained MEND and an encoder of its model."""
        self._alg = alg
        self._encoder = encoder
        self._changed = [_parameter(alg.model, name) for name in alg.config.inner_params]
        self._stored = sum(value.numel() * value.element_size() for value in self._changed)
        self.trained_parameters = count_of(alg.outer_parameters())

    @contextlib.contextmanager
    def edit(self, record: Record) -> Iterator[Edited]:
        """Have MEND change the weights for one request, in a copy of the layers concerned."""
        row = joined_row(self._encoder, record.request)
        try:
            with torch.enable_grad(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=_HARMLESS)
                edited, _ = self._alg.edit({**row.inputs, "labels": row.labels})
            yield Edited(edited.model, self._stored)
        finally:
            for parameter in self._changed:
                parameter.grad = None
                for name in ("__x__", "__delta__"):
                    parameter.__dict__.pop(name, None)


def _make_mend(host: Host, bench: Bench) -> Method:
    require_master(host, "MEND")
    config = hyperparameters(host, _MEND, bench)
    model, processor = bench.load()
    config.dtype = next(model.parameters()).dtype
    if not config.inner_params:
        config.inner_params = _last_feed_forward_parameters(model)
    archive = given_archive(bench)
    if archive is None:
        training = Training(host, _MEND, bench, config, bench.folder / "easyedit-mend")
        if not training.is_done:
            training.run(
                _open_to_gradients(model, config),
                completed(processor, model),
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


def hyperparameters(host: Host, algorithm: Algorithm, bench: Bench) -> Any:
    """Return EasyEdit's hyperparameters for a training: shipped ones, and those given instead.

    Raises:
        ConfigError: if one is given that there is not, or that the bench decides.
        UpstreamError: if EasyEdit's file of them is not there.
    """
    path = host.folder.parent / "hparams" / "TRAINING" / f"{algorithm.shipped}.yaml"
    if not path.is_file():
        raise UpstreamError(
            f"EasyEdit at {host.folder.parent} has no hparams/TRAINING/{algorithm.shipped}.yaml,"
            f" which holds the hyperparameters of {algorithm.name}; use a whole clone of master"
        )
    kind = getattr(host.package, algorithm.hparams_class)
    config: Any = kind.from_hparams(str(path))
    fields = [field.name for field in dataclasses.fields(config) if field.name not in _FIXED]
    unknown = sorted(set(bench.settings) - {*fields, ARCHIVE})
    if unknown:
        raise ConfigError(
            f"{algorithm.name} has no settings {unknown}; there are {sorted([*fields, ARCHIVE])}"
        )
    changes = {**algorithm.defaults, **bench.settings}
    for name, value in changes.items():
        if name != ARCHIVE:
            setattr(config, name, _like(name, value, getattr(config, name)))
    if "inner_params" not in bench.settings:
        config.inner_params = []
    if not isinstance(config.max_iters, int) or config.max_iters < 1:
        raise ConfigError(f"max_iters = {config.max_iters!r}: a whole number of at least 1")
    config.device = device_from(bench.device)
    config.model_name = algorithm.model_name
    config.batch_size = config.val_batch_size = config.val_steps = 1
    config.final_eval = config.eval_only = config.debug = config.train_base = False
    config.half = config.model_parallel = False
    config.archive = config.max_epochs = config.no_grad_layers = None
    config.coco_image = config.rephrase_image = ""
    return config


class Training:
    """A run of EasyEdit's trainer in a folder of its own."""

    def __init__(
        self, host: Host, algorithm: Algorithm, bench: Bench, config: Any, folder: Path
    ) -> None:
        """Say what is trained; nothing runs yet.

        Raises:
            ConfigError: if there are no records to train on.
            DataError: if a picture of theirs is none.
        """
        if not bench.training:
            raise ConfigError(
                f"there are no records to train {algorithm.name} on; give the benchmark --train, or"
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
        self._items = json.dumps([_item(record) for record in bench.training])
        self._settings["records"] = text_digest(self._items)
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
                f" is in {_LOG_FILE} there"
            )
        write_json(self._folder / _DONE_FILE, self._settings)


class TrainingRecords(Dataset[Any]):
    """EasyEdit's dataset, which opens its pictures only when they are needed.

    It is as long as the training, since EasyEdit's trainer counts in rounded passes.
    """

    def __init__(
        self,
        host: Host,
        config: Any,
        path: Path,
        processor: Any,
        length: int,
        convert: Convert | None = None,
    ):
        """Have EasyEdit read records in MMEdit's format.

        Args:
            host: EasyEdit.
            config: EasyEdit's hyperparameters, for a transformers model.
            path: of the records.
            processor: of the model.
            length: of the training; records come again as often as it takes.
            convert: turns each part of a batch, such as `edit_inner`, into something else.
        """
        patches = Patches()
        reader = host.module("dataset.processor.llavaov_processors").LLaVAOneVisionProcessor
        patches.replace(reader, "__call__", lambda _self, file, file_type: file)  # noqa: ARG005
        try:
            self.records: Any = host.package.VQADataset(str(path), config=config)
        finally:
            patches.undo()
        self.records.tok = processor
        self._length = max(length, len(self.records))
        self._convert = convert

    def __len__(self) -> int:
        """Return the number of items that one pass has."""
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return an item as EasyEdit's dataset would hold it."""
        item = dict(self.records[index % len(self.records)])
        for name in _PICTURES:
            item[name] = open_image(Path(item[name]))
        for name in ("target", "locality_ground_truth", "multimodal_locality_ground_truth"):
            item[name] = _Unspaced(item[name])
        return item

    def collate_fn(self, batch: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return a batch as EasyEdit's dataset makes it."""
        parts: dict[str, Any] = self.records.collate_fn(batch)
        if self._convert is None:
            return parts
        # `cond` is text for methods that none of these is.
        return {name: p if name == "cond" else self._convert(p) for name, p in parts.items()}


class _Unspaced(str):
    """An answer that stays as it is when EasyEdit puts a space before it."""

    def __radd__(self, other: str) -> str:
        return str(self) if other == " " else other + str(self)


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
    # It holds the model's configuration beside tensors, which weights_only refuses.
    archive = torch.load(path, map_location=device, weights_only=False)
    try:
        alg.load_state_dict(archive["model"])
    except (AssertionError, RuntimeError, KeyError) as error:
        line = " ".join(str(error).split())[:300]
        raise UpstreamError(
            f"{path} does not hold what EasyEdit's {type(alg).__name__} needs ({line}); give an"
            " archive that was trained for this model with the same hyperparameters"
        ) from error
    alg.to(device)


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


def count_of(parameters: Sequence[Tensor]) -> int:
    """Return the number of values in parameters."""
    return sum(parameter.numel() for parameter in parameters)


def copy_of(config: Any, **changes: Any) -> Any:
    """Return hyperparameters with changes; their values are shared."""
    changed = dataclasses.replace(config)
    vars(changed).update(vars(config) | changes)
    return changed


def completed(processor: Any, model: Any) -> Any:
    """Return a processor that takes what EasyEdit's dataset asks of it."""
    family = family_of(model.config)
    return processor if family.chat_template is None else CompleteProcessor(processor, family)


def free_memory() -> None:
    """Give back the memory of models that are no longer used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def text_digest(text: str) -> str:
    """Return a short hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _mend_trainer(host: Host, trainer: Any) -> None:
    """Give EasyEdit's trainer of a MEND the right loss, and its step sizes their own optimiser."""
    model = trainer.model
    model.edit_loss_fn = partial(_shifted_loss, host.module("trainer.losses").masked_log_probs)
    for group in trainer.opt.param_groups:
        group["params"] = [value for value in group["params"] if value is not model.edit_lrs]


def _shifted_loss(
    loss: Callable[..., Any], config: Any, logits: Tensor, labels: Tensor, **options: Any
) -> Any:
    # Without `multimodal`, EasyEdit shifts the logits and leaves the labels.
    return loss(config, logits, labels, **{**options, "shift": True, "multimodal": True})


def _open_to_gradients(model: nn.Module, config: Any) -> nn.Module:
    """Return the model with gradients for the parameters that MEND changes, and no others."""
    model.requires_grad_(False)
    for name in config.inner_params:
        _parameter(model, name).requires_grad_(True)
    return model


def _parameter(model: nn.Module, name: str) -> nn.Parameter:
    try:
        return model.get_parameter(name)
    except AttributeError as error:
        raise ConfigError(
            f"inner_params has {name!r}, which {type(model).__name__} has not; name parameters as"
            " model.named_parameters() does"
        ) from error


def _last_feed_forward_parameters(model: Any) -> list[str]:
    depth = len(Backbone.of(model).layers)
    found = [mlp_parameters(model, layer) for layer in range(max(depth - _LAYERS, 0), depth)]
    return [names[role] for names in found for role in (UP, DOWN)]


def _no_copy() -> Any:
    raise UpstreamError("a copy of the model was asked for, which a single edit does not need")


def _like(name: str, value: Any, shipped: Any) -> Any:
    """Return a given value as the type of the shipped one; "1e-4" is text in YAML."""
    if isinstance(shipped, bool) and not isinstance(value, bool):
        raise ConfigError(f"{name} = {value!r}: true or false")
    if isinstance(shipped, bool) or not isinstance(shipped, int | float):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} = {value!r}: a number, such as {shipped!r}") from error
    return int(number) if isinstance(shipped, int) and number.is_integer() else number


def resolved(model: str) -> str:
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model


def _item(record: Record) -> dict[str, str]:
    """Return a record in MMEdit's format, its pictures with their whole path."""
    return {
        "src": record.request.prompt,
        # EasyEdit drops a record with an empty text, and uses this one nowhere in a training.
        "pred": record.prediction or "?",
        "alt": _answer(record.request),
        "rephrase": record.text_rephrase.prompt,
        "image": _picture(record, record.request),
        "image_rephrase": _picture(record, record.image_rephrase),
        "loc": record.text_locality.prompt,
        "loc_ans": _answer(record.text_locality),
        "m_loc": _picture(record, record.image_locality),
        "m_loc_q": record.image_locality.prompt,
        "m_loc_a": _answer(record.image_locality),
    }


def _answer(query: Query) -> str:
    if query.target is None:
        raise DataError(f"the query {query.prompt!r} has no target to train on; give one")
    return query.target


def _picture(record: Record, query: Query) -> str:
    if len(query.pictures) != 1 or isinstance(query.pictures[0], Image.Image):
        raise DataError(
            f"record {record.index} has a query with {len(query.pictures)} pictures, or with one"
            " that is no file; EasyEdit's dataset takes the path of one picture"
        )
    return str(Path(query.pictures[0]).resolve())


def _counted(step: Callable[[Any], Any], bar: "tqdm[Any]") -> Callable[[Any], Any]:
    def counting(batch: Any) -> Any:
        found = step(batch)
        bar.update()
        return found

    return counting


@contextlib.contextmanager
def own_output(folder: Path) -> Iterator[None]:
    """Keep what EasyEdit writes, prints and logs in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    theirs = logging.getLogger("easyeditor")
    handler = logging.FileHandler(folder / _LOG_FILE, encoding="utf-8")
    level, propagates = theirs.level, theirs.propagate
    theirs.addHandler(handler)
    theirs.setLevel(logging.INFO)
    theirs.propagate = False
    try:
        with (
            contextlib.chdir(folder),
            (folder / _PRINTED_FILE).open("a", encoding="utf-8") as printed,
            contextlib.redirect_stdout(printed),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", message=_HARMLESS)
            yield
    finally:
        theirs.removeHandler(handler)
        handler.close()
        theirs.setLevel(level)
        theirs.propagate = propagates
