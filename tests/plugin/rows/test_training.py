"""EasyEdit's MEND and SERAC, trained by EasyEdit's own trainer on tiny models."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from easyedit_fixtures import (
    FOLDERS,
    needs_easyedit,
    needs_master,
    needs_release,
    shared_workplace,
)
from tiny_trainings import STEPS, encoder_of, records_of, training_bench

from easyedit_dualedit.errors import ConfigError, DataError, UpstreamError
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.rows.mend import mend
from easyedit_dualedit.plugin.rows.serac import serac

pytestmark = [needs_easyedit, pytest.mark.usefixtures("nothing_written")]

ROWS = {"MEND": mend, "SERAC": serac}


def base_of(method: Any) -> torch.nn.Module:
    """Return the model that a method edits."""
    base: torch.nn.Module = method._alg.model
    return getattr(base, "base", base)


@needs_master
@pytest.mark.parametrize("family", sorted(FOLDERS))
@pytest.mark.parametrize("name", ROWS)
def test_an_edit_changes_answers_and_leaves_the_model_alone(
    host: Host, tmp_path: Path, name: str, family: str
) -> None:
    workplace = shared_workplace(family)
    # Large enough that a tiny model says something else.
    method = ROWS[name](host).make(training_bench(workplace, tmp_path / "bench", edit_lr=-0.1))
    base, encoder = base_of(method), encoder_of(workplace)
    before = {key: value.clone() for key, value in base.state_dict().items()}
    record = records_of(workplace)[0]
    batch = encoder.encode([record.request])
    prompt = encoder.encode([record.request], with_target=False)
    with torch.no_grad():
        plain = encoder.backbone.model(**batch.inputs).logits
        for _ in range(2):
            with method.edit(record) as edited:
                logits = edited.model(**batch.inputs).logits
                said = edited.model.generate(**prompt.inputs, max_new_tokens=3, do_sample=False)
            assert logits.shape == plain.shape
            assert not torch.allclose(logits.log_softmax(-1), plain.log_softmax(-1), atol=1e-3)
            first = edited.model(**prompt.inputs).logits[0, -1].argmax()
            assert said[0, prompt.inputs["input_ids"].shape[1]] == first
            assert edited.stored_bytes > 0
            for parameter in base.parameters():
                assert parameter.grad is None
                assert not {"__x__", "__delta__"} & set(vars(parameter))
            after = base(**batch.inputs).logits
            assert torch.equal(after, plain)
    assert all(torch.equal(before[key], value) for key, value in base.state_dict().items())
    assert method.trained_parameters > 0


@needs_master
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("steps", [3, 5, 10])
def test_every_step_is_made_and_the_last_one_saved(
    host: Host, tmp_path: Path, name: str, steps: int
) -> None:
    # EasyEdit rounds four records to passes, and stops before the last step without saving.
    folder = tmp_path / "bench"
    ROWS[name](host).make(training_bench(shared_workplace("llava"), folder, max_iters=steps))
    (saved,) = (folder / f"easyedit-{name.lower()}" / "models").glob("*/*")
    archive = torch.load(saved, weights_only=False)
    assert archive["step"] == steps
    accumulated = {"MEND": 2, "SERAC": 1}[name]
    made = {int(state["step"]) for state in archive["opt"]["state"].values()}
    assert made == {steps // accumulated}


@needs_master
def test_a_finished_training_is_used_again_and_no_other(host: Host, tmp_path: Path) -> None:
    workplace, folder = shared_workplace("llava"), tmp_path / "bench"

    def made(**settings: Any) -> int:
        mend(host).make(training_bench(workplace, folder, **settings))
        (saved,) = (folder / "easyedit-mend" / "models").glob("*/*")
        return saved.stat().st_mtime_ns

    first = made()
    assert made() == first
    other = made(max_iters=STEPS + 1)
    assert other != first
    (folder / "easyedit-mend" / "done.json").unlink()
    assert made(max_iters=STEPS + 1) != other


@needs_master
@pytest.mark.parametrize("name", ROWS)
def test_an_archive_of_the_trainer_needs_no_training(host: Host, tmp_path: Path, name: str) -> None:
    workplace = shared_workplace("llava")
    first = ROWS[name](host).make(training_bench(workplace, tmp_path / "first"))
    (saved,) = (tmp_path / "first" / f"easyedit-{name.lower()}" / "models").glob("*/*")
    bench = training_bench(workplace, tmp_path / "second", archive=str(saved))
    again = ROWS[name](host).make(dataclasses.replace(bench, training=()))
    values = [[v.clone() for v in m._alg.outer_parameters()] for m in (first, again)]
    assert all(torch.equal(a, b) for a, b in zip(*values, strict=True))


@needs_master
@pytest.mark.parametrize("name", ROWS)
def test_what_cannot_be_is_refused(host: Host, tmp_path: Path, name: str) -> None:
    workplace, folder = shared_workplace("llava"), tmp_path / "bench"
    make = ROWS[name](host).make
    with pytest.raises(ConfigError, match="unknown keys in .*: typo, batch_size;.*edit_lr"):
        make(training_bench(workplace, folder, typo=1, batch_size=4))
    with pytest.raises(ConfigError, match="lr = 'fast': a number"):
        make(training_bench(workplace, folder, lr="fast"))
    with pytest.raises(ConfigError, match="= 'no': true or false"):
        make(
            training_bench(
                workplace, folder, **{"MEND": {"norm": "no"}, "SERAC": {"cos": "no"}}[name]
            )
        )
    with pytest.raises(ConfigError, match="max_iters = 0"):
        make(training_bench(workplace, folder, max_iters=0))
    with pytest.raises(ConfigError, match="no records to train"):
        make(dataclasses.replace(training_bench(workplace, folder), training=()))
    with pytest.raises(ConfigError, match=r"archive = 'nowhere' is no file"):
        make(training_bench(workplace, folder, archive="nowhere"))
    bench = training_bench(workplace, folder)
    blind = dataclasses.replace(bench.training[0], request=Query("What?", None, "blue"))
    with pytest.raises(DataError, match="a query with 0 pictures"):
        make(dataclasses.replace(bench, training=(blind,)))


@needs_release
@pytest.mark.parametrize("name", ROWS)
def test_the_release_is_refused_with_a_reason(host: Host, tmp_path: Path, name: str) -> None:
    with pytest.raises(UpstreamError, match=r"0\.0\.1\.dev0 cannot train its multimodal"):
        ROWS[name](host).make(training_bench(shared_workplace("llava"), tmp_path))
