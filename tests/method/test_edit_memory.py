"""The memory of edits: what is added applies, what is removed is gone, what is saved comes back."""

import copy
import json
import logging
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import started
from safetensors.torch import load_file, save_file
from tiny_editors import picture, trained_editor
from tiny_models import TinyModel, tiny_llava

from easyedit_dualedit.errors import ArchiveError, ConfigError, DataError
from easyedit_dualedit.method.active_edits import ActiveEdits
from easyedit_dualedit.method.adapter import CrossAttentionAdapter
from easyedit_dualedit.method.config import DualEditConfig, GateConfig
from easyedit_dualedit.method.edit_file import EDITS_FILE, NUMBERS_FILE, EditFile
from easyedit_dualedit.method.edit_memory import DEFAULT_PRECISION, EditMemory
from easyedit_dualedit.method.edited_model import EditedModel
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.gate_keys import KEY_WIDTH
from easyedit_dualedit.method.packing import PRECISIONS, Packed, Precision
from easyedit_dualedit.method.stored_edit import PackedProjection, Provenance, StoredEdit
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.model.loading import load_model

COLOURS = ("red", "green", "blue", "yellow")
GATE = {"kind": "cosine", "threshold": 0.99999}


def requests(count: int = 4) -> list[Query]:
    """Return edits of different questions on different pictures, with targets of any length."""
    words = ("two", "blue", "green", "circles", "in", "the", "top", "left", "corner")
    return [
        Query(
            f"What is in picture {place}?",
            picture(COLOURS[place % 4], (30 + place, 40)),
            " ".join(words[: 1 + place % len(words)]),
        )
        for place in range(count)
    ]


def editor_of(tiny: TinyModel, **changes: Any) -> DualEditor:
    return trained_editor(tiny, gate=GATE, **changes)


def logits(model: Any, editor: DualEditor, queries: list[Query]) -> torch.Tensor:
    batch = editor.encoder.encode(queries, with_target=False)
    with torch.no_grad():
        return model(layout=batch.layout, **batch.inputs).logits  # type: ignore[no-any-return]


def plain(editor: DualEditor, queries: list[Query]) -> torch.Tensor:
    batch = editor.encoder.encode(queries, with_target=False)
    with torch.no_grad():
        return editor.backbone.model(**batch.inputs).logits  # type: ignore[no-any-return]


def test_each_row_of_a_batch_gets_its_own_edit(every: TinyModel):
    editor = editor_of(every)
    memory = EditMemory(editor, precision="float32")
    asked = requests(3)
    memory.add(asked)
    batch = editor.encoder.encode([asked[2], asked[0], asked[1]], with_target=False)
    routing = memory.model.route(layout=batch.layout, **batch.inputs)
    assert routing.edit_index.tolist() == [2, 0, 1]
    for place in range(3):
        alone = EditMemory(editor, precision="float32")
        alone.add(asked[place])
        torch.testing.assert_close(
            logits(memory.model, editor, [asked[place]]),
            logits(alone.model, editor, [asked[place]]),
            rtol=1e-3,
            atol=1e-4,
        )
        assert not torch.equal(
            logits(memory.model, editor, [asked[place]]), plain(editor, [asked[place]])
        )


def test_later_edits_leave_earlier_answers_and_other_queries_alone(every: TinyModel):
    editor = editor_of(every)
    memory = EditMemory(editor)
    asked, other = requests(4), Query("Who is the king?", None)
    memory.add(asked[0])
    first = logits(memory.model, editor, asked[:1])
    memory.add(asked[1:])
    assert torch.equal(logits(memory.model, editor, asked[:1]), first)
    assert torch.equal(logits(memory.model, editor, [other]), plain(editor, [other]))


def test_removing_gives_back_what_was_before(every: TinyModel):
    editor = editor_of(every)
    memory = EditMemory(editor)
    asked = requests(3)
    memory.add(asked[:2])
    before = [logits(memory.model, editor, [query]) for query in asked]
    (identifier,) = memory.add(asked[2])
    memory.remove(identifier)
    after = [logits(memory.model, editor, [query]) for query in asked]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    memory.clear()
    assert len(memory) == 0
    for query in asked:
        assert torch.equal(logits(memory.model, editor, [query]), plain(editor, [query]))


