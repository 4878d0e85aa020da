"""The command `app`: which model it shows, and what it says where Gradio is missing."""

import socket
from pathlib import Path
from typing import Any

import pytest
from workplace import Called

from easyedit_dualedit.app import extra
from easyedit_dualedit.commands import editors
from easyedit_dualedit.testbed.emoji import places


def test_without_gradio_it_says_which_extra_to_install(call: Any, monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(extra, "import_module", missing)
    monkeypatch.setattr(editors, "editor_of", lambda _: pytest.fail("loaded a model"))
    called: Called = call(["app"])
    assert 'pip install "easyedit-dualedit[app]"' in called.error


@pytest.mark.parametrize("has_emoji", [False, True])
def test_it_shows_the_emoji_model_where_that_is(
    call: Any, monkeypatch: pytest.MonkeyPatch, has_emoji: bool
):
    seen: list[str] = []

    def stop(hparams: Any) -> None:
        seen.append(Path(hparams.model_name).name)
        raise KeyboardInterrupt

    monkeypatch.setattr(extra, "import_module", lambda _: None)
    monkeypatch.setattr(places, "has_model", lambda: has_emoji)
    monkeypatch.setattr(editors, "editor_of", stop)
    called: Called = call(["app"])
    assert called.code == 130 and "edits made on the page are kept" in called.err
    assert seen == ["llava-onevision-emoji" if has_emoji else "llava-onevision-testbed"]


def test_edits_that_are_not_there_are_told_before_a_model_is_loaded(
    call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(extra, "import_module", lambda _: None)
    monkeypatch.setattr(editors, "editor_of", lambda _: pytest.fail("loaded a model"))
    called: Called = call(["app", "--edits", str(tmp_path / "none")])
    assert "none" in called.error


@pytest.mark.parametrize("port", ["70000", "taken"])
def test_an_address_that_cannot_be_had_is_told_before_a_model_is_loaded(
    call: Any, monkeypatch: pytest.MonkeyPatch, port: str
):
    monkeypatch.setattr(extra, "import_module", lambda _: None)
    monkeypatch.setattr(editors, "editor_of", lambda _: pytest.fail("loaded a model"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = str(server.getsockname()[1]) if port == "taken" else port
        called: Called = call(["app", "--port", number])
    assert f"nothing can listen at 127.0.0.1, port {number}" in called.error


def test_a_host_that_is_not_this_machine_is_told_before_a_model_is_loaded(
    call: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(extra, "import_module", lambda _: None)
    monkeypatch.setattr(editors, "editor_of", lambda _: pytest.fail("loaded a model"))
    # An address of the block that is kept for examples, which no machine has.
    called: Called = call(["app", "--host", "192.0.2.1"])
    assert "nothing can listen at 192.0.2.1" in called.error


def test_sessions_that_cannot_be_kept_are_told_before_a_model_is_loaded(
    call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(extra, "import_module", lambda _: None)
    monkeypatch.setattr(editors, "editor_of", lambda _: pytest.fail("loaded a model"))
    (tmp_path / "file").touch()
    called: Called = call(["app", "--sessions", str(tmp_path / "file")])
    assert "file is no folder to write in" in called.error
