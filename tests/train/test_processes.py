"""Several processes train as one does."""

import json
import os
import socket
from pathlib import Path

import pytest
import torch
from forked import forkserver_method
from tiny_data import fast, step_losses, write_data
from tiny_models import tiny_llava
from torch import distributed, multiprocessing, nn

from easyedit_dualedit.data.records import load_records
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.method.config import DualEditConfig
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.processes import Processes, joined
from easyedit_dualedit.train.plain_step import plain_losses
from easyedit_dualedit.train.trainer import train

STEPS = 3
CONFIG = DualEditConfig.from_dict({"text_layer": 1, "vision_layer": 2, "width": 16, "heads": 4})


def run(folder: Path) -> None:
    """Train, and write what came of it to a file of this process."""
    torch.manual_seed(0)
    tiny = tiny_llava()
    records = load_records(folder / "data.json", folder)
    processes = Processes.current()
    losses = []
    for steps in range(1, STEPS + 1):
        # Anew each time, so that the losses are those of every step of one training.
        torch.manual_seed(1)
        editor = DualEditor(tiny.model, tiny.processor, CONFIG)
        settings = fast(steps=steps, batch_size=3, gate_steps=5, gradient_clip=1.0)
        path = folder / f"{processes.count}-{steps}.pt"
        train(editor, records, settings, checkpoint=path, progress=False)
        for found in (step_losses, plain_losses):
            part = found(editor, processes.share(records), settings, processes)
            losses.append([part.by_metric, part.accuracy])
    weights = {name: value.tolist() for name, value in editor.adapters.state_dict().items()}
    thresholds = editor.gate.state_dict()["thresholds"].tolist()
    found = {"losses": losses, "weights": weights, "thresholds": thresholds}
    target = folder / f"found-{processes.count}-{processes.place}.json"
    target.write_text(json.dumps(found), encoding="utf-8")


def work(place: int, folder: str, port: int) -> None:
    """Do what one of two processes does that torchrun has started."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(place), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with joined(cpu=True) as (processes, device):
        assert processes == Processes(place, 2) and device is None
        first_alone, nobody = (nn.Parameter(torch.zeros(2)) for _ in range(2))
        if place == 0:
            first_alone.grad = torch.ones(2)
        processes.add_gradients(iter([nobody, first_alone]))
        assert nobody.grad is None, "an optimiser would move it by what it did before"
        assert first_alone.grad is not None and first_alone.grad.tolist() == [1.0, 1.0]
        run(Path(folder))
    assert not distributed.is_initialized()


def test_two_processes_train_as_one(tmp_path: Path):
    write_data(tmp_path, 6)
    run(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = {"nprocs": 2, "start_method": forkserver_method()}
    multiprocessing.start_processes(work, (str(tmp_path), port), **started)
    one, first, second = (
        json.loads((tmp_path / f"found-{name}.json").read_text(encoding="utf-8"))
        for name in ("1-0", "2-0", "2-1")
    )
    assert first == second
    for alone, together in zip(one["losses"], first["losses"], strict=True):
        for own, other in zip(alone, together, strict=True):
            assert own == pytest.approx(other, rel=1e-5, abs=1e-7)
    for name, value in one["weights"].items():
        if name.endswith("key.bias"):
            continue  # softmax does not see it: its gradient is rounding, and Adam's step that
        torch.testing.assert_close(
            torch.tensor(first["weights"][name]), torch.tensor(value), rtol=1e-4, atol=1e-5
        )
    assert first["thresholds"] == pytest.approx(one["thresholds"], rel=1e-4)


def test_a_batch_has_a_record_for_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tiny = tiny_llava()
    editor = DualEditor(tiny.model, tiny.processor, CONFIG)
    records = load_records(write_data(tmp_path), tmp_path)
    monkeypatch.setattr(Processes, "current", classmethod(lambda cls: cls(0, 5)))
    with pytest.raises(DataError, match="no record for each of 5 processes"):
        train(editor, records, fast(batch_size=4), progress=False)


def test_alone_nothing_is_joined(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined(cpu=True) as (processes, device):
        assert processes == Processes(0, 1) and processes.is_first
        assert not distributed.is_initialized()
        assert processes.share([1, 2, 3]) == [1, 2, 3]


def test_every_item_is_one_process_s():
    items = list(range(7))
    shares = [Processes(place, 3).share(items) for place in range(3)]
    assert sorted(item for share in shares for item in share) == items
