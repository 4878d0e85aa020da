"""The function that EasyEdit calls to edit, and the archives that it reads."""

import copy
import gc
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_editors import hooks_of_ours, picture, request_of, tiny_config, trained_editor
from tiny_models import TinyModel, tiny_llava

from easyedit_dualedit.errors import ArchiveError, CalibrationError, DataError
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.plugin.apply import apply_dualedit_to_multimodal_model as apply
from easyedit_dualedit.plugin.apply import end_sequence
from easyedit_dualedit.plugin.archives import described_state, training_targets_in
from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams


@pytest.fixture
def adapters(tiny: TinyModel, tmp_path: Path) -> Path:
    """A folder of adapters that change answers, with a gate that opens for what is very similar."""
    folder = tmp_path / "adapters"
    trained_editor(tiny, gate={"kind": "cosine", "threshold": 0.9999}).save(folder)
    end_sequence(tiny.model)
    return folder


def hparams_of(archive: Path | None, **changes: Any) -> DualEditMultimodalHparams:
    """Return hyperparameters that name the adapters."""
    values = {"model_name": "tiny", "device": "cpu", **changes}
    if archive is not None:
        values["archive"] = str(archive)
    else:
        values |= {"text_layer": 1, "vision_layer": 2}
    return DualEditMultimodalHparams(**values)


def request(prompt: str = "What colour is the circle?", target: str = "blue") -> dict[str, Any]:
    """Return a request as EasyEdit makes it."""
    return {"prompt": prompt, "target": target, "image": picture(), "file_type": "image"}


def logits(editor: DualEditor, model: Any, prompt: str = "What colour is the circle?") -> Any:
    """Return logits of prompt and target, without a word of where the prompt ends."""
    batch = editor.encoder.encode([request_of(prompt)])
    with torch.no_grad():
        return model(**batch.inputs).logits


def test_the_edited_model_answers_otherwise_and_the_model_itself_does_not(
    tiny: TinyModel, adapters: Path
) -> None:
    editor = trained_editor(tiny)
    before = logits(editor, tiny.model)
    edited, weights = apply(tiny.model, tiny.processor, [request()], hparams_of(adapters))
    assert weights == {}
    assert not torch.equal(logits(editor, edited), before)
    assert torch.equal(
        logits(editor, edited, "Where is the star?"),
        logits(editor, tiny.model, "Where is the star?"),
    )
    assert torch.equal(logits(editor, tiny.model), before)
    assert not hooks_of_ours(tiny.model)


def test_a_list_is_a_batch_of_its_own_and_a_bare_request_joins_a_sequence(
    tiny: TinyModel, adapters: Path
) -> None:
    hparams = hparams_of(adapters)
    first, second = request("What?", "blue"), request("Why?", "red")

    def prompts(requests: Any) -> list[str]:
        edited, _ = apply(tiny.model, tiny.processor, requests, hparams, train_ds=None)
        return [edit.request.prompt for edit in edited.edits]

    assert prompts([first, second]) == ["What?", "Why?"]
    assert prompts(first) == ["What?"]
    assert prompts([second]) == ["Why?"]
    assert prompts(second) == ["What?", "Why?"]
    end_sequence(tiny.model)
    assert prompts(second) == ["Why?"]


def test_a_copy_is_edited_when_asked_for(tiny: TinyModel, adapters: Path) -> None:
    edited, _ = apply(tiny.model, tiny.processor, [request()], hparams_of(adapters), copy=True)
    assert edited.base_model is not tiny.model


def test_a_copy_of_an_edited_model_has_no_edits(tiny: TinyModel, adapters: Path) -> None:
    apply(tiny.model, tiny.processor, request(), hparams_of(adapters))
    twin = copy.deepcopy(tiny.model)
    edited, _ = apply(twin, tiny.processor, request("Why?"), hparams_of(adapters))
    assert [edit.request.prompt for edit in edited.edits] == ["Why?"]


