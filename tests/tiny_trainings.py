"""Benches for short trainings by EasyEdit's trainer, for the tests of its trained methods."""

from pathlib import Path
from typing import Any

from easyedit_fixtures import Workplace

from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.measure.contender import Bench
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.loading import load_model

STEPS = 6


def records_of(workplace: Workplace) -> list[Record]:
    """Return the four records of a workplace."""
    return load_records(workplace.records, workplace.pictures)


def training_bench(workplace: Workplace, folder: Path, **settings: Any) -> Bench:
    """Return a bench for a short training."""
    return Bench(
        str(workplace.model),
        lambda: load_model(str(workplace.model)),
        "cpu",
        folder,
        records_of(workplace),
        {"max_iters": STEPS, **settings},
        progress=False,
    )


def encoder_of(workplace: Workplace) -> Encoder:
    """Return an encoder of a model that no method has touched."""
    model, processor = load_model(str(workplace.model))
    return Encoder(Backbone.of(model), processor)
