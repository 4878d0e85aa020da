"""EasyEdit's editor, datasets and trainers on every family, known to it or not."""

from pathlib import Path

import pytest
from easyedit_fixtures import HAS_MASTER, needs_easyedit, shared_workplace
from easyedit_runs import dataset_of, editor_of, trained
from tiny_editors import hooks_of_ours
from tiny_families import FAMILIES

from easyedit_dualedit.errors import ModelLoadError

pytestmark = [needs_easyedit, pytest.mark.usefixtures("host", "elsewhere")]


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """Every family."""
    return str(request.param)


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
    records = dataset_of(workplace, editor.hparams)
    metrics, _, _ = editor.edit_dataset(records, verbose=False)
    assert len(metrics) == 4


@pytest.mark.parametrize("trainer", ["MultimodalTrainer", "DualEditTrainer"])
def test_trainer(family: str, trainer: str, tmp_path: Path) -> None:
    workplace = shared_workplace(family)
    # The release cannot put answers of unequal lengths into one batch.
    batch = 2 if HAS_MASTER else 1
    made = trained(
        workplace,
        tmp_path / "results",
        trainer,
        batch_size=batch,
        max_iters=4,
        val_interval=2,
        val_steps=1,
        gate_steps=4,
    )
    assert Path(made.save_path).is_file()


@pytest.mark.skipif(not HAS_MASTER, reason="a path is all that the release needs")
def test_a_short_name_and_a_folder_make_a_model() -> None:
    workplace = shared_workplace("llava")
    editor = editor_of(workplace, model_name="llava-1.5-7b", name=str(workplace.model))
    records = dataset_of(workplace, editor.hparams)
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
