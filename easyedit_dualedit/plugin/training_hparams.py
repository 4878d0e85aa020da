"""Hyperparameters of training, in the form in which EasyEdit's trainer reads them."""

from dataclasses import dataclass
from typing import ClassVar

from easyedit_dualedit.plugin.edit_hparams import DualEditMultimodalHparams


@dataclass(kw_only=True)
class DualEditMultimodalTrainingHparams(DualEditMultimodalHparams):
    """The hyperparameters of an edit with the values of a training where none are given.

    Raises:
        ConfigError: naming every value that is not allowed, on construction.
    """

    folder: ClassVar[str] = "TRAINING/DualEdit"

    batch_size: int = 4
    eval_only: bool = False