def test_unknown_ids_are_refused_and_nothing_is_removed(llava: TinyModel):
    memory = EditMemory(editor_of(llava))
    ids = memory.add(requests(2))
    with pytest.raises(DataError, match="'nothing'"):
        memory.remove(ids[0], "nothing")
    with pytest.raises(DataError, match="no edits 'nothing', 0 among the 2 held"):
        memory.remove(0, "nothing")  # type: ignore[arg-type]
    assert [edit.id for edit in memory] == ids
    memory.remove(each for each in ids)  # type: ignore[arg-type]
    assert not len(memory)


def test_edits_in_one_batch_are_those_made_one_by_one(every: TinyModel):
    editor = editor_of(every)
    together, apart = (EditMemory(editor, precision="float32") for _ in range(2))
    asked = requests(3)
    together.add(asked)
    for query in asked:
        apart.add(query)
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one.key, other.key, rtol=1e-3, atol=1e-4)
        for modality, part in one.projected.items():
            for name in ("keys", "values"):
                pair = (
                    getattr(item, name).unpacked() for item in (part, other.projected[modality])
                )
                torch.testing.assert_close(*pair, rtol=1e-3, atol=1e-4)


def test_the_newest_edit_of_a_question_wins_and_a_warning_says_so(
    llava: TinyModel, caplog: pytest.LogCaptureFixture
):
    editor = editor_of(llava)
    memory = EditMemory(editor)
    asked = requests(2)
    (first, _) = memory.add(asked)
    with caplog.at_level(logging.WARNING):
        (newer,) = memory.add(Query(asked[0].prompt, asked[0].image, "another answer"))
    assert first in caplog.text and newer in caplog.text and "'another answer'" in caplog.text
    batch = editor.encoder.encode(asked, with_target=False)
    assert memory.model.route(layout=batch.layout, **batch.inputs).edit_index.tolist() == [2, 1]
    caplog.clear()
    memory.add(Query(asked[0].prompt, asked[1].image, "elsewhere"))
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        memory.add(Query(asked[0].prompt, asked[0].image, "another answer"))
    assert "both say 'another answer'" in caplog.text


def test_the_newest_edit_of_a_question_wins_where_keys_differ_by_rounding(llava: TinyModel):
    editor = editor_of(llava)
    memory = EditMemory(editor, gate=editor.open_gate())
    asked = requests(2)
    memory.add(asked)
    memory.add(Query(asked[0].prompt, asked[0].image, "another answer"))
    first, other, newer = memory
    further = torch.nn.functional.normalize(newer.key + 1e-3 * torch.randn(newer.key.shape), dim=0)
    assert float(first.key @ further) < 1 - 1e-5
    memory._hold([first, other, replace(newer, key=further)])
    batch = editor.encoder.encode(asked, with_target=False)
    assert memory.model.route(layout=batch.layout, **batch.inputs).edit_index.tolist() == [2, 1]


def test_edits_of_one_question_side_by_side_each_have_their_rows(llava: TinyModel):
    editor = editor_of(llava)
    asked = requests(1)[0]
    models = []
    for target in ("blue", "another answer"):
        memory = EditMemory(editor)
        memory.add(replace(asked, target=target))
        models.append(memory.model)
    batch = editor.encoder.encode([asked, asked], with_target=False)
    both = EditedModel.side_by_side(models, 1)
    assert both.route(layout=batch.layout, **batch.inputs).edit_index.tolist() == [0, 1]


def test_what_an_edit_answered_is_forgotten_when_another_of_its_question_comes_or_goes(
    llava: TinyModel,
):
    editor = editor_of(llava)
    memory = EditMemory(editor)
    mine, other = requests(2)
    newer = Query(mine.prompt, mine.image, "another answer")

    def answered() -> list[bool]:
        return [edit.provenance.answer is not None for edit in memory]

    memory.add([mine, other])
    memory.check([mine, other])
    assert answered() == [True, True]
    made = memory.add(newer)
    assert answered() == [False, True, False]
    memory.check([mine, newer])
    assert answered() == [True, True, True]
    memory.remove(made)
    assert answered() == [False, True]
    memory.check(mine)
    second = EditMemory(editor)
    second.add(newer)
    second.check(newer)
    memory.merge(second)
    assert answered() == [False, True, False]


