"""A panel asks in fewer forwards what each model says when it is asked alone."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_data import write_data
from tiny_editors import trained_editor
from tiny_models import TinyModel, tiny_llava

from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.measure import panel as module
from easyedit_dualedit.measure.asking import Asker
from easyedit_dualedit.measure.contender import Edited
from easyedit_dualedit.measure.panel import Panel
from easyedit_dualedit.measure.protocols import EVALUATION_PROTOCOLS
from easyedit_dualedit.measure.questions import Questions
from easyedit_dualedit.method.config import GateConfig
from easyedit_dualedit.method.edited_model import EditedModel
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.row_budget import RowBudget


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    return load_records(write_data(tmp_path / "data", 3), tmp_path / "data")


def questions_of(records: list[Record]) -> list[Questions]:
    return [Questions.of(record, EVALUATION_PROTOCOLS) for record in records]


def edits_of(editor: DualEditor, records: list[Record]) -> dict[str, list[EditedModel | None]]:
    """Return an edit that opens everywhere, one that never does, and its own gate's."""
    kinds = {"open": GateConfig("open"), "shut": GateConfig("cosine", 1.0 - 1e-7)}
    gates = {name: editor.gate.with_config(config) for name, config in kinds.items()}
    gates["own"] = editor.gate
    # Of a question that is not asked: a gate that wants the very same never opens.
    read = [
        editor.edited(editor.read([replace(record.request, prompt="Where is the star?")]))
        for record in records
    ]
    return {
        "unedited": [None] * len(records),
        **{name: [edited.with_gate(gate) for edited in read] for name, gate in gates.items()},
    }


@contextmanager
def counted(editor: DualEditor) -> Iterator[Counter[str]]:
    """Yield the rows that pass a decoder layer, and the pictures that pass the vision tower."""
    count: Counter[str] = Counter()
    backbone = editor.backbone
    tower = next(part for name, part in backbone.model.named_modules() if "vision_tower" in name)

    def layer(_module: object, args: tuple[torch.Tensor, ...], _output: object) -> None:
        if args[0].shape[1] > 1:  # no step of an answer
            count["rows"] += len(args[0])

    def pictures(
        _module: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, object]
    ) -> None:
        count["pictures"] += len(args[0] if args else kwargs["pixel_values"])  # type: ignore[arg-type]

    handles = [
        backbone.layers[0].register_forward_hook(layer),
        tower.register_forward_pre_hook(pictures, with_kwargs=True),
    ]
    yield count
    for handle in handles:
        handle.remove()


def test_replies_are_those_of_each_model_asked_alone(tiny: TinyModel, records: list[Record]):
    editor = trained_editor(tiny)
    edits = edits_of(editor, records)
    panel = Panel(editor.encoder, RowBudget(4096))
    for _ in range(2):  # at first, and once it is known what closed gates do
        before, after = panel.ask(questions_of(records), edits, EVALUATION_PROTOCOLS)
        assert list(after) == list(edits) and after["unedited"] == before
        for place, record in enumerate(records):
            asker = Asker(editor.encoder, questions_of([record]), EVALUATION_PROTOCOLS)
            assert_alike(before[place], asker.ask(Edited(tiny.model, 0))[0])
            for name in ("open", "shut", "own"):
                edited = edits[name][place]
                assert edited is not None
                assert_alike(after[name][place], asker.ask(Edited.by_dualedit(edited))[0])
    assert any(reply.is_open for reply in after["open"][0].to.values())
    assert not any(reply.is_open for reply in after["shut"][0].to.values())


def assert_alike(got: object, wanted: object) -> None:
    for name, reply in wanted.to.items():
        found = got.to[name]
        assert (found.predicted, found.is_open) == (reply.predicted, reply.is_open)
        # Together, answers may be longer.
        assert found.text.startswith(reply.text)
        if reply.similarity is not None:
            assert found.similarity == pytest.approx(reply.similarity, abs=1e-4)


