"""EasyEdit's trainer with hyperparameters of an edit, and what it refuses before it starts."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from easyedit_fixtures import (
    HAS_MASTER,
    Workplace,
    needs_easyedit,
    needs_master,
    needs_release,
    shared_workplace,
)
from easyedit_runs import dataset_of, trained, trainer_of

from easyedit_dualedit.errors import ArchiveError, ConfigError, DataError, UpstreamError
from easyedit_dualedit.model.loading import load_model
from easyedit_dualedit.plugin import find_host
from easyedit_dualedit.plugin.hparams import (
    DualEditMultimodalHparams,
    DualEditMultimodalTrainingHparams,
)
from easyedit_dualedit.plugin.other_methods import OTHER_METHODS

pytestmark = [needs_easyedit, pytest.mark.usefixtures("host", "elsewhere")]

TRAINERS = ("MultimodalTrainer", "DualEditTrainer")


@pytest.fixture
def workplace() -> Workplace:
    return shared_workplace("llava")


def evaluated(workplace: Workplace, trainer: str, archive: Any, results: Path) -> Any:
    """Return a trainer that has evaluated adapters with the hyperparameters of an edit."""
    hparams = DualEditMultimodalHparams.from_dict(
        workplace.settings(archive=str(archive), results_dir=str(results))
    )
    records = dataset_of(workplace, hparams)
    results.mkdir()
    made = getattr(find_host().package, trainer)(hparams, records, records)
    made.run()
    return made


@pytest.mark.parametrize("trainer", TRAINERS)
def test_hyperparameters_of_an_edit_evaluate_a_folder_of_adapters(
    workplace: Workplace, tmp_path: Path, trainer: str
) -> None:
    evaluated(workplace, trainer, workplace.adapters, tmp_path / "results")
    results = json.loads((tmp_path / "results" / "results.json").read_text())["results"]
    assert 0 <= results["inner/acc_val"] <= 1
    assert not (tmp_path / "results" / "models" / "DualEdit" / workplace.model.name).exists()


@pytest.mark.parametrize("trainer", TRAINERS)
def test_they_evaluate_what_a_training_has_saved(
    workplace: Workplace, tmp_path: Path, trainer: str
) -> None:
    first = trained(workplace, tmp_path / "first", trainer)
    made = evaluated(workplace, trainer, first.save_path, tmp_path / "second")
    saved = torch.load(first.save_path, weights_only=True)["model"]
    for name, value in made.model.editor.state_dict().items():
        torch.testing.assert_close(value, saved[name], rtol=0, atol=0, equal_nan=True)
    before, after = (
        json.loads((tmp_path / name / "results.json").read_text())["results"]
        for name in ("first", "second")
    )
    for name in ("inner/acc_val", "edit/acc_val", "loss/loc_val"):
        assert after[name] == pytest.approx(before[name], abs=1e-6), name


def test_an_archive_that_is_not_there_is_named(workplace: Workplace, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="but there is nothing"):
        evaluated(workplace, "MultimodalTrainer", tmp_path / "none", tmp_path / "results")


@needs_master
def test_every_field_that_easyedit_has_for_mend_is_there_or_only_mends() -> None:
    theirs = find_host().module("models.mend.mend_multimodal_hparams").MENDMultimodalHparams
    names = {f.name for f in dataclasses.fields(theirs)}
    assert names - {f.name for f in dataclasses.fields(DualEditMultimodalHparams)} == {
        name for name, method in OTHER_METHODS.items() if method == "MEND"
    }


def test_training_does_not_go_on_from_a_folder(workplace: Workplace, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder of adapters.*give a checkpoint"):
        trained(workplace, tmp_path, "MultimodalTrainer", archive=str(workplace.adapters))


@pytest.mark.parametrize("trainer", TRAINERS)
def test_going_on_keeps_what_the_archive_says(
    workplace: Workplace, tmp_path: Path, trainer: str
) -> None:
    changes: dict[str, Any] = {"width": 32, "gate_steps": 0, "augment_targets": 0.0}
    first = trained(workplace, tmp_path / "first", trainer, size=2, **changes)
    settings = workplace.training_settings(
        tmp_path / "second", archive=str(first.save_path), augment_targets=0.0
    )
    del settings["width"], settings["heads"]  # those of the archive
    hparams = DualEditMultimodalTrainingHparams.from_dict(settings)
    everything = dataset_of(workplace, hparams)
    made = getattr(find_host().package, trainer)(hparams, everything, everything)
    assert made.model.editor.config.width == 32
    assert first.model.editor.training_targets == ("blue", "two")
    assert made.model.editor.training_targets == ("a star", "blue", "red circle", "two")


def test_what_was_not_told_before_is_not_told_when_it_goes_on(
    workplace: Workplace, tmp_path: Path
) -> None:
    first = trained(workplace, tmp_path / "first", "MultimodalTrainer", final_eval=False)
    checkpoint = torch.load(first.save_path, weights_only=True)
    first.model.editor.training_targets = None
    checkpoint["model"] = first.model.state_dict()
    torch.save(checkpoint, first.save_path)
    settings = {"archive": str(first.save_path)}
    made = trainer_of(workplace, tmp_path / "second", "MultimodalTrainer", **settings)
    assert made.model.editor.training_targets is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text_layer": 0}, "text_layer is 1 in the archive and 0 in the hyperparameters"),
        ({"signal": "all"}, "signal is 'target' in the archive and 'all' in the hyperparameters"),
    ],
)
def test_training_does_not_go_on_with_another_method(
    workplace: Workplace, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    first = trained(workplace, tmp_path / "first", "MultimodalTrainer", final_eval=False)
    with pytest.raises(ArchiveError, match=said):
        trainer_of(
            workplace,
            tmp_path / "second",
            "MultimodalTrainer",
            archive=str(first.save_path),
            **changes,
        )


def test_training_does_not_go_on_on_another_model(workplace: Workplace, tmp_path: Path) -> None:
    first = trained(workplace, tmp_path / "first", "MultimodalTrainer", final_eval=False)
    model, processor = load_model(str(workplace.model))
    next(model.model.language_model.layers.parameters()).data += 1.0
    other = tmp_path / workplace.model.name
    model.save_pretrained(other)
    processor.save_pretrained(other)
    settings = {"archive": str(first.save_path), "model_name": str(other)}
    with pytest.raises(ArchiveError, match="trained on another model"):
        trainer_of(workplace, tmp_path / "second", "MultimodalTrainer", **settings)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_hyperparameters_of_an_evaluation_can_be_read_again(
    workplace: Workplace, tmp_path: Path, trainer: str
) -> None:
    made = evaluated(workplace, trainer, workplace.adapters, tmp_path / "results")
    again = DualEditMultimodalHparams.from_dict(made.config.to_dict())
    assert again.to_dict() == made.config.to_dict()
    with pytest.raises(ConfigError, match="max_iters = 0"):
        DualEditMultimodalTrainingHparams.from_dict(
            workplace.training_settings(tmp_path, max_iters=0)
        )


@needs_release
def test_the_release_refuses_batches(workplace: Workplace, tmp_path: Path) -> None:
    with pytest.raises(UpstreamError, match="batch_size = 2 and val_batch_size = 3.*set batch"):
        trained(workplace, tmp_path, "MultimodalTrainer", batch_size=2, val_batch_size=3)


def test_only_batches_that_are_read_are_refused(workplace: Workplace, tmp_path: Path) -> None:
    archive = str(workplace.adapters)
    trained(workplace, tmp_path, "MultimodalTrainer", batch_size=2, eval_only=True, archive=archive)


def test_nothing_to_evaluate_or_to_train_on_is_refused(workplace: Workplace) -> None:
    settings = workplace.settings(archive=str(workplace.adapters))
    hparams = DualEditMultimodalHparams.from_dict(settings)
    records = dataset_of(workplace, hparams)
    hparams.archive = None
    trainer = find_host().package.MultimodalTrainer
    with pytest.raises(ConfigError, match="archive is not set, so there is nothing to evaluate"):
        trainer(hparams, records, records)
    with pytest.raises(DataError, match="val_set is None; give a data set"):
        trainer(hparams, records, None)
    with pytest.raises(DataError, match="train_set is empty"):
        trainer(hparams, [], records)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_iters": 3, "val_interval": 1, "final_eval": False}, None),
        ({"max_iters": 3, "val_interval": 2}, None),
        ({"max_epochs": 1, "val_interval": 4}, "set val_interval to at most 3, or final_eval"),
    ],
)
def test_a_training_that_saves_nothing_is_refused(
    workplace: Workplace, tmp_path: Path, changes: dict[str, Any], message: str | None
) -> None:
    if message is None:
        trainer_of(workplace, tmp_path, "MultimodalTrainer", **changes)
        return
    with pytest.raises(ConfigError, match=message):
        trainer_of(workplace, tmp_path, "MultimodalTrainer", **changes)


def test_a_training_that_rounds_to_no_epoch_is_refused(
    workplace: Workplace, tmp_path: Path
) -> None:
    changes = {"max_iters": 2, "val_interval": 1}
    if HAS_MASTER:  # which makes at least one
        trainer_of(workplace, tmp_path, "MultimodalTrainer", **changes)
        return
    with pytest.raises(ConfigError, match="2 and 4 records round to 0 epochs.*max_iters higher"):
        trainer_of(workplace, tmp_path, "MultimodalTrainer", **changes)


def weights_of(trainer: Any) -> list[torch.Tensor]:
    """Return copies of the adapters' parameters."""
    return [value.detach().clone() for value in trainer.model.outer_parameters()]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_without_clipping_gradients_stay_as_they_are(
    workplace: Workplace, tmp_path: Path, trainer: str
) -> None:
    made = trainer_of(workplace, tmp_path, trainer, grad_clip=0, gate_steps=0)
    before = weights_of(made)
    made.run()
    assert any(not torch.equal(*pair) for pair in zip(before, weights_of(made), strict=True))


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_seed_decides_a_training(workplace: Workplace, tmp_path: Path, trainer: str) -> None:
    found = []
    for name, seed in (("first", 3), ("second", 3), ("third", 4)):
        torch.manual_seed(len(found))
        made = trained(workplace, tmp_path / name, trainer, seed=seed, gate_steps=0)
        found.append(weights_of(made))
    first, second, third = found
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    assert not all(torch.equal(*pair) for pair in zip(first, third, strict=True))


