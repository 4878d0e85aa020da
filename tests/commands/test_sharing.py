"""Push and pull: what travels, what the card says and that its snippet runs, what is told."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from hub_server import TOKEN, Hub, Repository, hub_server
from workplace import Workplace

from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.loading import load_model
from easyedit_dualedit.testbed import adapters_folder

NAME = "someone/testbed-adapters"
FILES = {"README.md", "config.json", "adapters.safetensors"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, that huggingface_hub talks to over HTTP, logged in."""
    with hub_server() as made:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", made.address)
        files = f"{made.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield made


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Adapters of the testbed, with what must not travel beside them."""
    folder = tmp_path / "mine"
    shutil.copytree(adapters_folder("default"), folder)
    (folder / "training.pt").write_bytes(b"a checkpoint")
    (folder / "picture.png").write_bytes(b"a picture")
    return folder


def push(folder: Path, *options: object) -> list[str]:
    return ["push", str(folder), NAME, "--base-model", "testbed", *map(str, options)]


def test_what_is_pushed_can_be_pulled_and_loaded_by_name(
    hub: Hub, mine: Path, tmp_path: Path, call: Any
):
    called = call(push(mine, "--private", "--message", "first adapters"))
    assert called.code == 0, called.err
    there = hub.repositories[NAME]
    assert set(there.files) - {".gitattributes"} == FILES
    assert there.private and there.messages[-1] == "first adapters"
    for name in FILES - {"README.md"}:
        assert there.files[name] == (mine / name).read_bytes()

    output = tmp_path / "pulled"
    called = call(["pull", NAME, "--output", str(output)])
    assert called.code == 0, called.err
    assert {path.name for path in output.iterdir()} == FILES
    assert not list(tmp_path.glob(".pulled*"))
    assert (output / "adapters.safetensors").read_bytes() == there.files["adapters.safetensors"]
    assert "there already" in call(["pull", NAME, "--output", str(output)]).error
    assert call(["pull", NAME, "--output", str(output), "--fresh"]).code == 0
    assert {path.name for path in output.iterdir()} == FILES
    assert not list(tmp_path.glob(".pulled*"))


def test_the_cards_snippet_runs_as_it_is(hub: Hub, mine: Path, call: Any):
    assert call(push(mine)).code == 0
    card = hub.repositories[NAME].files["README.md"].decode()
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    values: dict[str, Any] = {}
    exec(compile(snippet, "card", "exec"), values)
    assert values["answer"].shape[0] == 1
    assert NAME in snippet


def test_every_command_takes_a_name_and_so_does_the_editor(
    hub: Hub, work: Workplace, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
):
    base = ["--base-model", "someone/model"]
    assert call(["push", str(work.adapters), NAME, *base]).code == 0
    # No folder of that name may be in the way.
    monkeypatch.chdir(tmp_path)
    called = call(work.edit(archive=NAME))
    assert called.code == 0, called.err
    model, processor = load_model(str(work.model))
    loaded = DualEditor.load(model, processor, NAME)
    own = DualEditor.load(model, processor, work.adapters)
    assert loaded.config == own.config
    asked = len(hub.requests)
    assert "there is nothing" in call(work.edit(archive="adapters/not-there")).error
    assert len(hub.requests) == asked  # a folder of ours is never asked of the hub
    card = hub.repositories[NAME].files["README.md"].decode()
    data = yaml.safe_load(card.split("---")[1])
    assert data["base_model"] == "someone/model"
    # What training left beside the adapters.
    assert "## Recipe" in card and "`batch_size` | 4" in card and "Trained on" in card
    assert str(tmp_path) not in card


def test_the_card_has_numbers_of_a_run(hub: Hub, work: Workplace, call: Any):
    called = call(work.evaluate())
    assert called.code == 0, called.err
    results = work.folder / "outputs" / "evaluate"
    options = ["--base-model", "someone/model", "--license", "mit", "--results", str(results)]
    called = call(["push", str(work.adapters), NAME, *options])
    assert called.code == 0, called.err
    card = hub.repositories[NAME].files["README.md"].decode()
    data = yaml.safe_load(card.split("---")[1])
    assert data["license"] == "mit" and data["library_name"] == "easyedit-dualedit"
    assert "knowledge-editing" in data["tags"]
    (model,) = data["model-index"]
    names = [metric["name"] for each in model["results"] for metric in each["metrics"]]
    assert names == ["average, visedit", "average, generate"]
    assert "### generate" in card and "| DualEdit |" in card


def test_edits_are_shared_too(hub: Hub, tmp_path: Path, call: Any):
    edits = tmp_path / "edits"
    given = ["--prompt", "What is the capital of Zorland?", "--target", "Rome"]
    called = call(["edits", "add", "--edits", str(edits), *given])
    assert called.code == 0, called.err
    called = call(["push", str(edits), NAME, "--base-model", "testbed"])
    assert called.code == 0, called.err
    card = hub.repositories[NAME].files["README.md"].decode()
    assert "# 1 edit of" in card and "What is the capital of Zorland?" in card
    assert set(hub.repositories[NAME].files) >= {"edits.json", "edits.safetensors"}
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(compile(snippet, "card", "exec"), {})
    assert call(["pull", NAME, "--output", str(tmp_path / "pulled")]).code == 0


def test_a_card_of_ones_own_is_sent_and_more_files_only_if_asked_for(
    hub: Hub, mine: Path, call: Any
):
    (mine / "README.md").write_text("---\nlicense: mit\n---\nmy own\n")
    refused = call(push(mine, "--license", "mit"))
    assert refused.code == 2
    assert "sent as it is, without --base-model, --license: leave that out" in refused.error
    as_it_is = ["push", str(mine), NAME]
    assert call([*as_it_is, "--include", "*.png", "--revision", "v2"]).code == 0
    there = hub.repositories[NAME]
    files = there.commits[there.branches["v2"]]
    assert set(files) - {".gitattributes"} == FILES | {"picture.png"}
    assert b"my own" in files["README.md"]
    assert "fits no file" in call(push(mine, "--include", "*.gif")).error
    (mine / "a[1].txt").write_text("mine")
    assert call([*as_it_is, "--include", "*.txt", "--revision", "v3"]).code == 0
    assert "a[1].txt" in there.commits[there.branches["v3"]]
    (mine / "README.md").write_bytes(b"caf\xe9")
    assert "README.md is no UTF-8" in call([*as_it_is, "--dry-run"]).error


def test_nothing_is_sent_that_is_damaged_or_only_shown(hub: Hub, mine: Path, call: Any):
    called = call(push(mine, "--dry-run"))
    assert called.code == 0 and "library_name: easyedit-dualedit" in called.out
    (mine / "adapters.safetensors").write_bytes(b"damaged")
    assert "damaged" in call(push(mine)).error
    assert "neither adapters" in call(push(mine.parent)).error
    (mine / "edits.json").write_text("{}")
    assert "holds adapters and edits" in call(push(mine)).error
    assert not hub.requests


def test_a_pull_that_fails_changes_nothing(hub: Hub, mine: Path, tmp_path: Path, call: Any):
    assert call(push(mine)).code == 0
    output = tmp_path / "pulled"
    assert call(["pull", NAME, "--output", str(output)]).code == 0
    before = (output / "adapters.safetensors").read_bytes()
    there = hub.repositories[NAME]
    there.add("main", {"adapters.safetensors": b"damaged"}, "damaged")
    assert "damaged" in call(["pull", NAME, "--output", str(output), "--fresh"]).error
    assert (output / "adapters.safetensors").read_bytes() == before
    there.add("empty", {}, "nothing")
    there.commits[there.branches["empty"]] = {".gitattributes": b""}
    other = ["--output", str(tmp_path / "other"), "--revision", "empty"]
    called = call(["pull", NAME, *other])
    assert called.code == 2 and "neither adapters" in called.err
    assert not (tmp_path / "other").exists()
    (output / "mine.txt").write_text("mine")
    assert "mine.txt" in call(["pull", NAME, "--output", str(output), "--fresh"]).error


def test_nothing_is_pulled_over_the_current_folder(
    tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert "is the current folder" in call(["pull", NAME, "--output", "."]).error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nobody/nothing", "the hub has none of this name"),
        ("someone/gated", "ask for access"),
        ("someone/private", "or it is private"),
        ("no-name", "give USER/NAME"),
        ("two//slashes", "give USER/NAME"),
    ],
)
def test_what_the_hub_does_not_give_is_told_in_one_line(
    hub: Hub, name: str, told: str, call: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    hub.repositories |= {
        "someone/gated": Repository(gated=True),
        "someone/private": Repository(private=True),
    }
    assert told in call(["pull", name]).error


def test_other_mistakes_are_told_in_one_line(
    hub: Hub, mine: Path, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
):
    assert not hub.repositories
    assert "no hub id" in call(["push", str(mine), NAME, "--base-model", str(mine)]).error
    assert "nothing says which model" in call(["push", str(mine), NAME]).error
    assert call(push(mine)).code == 0
    pull = ["pull", NAME, "--output", str(tmp_path / "pulled")]
    assert "no such revision" in call([*pull, "--revision", "v9"]).error
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    assert "may not write" in call(push(mine)).error
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    missing = ["pull", "someone/else", "--output", str(tmp_path / "pulled")]
    assert "cannot be reached" in call(missing).error
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in call(missing).error
    assert not (tmp_path / "pulled").exists()
