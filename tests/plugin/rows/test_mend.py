"""What MEND learns from EasyEdit's trainer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from easyedit_fixtures import needs_master, shared_workplace
from tiny_trainings import STEPS, encoder_of, records_of, training_bench

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.rows.mend import mend

pytestmark = [needs_master, pytest.mark.usefixtures("nothing_written")]


def test_mend_learns_from_easyedits_trainer(host: Host, tmp_path: Path) -> None:
    workplace = shared_workplace("llava-onevision")
    bench = training_bench(workplace, tmp_path / "bench", max_iters=40, lr=1e-3)
    untrained = mend(host).make(
        training_bench(workplace, tmp_path / "other", max_iters=2, lr=1e-9, lr_lr=1e-9)
    )
    trained = mend(host).make(bench)
    encoder = encoder_of(workplace)

    def loss(method: Any, record: Record) -> float:
        batch = encoder.encode([record.request])
        with method.edit(record) as edited, torch.no_grad():
            return float(edited.model(**batch.inputs, labels=batch.labels).loss)

    losses = [[loss(m, r) for r in records_of(workplace)] for m in (untrained, trained)]
    assert sum(losses[1]) < sum(losses[0])


def test_step_sizes_learn_at_their_own_rate(host: Host, tmp_path: Path) -> None:
    # EasyEdit's other optimiser clears their gradients first.
    bench = training_bench(shared_workplace("llava"), tmp_path, lr=1e-9, lr_lr=1e-2, edit_lr=1e-4)
    method: Any = mend(host).make(bench)
    moved = (method._alg.edit_lrs.detach() - 1e-4).abs()
    # Adam moves by no more than its rate a step, and EasyEdit makes one of every two iterations.
    assert bool((moved > 1e-3).all())
    assert bool((moved <= 1e-2 * STEPS / 2 + 1e-6).all())


def test_parameters_that_are_not_there_are_named(host: Host, tmp_path: Path) -> None:
    workplace = shared_workplace("llava")
    names = ["language_model.model.layers.25.mlp.up_proj.weight"]
    with pytest.raises(ConfigError, match="inner_params has 'language_model.model.layers.25"):
        mend(host).make(training_bench(workplace, tmp_path, inner_params=names))
