"""One person's session on the testbed: ask, edit, switch, rename, remove, save, load, come back."""

import gc
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from easyedit_dualedit.app import bundle
from easyedit_dualedit.app.session import LONGEST_NAME, Session
from easyedit_dualedit.app.session_folder import SESSION_FILE
from easyedit_dualedit.app.shared_editor import Outcome, SharedEditor
from easyedit_dualedit.app.trial import SAME, Trial
from easyedit_dualedit.errors import ArchiveError, DataError
from easyedit_dualedit.method.edit_memory import EditMemory


def asked(session: Session, trial: Trial) -> dict[str, Outcome]:
    """Return what comes of each question of a trial."""
    return dict(session.ask(trial).outcomes)


def test_without_edits_nothing_changes_and_no_gate_decides(session: Session, examples: list[Trial]):
    outcomes = asked(session, examples[0])
    assert len(outcomes) == 4
    assert not any(outcome.is_changed for outcome in outcomes.values())
    assert {outcome.similarity for outcome in outcomes.values()} == {None}


def test_an_edit_changes_what_it_concerns_and_leaves_the_rest(
    session: Session, examples: list[Trial]
):
    trial = examples[0]
    before = asked(session, trial)
    made = session.add(trial)
    after = asked(session, trial)
    assert made.check.takes and made.edit.takes and made.older is None
    for name in (SAME, "in other words", "another picture"):
        assert after[name].after == trial.target != before[name].after
        assert after[name].before == before[name].after
        assert after[name].fired == made.edit.id
        assert after[name].similarity >= after[name].threshold
    aside = after["something else"]
    assert not aside.is_changed and aside.fired is None
    assert aside.similarity < aside.threshold


def test_an_edit_takes_less_than_a_second(session: Session, examples: list[Trial]):
    session.add(examples[0])
    times = []
    for trial in examples[1:4]:
        start = time.process_time()  # others may use the processor meanwhile
        session.add(trial)
        times.append(time.process_time() - start)
    assert max(times) < 1


def test_what_is_missing_is_told_and_nothing_is_added(session: Session, examples: list[Trial]):
    with pytest.raises(DataError, match="no question yet"):
        session.ask(Trial(examples[0].picture))
    with pytest.raises(DataError, match="what the answer should be"):
        session.add(replace(examples[0], target="  "))
    assert session.edits == []


def test_an_edit_that_is_off_does_nothing_until_it_is_on_again(
    session: Session, examples: list[Trial]
):
    first, second = (session.add(trial).edit.id for trial in examples[:2])
    session.switch(first, False)
    assert [edit.label.is_on for edit in session.edits] == [True, False]
    assert not asked(session, examples[0])[SAME].is_changed
    assert asked(session, examples[1])[SAME].fired == second
    session.switch(first, True)
    assert asked(session, examples[0])[SAME].fired == first


def test_edits_are_made_and_asked_while_another_is_off(session: Session, examples: list[Trial]):
    session.switch(session.add(examples[0]).edit.id, False)
    made = session.add(examples[1])
    assert made.check.takes and made.edit.takes
    assert asked(session, examples[1])[SAME].fired == made.edit.id


def test_a_name_is_kept_short_and_an_empty_one_is_none(session: Session, examples: list[Trial]):
    edit = session.add(examples[0]).edit
    assert edit.name == f"{examples[0].prompt} → {examples[0].target}"
    session.rename(edit.id, "  the\nheart  ")
    assert session.edits[0].name == "the heart"
    session.rename(edit.id, "x" * 500)
    assert session.edits[0].name == "x" * LONGEST_NAME
    session.rename(edit.id, "")
    assert session.edits[0].name == edit.name


def test_a_removed_edit_is_gone_with_its_picture(session: Session, examples: list[Trial]):
    made = session.add(examples[0]).edit
    assert made.picture is not None and made.picture.is_file()
    session.remove(made.id)
    assert session.edits == [] and not made.picture.exists()
    assert not asked(session, examples[0])[SAME].is_changed
    for act in (session.remove, session.edit, session.show):
        with pytest.raises(DataError, match="removed in another window"):
            act(made.id)


def test_the_newer_of_two_answers_wins_and_that_is_told(session: Session, examples: list[Trial]):
    session.add(examples[0])
    other = replace(examples[0], target="center")
    made = session.add(other)
    assert made.older is not None and made.older.target == examples[0].target
    assert asked(session, other)[SAME].after == "center"


def test_a_session_of_the_same_folder_goes_on(
    session: Session, shared_editor: SharedEditor, examples: list[Trial], tmp_path: Path
):
    ids = [session.add(trial).edit.id for trial in examples[:2]]
    session.rename(ids[0], "first")
    session.switch(ids[1], False)
    session.ask(examples[2])
    again = Session(shared_editor, tmp_path / "session")
    assert [(edit.id, edit.label.name, edit.label.is_on) for edit in again.edits] == [
        (ids[1], "", False),
        (ids[0], "first", True),
    ]
    assert again.trial.texts() == examples[2].texts()
    assert again.trial.picture is not None and examples[2].picture is not None
    assert again.trial.picture.tobytes() == examples[2].picture.tobytes()
    assert asked(again, examples[0])[SAME].fired == ids[0]