def test_the_editor_is_kept_as_long_as_the_archive_is_the_same(
    llava: TinyModel, tmp_path: Path
) -> None:
    folder = tmp_path / "adapters"
    trained_editor(llava).save(folder)
    first, _ = apply(llava.model, llava.processor, [request()], hparams_of(folder))
    again, _ = apply(llava.model, llava.processor, [request()], hparams_of(folder))
    assert first._active.adapters is again._active.adapters
    trained_editor(llava, last_prompt_token=False).save(folder)
    after, _ = apply(llava.model, llava.processor, [request()], hparams_of(folder))
    assert after._active.adapters is not first._active.adapters
    other, _ = apply(llava.model, llava.processor, [request()], hparams_of(folder, gate="open"))
    assert other._active.adapters is not after._active.adapters


def test_an_edited_model_is_freed_with_its_editor(tmp_path: Path) -> None:
    tiny = tiny_llava()
    trained_editor(tiny).save(tmp_path / "adapters")
    apply(tiny.model, tiny.processor, request(), hparams_of(tmp_path / "adapters"))
    alive = weakref.ref(tiny.model)
    del tiny
    gc.collect()
    assert alive() is None


def test_a_gate_of_the_hyperparameters_replaces_that_of_the_archive(
    tiny: TinyModel, adapters: Path
) -> None:
    hparams = hparams_of(adapters, gate={"kind": "cosine", "threshold": 1.0})
    edited, _ = apply(tiny.model, tiny.processor, [request("Why?")], hparams)
    editor = trained_editor(tiny)
    assert torch.equal(logits(editor, edited), logits(editor, tiny.model))


def test_a_checkpoint_of_a_trainer_is_read_as_a_folder_is(
    tiny: TinyModel, adapters: Path, tmp_path: Path
) -> None:
    editor = DualEditor.load(tiny.model, tiny.processor, adapters)
    torch.save({"model": described_state(editor), "opt": {}}, tmp_path / "checkpoint")
    assert training_targets_in(tmp_path / "checkpoint") is None
    editor.training_targets = ("a kite", "red")
    torch.save({"model": described_state(editor), "opt": {}}, tmp_path / "checkpoint")
    assert training_targets_in(tmp_path / "checkpoint") == ("a kite", "red")
    assert training_targets_in(adapters) is training_targets_in(tmp_path / "nothing") is None
    hparams = hparams_of(tmp_path / "checkpoint")
    from_file, _ = apply(tiny.model, tiny.processor, [request()], hparams)
    from_folder, _ = apply(tiny.model, tiny.processor, [request()], hparams_of(adapters))
    assert torch.equal(logits(editor, from_file), logits(editor, from_folder))


def test_nothing_is_edited_without_an_archive(tiny: TinyModel) -> None:
    with pytest.raises(ArchiveError, match="archive is not set"):
        apply(tiny.model, tiny.processor, [request()], hparams_of(None))


def test_a_missing_archive_is_named(tiny: TinyModel, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="but there is nothing"):
        apply(tiny.model, tiny.processor, [request()], hparams_of(tmp_path / "nothing"))


def test_a_folder_without_adapters_is_named(tiny: TinyModel, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="no saved adapters"):
        apply(tiny.model, tiny.processor, [request()], hparams_of(tmp_path))


