"""Hyperparameters that EasyEdit's trainer reads, whatever it does with a method."""

from dataclasses import dataclass, field

import torch

from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.settings import is_whole
from easyedit_dualedit.train.config import CACHE_BYTES, TrainingConfig

_KEYS = {
    "steps": "max_iters",
    "learning_rate": "lr",
    "reliability_weight": "cinner",
    "text_generality_weight": "cedit",
    "image_generality_weight": "iedit",
    "image_locality_weight": "cloc",
    "text_locality_weight": "cloc",
    "gradient_clip": "grad_clip",
    "accumulate": "accumulate_bs",
}
"""Field of a `TrainingConfig` -> the key that it comes from."""

_LEFT_TO_PRESET = (
    "text_locality_weight",
    "image_locality_weight",
    "augment_targets",
    "text_only",
    "end_of_answer",
    "gate_steps",
    "gate_records",
)

_OTHER_STEPS = ("LBFGS", "SparseAdam")
"""Of torch.optim: those whose steps need more than gradients, or others."""


@dataclass(kw_only=True)
class TrainerHparams:
    """What `MultimodalTrainer` reads; names and meanings are EasyEdit's."""

    batch_size: int = 1
    preset: str = "default"
    seed: int = 0
    lr: float = 1e-4
    opt: str = "Adam"
    lr_lr: float = 1e-4
    accumulate_bs: int = 1
    """Batches per optimiser step."""
    grad_clip: float = 100.0
    max_iters: int | None = 1000
    """EasyEdit stops one step earlier."""
    max_epochs: int | None = None
    val_batch_size: int = 1
    validation_records: int | None = None
    """Records that the command `train` holds out to validate on; None means 200, a tenth of all at
    most, and 0 none. EasyEdit's trainers validate on the set that they are given."""
    val_interval: int = 500
    """Steps between two validations."""
    val_steps: int = 100
    log_interval: int = 50
    eval_log_interval: int = 50
    early_stop_key: str = "loss/total_edit_val"
    early_stop_patience: int = 20000
    """Steps without a better validation after which the command `train` ends; 0 means never."""
    model_save_pt: int = 500

    cedit: float = 1.0
    """Weight of the loss on the text rephrase."""
    iedit: float = 1.0
    """Weight of the loss on the image rephrase."""
    cloc: float = 1.0
    """Weight of both locality losses."""
    cbase: float = 1.0
    cinner: float = 1.0
    """Weight of the loss on the request itself; `DualEditTrainer` has it, EasyEdit's has not."""
    text_locality_weight: float | None = None
    """Weight of text locality in `DualEditTrainer`; None means `cloc`, or 0 in `published`."""
    image_locality_weight: float | None = None

    augment_targets: float | None = None
    """Share of the records whose target is drawn from the model's vocabulary; None leaves it to the
    preset. EasyEdit's own trainer takes no notice."""
    text_only: float | None = None
    """Share of the records that ask a question without a picture; None leaves it to the preset. It
    is for the command `train`: EasyEdit's trainers take no notice."""
    end_of_answer: bool | None = None
    """Whether to learn to stop after the answer; None leaves it to the preset."""
    gate_steps: int | None = None
    """Steps of training the `learned` gate in `DualEditTrainer`; None leaves it to the preset."""
    gate_records: int | None = None
    """Records that teach the gate; None means as many as the adapters are trained on, at least 500.
    """
    schedule: str = "constant"
    """Of the learning rate: constant or one-cycle; EasyEdit's own trainer keeps it constant."""
    autocast: str = "none"
    """bfloat16: the frozen model computes in it; EasyEdit's own trainer takes no notice."""
    checkpoint_activations: bool = False
    """Less memory, more time, the same result; EasyEdit's own trainer takes no notice."""
    compile_layers: bool = False
    """torch.compile for the layers above the first edit; EasyEdit's own trainer takes no notice."""
    picture_workers: int = 0
    feature_cache_bytes: int = CACHE_BYTES
    """Picture features kept between steps; EasyEdit's own trainer keeps none."""
    state_cache_bytes: int = CACHE_BYTES
    """States below the first edit kept between steps; EasyEdit's own trainer keeps none."""
    state_cache_folder: str | None = None
    """Folder that keeps those states for later runs; EasyEdit's own trainer takes no notice."""

    dropout: float | None = None
    train_base: bool = False
    inner_params: list[str] = field(default_factory=list)
    no_grad_layers: int | None = None
    half: bool = False
    final_eval: bool = True
    debug: bool = False
    save: bool = False
    silent: bool = False
    verbose: bool = True

    eval_only: bool = True
    """Whether a trainer evaluates the `archive` and trains nothing."""

    def training_config(self) -> TrainingConfig:
        """Return the frozen configuration of the training.

        Raises:
            ConfigError: naming every value that is not allowed.
        """
        values = {
            # EasyEdit writes into max_iters: its own count from max_epochs, or 0 to evaluate.
            "steps": max(1, self.max_iters or 1),
            "batch_size": self.batch_size,
            "learning_rate": self.lr,
            "reliability_weight": self.cinner,
            "text_generality_weight": self.cedit,
            "image_generality_weight": self.iedit,
            "image_locality_weight": self.cloc,
            "text_locality_weight": self.cloc,
            "gradient_clip": self.grad_clip,
            "schedule": self.schedule,
            "seed": self.seed,
            "accumulate": self.accumulate_bs,
            "autocast": self.autocast,
            "checkpoint_activations": self.checkpoint_activations,
            "compile_layers": self.compile_layers,
            "picture_workers": self.picture_workers,
            "feature_cache_bytes": self.feature_cache_bytes,
            "state_cache_bytes": self.state_cache_bytes,
            "state_cache_folder": self.state_cache_folder,
        }
        if self.preset == "published":
            del values["text_locality_weight"]
        for key in _LEFT_TO_PRESET:
            if getattr(self, key) is not None:
                values[key] = getattr(self, key)
        try:
            return TrainingConfig.preset(self.preset, **values)
        except ConfigError as error:
            raise ConfigError(self._as_in_files(str(error))) from None

    def training_problems(self) -> list[str]:
        """Return a line for each value that no training can have."""
        problems = []
        if isinstance(self.max_iters, int | None):
            try:
                self.training_config()
            except ConfigError as error:
                problems += str(error).split("; ")
        if self.max_iters is None and self.max_epochs is None:
            problems.append("max_iters and max_epochs are both null; set one")
        if not _is_optimiser(self.opt):
            others = " or ".join(_OTHER_STEPS)
            problems.append(
                f"opt = {self.opt!r}: the name of an optimiser in torch.optim, but not {others}"
            )
        counts = ["accumulate_bs", "val_batch_size", "val_interval", "log_interval"]
        counts += [] if self.eval_only else ["val_steps"]
        counts += [key for key in ("max_iters", "max_epochs") if getattr(self, key) is not None]
        for key in counts:
            value = getattr(self, key)
            # EasyEdit writes a 0 there when it evaluates.
            counted = key == "max_iters" and self.eval_only and value == 0
            if not is_whole(value, 1) and not counted:
                problems.append(f"{key} = {value!r}: a whole number, 1 or above")
        for key in ("validation_records", "early_stop_patience"):
            value = getattr(self, key)
            if value is not None and not is_whole(value, 0):
                problems.append(f"{key} = {value!r}: a whole number, 0 or above")
        return [*dict.fromkeys(problems), *self._checkpoint_problems()]

    def _checkpoint_problems(self) -> list[str]:
        # EasyEdit saves only when it validates, and its final evaluation loads what it saved.
        if not self.final_eval or self.eval_only or (self.debug and not self.save):
            return []
        numbers = (self.max_iters, self.val_interval)
        if not all(is_whole(number, 1) for number in numbers):
            return []
        if self.max_iters is None or self.val_interval < self.max_iters:
            return []
        most = self.max_iters - 1
        mended = f"val_interval to at most {most}" if most else "max_iters to 2 or more"
        return [
            f"val_interval = {self.val_interval} with max_iters = {self.max_iters}: EasyEdit would"
            f" save nothing; set {mended}"
        ]

    def _as_in_files(self, problems: str) -> str:
        """Return what is wrong with a training, its fields named as these hyperparameters are."""
        told = []
        for problem in problems.split("; "):
            name, equals, rest = problem.partition(" = ")
            if getattr(self, name, None) is None:
                name = _KEYS.get(name, name)
            told.append(f"{name}{equals}{rest}")
        return "; ".join(dict.fromkeys(told))


def _is_optimiser(name: object) -> bool:
    """Return whether a name is that of an optimiser that steps by gradients alone."""
    kind = getattr(torch.optim, str(name), None)
    return (
        isinstance(kind, type)
        and issubclass(kind, torch.optim.Optimizer)
        and kind is not torch.optim.Optimizer
        and name not in _OTHER_STEPS
    )