def test_an_edit_is_shown_again_as_it_was_asked_for(session: Session, examples: list[Trial]):
    made = session.add(examples[0]).edit
    trial = session.show(made.id)
    assert (trial.prompt, trial.target) == (examples[0].prompt, examples[0].target)
    assert asked(session, trial)[SAME].fired == made.id


def test_what_is_saved_is_loaded_with_names_and_pictures_beside_what_is_there(
    session: Session, shared_editor: SharedEditor, examples: list[Trial], tmp_path: Path
):
    first = session.add(examples[0]).edit.id
    session.rename(first, "first")
    saved = session.saved()
    other = Session(shared_editor, tmp_path / "other")
    own = other.add(examples[1]).edit.id
    assert other.load(saved) == 1
    assert {edit.id for edit in other.edits} == {first, own}
    loaded = other.edit(first)
    assert loaded.name == "first" and loaded.picture is not None
    assert Image.open(loaded.picture).size == (48, 48)
    assert asked(other, examples[0])[SAME].fired == first
    assert other.load(saved) == 0


def test_files_to_take_away_do_not_pile_up(
    shared_editor: SharedEditor, examples: list[Trial], tmp_path: Path
):
    session = Session(shared_editor, tmp_path / "session")
    session.add(examples[0])
    places = {path for _ in range(2) for path in (session.saved(), session.exported())}
    assert len(places) == 2
    del session
    gc.collect()
    assert not any(path.exists() for path in places)


def test_what_is_exported_is_a_folder_of_the_edits_that_are_on(
    session: Session, shared_editor: SharedEditor, examples: list[Trial], tmp_path: Path
):
    first, second = (session.add(trial).edit.id for trial in examples[:2])
    session.switch(first, False)
    exported = session.exported()
    with zipfile.ZipFile(exported) as archive:
        archive.extractall(tmp_path / "out")
        assert sorted(archive.namelist()) == ["edits.json", "edits.safetensors"]
    assert [edit.id for edit in EditMemory.load(shared_editor.editor, tmp_path / "out")] == [second]
    session.remove(second)
    with pytest.raises(DataError, match="no edit is on"):
        session.exported()


def test_files_that_are_no_edits_are_refused_in_plain_words(session: Session, tmp_path: Path):
    wrong = tmp_path / "wrong.zip"
    wrong.write_bytes(b"PK not really")
    with pytest.raises(DataError, match="no ZIP file"):
        session.load(wrong)
    with zipfile.ZipFile(wrong, "w") as archive:
        archive.writestr("../../escaped.txt", "x")
    with pytest.raises(DataError, match="no edits in this file"):
        session.load(wrong)
    with zipfile.ZipFile(wrong, "w") as archive:
        archive.writestr("edits.json", "{}")
    with pytest.raises(ArchiveError):
        session.load(wrong)
    assert not (tmp_path / "escaped.txt").exists() and session.edits == []


def test_a_file_that_unpacks_to_too_much_is_refused(
    session: Session, examples: list[Trial], monkeypatch: pytest.MonkeyPatch
):
    session.add(examples[0])
    saved = session.saved()
    monkeypatch.setattr(bundle, "LARGEST", 1000)
    with pytest.raises(DataError, match="unpacks to more"):
        session.load(saved)


def test_ids_that_lead_out_of_the_folder_are_refused(
    session: Session, shared_editor: SharedEditor, examples: list[Trial], tmp_path: Path
):
    made = session.add(examples[0]).edit.id
    saved = session.saved()
    with zipfile.ZipFile(saved) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    held["edits.json"] = held["edits.json"].replace(made.encode(), b"../../out")
    with zipfile.ZipFile(saved, "w") as archive:
        for name, content in held.items():
            archive.writestr(name, content)
    with pytest.raises(DataError, match="ids that Save and Export do not write"):
        Session(shared_editor, tmp_path / "other").load(saved)


def test_a_new_session_begins_with_the_edits_that_it_is_given(
    session: Session, shared_editor: SharedEditor, examples: list[Trial], tmp_path: Path
):
    made = session.add(examples[0]).edit.id
    folder = tmp_path / "session"
    begun = Session(shared_editor, tmp_path / "begun", folder)
    assert [edit.id for edit in begun.edits] == [made]
    begun.remove(made)
    assert Session(shared_editor, tmp_path / "begun", folder).edits == []
    assert [edit.id for edit in session.edits] == [made]


def test_a_damaged_session_says_which_file(
    session: Session, shared_editor: SharedEditor, examples: list[Trial], tmp_path: Path
):
    session.add(examples[0])
    (tmp_path / "session" / SESSION_FILE).write_text('{"format": 1}')
    with pytest.raises(DataError, match=SESSION_FILE):
        Session(shared_editor, tmp_path / "session")


def test_large_pictures_are_made_smaller_and_still_answered(session: Session):
    trial = Trial.of({"prompt": "How many objects are there?"}, Image.new("RGB", (4000, 100)), None)
    assert trial.picture is not None and trial.picture.size == (1536, 38)
    assert asked(session, trial)[SAME].before
