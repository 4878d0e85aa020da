"""The command `app`: which model it shows, and what it says where Gradio is missing."""

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
