"""What the controls do, without a browser: messages, results and what is drawn anew."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from easyedit_dualedit.app.actions import Actions, trial_of
from easyedit_dualedit.app.results import edit_html
from easyedit_dualedit.app.session import Session
from easyedit_dualedit.app.sessions import Sessions
from easyedit_dualedit.app.shared_editor import SharedEditor
from easyedit_dualedit.app.trial import Trial
from easyedit_dualedit.method.edit_check import EditCheck
from easyedit_dualedit.method.edit_memory import EditMemory
from easyedit_dualedit.model.inputs import Query


@pytest.fixture
def actions(shared_editor: SharedEditor, examples: list[Trial], tmp_path: Path) -> Actions:
    return Actions(Sessions(shared_editor, tmp_path / "sessions"), examples)


@pytest.fixture
def key() -> str:
    return Sessions.new_key()


def test_who_comes_first_sees_an_example_and_who_comes_back_sees_their_own(
    actions: Actions, key: str, examples: list[Trial]
):
    first = actions.opened(key)
    assert first.trial == examples[0] and first.message == ""
    actions.edit(key, examples[1])
    again = actions.opened(key)
    assert again.trial is not None and again.trial.texts() == examples[1].texts()
    assert "1 edit," in again.message and again.list_changed
    assert again.results is not None and "gate open" in again.results


def test_without_examples_the_fields_are_empty(shared_editor: SharedEditor, tmp_path: Path):
    actions = Actions(Sessions(shared_editor, tmp_path), [])
    assert actions.opened(Sessions.new_key()).trial == Trial()


def test_an_edit_that_does_not_take_says_so_and_what_to_do(
    actions: Actions, key: str, examples: list[Trial], monkeypatch: pytest.MonkeyPatch
):
    def fails(_: EditMemory, request: Query) -> list[EditCheck]:
        return [EditCheck(request, "a zebra", 0.9, is_open=True)]

    monkeypatch.setattr(EditMemory, "check", fails)
    view = actions.edit(key, examples[0])
    assert 'role="alert"' in view.message and "The edit does not take" in view.message
    assert "word it otherwise" in view.message
    assert view.list_changed
    (edit,) = actions.sessions.of(key).edits
    assert edit.takes is False and "does not take: 'a zebra'" in edit_html(edit)


def test_an_older_answer_that_is_overruled_is_named(
    actions: Actions, key: str, examples: list[Trial]
):
    actions.edit(key, examples[0])
    view = actions.edit(key, replace(examples[0], target="center"))
    assert f"“{examples[0].target}”" in view.message


def test_mistakes_become_messages_and_leave_everything_else(actions: Actions, key: str):
    for view in (
        actions.ask(key, Trial()),
        actions.remove(key, "none"),
        actions.load(key, "/no/such/file.zip"),
        actions.export(key),
        actions.ask("no key", Trial()),
    ):
        assert 'role="alert"' in view.message
        assert view.results is None and view.trial is None and not view.list_changed


def test_what_is_not_known_to_fail_is_logged(
    actions: Actions,
    key: str,
    examples: list[Trial],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    def fails(*_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(Session, "ask", fails)
    view = actions.ask(key, examples[0])
    assert "ZeroDivisionError" in view.message and "secret" not in view.message
    assert "Your edits are kept" in view.message
    assert "secret" in caplog.text


def test_switching_and_removing_ask_again(actions: Actions, key: str, examples: list[Trial]):
    actions.edit(key, examples[0])
    (edit,) = actions.sessions.of(key).edits
    off = actions.switch(key, edit.id, False)
    assert off.results is not None and "no edits yet" in off.results
    on = actions.switch(key, edit.id, True)
    assert on.results is not None and "gate open" in on.results
    gone = actions.remove(key, edit.id)
    assert gone.results is not None and "gate open" not in gone.results and gone.list_changed


def test_texts_of_models_and_people_are_no_markup(
    actions: Actions, key: str, examples: list[Trial]
):
    nasty = "<script>alert(1)</script>"
    actions.edit(key, replace(examples[0], prompt=nasty, target="red"))
    (edit,) = actions.sessions.of(key).edits
    views = [
        actions.ask(key, replace(examples[0], prompt=nasty)),
        actions.rename(key, edit.id, nasty),
        actions.switch(key, edit.id, False),
    ]
    for view in views:
        assert "<script" not in view.message + (view.results or "")


def test_fields_become_a_trial(examples: list[Trial]):
    picture = Image.new("RGBA", (8, 8))
    trial = trial_of(picture, "What?", "red", "Which?", None, "")
    assert trial.picture is not None and trial.picture.mode == "RGB"
    assert (trial.prompt, trial.target, trial.rephrase, trial.unrelated) == (
        *("What?", "red", "Which?"),
        "",
    )
    assert len(trial.asked()) == 2 and examples[0] != trial