def test_where_an_edit_comes_from_is_kept(llava: TinyModel):
    memory = EditMemory(editor_of(llava))
    asked = requests(2)
    memory.add([*asked, Query("Who is the king?", None, "nobody")])
    edits = list(memory)
    assert [edit.provenance.prompt for edit in edits[:2]] == [query.prompt for query in asked]
    assert edits[0].provenance.target == asked[0].target
    assert edits[0].provenance.pictures != edits[1].provenance.pictures
    assert edits[2].provenance.pictures == ()
    assert edits[0].provenance.time.endswith("+00:00")
    assert len({edit.id for edit in edits}) == 3


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_loaded_answers_as_what_was_saved(llava: TinyModel, tmp_path: Path, precision: Any):
    editor = editor_of(llava)
    memory = EditMemory(editor, precision=precision)
    asked = requests(9)
    memory.add(asked)
    memory.save(tmp_path / "edits")
    loaded = EditMemory.load(editor, tmp_path / "edits")
    assert [edit.id for edit in loaded] == [edit.id for edit in memory]
    assert [edit.provenance for edit in loaded] == [edit.provenance for edit in memory]
    assert loaded.stored_bytes == memory.stored_bytes
    for query in asked:
        assert torch.equal(
            logits(loaded.model, editor, [query]), logits(memory.model, editor, [query])
        )


def answer_from_disk(folder: Path) -> None:
    """Ask the model, the adapters and the edits in a folder; save what they say in it."""
    torch.set_num_threads(1)
    editor = DualEditor.load(*load_model(str(folder / "model")), folder / "adapters")
    memory = EditMemory.load(editor, folder / "edits")
    found = logits(memory.model, editor, [Query("What is it?", folder / "red.png")])
    torch.save(found, folder / "logits.pt")


def test_another_process_answers_the_same(tmp_path: Path):
    tiny = tiny_llava(seed=4)
    tiny.save(tmp_path / "model")
    editor = editor_of(tiny)
    editor.save(tmp_path / "adapters")
    memory = EditMemory(editor)
    asked = Query("What is it?", picture("red"), "blue circle")
    picture("red").save(tmp_path / "red.png")
    memory.add(asked)
    memory.save(tmp_path / "edits")
    process = started(answer_from_disk, tmp_path)
    process.join()
    assert process.exitcode == 0
    expected = logits(memory.model, editor, [Query("What is it?", tmp_path / "red.png")])
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)


def saved(tiny: TinyModel, folder: Path) -> tuple[DualEditor, EditMemory]:
    editor = editor_of(tiny)
    memory = EditMemory(editor)
    memory.add(requests(3))
    memory.save(folder)
    return editor, memory


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(bytes(content))


def disguise(path: Path) -> None:
    path.write_bytes(pickle.dumps({"gate.keys": [1.0]}))


def honest_disguise(path: Path) -> None:
    """A pickle whose digest the other file vouches for."""
    disguise(path)
    vouch(path)


def vouch(path: Path) -> None:
    from easyedit_dualedit.files import digest_of

    described = path.with_name(EDITS_FILE)
    values = json.loads(described.read_text())
    values["numbers_sha256"] = digest_of(path)
    described.write_text(json.dumps(values))


def shorten(path: Path) -> None:
    tensors = load_file(path)
    save_file({name: value[:-1].contiguous() for name, value in tensors.items()}, path)
    vouch(path)