def test_the_recipe_of_the_command_is_followed(
    workplace: Workplace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"schedule": "one-cycle", "augment_targets": 0.5, "gate_steps": 0, "seed": 1}
    made = trainer_of(workplace, tmp_path / "ours", "DualEditTrainer", **changes)
    assert "takes no notice" not in caplog.text
    asked, rates = [], []
    edit_step, collate = made.edit_step, made.train_loader.collate_fn

    def collated(items: Any) -> Any:
        asked.extend(item["target"] for item in items)
        return collate(items)

    def seen(batch: Any, training: bool) -> Any:
        if training:
            rates.append(made.opt.param_groups[0]["lr"])
        return edit_step(batch, training)

    made.edit_step, made.train_loader.collate_fn = seen, collated
    made.run()
    own = {item["target"] for item in made.train_set._data}
    assert set(asked) - own == set(made.drawn.values()) & set(asked) != set()
    assert len(set(rates)) == len(rates) > 1 and max(rates) <= made.config.lr
    trainer_of(workplace, tmp_path / "theirs", "MultimodalTrainer", **changes)
    said = "MultimodalTrainer takes no notice of schedule = 'one-cycle' and augment_targets = 0.5"
    assert said in caplog.text and "text_only" not in caplog.text
    trainer_of(workplace, tmp_path / "more", "DualEditTrainer", **changes, text_only=0.2)
    assert "text_only = 0.2 is for the command `train` alone" in caplog.text