@pytest.mark.parametrize("kind", ["text", "empty", "other", "none"])
def test_a_file_that_is_no_checkpoint_of_ours_is_refused(
    tiny: TinyModel, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "checkpoint"
    if kind in ("text", "empty"):
        path.write_text("adapters" if kind == "text" else "")
    else:
        torch.save({"model": {"w": torch.zeros(1)}} if kind == "other" else [1], path)
    with pytest.raises(ArchiveError, match="cannot be read as a checkpoint|no checkpoint of Dual"):
        apply(tiny.model, tiny.processor, [request()], hparams_of(path))


def test_a_checkpoint_with_a_damaged_description_is_refused(
    tiny: TinyModel, tmp_path: Path
) -> None:
    state = described_state(trained_editor(tiny))
    state["description"] = torch.tensor([1, 2, 3], dtype=torch.uint8)
    torch.save({"model": state}, tmp_path / "checkpoint")
    with pytest.raises(ArchiveError, match="is damaged"):
        apply(tiny.model, tiny.processor, [request()], hparams_of(tmp_path / "checkpoint"))


def test_a_checkpoint_that_lacks_weights_is_refused(tiny: TinyModel, tmp_path: Path) -> None:
    state = described_state(trained_editor(tiny))
    state.pop(next(iter(state)))
    torch.save({"model": state}, tmp_path / "checkpoint")
    with pytest.raises(ArchiveError, match="do not fit its configuration"):
        apply(tiny.model, tiny.processor, [request()], hparams_of(tmp_path / "checkpoint"))


def test_adapters_of_another_model_are_refused(tiny: TinyModel, tmp_path: Path) -> None:
    other = tiny_llava(seed=5)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(1.5)
    editor = trained_editor(other)
    editor.save(tmp_path / "folder")
    torch.save({"model": described_state(editor)}, tmp_path / "file")
    for archive in ("folder", "file"):
        with pytest.raises(ArchiveError, match="another model"):
            apply(tiny.model, tiny.processor, [request()], hparams_of(tmp_path / archive))


def test_hyperparameters_that_describe_other_adapters_are_refused(
    tiny: TinyModel, adapters: Path
) -> None:
    hparams = hparams_of(adapters, text_layer=0, vision_layer=2, signal="all")
    with pytest.raises(ArchiveError) as raised:
        apply(tiny.model, tiny.processor, [request()], hparams)
    assert "text_layer is 1 in the archive and 0" in str(raised.value)
    assert "signal is 'target' in the archive and 'all'" in str(raised.value)
    assert "vision_layer" not in str(raised.value)
    with pytest.raises(ArchiveError) as raised:
        apply(tiny.model, tiny.processor, [request()], hparams_of(adapters, preset="published"))
    assert "word_path is True in the archive and False" in str(raised.value)
    kept = {"signal": "target", "last_prompt_token": True, "word_path": True, "answer_tokens": True}
    apply(tiny.model, tiny.processor, [request()], hparams_of(adapters, preset="published", **kept))


def test_a_gate_without_a_threshold_is_refused_at_once(tiny: TinyModel, tmp_path: Path) -> None:
    trained_editor(tiny, gate="cosine").save(tmp_path / "adapters")
    with pytest.raises(CalibrationError, match="no threshold"):
        apply(tiny.model, tiny.processor, [request()], hparams_of(tmp_path / "adapters"))


def test_a_request_that_cannot_be_edited_is_named(tiny: TinyModel, adapters: Path) -> None:
    with pytest.raises(DataError, match="has no target"):
        apply(tiny.model, tiny.processor, [{"prompt": "What?"}], hparams_of(adapters))


def test_an_archive_that_vanished_is_named(llava: TinyModel, tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    trained_editor(llava).save(folder)
    apply(llava.model, llava.processor, [request()], hparams_of(folder))
    shutil.rmtree(folder)
    with pytest.raises(ArchiveError, match="but there is nothing"):
        apply(llava.model, llava.processor, [request()], hparams_of(folder))


def test_a_running_sequence_keeps_the_adapters_that_it_began_with(
    llava: TinyModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "adapters"
    trained_editor(llava).save(folder)
    hparams = hparams_of(folder, check_edits=False)
    first, _ = apply(llava.model, llava.processor, request("What?"), hparams)
    (folder / "README.md").write_text("a note")
    trained_editor(llava, last_prompt_token=False).save(folder)
    assert not caplog.messages
    for prompt in ("Who?", "Why?"):
        edited, _ = apply(llava.model, llava.processor, request(prompt), hparams)
    assert len(edited.edits) == 3
    assert edited._active.adapters is first._active.adapters
    (told,) = caplog.messages
    assert "the running sequence of 1 edits goes on with the adapters that it began with" in told
    end_sequence(llava.model)
    after, _ = apply(llava.model, llava.processor, request("What?"), hparams)
    assert after._active.adapters is not first._active.adapters
    assert len(after.edits) == 1
    end_sequence(llava.model)


def test_files_beside_the_adapters_change_nothing(llava: TinyModel, tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    trained_editor(llava).save(folder)
    first, _ = apply(llava.model, llava.processor, [request()], hparams_of(folder))
    (folder / "README.md").write_text("a note")
    again, _ = apply(llava.model, llava.processor, [request()], hparams_of(folder))
    assert again._active.adapters is first._active.adapters


def test_a_sequence_that_is_left_aside_is_told(
    tiny: TinyModel, adapters: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine, other = (
        hparams_of(adapters, check_edits=False, gate=gate) for gate in (None, {"kind": "open"})
    )
    for prompt in ("What?", "Who?"):
        apply(tiny.model, tiny.processor, request(prompt), mine)
    assert not caplog.messages
    alone, _ = apply(tiny.model, tiny.processor, request("Why?"), other)
    assert len(alone.edits) == 1
    (told,) = caplog.messages
    assert "the running sequence of 2 edits was made with other hyperparameters" in told
    back, _ = apply(tiny.model, tiny.processor, request("Why?"), mine)
    assert len(back.edits) == 3
    end_sequence(tiny.model)


def test_restoring_in_a_sequence_forgets_exactly_the_last_edit(
    tiny: TinyModel, adapters: Path
) -> None:
    editor, hparams = trained_editor(tiny), hparams_of(adapters)
    prompts = ("What colour is the circle?", "How many rings are there?", "What is it?")
    before = logits(editor, tiny.model, prompts[1])
    first, _ = apply(tiny.model, tiny.processor, request(prompts[0]), hparams)
    second, undo = apply(tiny.model, tiny.processor, request(prompts[1]), hparams)
    assert not torch.equal(logits(editor, second, prompts[1]), before)
    assert dict(undo) == {}  # EasyEdit copies back the weights that it finds in it
    undo()
    undo()
    third, _ = apply(tiny.model, tiny.processor, request(prompts[2]), hparams)
    assert len(third.edits) == 2
    assert torch.equal(logits(editor, third, prompts[1]), before)
    torch.testing.assert_close(logits(editor, third, prompts[0]), logits(editor, first, prompts[0]))
    end_sequence(tiny.model)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings of edits that do not take."""
    ours = "easyedit_dualedit.plugin.edit_warnings"
    return [record.getMessage() for record in caplog.records if record.name == ours]


def test_a_warning_tells_of_each_edit_that_does_not_take(
    tiny: TinyModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(gate={"kind": "cosine", "threshold": 0.9999})
    DualEditor(tiny.model, tiny.processor, config).save(tmp_path)  # adapters that change nothing
    hparams = hparams_of(tmp_path)
    first, second = request("What?", "blue"), request("Why?", "red")
    apply(tiny.model, tiny.processor, [first, second], hparams)
    lines = warnings_in(caplog)
    assert len(lines) == 2
    assert "the edit does not take: asked 'What?'" in lines[0] and "not 'blue'" in lines[0]
    assert "asked 'Why?'" in lines[1] and "check_edits: false" in lines[1]
    caplog.clear()
    # Of a sequence, only the edit that was just made is asked about.
    apply(tiny.model, tiny.processor, first, hparams)
    apply(tiny.model, tiny.processor, second, hparams)
    lines = warnings_in(caplog)
    assert ["What?" in lines[0], "Why?" in lines[1], len(lines)] == [True, True, 2]
    caplog.clear()
    apply(tiny.model, tiny.processor, [first], hparams_of(tmp_path, check_edits=False))
    assert not warnings_in(caplog)


def test_there_is_no_warning_of_an_edit_that_takes(
    tiny: TinyModel,
    adapters: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("easyedit_dualedit.method.edit_check.greedy_answers", lambda *_: ["Blue."])
    apply(tiny.model, tiny.processor, [request()], hparams_of(adapters))
    assert not warnings_in(caplog)