@pytest.mark.parametrize("damage", [cut, flip, disguise, honest_disguise, shorten, Path.unlink])
def test_a_damaged_file_is_one_clear_error(llava: TinyModel, tmp_path: Path, damage: Any):
    editor, _ = saved(llava, tmp_path)
    damage(tmp_path / NUMBERS_FILE)
    with pytest.raises(ArchiveError, match="edits") as error:
        EditMemory.load(editor, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 9}, "format 9"),
        ({"precision": "int3"}, "precision"),
        ({"edits": 5}, "damaged"),
        ({"adapters": "0"}, "other adapters"),
        ({"gate": "centred"}, "other gate"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(
    llava: TinyModel, tmp_path: Path, change: dict[str, Any], message: str
):
    editor, _ = saved(llava, tmp_path)
    values = json.loads((tmp_path / EDITS_FILE).read_text())
    (tmp_path / EDITS_FILE).write_text(json.dumps({**values, **change}))
    with pytest.raises(ArchiveError, match=message):
        EditMemory.load(editor, tmp_path)


def test_edits_of_another_model_or_other_adapters_are_refused(llava: TinyModel, tmp_path: Path):
    editor, memory = saved(llava, tmp_path)
    rescaled = tiny_llava()
    with torch.no_grad():
        for parameter in rescaled.model.parameters():
            parameter.mul_(1.5)
    other = editor_of(rescaled)
    with pytest.raises(ArchiveError, match="another model"):
        EditMemory.load(other, tmp_path)
    with pytest.raises(ArchiveError, match="other precision"):
        EditMemory(editor, precision="float16").merge(memory)
    with torch.no_grad():
        next(iter(editor.adapters.parameters())).add_(1.0)
    with pytest.raises(ArchiveError, match="other adapters"):
        EditMemory.load(editor, tmp_path)
    with pytest.raises(ArchiveError, match="the other memory were made with other adapters"):
        EditMemory(editor).merge(memory)


def test_memories_merge_without_doubles(llava: TinyModel):
    editor = editor_of(llava)
    first, second = EditMemory(editor), EditMemory(editor)
    first.add(requests(2))
    second.merge(first)
    second.add(requests(4)[3])
    first.merge(second)
    assert [edit.id for edit in first] == [edit.id for edit in second]
    assert len(first) == 3


@pytest.mark.parametrize("through_a_folder", [False, True])
def test_the_newer_of_two_edits_of_one_moment_wins(
    llava: TinyModel, tmp_path: Path, caplog: pytest.LogCaptureFixture, through_a_folder: bool
):
    editor = editor_of(llava)
    EditMemory(editor).save(tmp_path)
    first, second = (EditMemory.load(editor, tmp_path) for _ in range(2))
    request = requests(1)[0]
    second.add(replace(request, target="old"))
    first.add(replace(request, target="new"))
    if through_a_folder:
        first.save(tmp_path)
        second.save(tmp_path)
        first = EditMemory.load(editor, tmp_path)
    else:
        first.merge(second)
        assert "'new', the newer one, wins over 'old'" in caplog.text
    assert [edit.provenance.target for edit in first] == ["old", "new"]


def test_saving_replaces_both_files_or_neither(
    llava: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    editor, memory = saved(llava, tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in (EDITS_FILE, NUMBERS_FILE)}
    memory.add(requests(5)[4])

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("easyedit_dualedit.storage.described_tensors.replace_both", refuse)
        with pytest.raises(ArchiveError, match="No space left"):
            memory.save(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(before)
    memory.save(tmp_path)
    assert len(EditMemory.load(editor, tmp_path)) == 4


def test_an_empty_memory_can_be_saved(llava: TinyModel, tmp_path: Path):
    editor = editor_of(llava)
    EditMemory(editor).save(tmp_path)
    loaded = EditMemory.load(editor, tmp_path)
    query = requests(1)
    assert torch.equal(logits(loaded.model, editor, query), plain(editor, query))


def test_an_edit_costs_by_its_target_alone(llava: TinyModel):
    sizes = {}
    for precision in PRECISIONS:
        memory = EditMemory(editor_of(llava), precision=precision)
        memory.add(
            [
                Query("What is it?", picture(), "two"),
                Query("What is it? " * 9, picture(), "two"),
                Query("What is it?", None, "two"),
                Query("What is it?", picture(), "two blue circles"),
            ]
        )
        short, wordy, blind, long = (edit.stored_bytes for edit in memory)
        assert short == wordy == blind < long
        sizes[precision] = short
    assert sizes["float32"] > sizes["float16"] > sizes["int8"]


def test_a_request_without_a_target_adds_nothing(llava: TinyModel):
    memory = EditMemory(editor_of(llava))
    with pytest.raises(DataError, match="no target"):
        memory.add([requests(1)[0], Query("What is it?", picture())])
    assert len(memory) == 0
    assert memory.add([]) == []


def test_an_unknown_precision_is_refused(llava: TinyModel):
    with pytest.raises(ConfigError, match="precision"):
        EditMemory(editor_of(llava), precision="int4")  # type: ignore[arg-type]


def test_a_model_taken_earlier_keeps_the_edits_of_then(llava: TinyModel):
    editor = editor_of(llava)
    memory = EditMemory(editor)
    asked = requests(2)
    memory.add(asked[0])
    earlier = memory.model
    memory.add(asked[1])
    assert len(earlier.edits) == 1
    assert torch.equal(logits(earlier, editor, asked[1:]), plain(editor, asked[1:]))


def test_what_inference_mode_has_unpacked_serves_gradients_too(llava: TinyModel):
    editor = editor_of(llava)
    memory = EditMemory(editor, precision="float32")
    memory.add(requests(1)[0])
    model, batch = memory.model, editor.encoder.encode(requests(1), with_target=False)
    with torch.inference_mode():
        first = model(layout=batch.layout, **batch.inputs).logits
    again = model(layout=batch.layout, **batch.inputs).logits
    again.sum().backward()
    llava.model.zero_grad(set_to_none=True)
    assert any(each.grad is not None for each in editor.adapters.parameters())
    assert torch.equal(first, again)


@pytest.mark.parametrize("word_path", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_edits_follow_the_dtype_of_their_editor(
    llava: TinyModel, dtype: torch.dtype, word_path: bool
):
    editor = editor_of(llava, word_path=word_path)
    asked = requests(2)
    before = EditMemory(editor, precision="float32")
    before.add(asked)
    models = [before.model, editor.edited(editor.read(asked))]
    expected = logits(models[0], editor, asked)
    editor.to(dtype)
    memory = EditMemory(editor, precision="float32")
    memory.add(asked)
    near = {"rtol": 0.05, "atol": 0.05 * float(expected.abs().max())}
    for model in (*models, memory.model):
        torch.testing.assert_close(logits(model, editor, asked), expected, **near)


@pytest.mark.parametrize("word_path", [True, False])
@pytest.mark.parametrize("gate", ["cosine", "learned"])
def test_what_is_made_in_inference_mode_is_called_outside_it(
    llava: TinyModel, gate: str, word_path: bool
):
    editor = trained_editor(llava, gate={"kind": gate, "threshold": 0.99}, word_path=word_path)
    if gate == "learned":
        editor.gate.projection.thresholds.fill_(0.99)
    asked = requests(2)
    outside = EditMemory(editor, precision="float32")
    outside.add(asked)
    expected = logits(outside.model, editor, asked)
    with torch.inference_mode():
        inside = EditMemory(editor, precision="float32")
        inside.add(asked)
        alone = editor.edit(asked[0].image, asked[0].prompt, asked[0].target or "")
        models = [
            inside.model,
            editor.edited(editor.read(asked)),
            editor.edited(editor.read(asked), gate=editor.open_gate()).with_gate(editor.gate),
        ]
    models.append(EditedModel.side_by_side([alone, alone], 1).of_rows([0]))
    batch = editor.encoder.encode(asked, with_target=False)
    for model in models[:3]:
        assert torch.equal(logits(model, editor, asked), expected)
        model(layout=batch.layout, **batch.inputs).logits.sum().backward()
    one = editor.encoder.encode(asked[:1], with_target=False)
    for model in (alone, models[3]):
        model(layout=one.layout, **one.inputs).logits.sum().backward()
    llava.model.zero_grad(set_to_none=True)
    assert editor.adapters["text"].query.weight.grad is not None


def test_an_edit_is_small_at_the_size_of_a_large_model():
    config = DualEditConfig(text_layer=16, vision_layer=19)
    adapter = CrossAttentionAdapter(4096, config.width, config.heads)

    def stored(length: int, precision: Precision) -> StoredEdit:
        one = adapter.project(torch.randn(1, length, 4096), torch.ones(1, length, dtype=torch.bool))
        part = PackedProjection(
            Packed.of(one.keys[0], precision), Packed.of(one.values[0], precision)
        )
        return StoredEdit(
            "0", Provenance("", "", "", ()), torch.zeros(KEY_WIDTH), {"text": part, "vision": part}
        )

    with torch.no_grad():
        sizes = {precision: stored(5, precision).stored_bytes for precision in PRECISIONS}
        assert sizes == {"float32": 82432, "float16": 41472, "int8": 21632}
        assert sizes[DEFAULT_PRECISION] <= 64_000
        key = 4 * KEY_WIDTH
        grown = stored(10, DEFAULT_PRECISION).stored_bytes
        assert grown - key == 2 * (sizes[DEFAULT_PRECISION] - key), "it grows with the target alone"


class Closed(list[StoredEdit]):
    """A list that may grow, but that nobody may walk through."""

    def __iter__(self) -> Any:
        raise AssertionError("all edits were walked through")


def test_adding_one_more_looks_at_none_of_those_there(llava: TinyModel):
    memory = EditMemory(editor_of(llava))
    memory.add(requests(3)[:2])
    memory._edits = Closed(memory._edits)
    memory.add(requests(3)[2])
    assert len(memory) == 3


def test_many_requests_are_added_together_or_not_at_all(llava: TinyModel):
    memory = EditMemory(editor_of(llava))
    asked = requests(20)
    ids = memory.add(asked)
    assert [memory.find(request).id for request in asked] == ids  # type: ignore[union-attr]
    with pytest.raises(DataError, match="no target"):
        memory.add([*asked, Query("What is it?", picture())])
    assert len(memory) == 20, "nothing is added where one request is wrong"


def test_edits_of_another_process_stay_when_a_memory_is_saved(llava: TinyModel, tmp_path: Path):
    editor = editor_of(llava)
    asked = requests(4)
    EditMemory(editor).save(tmp_path)
    mine, theirs = (EditMemory.load(editor, tmp_path) for _ in range(2))
    (first,) = mine.add(asked[0])
    assert mine.save(tmp_path) == 1
    second, third = theirs.add(asked[1:3])
    assert theirs.save(tmp_path) == 3, "those of the other process count"
    assert [edit.id for edit in EditMemory.load(editor, tmp_path)] == [first, second, third]
    theirs.remove(second)
    (fourth,) = theirs.add(asked[3])
    theirs.save(tmp_path)
    mine.save(tmp_path)
    assert [edit.id for edit in EditMemory.load(editor, tmp_path)] == [first, third, fourth]
    new = EditMemory.load(editor, tmp_path / "new", may_be_new=True)
    theirs.save(tmp_path / "new")
    (fifth,) = new.add(asked[0])
    new.save(tmp_path / "new")
    assert [edit.id for edit in EditMemory.load(editor, tmp_path / "new")] == [third, fourth, fifth]


def _made_at(memory: EditMemory, request: Query, second: int) -> str:
    """Add an edit that says that it was made at a second."""
    (made,) = memory.add(request)
    time = f"2026-01-01T00:00:{second:02}+00:00"
    memory._hold(
        [
            replace(edit, provenance=replace(edit.provenance, time=time))
            if edit.id == made
            else edit
            for edit in memory
        ]
    )
    return made


def test_the_newer_of_two_edits_wins_whichever_memory_it_comes_from(
    llava: TinyModel, caplog: pytest.LogCaptureFixture
):
    editor = editor_of(llava)
    (asked,) = requests(1)
    newer = replace(asked, target="newer")
    one, other = EditMemory(editor), EditMemory(editor)
    late, early = _made_at(one, newer, 2), _made_at(other, asked, 1)
    caplog.clear()
    one.merge(other)
    assert [edit.id for edit in one] == [early, late]
    assert one.find(asked, any_target=True).id == late  # type: ignore[union-attr]
    assert f"edit {late} asks what edit {early} asks" in caplog.text


def test_answers_of_another_process_stay_until_its_question_is_edited_again(
    llava: TinyModel, tmp_path: Path
):
    editor = editor_of(llava)
    asked, beside = requests(2)
    first = EditMemory(editor)
    first.add(asked)
    first.save(tmp_path)
    second = EditMemory.load(editor, tmp_path)
    first.check(asked)
    first.save(tmp_path)
    second.add(beside)
    second.save(tmp_path)
    known, unknown = EditMemory.load(editor, tmp_path)
    assert known.provenance.takes is not None and unknown.provenance.takes is None
    third = EditMemory.load(editor, tmp_path)
    third.add(replace(asked, target="another"))
    third.save(tmp_path)
    first.save(tmp_path)
    assert [edit.provenance.takes for edit in EditMemory.load(editor, tmp_path)] == [None] * 3


def test_a_shallow_copy_of_a_memory_adds_for_itself(llava: TinyModel):
    memory = EditMemory(editor_of(llava))
    (asked,) = requests(1)
    copied = copy.copy(memory)
    copied.add(asked)
    assert copied.find(asked) is not None and memory.find(asked) is None


def test_edits_of_other_heads_are_refused(llava: TinyModel, tmp_path: Path):
    editor, _ = saved(llava, tmp_path)
    path = tmp_path / NUMBERS_FILE
    tensors = load_file(path)
    one_head = {
        name: value[:, :1].contiguous() if value.ndim == 3 else value
        for name, value in tensors.items()
    }
    save_file(one_head, path)
    vouch(path)
    with pytest.raises(ArchiveError, match="does not fit the adapters: heads"):
        EditMemory.load(editor, tmp_path)


def test_what_changes_while_a_memory_is_saved_is_saved_the_next_time(
    llava: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    editor = editor_of(llava)
    memory = EditMemory(editor)
    gone, kept = memory.add(requests(2))
    memory.save(tmp_path)
    real = EditFile.save
    added: list[str] = []

    def slow(self: EditFile, folder: Path) -> None:
        if not added:
            memory.remove(gone)
            added.extend(memory.add(requests(3)[2]))
        real(self, folder)

    monkeypatch.setattr(EditFile, "save", slow)
    memory.save(tmp_path)
    assert memory.save(tmp_path) == 2
    assert [edit.id for edit in EditMemory.load(editor, tmp_path)] == [kept, *added]


def test_a_folder_by_another_name_is_the_same_folder(llava: TinyModel, tmp_path: Path):
    editor = editor_of(llava)
    folder, current = tmp_path / "first", tmp_path / "current"
    EditMemory(editor).save(folder)
    current.symlink_to(folder)
    memory, others = EditMemory.load(editor, current), EditMemory.load(editor, folder)
    others.add(requests(1))
    others.save(folder)
    memory.add(requests(2)[1])
    assert memory.save(tmp_path / "first" / ".." / "first") == 2


def test_activations_that_are_no_numbers_are_not_kept(llava: TinyModel, tmp_path: Path):
    editor = editor_of(llava)
    memory = EditMemory(editor)
    memory.add(requests(1))
    layer = editor.backbone.layers[editor.config.text_layer]
    with torch.no_grad():
        handle = layer.register_forward_hook(lambda *call: call[2] * float("inf"))
        try:
            with pytest.raises(DataError, match="NaN or infinite there; load it in another dtype"):
                memory.add(requests(2)[1])
        finally:
            handle.remove()
    assert len(memory) == 1
    memory.save(tmp_path)
    assert len(EditMemory.load(editor, tmp_path)) == 1


def test_a_model_of_old_edits_is_never_kept_for_new_ones(
    llava: TinyModel, monkeypatch: pytest.MonkeyPatch
):
    memory = EditMemory(editor_of(llava))
    first, _ = memory.add(requests(2))
    real = ActiveEdits.of_stored

    def slow(*given: Any) -> ActiveEdits:
        made = real(*given)
        if first in memory:
            memory.remove(first)  # another thread, while the model is made
        return made

    monkeypatch.setattr(ActiveEdits, "of_stored", slow)
    _ = memory.model
    assert len(memory.model.edits) == 1


def test_edits_belong_to_what_they_were_made_with(llava: TinyModel, tmp_path: Path):
    editor = trained_editor(llava)
    memory = EditMemory(editor)
    memory.add(requests(1))
    memory.save(tmp_path)
    with torch.no_grad():
        editor.adapters["text"].query.weight.add_(1.0)
    with pytest.raises(ArchiveError, match="this memory were made with other adapters"):
        memory.save(tmp_path)
    memory.clear()
    memory.add(requests(1))
    assert memory.save(tmp_path / "anew") == 1


def test_answers_find_their_edits_where_others_are_removed_meanwhile(
    llava: TinyModel, monkeypatch: pytest.MonkeyPatch
):
    memory = EditMemory(editor_of(llava))
    asked = requests(4)
    ids = memory.add(asked)
    real = EditedModel.check

    def slow(self: EditedModel, chosen: Any) -> Any:
        checks = real(self, chosen)
        memory.remove(ids[0], ids[2])
        return checks

    monkeypatch.setattr(EditedModel, "check", slow)
    checks = memory.check(asked[1:])
    noted = [(edit.id, edit.provenance.answer) for edit in memory]
    assert noted == [(ids[1], checks[0].answer), (ids[3], checks[2].answer)]


def test_edits_are_found_and_removed_by_themselves_too(llava: TinyModel):
    memory = EditMemory(editor_of(llava))
    first, second = memory.add(requests(2))
    one, other = memory
    assert first in memory and other in memory and "nothing" not in memory
    memory.remove(one)
    assert first not in memory and one not in memory and second in memory


def test_a_gate_may_be_given_by_its_configuration(llava: TinyModel):
    memory = EditMemory(editor_of(llava), gate=GateConfig("cosine", threshold=0.5))
    memory.add(requests(1))
    assert memory._gate.threshold == 0.5 and memory.model.edits


def test_an_edit_of_a_file_equals_the_one_that_was_saved(llava: TinyModel, tmp_path: Path):
    editor, memory = saved(llava, tmp_path)
    loaded = list(EditMemory.load(editor, tmp_path))
    assert loaded == list(memory) and {*loaded} == {*memory}
    assert loaded[0] != loaded[1] and loaded[0] in memory
    one, other = (editor.read(requests(1))[0] for _ in range(2))
    assert one != other and one == one  # noqa: PLR0124


def test_edits_belong_to_the_gate_that_was_given_whole(llava: TinyModel, tmp_path: Path):
    editor = trained_editor(llava)
    other = trained_editor(llava).gate.with_config(editor.config.gate)
    other.mean = other.mean + 1.0
    memory = EditMemory(editor, gate=other)
    memory.add(Query("What is this?", picture(), "red"))
    memory.save(tmp_path)
    with pytest.raises(ArchiveError, match="other adapters"):
        EditMemory.load(editor, tmp_path)
    with pytest.raises(ArchiveError, match="other adapters"):
        EditMemory(editor).merge(memory)
    assert len(EditMemory.load(editor, tmp_path, gate=other)) == 1


def test_stored_edits_keep_no_gradient_and_can_be_copied(llava: TinyModel):
    editor = trained_editor(llava, gate={"kind": "learned"})
    editor.gate.projection.thresholds.fill_(0.5)  # as those of a trained one
    memory = EditMemory(editor)
    memory.add(Query("What is this?", picture(), "red"))
    (edit,) = memory
    assert not edit.key.requires_grad and edit.key.grad_fn is None
    assert copy.deepcopy(memory.model).edits == memory.model.edits


@pytest.mark.parametrize("given", ["Who?", ["Who?"], ("Who?", None, "x"), {"prompt": "a"}, None, 3])
def test_what_is_no_request_is_told(given: Any, llava: TinyModel):
    editor = trained_editor(llava)
    memory = EditMemory(editor)
    for asked in (memory.add, memory.check, memory.find):
        with pytest.raises(DataError, match="is no request; give Query"):
            asked(given)
    if isinstance(given, list | tuple):
        with pytest.raises(DataError, match="is no request; give Query"):
            editor.read(given)
    assert not len(memory)


def test_what_is_no_editor_no_memory_and_no_folder_is_told(
    llava: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    editor = trained_editor(llava)
    memory = EditMemory(editor)
    memory.add(Query("What is this?", picture("red"), "a kite"))
    for wrong in (llava.model, "adapters"):
        with pytest.raises(ConfigError, match="a memory needs a DualEditor"):
            EditMemory(wrong)
    with pytest.raises(ConfigError, match="'my-edits' is no EditMemory"):
        memory.merge("my-edits")
    monkeypatch.chdir(tmp_path)
    for save in (memory.save, editor.save):
        for blank in ("", " "):
            with pytest.raises(ArchiveError, match="name a folder to write to"):
                save(blank)
    assert not list(tmp_path.iterdir())
