"""A folder with a saved tiny model, data and hyperparameters, and calls of the command line."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_data import write_data
from tiny_models import tiny_llava
from tokenizers import normalizers

from easyedit_dualedit.commands import parser as cli

PROGRESS = re.compile(r"[^\r\n]*\d+%\|[^\r\n]*")
"""A progress bar; those that ran before a mistake was found may stay on the screen."""

# Targets are those of the records, so that it is known which were seen in training.
SHORT = {
    **{"lr": 0.01, "batch_size": 4, "gate_steps": 10},
    **{"augment_targets": 0.0, "text_only": 0.0},
}
"""Of a training: nothing here asks for a good gate, which takes 1,500 steps by default."""

INVISIBLE = "\u200b"
"""Text for Python, nothing for the tokenizer of the tiny model that these tests save."""


@dataclass(frozen=True)
class Workplace:
    """A folder with a saved model, data and hyperparameters."""

    folder: Path

    @classmethod
    def beside(cls, trained: Path, folder: Path) -> "Workplace":
        """Return one in a folder of its own, the model and the adapters of another linked in."""
        for name in ("model", "adapters"):
            (folder / name).symlink_to(trained / name)
        write_data(folder / "data")
        return cls(folder)

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def images(self) -> Path:
        return self.folder / "data"

    @property
    def data(self) -> Path:
        return self.images / "data.json"

    @property
    def adapters(self) -> Path:
        return self.folder / "adapters"

    def hparams(self, **changes: Any) -> Path:
        """Return a new file of hyperparameters; a change to None leaves the key out."""
        values = {
            "alg_name": "DualEdit",
            "model_name": str(self.model),
            "device": "cpu",
            "text_layer": 1,
            "vision_layer": 2,
            "width": 16,
            "heads": 2,
        }
        values = {k: v for k, v in (values | changes).items() if v is not None}
        path = self.folder / f"hparams-{len(list(self.folder.glob('hparams-*')))}.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    def rewrite(self, action: Callable[[list[Any]], Any]) -> None:
        """Change the items of the data file."""
        items = json.loads(self.data.read_text(encoding="utf-8"))
        action(items)
        self.data.write_text(json.dumps(items), encoding="utf-8")

    def train(self, *options: object, hparams: Path | None = None, **changes: Any) -> list[str]:
        hparams = hparams or self.hparams(**SHORT | changes)
        arguments = ["train", "--hparams", hparams, "--data", self.data, "--images", self.images]
        arguments += ["--output", self.adapters, "--steps", 4, *options]
        return [str(argument) for argument in arguments]

    def evaluate(self, *options: object, hparams: Path | None = None, **changes: Any) -> list[str]:
        hparams = hparams or self.hparams(**{"archive": str(self.adapters)} | changes)
        arguments = ["evaluate", "--hparams", hparams, "--data", self.data]
        arguments += ["--images", self.images, "--output", self.folder / "outputs", *options]
        return [str(argument) for argument in arguments]

    def locate(self, *options: object, hparams: Path | None = None) -> list[str]:
        hparams = hparams or self.hparams(**SHORT)
        arguments = ["locate", "--hparams", hparams, "--data", self.data, "--images", self.images]
        arguments += ["--output", self.folder / "outputs", "--draws", 1, *options]
        return [str(argument) for argument in arguments]

    def ablate(self, *options: object, hparams: Path | None = None) -> list[str]:
        hparams = hparams or self.hparams(**SHORT)
        arguments = ["ablate", "--hparams", hparams, "--data", self.data, "--images", self.images]
        arguments += ["--measured", self.data, "--count", 2, "--steps", 2]
        arguments += ["--output", self.folder / "outputs", *options]
        return [str(argument) for argument in arguments]

    def edit(
        self,
        *options: object,
        prompt: str = "What colour is circle 0?",
        target: str = "green",
        image: Path | None = None,
        **changes: Any,
    ) -> list[str]:
        hparams = self.hparams(**{"archive": str(self.adapters)} | changes)
        arguments = ["edit", "--hparams", hparams, "--image", image or self.images / "0.png"]
        arguments += ["--prompt", prompt, "--target", target, *options]
        return [str(argument) for argument in arguments]


@dataclass
class Called:
    """What came of a call of the command line."""

    code: int
    out: str
    err: str = field(repr=False)

    @property
    def error(self) -> str:
        """The one line of the error stream, without progress bars."""
        lines = [line for line in PROGRESS.sub("", self.err).splitlines() if line.strip()]
        assert self.code == 2, f"exit code {self.code}: {lines}"
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: "), lines
        assert self.out == ""
        return lines[0]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a saved tiny LLaVA and adapters that were trained for it by the command."""
    folder = tmp_path_factory.mktemp("trained")
    tiny = tiny_llava()
    tiny.processor.tokenizer.backend_tokenizer.normalizer = normalizers.Replace(INVISIBLE, "")
    tiny.save(folder / "model")
    write_data(folder / "data")
    assert cli.main(Workplace(folder).train()) == 0
    return folder


@pytest.fixture
def work(trained: Path, tmp_path: Path) -> Workplace:
    """A workplace of the test's own, with the shared model and adapters linked into it."""
    return Workplace.beside(trained, tmp_path)


@contextmanager
def _own_output(arguments: list[str]) -> Iterator[None]:
    """Let a training write adapters of its own where those of all tests are linked in."""
    given = dict(zip(arguments, arguments[1:], strict=False))
    output = Path(given.get("--output", ""))
    if arguments[:1] != ["train"] or "--archive" in given or not output.is_symlink():
        yield
        return
    shared = output.readlink()
    output.unlink()
    try:
        yield
    finally:
        if not output.exists():
            output.symlink_to(shared)


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[[list[str]], Called]:
    """Return a function that calls the command line and says what came of it."""

    def run(arguments: list[str]) -> Called:
        capfd.readouterr()
        try:
            with _own_output(arguments):
                code = cli.main(arguments)
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        captured = capfd.readouterr()
        return Called(code, captured.out, captured.err)

    return run


# What works
