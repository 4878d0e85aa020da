"""EasyEdit's trainer with our losses, and its editor, on a pretended device."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from easyedit_fixtures import HAS_MASTER, needs_easyedit, shared_workplace
from easyedit_runs import editor_of, trained
from pretended_device import CAN_PRETEND, pretended_device

pytestmark = [
    needs_easyedit,
    pytest.mark.skipif(not CAN_PRETEND, reason="this torch has no devices in Python"),
    pytest.mark.usefixtures("host", "elsewhere"),
]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The device's name, which hyperparameters may give here: they know CPU and CUDA alone."""
    monkeypatch.setattr("easyedit_dualedit.plugin.edit_hparams.device_from", str)
    with pretended_device() as device:
        yield str(device)


# One family: EasyEdit's steps call ours, which other tests run on each.
def test_a_training_and_an_edit_by_its_archive(device: str, tmp_path: Path) -> None:
    workplace = shared_workplace("llava-onevision")
    settings = {"max_iters": 4, "val_interval": 2, "val_steps": 1, "gate_steps": 2}
    found = trained(workplace, tmp_path / "results", "DualEditTrainer", device=device, **settings)
    assert {str(each.device) for each in found.model.outer_parameters()} == {device}
    assert {str(each.device) for each in found.model.editor.state_dict().values()} == {device}
    editor = editor_of(workplace, found.save_path, device=device)
    metrics, edited, _ = editor.edit(**workplace.edit_arguments((0,), full=HAS_MASTER))
    assert str(edited.device) == device
    assert "rewrite_acc" in metrics[0]["post"]
