"""Gate states are those of whole rows, and every picture and question is run once."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_data import write_data
from tiny_editors import picture, tiny_config, trained_editor
from tiny_models import TinyModel

from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.data.scope import SCOPE, scope_queries
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.answers import first_answer_tokens
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.model.picture_features import PictureFeatures
from easyedit_dualedit.model.row_budget import RowBudget
from easyedit_dualedit.model.row_memory import allowed_memory
from easyedit_dualedit.train.gate_reading import GateReader, plain_gate_states, read_gate_states
from easyedit_dualedit.train.gate_rows import GateBatches, RowLength, distinct_rows
from easyedit_dualedit.train.scope_states import ScopeQueries


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    return load_records(write_data(tmp_path, 24), tmp_path)


def queries_of(records: list[Record], *, answered: bool) -> list[Query]:
    kinds = scope_queries(records)
    queries = [query for kind in SCOPE for query in kinds[kind]]
    return queries if answered else [replace(query, target=None) for query in queries]


@contextmanager
def counted(editor: DualEditor) -> Iterator[dict[str, int]]:
    """Yield the rows and tokens through each layer, and the pictures through the tower."""
    seen = {"tokens": 0, "above": 0, "pictures": 0, "head": 0}
    backbone = editor.backbone
    model: Any = backbone.model
    last = editor.config.text_layer

    def below(_m: Any, _a: Any, output: Any) -> None:
        seen["tokens"] += output[0].shape[0] * output[0].shape[1]

    def above(_m: Any, _a: Any, _o: Any) -> None:
        seen["above"] += 1

    def head(_m: Any, args: Any) -> None:
        seen["head"] += args[0].numel() // args[0].shape[-1]

    def tower(_m: Any, args: Any, kwargs: Any) -> None:
        seen["pictures"] += len(kwargs["pixel_values"] if "pixel_values" in kwargs else args[0])

    hooks = [
        backbone.layers[0].self_attn.register_forward_hook(below),
        backbone.layers[last + 1].self_attn.register_forward_hook(above),
        model.get_output_embeddings().register_forward_pre_hook(head),
        model.model.vision_tower.register_forward_pre_hook(tower, with_kwargs=True),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("answered", [False, True])
def test_states_are_those_of_whole_rows(every: TinyModel, records: list[Record], answered: bool):
    editor = trained_editor(every)
    queries = queries_of(records[:6], answered=answered)
    asking = [place % 3 == 0 for place in range(len(queries))]
    reader = GateReader(editor, batch_tokens=256)
    read = reader.read(queries, first=asking)
    read = read.of(0, len(queries))
    plain = plain_gate_states(editor, [query for query in queries])
    every_name = ("gate", "last", "vision", "text")
    names = [name for name in every_name if answered or name != "last"]
    expected = dict(zip(every_name, plain, strict=True))
    for name in names:
        got, wanted = getattr(read, name), expected[name]
        assert torch.allclose(got, wanted, atol=2e-4 * float(wanted.abs().max())), name
    wanted_first = first_answer_tokens(editor.encoder, queries)
    chosen = torch.tensor(asking)
    assert torch.equal(read.first[chosen], wanted_first[chosen])


def test_memory_that_ends_halves_what_is_read_together(
    llava: TinyModel, records: list[Record], monkeypatch: pytest.MonkeyPatch
):
    editor = trained_editor(llava)
    queries = queries_of(records, answered=True)
    whole = read_gate_states(editor, queries)
    tried: list[int] = []
    real = GateReader._states

    def full(self: GateReader, rows: Any, prepared: Any) -> Any:
        tried.append(len(rows))
        if len(rows) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, rows, prepared)

    monkeypatch.setattr(GateReader, "_states", full)
    halved = read_gate_states(editor, queries)
    assert max(tried[:1]) > 4 and tried.count(max(tried)) == 1, "it has learnt"
    for name in ("gate", "last", "vision"):
        got, wanted = getattr(halved, name), getattr(whole, name)
        assert torch.allclose(got, wanted, atol=2e-4 * float(wanted.abs().max())), name
    weights = sum(p.numel() * p.element_size() for p in llava.model.parameters())
    tried.clear()
    with allowed_memory(weights + 1000):
        read_gate_states(editor, queries[:12])
    assert max(tried) == 1, "it keeps to what is allowed"


def test_each_picture_and_question_is_run_once(llava: TinyModel, records: list[Record]):
    editor = trained_editor(llava)
    asked = ScopeQueries.of(records)
    reader = GateReader(editor)
    reader.read(asked.queries, first=asked.first)  # what the model bears is known from now on
    assert reader.shares
    reader._frozen.pictures = PictureFeatures(editor.encoder, 0)
    distinct = {(query.prompt, query.image) for query in asked.queries}
    shown = {query.image for query in asked.queries if query.image}
    lengths = {
        query: len(editor.encoder.tokenised(Query(*query))[0]["input_ids"]) for query in distinct
    }
    whole = sum(len(editor.encoder.tokenised(q)[0]["input_ids"]) for q in asked.queries)
    with counted(editor) as seen:
        reader.read(asked.queries)
    assert seen["pictures"] == len(shown)
    assert seen["above"] == 0 and seen["head"] == 0
    assert seen["tokens"] < 0.9 * sum(lengths.values()) < 0.9 * whole, "beginnings are shared"
    with counted(editor) as seen:
        reader.read(asked.queries, first=asked.first)
    firsts = {q for q, first in zip(asked.queries, asked.first, strict=True) if first}
    assert seen["head"] == len(firsts), "one position of each"


def test_a_batch_keeps_to_its_budget(records: list[Record]):
    rows, _ = distinct_rows(queries_of(records, answered=False))

    def length(row: Any, _prepared: Any) -> RowLength:
        beginning = 20 if row.pictures else 0
        return RowLength(beginning + len(row.query.prompt), beginning)

    def width(batch: list[Any]) -> int:
        shared: dict[Any, int] = {}
        for row in batch:
            key = row.pictures or row.place
            own = len(row.query.prompt)
            shared[key] = shared.get(key, 20 if row.pictures else 0) + own
        return len(shared) * max(shared.values())

    batches = [batch for batch, _ in GateBatches(rows, length, RowBudget(400))]
    assert sorted(row.place for batch in batches for row in batch) == list(range(len(rows)))
    assert all(width(batch) <= 400 for batch in batches)
    assert len(batches) < len(rows) / 2
    alone = GateBatches(rows, length, RowBudget(1))
    alone.shares = False
    assert all(len(batch) == 1 for batch, _ in alone)


def test_what_is_asked_twice_is_one_row():
    red, same, blue = picture("red"), picture("red"), picture("blue")
    queries = [
        Query("What?", red),
        Query("What?", same, "a kite"),
        Query("What?", blue),
        Query("What?"),
        Query("What?", red, "a cat"),
        Query("What?"),
    ]
    rows, row_of = distinct_rows(queries, [True, False, False, False, False, False])
    assert row_of[0] in (row_of[1], row_of[4]) and row_of[1] != row_of[4]
    assert row_of[3] == row_of[5]
    assert len(rows) == 4
    assert [row.wants_first for row in rows] == [row.place == row_of[0] for row in rows]


def test_a_model_that_cannot_be_run_in_parts_is_read_whole(
    llava: TinyModel, records: list[Record], monkeypatch: pytest.MonkeyPatch
):
    editor = trained_editor(llava)
    queries = queries_of(records, answered=False)
    first = [True] * len(queries)
    expected = read_gate_states(editor, queries, first=first)
    reader = GateReader(editor)
    real = GateReader._run

    def spoilt(self: GateReader, rows: Any, prepared: Any) -> Any:
        states, logits = real(self, rows, prepared)
        return tuple(each + 1 for each in states), logits

    monkeypatch.setattr(GateReader, "_run", spoilt)
    read = reader.read(queries, first=first)
    assert reader.is_plain and not reader.shares
    for name in ("gate", "vision", "first"):
        got, wanted = getattr(read, name).float(), getattr(expected, name).float()
        assert torch.allclose(got, wanted, atol=2e-4 * float(wanted.abs().max()))


def test_under_autocast_the_model_computes_in_bfloat16(llava: TinyModel, records: list[Record]):
    editor = DualEditor(llava.model, llava.processor, tiny_config(gate="learned"))
    queries = queries_of(records, answered=False)
    exact = read_gate_states(editor, queries)
    rough = read_gate_states(editor, queries, autocast="bfloat16")
    assert not torch.equal(rough.gate, exact.gate)
    assert torch.allclose(rough.gate, exact.gate, atol=0.05 * float(exact.gate.abs().max()))
