"""The methods that a benchmark compares: ours, fine-tuning and EasyEdit's own."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from easyedit_dualedit import testbed
from easyedit_dualedit.commands.records import name_of
from easyedit_dualedit.errors import ConfigError, UpstreamError
from easyedit_dualedit.experiments.benchmark_folder import UNEDITED, slug
from easyedit_dualedit.experiments.dualedit_rows import (
    DUALEDIT,
    GATES,
    Recipe,
    dualedit_contenders,
)
from easyedit_dualedit.experiments.finetuning_rows import finetuning_contenders
from easyedit_dualedit.measure.contender import Contender
from easyedit_dualedit.method.config import DualEditConfig
from easyedit_dualedit.plugin.hparams import DualEditMultimodalTrainingHparams
from easyedit_dualedit.plugin.rows.roster import easyedit_contenders
from easyedit_dualedit.plugin.values import EMOJI, TESTBED
from easyedit_dualedit.testbed.emoji.places import adapters_folder as emoji_adapters_folder
from easyedit_dualedit.train.config import TrainingConfig

_PUBLISHED = "published"


def chosen_rows(
    hparams: DualEditMultimodalTrainingHparams,
    wanted: Sequence[str] | None,
    settings: Mapping[str, Mapping[str, Any]],
) -> list[Contender]:
    """Return the methods to measure, without the unedited model.

    Args:
        hparams: of DualEdit's own rows.
        wanted: names; None is every method that can be measured here.
        settings: method -> setting -> value that a user gave.

    Raises:
        ConfigError: if a method is not known, or a setting is none of its own, or has a value that
            it cannot take.
    """
    named = None if wanted is None else [*wanted, *settings]
    known = {slug(contender.name): contender for contender in _every(hparams, named)}
    chosen = list(known) if wanted is None else [slug(name) for name in wanted]
    unknown = sorted({*chosen, *settings} - set(known) - {UNEDITED})
    if unknown:
        raise ConfigError(f"no methods {unknown}; there are {sorted(known)}")
    if UNEDITED in settings:
        raise ConfigError(f"--set {UNEDITED}.{min(settings[UNEDITED])}: it has no settings")
    for name, given in settings.items():
        # Where EasyEdit lacks what a method needs, its row says so.
        with contextlib.suppress(UpstreamError):
            known[name].check(hparams.model_name, given)
    return [known[name] for name in dict.fromkeys(chosen) if name != UNEDITED]


def with_shared_settings(
    settings: Mapping[str, Mapping[str, Any]], wanted: Sequence[str] | None
) -> dict[str, dict[str, Any]]:
    """Return the settings of methods, those of DualEdit for the rows that share its adapters, too.

    Args:
        settings: method -> setting -> value that a user gave.
        wanted: names of methods; None is every one.
    """
    shared = settings.get(slug(DUALEDIT), {})
    every = {name: dict(given) for name, given in settings.items()}
    for name in map(slug, GATES):
        if shared and (wanted is None or name in map(slug, wanted)):
            every[name] = {**shared, **every.get(name, {})}
    return every


def adapters_of(
    hparams: DualEditMultimodalTrainingHparams,
    settings: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> Path | None:
    """Return where DualEdit's adapters lie, which its settings may say; None if none are there."""
    given = settings.get(slug(DUALEDIT), {}).get("archive")
    if given is not None:
        return Path(str(given))
    if hparams.archive is not None:
        return Path(hparams.archive)
    shipped = _shipped(hparams.model_name)
    return None if shipped is None else _existing(shipped("default"))


def _every(
    hparams: DualEditMultimodalTrainingHparams, named: Sequence[str] | None
) -> list[Contender]:
    """Return every method that can be measured here.

    EasyEdit's are left out where only others are named: importing it takes seconds.
    """
    config, training = hparams.dualedit_config(), hparams.training_config()
    archive = adapters_of(hparams)
    published = None
    shipped = _shipped(hparams.model_name)
    if shipped is not None:
        published = _existing(shipped(_PUBLISHED))
    as_published = DualEditConfig.preset(
        _PUBLISHED,
        text_layer=config.text_layer,
        vision_layer=config.vision_layer,
        width=config.width,
        heads=config.heads,
        backbone=config.backbone,
    )
    trained_so = TrainingConfig.preset(
        _PUBLISHED,
        steps=training.steps,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        gradient_clip=training.gradient_clip,
        schedule=training.schedule,
        seed=training.seed,
    )
    own = Recipe(config, training, archive)
    as_published_too = Recipe(as_published, trained_so, published)
    ours = [*dualedit_contenders(own, as_published_too), *finetuning_contenders()]
    known = {UNEDITED, *(slug(contender.name) for contender in ours)}
    if named is not None and {slug(name) for name in named} <= known:
        return ours
    return [*ours, *easyedit_contenders()]


def _shipped(model: str) -> Callable[[str], Path] | None:
    """Return what gives the folder of a preset's adapters for a model of ours; None of others."""
    folders = {TESTBED: testbed.adapters_folder, EMOJI: emoji_adapters_folder, None: None}
    return folders[name_of(model)]


def _existing(folder: Path) -> Path | None:
    """Return a folder of shipped adapters, or None: they are trained then."""
    return folder if folder.is_dir() else None
