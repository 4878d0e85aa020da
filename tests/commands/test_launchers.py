"""Commands under launchers: processes share the records, and what comes of it is one run's."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import started
from tiny_data import write_data
from workplace import Workplace

from easyedit_dualedit.commands import parser as cli
from easyedit_dualedit.commands.launchers import with_precision
from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.method.archive import Archive
from easyedit_dualedit.train.config import TrainingConfig

MAIN = Path(__file__).parents[2] / "run_multimodal_edit.py"


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def work_as(place: int, port: str, arguments: list[str], output: str) -> None:
    """Do what one of two launched processes does."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(place), "LOCAL_RANK": str(place), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.exit(cli.main(arguments))


def both(arguments: list[str], folder: Path) -> list[str]:
    """Return what each of two launched processes prints."""
    port, outputs = free_port(), [folder / f"printed-{place}" for place in range(2)]
    processes = [
        started(work_as, place, port, arguments, str(output))
        for place, output in enumerate(outputs)
    ]
    for process in processes:
        process.join(300)
    texts = [output.read_text() for output in outputs]
    assert [process.exitcode for process in processes] == [0, 0], texts
    return texts


def cases_of(folder: Path) -> dict[str, Any]:
    """Return every case below a folder, without what a clock said."""
    cases = {}
    for path in sorted(folder.glob("**/cases/**/*.json")):
        case = json.loads(path.read_text())
        case.pop("seconds", None)
        cases[str(path.relative_to(folder))] = case
    return cases


def test_evaluate_is_shared(work: Workplace, call: Any):
    write_data(work.images, 12)  # two batches
    alone = call(work.evaluate("--name", "alone"))
    assert alone.code == 0, alone.err
    first, second = both(work.evaluate("--name", "shared"), work.folder)
    runs = work.folder / "outputs"
    assert cases_of(runs / "shared") == cases_of(runs / "alone")
    metrics = [(runs / name / "metrics.json").read_text() for name in ("alone", "shared")]
    assert metrics[0] == metrics[1]
    assert "written:" in first and "written:" not in second
    assert json.loads((runs / "shared" / "run.json").read_text())["records"] == 12


def test_many_is_shared(work: Workplace, call: Any):
    options = ["many", "--hparams", work.hparams(archive=str(work.adapters))]
    options += ["--data", work.data, "--images", work.images, "--limit", 4, "--counts", 1, 4]
    options += ["--methods", "dualedit", "--output", work.folder / "outputs", "--name"]
    arguments = [str(option) for option in options]
    done = call([*arguments, "alone"])
    assert done.code == 0, done.err
    both([*arguments, "shared"], work.folder)
    runs = work.folder / "outputs"
    own, shared = cases_of(runs / "alone"), cases_of(runs / "shared")
    assert own.keys() == shared.keys()
    for name, case in own.items():
        assert shared[name].get("values") == case.get("values"), name


def test_benchmark_is_shared(work: Workplace, call: Any):
    options = ["benchmark", "--hparams", work.hparams(archive=str(work.adapters))]
    options += ["--data", work.data, "--images", work.images, "--limit", 3]
    options += ["--methods", "dualedit", "--output", work.folder / "outputs", "--name"]
    arguments = [str(option) for option in options]
    done = call([*arguments, "alone"])
    assert done.code == 0, done.err
    first, second = both([*arguments, "shared"], work.folder)
    runs = work.folder / "outputs"
    own, shared = cases_of(runs / "alone"), cases_of(runs / "shared")
    assert len(own) >= 6 and own.keys() == shared.keys()
    for name, case in own.items():
        assert shared[name]["values"] == case["values"], name
    assert (runs / "shared" / "results.csv").is_file()
    assert "DualEdit" in first and "DualEdit" not in second


def test_files_of_another_machine_are_brought_together(tmp_path: Path):
    both_write = [
        started(apart, place, port, str(tmp_path)) for port in [free_port()] for place in (0, 1)
    ]
    for process in both_write:
        process.join(120)
    assert [process.exitcode for process in both_write] == [0, 0]
    cases = tmp_path / "0" / "cases"
    assert {path.name: json.loads(path.read_text())["place"] for path in cases.iterdir()} == {
        "0.json": 0,
        "1.json": 1,
        "made by 1.json": 1,
        "made by 0.json": 0,
    }
    assert not (tmp_path / "1" / "cases" / "0.json").exists()


def apart(place: int, port: str, folder: str) -> None:
    """Write a file where the other process does not see it."""
    from easyedit_dualedit.processes import joined

    os.environ |= {"RANK": str(place), "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    own = Path(folder) / str(place)
    (own / "cases").mkdir(parents=True)
    # The last two are there from before on both, and one of them has made its own anew.
    for name in (f"{place}.json", "made by 0.json", "made by 1.json"):
        (own / "cases" / name).write_text(json.dumps({"place": place}))
    with joined(cpu=True) as (processes, _):
        processes.bring_together(own, "cases/*.json", [f"cases/made by {place}.json"])


def test_the_precision_of_accelerate_is_taken(monkeypatch: pytest.MonkeyPatch):
    config = TrainingConfig()
    assert with_precision(config) == config
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert with_precision(config).autocast == "bfloat16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ConfigError, match="--mixed_precision fp16"):
        with_precision(config)


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc_per_node", "2"],
    # The command `accelerate launch` is this module.
    "accelerate launch": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_real_launchers_train_and_evaluate(
    launcher: str, work: Workplace, call: Any, pytestconfig: pytest.Config
):
    if not pytestconfig.getoption("--launchers"):
        pytest.skip("takes a minute; --launchers runs it")
    assert call(work.train("--output", work.folder / "alone", "--validation", 2)).code == 0
    options = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    ports = {"torchrun": "--master_port", "accelerate launch": "--main_process_port"}
    start = [sys.executable, "-m", *LAUNCHERS[launcher], ports[launcher], free_port()]
    start += options if launcher != "torchrun" else []
    out = work.folder / "together"
    for arguments in (
        work.train("--output", out, "--validation", 2),
        work.evaluate("--archive", out, "--name", "together"),
    ):
        done = subprocess.run([*start, str(MAIN), *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    one, two = (Archive.load(folder).tensors for folder in (work.folder / "alone", out))
    for name, value in one.items():
        if not name.endswith("key.bias"):  # its gradient is rounding
            torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4, equal_nan=True)
    assert len(cases_of(work.folder / "outputs" / "together")) == 8
