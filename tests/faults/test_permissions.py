"""Files and folders that may not be read or written are told in one line with exit code 2."""

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from killable import Killable
from workplace import PROGRESS, Workplace

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="root's rights differ elsewhere")

SAID = ("Permission denied", "is no folder to write in", "can be loaded from")
LOCKED, READ_ONLY = 0o000, 0o555


@dataclass(frozen=True)
class Case:
    """Something that has other permissions, and a command that needs it."""

    path: Callable[[Workplace], Path]
    line: Callable[[Workplace, Path], list[str]]
    mode: int = LOCKED


def edits(work: Workplace, action: str, folder: Path) -> list[str]:
    line: list[object] = ["edits", action, "--edits", folder]
    if action == "add":
        hparams = work.hparams(archive=str(work.adapters), gate={"kind": "cosine"})
        line += ["--hparams", hparams, "--prompt", "What?", "--target", "a"]
    return [str(each) for each in line]


def folder_of(work: Workplace) -> Path:
    path = work.folder / "given"
    path.mkdir(exist_ok=True)
    return path


def at(name: str) -> Callable[[Workplace], Path]:
    return lambda work: work.folder / name


def evaluate(work: Workplace, _: Path) -> list[str]:
    return work.evaluate("--limit", 1)


def edit(work: Workplace, _: Path) -> list[str]:
    return work.edit()


CASES = {
    "hyperparameters": Case(
        lambda work: work.hparams(archive=str(work.adapters)),
        lambda work, path: work.evaluate(hparams=path),
    ),
    "records": Case(at("data/data.json"), evaluate),
    "picture of a record": Case(at("data/0.png"), evaluate),
    "picture of an edit": Case(at("data/0.png"), edit),
    "folder of pictures": Case(at("data"), evaluate),
    "configuration of adapters": Case(at("adapters/config.json"), edit),
    "weights of adapters": Case(at("adapters/adapters.safetensors"), edit),
    "folder of adapters": Case(at("adapters"), edit),
    "configuration of a model": Case(at("model/config.json"), edit),
    "weights of a model": Case(at("model/model.safetensors"), edit),
    "folder of a model": Case(at("model"), edit),
    "output of an evaluation": Case(
        folder_of, lambda work, path: work.evaluate("--output", path), READ_ONLY
    ),
    "locked output": Case(folder_of, lambda work, path: work.evaluate("--output", path)),
    "output of a training": Case(
        folder_of, lambda work, path: work.train("--output", path), READ_ONLY
    ),
    "locked output of a training": Case(folder_of, lambda work, path: work.train("--output", path)),
    "folder for edits": Case(folder_of, lambda work, path: edits(work, "add", path), READ_ONLY),
    "locked folder of edits": Case(folder_of, lambda work, path: edits(work, "add", path)),
    "folder of edits to list": Case(folder_of, lambda work, path: edits(work, "list", path)),
    "output of the demo": Case(
        folder_of, lambda _, path: ["demo", "--count", "1", "--output", str(path)], READ_ONLY
    ),
}


@pytest.fixture
def own(work: Workplace, trained: Path) -> Workplace:
    """A workplace whose model and adapters are copies, not shared."""
    for name in ("model", "adapters"):
        (work.folder / name).unlink()
        shutil.copytree(trained / name, work.folder / name)
    return work


@pytest.fixture
def restricted() -> Iterator[Callable[[Path, int], None]]:
    """Return what changes permissions, which come back at the end."""
    changed: dict[Path, int] = {}

    def change(path: Path, mode: int) -> None:
        changed[path] = path.stat().st_mode
        path.chmod(mode)

    yield change
    for path, mode in changed.items():
        path.chmod(mode)


@pytest.mark.parametrize("name", CASES)
def test_missing_permissions_are_one_line(
    own: Workplace, killable: Killable, restricted: Callable[[Path, int], None], name: str
):
    case = CASES[name]
    path = case.path(own)
    line = case.line(own, path)
    restricted(path, case.mode)
    ended = killable.run(line, privileged=False)
    told = [each for each in PROGRESS.sub("", ended.said).splitlines() if each.startswith("error")]
    assert ended.code == 2 and len(told) == 1, ended.said
    assert any(each in told[0] for each in SAID), told
    assert "Traceback" not in ended.said and "is not known to fail so" not in ended.said