def test_a_closed_gate_is_not_asked_again_and_a_picture_is_looked_at_once(records: list[Record]):
    tiny = tiny_llava()
    editor = trained_editor(tiny)
    edits = edits_of(editor, records)
    panel = Panel(editor.encoder, RowBudget(4096))
    panel.ask(questions_of(records), edits, EVALUATION_PROTOCOLS)  # features and gates are tried
    questions, shut = questions_of(records), {"shut": edits["shut"]}
    with counted(editor) as none:
        panel.ask(questions, {}, EVALUATION_PROTOCOLS)
    with counted(editor) as closed:
        panel.ask(questions, shut, EVALUATION_PROTOCOLS)
    with counted(editor) as four:
        panel.ask(questions, {str(n): edits["open"] for n in range(4)}, EVALUATION_PROTOCOLS)
    assert none["rows"] == closed["rows"] == 2 * 5 * len(records)
    assert four["rows"] == 5 * none["rows"]
    # A record shows two pictures, in four questions, asked twice, of five models.
    assert none["pictures"] == closed["pictures"] == four["pictures"] == 2 * len(records)


def test_answers_that_are_fed_in_take_logits_at_their_tokens_alone(
    records: list[Record], monkeypatch: pytest.MonkeyPatch
):
    editor = trained_editor(tiny_llava())
    edits = {"open": edits_of(editor, records)["open"]}
    panel = Panel(editor.encoder, RowBudget(4096))
    panel.ask(questions_of(records), edits, ("visedit",))  # features and gates are tried
    seen: list[int] = []
    head, force = editor.backbone.model.get_output_embeddings(), module._Sitting.force

    def forced(self: module._Sitting, places: list[int]) -> None:
        with monitored(head, seen):
            force(self, places)

    monkeypatch.setattr(module._Sitting, "force", forced)
    _, after = panel.ask(questions_of(records), edits, ("visedit",))
    tokens = sum(len(reply.predicted) for replies in after["open"] for reply in replies.to.values())
    assert sum(seen) == 2 * tokens > 0, "once unedited, once edited"


@contextmanager
def monitored(head: torch.nn.Module, seen: list[int]) -> Iterator[None]:
    """Add the number of states that a head makes logits of at every call."""
    handle = head.register_forward_hook(lambda _m, args, _o: seen.append(args[0][..., 0].numel()))
    try:
        yield
    finally:
        handle.remove()


def test_a_closed_gate_that_changes_something_is_asked_everything(
    llava: TinyModel, records: list[Record], caplog: pytest.LogCaptureFixture
):
    editor = trained_editor(llava)
    edits = {"shut": edits_of(editor, records)["shut"]}
    panel = Panel(editor.encoder, RowBudget(4096))
    panel.compare("shut", True, True)
    panel.compare("shut", False, False)
    assert "shut changes answers" in caplog.text
    with counted(editor) as count:
        panel.ask(questions_of(records), edits, EVALUATION_PROTOCOLS)
    # The first time pictures' features are compared with whole forwards, too: some rows more.
    assert count["rows"] >= 3 * 5 * len(records)


def test_running_out_of_memory_changes_no_reply(
    llava: TinyModel, records: list[Record], monkeypatch: pytest.MonkeyPatch
):
    editor = trained_editor(llava)
    edits = edits_of(editor, records)
    wanted = Panel(editor.encoder, RowBudget(4096)).ask(
        questions_of(records), edits, EVALUATION_PROTOCOLS
    )
    real, sizes = module.greedy_answers, []

    def scarce(model: object, encoder: object, batch: object, limits: list[int]) -> list[str]:
        sizes.append(batch.size)
        if batch.size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, encoder, batch, limits)

    monkeypatch.setattr(module, "greedy_answers", scarce)
    panel = Panel(editor.encoder, RowBudget(4096))
    got = panel.ask(questions_of(records), edits, EVALUATION_PROTOCOLS)
    assert max(sizes) > 2 and panel.budget.tokens < 4096
    for one, other in zip(got[0], wanted[0], strict=True):
        assert one.texts == other.texts
    for name in edits:
        for one, other in zip(got[1][name], wanted[1][name], strict=True):
            assert one.to_dict()["answers"] == other.to_dict()["answers"]
