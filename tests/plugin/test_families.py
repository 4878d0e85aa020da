"""EasyEdit's editor, datasets and trainers on every family, known to it or not."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from easyedit_fixtures import HAS_MASTER, Workplace, needs_easyedit, shared_workplace
from tiny_editors import hooks_of_ours
from tiny_families import FAMILIES

from easyedit_dualedit.errors import ModelLoadError
from easyedit_dualedit.plugin import register, unregister
from easyedit_dualedit.plugin.hparams import (
    DualEditMultimodalHparams,
    DualEditMultimodalTrainingHparams,
)

pytestmark = needs_easyedit


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    register()
    yield
    unregister()
    logging.getLogger("easyeditor").handlers.clear()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """Every family."""
    return str(request.param)


def editor_of(workplace: Workplace, **changes: Any) -> Any:
    settings = workplace.settings(archive=str(workplace.adapters), **changes)
    hparams = DualEditMultimodalHparams.from_dict(settings)
    return register().package.MultimodalEditor.from_hparams(hparams)


def test_editor_edit(family: str) -> None:
    workplace = shared_workplace(family)
    editor = editor_of(workplace)
    arguments = workplace.edit_arguments((0, 1), full=HAS_MASTER)
    metrics, edited, _ = editor.edit(**arguments)
    assert len(metrics) == 2
    for case in metrics:
        assert {"rewrite_acc", "rephrase_acc", "image_rephrase_acc"} <= set(case["post"])
        assert float(case["post"]["locality_acc"]) == 1
    assert len(edited.edits) == 1
    assert not hooks_of_ours(editor.model)


@pytest.mark.skipif(not HAS_MASTER, reason="edit_dataset of the release fails for every method")
def test_editor_edit_dataset(family: str) -> None:
    workplace = shared_workplace(family)
    editor = editor_of(workplace)
    records = register().package.VQADataset(str(workplace.records), config=editor.hparams)
    metrics, _, _ = editor.edit_dataset(records, verbose=False)
    assert len(metrics) == 4


@pytest.mark.parametrize("trainer", ["MultimodalTrainer", "DualEditTrainer"])
def test_trainer(family: str, trainer: str, tmp_path: Path) -> None:
    workplace = shared_workplace(family)
    # The release cannot put answers of unequal lengths into one batch.
    batch = 2 if HAS_MASTER else 1
    settings = workplace.training_settings(tmp_path / "results", batch_size=batch)
    hparams = DualEditMultimodalTrainingHparams.from_dict(settings)
    package = register().package
    records = package.VQADataset(str(workplace.records), config=hparams)
    found = getattr(package, trainer)(hparams, records, records)
    found.run()
    assert Path(found.save_path).is_file()


@pytest.mark.skipif(not HAS_MASTER, reason="a path is all that the release needs")
def test_a_short_name_and_a_folder_make_a_model() -> None:
    workplace = shared_workplace("llava")
    editor = editor_of(workplace, model_name="llava-1.5-7b", name=str(workplace.model))
    records = register().package.VQADataset(str(workplace.records), config=editor.hparams)
    metrics, _, _ = editor.edit_dataset(records, verbose=False)
    assert len(metrics) == 4


@pytest.mark.skipif(not HAS_MASTER, reason="the release has no other models")
@pytest.mark.parametrize("name", ["blip2", "minigpt4"])
def test_ports_that_cannot_be_built_name_what_can(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    if transformers.__version__.startswith("4."):
        pytest.skip("the ports can be built on transformers 4")
    with pytest.raises(ModelLoadError, match="Salesforce/blip2-opt-2.7b"):
        editor_of(shared_workplace("llava"), model_name=name, name=name)
