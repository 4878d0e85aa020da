"""Both kinds of hyperparameters, under one name for scripts."""

from easyedit_dualedit.plugin.edit_hparams import DualEditMultimodalHparams
from easyedit_dualedit.plugin.training_hparams import DualEditMultimodalTrainingHparams

__all__ = ["DualEditMultimodalHparams", "DualEditMultimodalTrainingHparams"]
