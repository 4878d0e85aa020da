"""Calls of `MultimodalEditor.edit`: each sequence is its own unless it is asked to go on."""

import json
from pathlib import Path
from typing import Any

import pytest
from easyedit_fixtures import (
    Workplace,
    needs_easyedit,
    needs_master,
    needs_release,
    shared_workplace,
)
from easyedit_runs import dataset_of, editor_of

from easyedit_dualedit.errors import ArchiveError, ConfigError, DataError, UpstreamError
from easyedit_dualedit.plugin import apply as applying
from easyedit_dualedit.plugin.apply import end_sequence

pytestmark = pytest.mark.usefixtures("host", "elsewhere")


@pytest.fixture
def workplace() -> Workplace:
    """A workplace of one family; sequences know nothing of families."""
    return shared_workplace("llava-onevision")


def sequence(editor: Any, workplace: Workplace, indices: tuple[int, ...], **options: Any) -> Any:
    """Return the targets of the edits in force after a sequence."""
    arguments = workplace.edit_arguments(indices, full=True)
    _, edited, _ = editor.edit(**arguments, sequential_edit=True, **options)
    return [edit.request.target for edit in edited.edits]


def targets(workplace: Workplace, *indices: int) -> list[str]:
    return [workplace.record(index)["alt"] for index in indices]


@needs_master
def test_each_call_is_a_sequence_of_its_own(workplace: Workplace) -> None:
    editor = editor_of(workplace)
    assert sequence(editor, workplace, (0, 1, 2)) == targets(workplace, 0, 1, 2)
    assert sequence(editor, workplace, (3,)) == targets(workplace, 3)


@needs_master
def test_a_sequence_goes_on_where_that_is_asked_for(workplace: Workplace) -> None:
    editor = editor_of(workplace)
    sequence(editor, workplace, (0, 1))
    found = sequence(editor, workplace, (2,), continue_sequence=True)
    assert found == targets(workplace, 0, 1, 2)
    end_sequence(editor.model)
    assert sequence(editor, workplace, (3,), continue_sequence=True) == targets(workplace, 3)


@needs_master
def test_a_plain_edit_in_between_disturbs_nothing(workplace: Workplace) -> None:
    editor = editor_of(workplace)
    sequence(editor, workplace, (0, 1))
    _, edited, _ = editor.edit(**workplace.edit_arguments((3,), full=True))
    assert len(edited.edits) == 1
    found = sequence(editor, workplace, (2,), continue_sequence=True)
    assert found == targets(workplace, 0, 1, 2)


@needs_master
def test_a_call_that_raises_leaves_the_sequence_as_it_was(workplace: Workplace) -> None:
    editor = editor_of(workplace)
    sequence(editor, workplace, (0,))
    arguments = workplace.edit_arguments((1, 2), full=True)
    arguments["prompts"][1] = ""
    for options in ({}, {"continue_sequence": True}):
        with pytest.raises(DataError, match="no prompt"):
            editor.edit(**arguments, sequential_edit=True, **options)
    found = sequence(editor, workplace, (3,), continue_sequence=True)
    assert found == targets(workplace, 0, 3)


@needs_master
def test_sequential_edit_may_be_given_by_its_place(workplace: Workplace) -> None:
    editor = editor_of(workplace)
    sequence(editor, workplace, (0,))
    given = workplace.edit_arguments((1,), full=True)
    places = ("prompts", "targets", "image")
    _, edited, _ = editor.edit(*map(given.get, places), None, None, None, None, False, True, True)
    assert [edit.request.target for edit in edited.edits] == targets(workplace, 1)


@needs_master
def test_going_on_without_a_sequence_is_refused(workplace: Workplace) -> None:
    editor = editor_of(workplace)
    with pytest.raises(ConfigError, match="set sequential_edit=True"):
        editor.edit(**workplace.edit_arguments((0,), full=True), continue_sequence=True)


@needs_master
def test_other_adapters_do_not_end_a_sequence(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(applying, "_EDITORS", 2)
    editor = editor_of(workplace)
    sequence(editor, workplace, (0,))
    mine = editor.hparams
    for threshold in (0.5, 0.6, 0.7):
        gate = {"kind": "cosine", "threshold": threshold}
        editor.hparams = editor_of(workplace, gate=gate).hparams
        editor.edit(**workplace.edit_arguments((3,), full=True))
    editor.hparams = mine
    found = sequence(editor, workplace, (1,), continue_sequence=True)
    assert found == targets(workplace, 0, 1)


@needs_easyedit
def test_arguments_are_checked_before_anything_is_edited(workplace: Workplace) -> None:
    editor = editor_of(workplace)
    given = workplace.edit_arguments((0, 1)) | {"targets": ["a kite"]}
    with pytest.raises(DataError, match="targets is a list of 1, but prompts are 2"):
        editor.edit(**given)


@needs_easyedit
@pytest.mark.parametrize("archive", [None, "nothing"])
def test_an_archive_that_is_not_there_is_told_before_anything_is_asked(
    workplace: Workplace, archive: str | None
) -> None:
    editor = editor_of(workplace)
    editor.hparams.archive = archive
    editor.vis_tok = None  # whoever reads a picture fails otherwise
    with pytest.raises(ArchiveError, match="archive is not set|but there is nothing"):
        editor.edit(**workplace.edit_arguments((0, 1), full=True))


@needs_master
def test_arguments_that_change_nothing_are_told(
    workplace: Workplace, caplog: pytest.LogCaptureFixture
) -> None:
    editor = editor_of(workplace)
    arguments = workplace.edit_arguments((0,), full=True)
    editor.edit(**arguments, train_ds=None)
    assert "change nothing" not in caplog.text
    editor.edit(**arguments, rephrase_prompt="Which one?")
    assert "change nothing: rephrase_prompt; did you mean rephrase_prompts?" in caplog.text


@needs_master
def test_edit_dataset_says_what_it_cannot_do(workplace: Workplace, tmp_path: Path) -> None:
    editor = editor_of(workplace)
    records = dataset_of(workplace, editor.hparams)
    with pytest.raises(ConfigError, match="edit_dataset makes each edit alone"):
        editor.edit_dataset(records, sequential_edit=True)
    with pytest.raises(DataError, match="a list that is no data set; give a data set"):
        editor.edit_dataset([{}])
    items = json.loads(workplace.records.read_text())
    items[-1]["loc_ans"] = None
    damaged = tmp_path / "damaged.json"
    damaged.write_text(json.dumps(items))
    with pytest.raises(DataError, match=rf"record {len(items) - 1}: locality_ground_truth = None"):
        editor.edit_dataset(type(records)(str(damaged), config=editor.hparams))


@needs_release
def test_the_release_knows_no_sequences(workplace: Workplace) -> None:
    editor = editor_of(workplace)
    with pytest.raises(UpstreamError, match="sequential_edit is not in EasyEdit 0.0.1.dev0"):
        editor.edit(**workplace.edit_arguments((0,)), sequential_edit=True)
