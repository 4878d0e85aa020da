"""Code of README and guide: Python runs, shell, JSON and YAML are read.

Blocks of a page go on from one another, as a reader would run them. Those that name a model that
would have to be downloaded run on the testbed, by the table below.
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from easyedit_fixtures import HAS_MASTER, HAS_RELEASE
from markdown_pages import GUIDE, PAGES, README, ROOT, Block, blocks_of, name_of

from easyedit_dualedit.method.config import gate_from
from easyedit_dualedit.model.families import BackboneConfig
from easyedit_dualedit.plugin import unregister
from easyedit_dualedit.testbed import adapters_folder, model_folder, write_records

LARGE_MODEL = '"llava-hf/llava-1.5-7b-hf", device="cuda:0", dtype=torch.bfloat16'

SUBSTITUTES = {
    LARGE_MODEL: f'"{model_folder()}"',
    '"USER/NAME"': f'"{adapters_folder("default")}"',  # test_sharing.py has a hub
}
"""What stands in a page -> what is run in its place."""

ADAPTERS = "adapters/mine"
"""The testbed's adapters, under the name of those that a page supposes to be trained."""

PICTURES = {"photo.jpg": 15, "street.jpg": 3}
"""A page's picture -> the testbed's record whose picture it is."""

SHORT_TRAINING = {
    "batch_size": 1,
    "max_iters": 8,
    "val_interval": 4,
    "val_steps": 1,
    "log_interval": 4,
    "gate_steps": 10,
}
"""What a training of a page is shortened to."""

NOT_RUN, MASTER_ONLY = "not run:", "master only:"
"""Markers above a block, each followed by the reason."""

ALL_BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def in_language(*languages: str) -> Any:
    """Return a parametrisation over the blocks of a language."""
    chosen = [block for block in ALL_BLOCKS if block.language in languages]
    return pytest.mark.parametrize("block", chosen, ids=lambda block: block.place)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The testbed's records, as the main job writes them."""
    folder = tmp_path_factory.mktemp("records")
    write_records(folder, "vqa", "eval", 16)
    write_records(folder, "vqa", "train", 8)
    return folder


@pytest.fixture
def _workplace(records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A reader's current folder: a clone after the main job, with the files that pages name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "demo").mkdir(parents=True)
    (tmp_path / "outputs" / "demo" / "data").symlink_to(records)
    (tmp_path / ADAPTERS).parent.mkdir()
    (tmp_path / ADAPTERS).symlink_to(adapters_folder("default"))
    for name, number in PICTURES.items():
        shutil.copy(records / "images" / "vqa_eval" / f"{number:06d}.png", tmp_path / name)
    for name in ("vqa_train.json", "vqa_eval.json"):
        shutil.copy(records / name, tmp_path / name)
    write_short_hparams(tmp_path / "hparams", records / "images")
    yield
    unregister()


def write_short_hparams(folder: Path, images: Path) -> None:
    """Write the clone's hyperparameters, with a short training of the testbed as LLaVA's."""
    shutil.copytree(ROOT / "hparams", folder)
    values = yaml.safe_load((folder / "TRAINING/DualEdit/testbed.yaml").read_text())
    values |= SHORT_TRAINING | {"coco_image": str(images), "rephrase_image": str(images)}
    (folder / "TRAINING/DualEdit/llava-1.5-7b.yaml").write_text(yaml.safe_dump(values))


def runnable(page: Path) -> list[Block]:
    """Return the Python blocks of a page that can run here."""
    kept = [block for block in blocks_of(page) if block.language == "python"]
    kept = [block for block in kept if not block.marker.startswith(NOT_RUN)]
    return [block for block in kept if HAS_MASTER or not block.marker.startswith(MASTER_ONLY)]


def readme_shows(seen: dict[str, Any], printed: str) -> None:
    assert printed.splitlines()[0].endswith("square']")
    assert seen["edited"].base_model is seen["model"]
    if "metrics" in seen:
        assert seen["metrics"][0]["post"]["rephrase_acc"] == 1
        assert seen["metrics"][0]["pre"]["rephrase_acc"] == 0


def easyedit_shows(seen: dict[str, Any], printed: str) -> None:
    assert "\nsquare\n" in printed  # what the edited model generates
    assert (Path("results") / "models" / "DualEdit").is_dir()
    assert len(seen["edited_model"].edits) == (2 if HAS_MASTER else 1)


def many_edits_shows(seen: dict[str, Any], _: str) -> None:
    [left] = seen["memory"]
    assert (left.id, left.provenance.target) == (seen["ids"][1], "Lisbon")


def quickstart_shows(seen: dict[str, Any], printed: str) -> None:
    assert printed.splitlines()[0].endswith("-> top left")
    assert seen["routing"].is_open.tolist() == [True, False]
    assert all(check.takes for check in seen["checks"]) and len(seen["memory"]) == 10
    assert (Path("my-edits") / "edits.json").is_file()


SHOWN: dict[str, Callable[[dict[str, Any], str], None]] = {
    "README.md": readme_shows,
    "docs/guide/easyedit.md": easyedit_shows,
    "docs/guide/many_edits.md": many_edits_shows,
    "docs/guide/quickstart.md": quickstart_shows,
}
"""What has to be true after the blocks of a page have run, beyond that they did."""


@pytest.mark.usefixtures("_workplace")
@pytest.mark.parametrize("page", [page for page in (README, *GUIDE) if runnable(page)], ids=name_of)
def test_python_blocks_run(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: dict[str, Any] = {"__name__": "__main__"}
    left_out = False
    for block in runnable(page):
        if "easyeditor" in block.text and not (HAS_MASTER or HAS_RELEASE):
            left_out = True
            continue
        text = block.text
        for given, run in SUBSTITUTES.items():
            text = text.replace(given, run)
        exec(compile("\n" * (block.line - 1) + text, str(page), "exec"), seen)
    if name_of(page) in SHOWN and not (left_out and page is not README):
        SHOWN[name_of(page)](seen, capsys.readouterr().out)


def test_python_blocks_that_are_not_run_say_why():
    for block in ALL_BLOCKS:
        for marker in (NOT_RUN, MASTER_ONLY):
            if block.marker.startswith(marker):
                assert len(block.marker.removeprefix(marker).split()) >= 3, block.place


def test_substitutes_stand_in_a_page():
    code = "".join(block.text for block in ALL_BLOCKS if block.language == "python")
    assert all(given in code for given in (*SUBSTITUTES, ADAPTERS, *PICTURES))


@in_language("python")
def test_python_blocks_are_python(block: Block):
    compile(block.text, block.place, "exec")


@in_language("bash")
def test_shell_blocks_are_shell(block: Block):
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)


@in_language("json")
def test_json_blocks_are_records(block: Block):
    from easyedit_dualedit.data.records import FIELDS

    for record in json.loads(block.text):
        # ADS-Edit's say what they show, and no prediction.
        driving = "image_type" in record
        expected = {*FIELDS, "image_type"} - {"pred"} if driving else {*FIELDS}
        assert record.keys() == expected


@in_language("yaml")
def test_yaml_blocks_are_settings(block: Block):
    values = yaml.safe_load(block.text)
    assert values.keys() <= {"gate", "backbone"}
    gate_from(values.get("gate"))
    BackboneConfig.read(values.get("backbone"))


def test_blocks_name_their_language():
    bare = [block.place for block in ALL_BLOCKS if not block.language]
    assert not bare
