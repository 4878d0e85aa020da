"""Sessions lie apart, and come back by their keys alone."""

import shutil
import threading
from pathlib import Path

import pytest

from easyedit_dualedit.app import sessions as module
from easyedit_dualedit.app.sessions import Sessions
from easyedit_dualedit.app.shared_editor import SharedEditor
from easyedit_dualedit.app.trial import SAME, Trial


def test_two_sessions_do_not_see_each_others_edits(
    shared_editor: SharedEditor, examples: list[Trial], tmp_path: Path
):
    sessions = Sessions(shared_editor, tmp_path)
    mine, theirs = (sessions.of(Sessions.new_key()) for _ in range(2))
    mine.add(examples[0])
    assert dict(mine.ask(examples[0]).outcomes)[SAME].is_changed
    assert theirs.edits == []
    assert not dict(theirs.ask(examples[0]).outcomes)[SAME].is_changed


def test_sessions_at_the_same_time_keep_their_own_answers(
    shared_editor: SharedEditor, examples: list[Trial], tmp_path: Path
):
    sessions = Sessions(shared_editor, tmp_path)
    wrong: list[str] = []

    def act(trial: Trial) -> None:
        session = sessions.of(Sessions.new_key())
        session.add(trial)
        for other in examples[:3]:
            outcome = dict(session.ask(other).outcomes)[SAME]
            if outcome.is_changed != (other is trial):
                wrong.append(f"{other.prompt}: {outcome}")

    threads = [threading.Thread(target=act, args=(trial,)) for trial in examples[:3]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_session_that_was_put_away_comes_back_from_disk(
    shared_editor: SharedEditor,
    examples: list[Trial],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(module, "_OPEN_AT_ONCE", 1)
    sessions = Sessions(shared_editor, tmp_path)
    key = Sessions.new_key()
    first = sessions.of(key)
    first.add(examples[0])
    assert sessions.of(key) is first
    sessions.of(Sessions.new_key())
    again = sessions.of(key)
    assert again is not first
    assert [edit.id for edit in again.edits] == [edit.id for edit in first.edits]


def test_a_session_whose_folder_was_removed_is_gone(
    shared_editor: SharedEditor, examples: list[Trial], tmp_path: Path
):
    sessions = Sessions(shared_editor, tmp_path)
    key = Sessions.new_key()
    sessions.of(key).add(examples[0])
    assert len(sessions.of(key).edits) == 1
    shutil.rmtree(tmp_path / key)
    again = sessions.of(key)
    assert again.edits == [] and not again.trial.prompt
    again.add(examples[1])
    (only,) = sessions.of(key).edits
    assert only.about.prompt == examples[1].prompt


@pytest.mark.parametrize("key", ["", "../" * 10 + "ab", "A" * 32, None, "0" * 31])
def test_only_keys_open_sessions(shared_editor: SharedEditor, tmp_path: Path, key: str):
    with pytest.raises(KeyError):
        Sessions(shared_editor, tmp_path).of(key)