def test_epochs_say_how_many_records_teach_the_gate(
    workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught = []
    monkeypatch.setattr(
        "easyedit_dualedit.plugin.trainer.make_gate",
        lambda _editor, records, config, **_: taught.append((len(records), config.steps)),
    )
    monkeypatch.setattr("easyedit_dualedit.train.gate_trainer.CALIBRATION_RECORDS", 2)
    for name, changes in {
        "epochs": {"max_iters": None, "max_epochs": 1, "val_interval": 2},
        "both": {"max_iters": 3, "max_epochs": 5, "val_interval": 2},
        "accumulated": {"max_iters": 3, "accumulate_bs": 3, "val_interval": 2},
    }.items():
        settings = {"final_eval": False, "gate_records": None, **changes}
        trainer_of(workplace, tmp_path / name, "DualEditTrainer", **settings).run()
    assert taught == [(4, 4), (3, 3), (3, 1)]


@needs_master
def test_a_text_that_is_blank_is_named_before_anything_is_trained(
    workplace: Workplace, tmp_path: Path
) -> None:
    settings = workplace.training_settings(tmp_path)
    hparams = DualEditMultimodalTrainingHparams.from_dict(settings)
    blank = dataset_of(workplace, hparams)
    blank._data.append(blank._data.unread(0) | {"rephrase_prompt": " ", "target": "\n"})
    trainer = find_host().package.DualEditTrainer
    said = r"val_set: .* record 4: target = '\\n'; record 4: rephrase_prompt = ' '"
    with pytest.raises(DataError, match=said):
        trainer(hparams, dataset_of(workplace, hparams), blank)
    archive = str(workplace.adapters)
    edits = DualEditMultimodalHparams.from_dict(workplace.settings(archive=archive))
    editor = find_host().package.MultimodalEditor.from_hparams(edits)
    with pytest.raises(DataError, match=r"edit_dataset: .* in record 4: target = '\\n'; mend"):
        editor.edit_dataset(blank)
