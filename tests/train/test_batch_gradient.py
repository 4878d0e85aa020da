"""A batch that runs in parts has the gradient and the losses of the whole one."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_data import editor_of, fast, write_data
from tiny_editors import tiny_config, trained_editor
from tiny_models import TinyModel
from torch import Tensor

from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.errors import BackboneError
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.row_budget import RowBudget
from easyedit_dualedit.model.row_memory import allowed_memory
from easyedit_dualedit.train.batch_gradient import BatchGradient
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.losses import StepLosses
from easyedit_dualedit.train.step import TrainingStep
from easyedit_dualedit.train.trainer import train

CONFIG = fast(text_locality_weight=0.5)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Return four records, one of whose answers is longer, so that parts' means would differ."""
    folder = tmp_path_factory.mktemp("data")
    path = write_data(folder)
    items = json.loads(path.read_text(encoding="utf-8"))
    items[1]["alt"] = " ".join([items[1]["alt"]] * 3)
    path.write_text(json.dumps(items), encoding="utf-8")
    return load_records(path, folder)[:4]


class Counted(TrainingStep):
    """A step that notes how many records ran at once, where memory has room for few."""

    def __init__(self, editor: DualEditor, room: int = 4):
        super().__init__(editor)
        self.room = room
        self.ran: list[int] = []

    def answers(self, records: Sequence[Record], *rest: Any, **options: Any) -> Any:
        if len(records) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.ran.append(len(records))
        return super().answers(records, *rest, **options)


def gradient(
    editor: DualEditor, step: TrainingStep, records: Sequence[Record], budget: RowBudget
) -> tuple[StepLosses, list[Tensor]]:
    editor.adapters.zero_grad(set_to_none=True)
    losses = BatchGradient(editor, step, CONFIG, budget).add(records)
    found = [p.grad for p in editor.adapters.parameters() if p.grad is not None]
    return losses, found


@pytest.mark.parametrize("parts", ["one", "budget", "out of memory"])
def test_the_gradient_is_that_of_the_whole_batch(
    llava: TinyModel, records: list[Record], parts: str
):
    editor = trained_editor(llava)
    llava.model.requires_grad_(False)
    whole = TrainingStep(editor).losses(records, CONFIG)
    whole.total.backward()
    expected = [p.grad for p in editor.adapters.parameters() if p.grad is not None]
    step = Counted(editor, room=1 if parts == "out of memory" else 4)
    budget = RowBudget(1 if parts == "budget" else 10**9)
    losses, found = gradient(editor, step, records, budget)
    assert step.ran == ([4] if parts == "one" else [1, 1, 1, 1])
    assert losses.by_metric == pytest.approx(whole.by_metric, rel=1e-5)
    assert losses.accuracy == pytest.approx(whole.accuracy)
    assert float(losses.total) == pytest.approx(float(whole.total.detach()), rel=1e-5)
    for got, wanted in zip(found, expected, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-6)
    llava.model.requires_grad_(True)


def test_a_step_that_no_adapter_reaches_changes_none(tiny: TinyModel, records: list[Record]):
    """Where the text adapter is left out, questions without pictures give it nothing to learn."""
    config = fast(
        batch_size=1,
        steps=6,
        gate_steps=0,
        text_only=0.5,
        image_generality_weight=0.0,
        image_locality_weight=0.0,
        text_locality_weight=0.0,
    )
    vision = replace(tiny_config(gate="cosine"), modalities=("vision",))
    editor = DualEditor(tiny.model, tiny.processor, vision)
    before = [each.detach().clone() for each in editor.adapters.parameters()]
    train(editor, records, config, progress=False)
    after = editor.adapters.parameters()
    assert any(bool((one != two).any()) for one, two in zip(before, after, strict=True))


def test_running_out_of_memory_backward_adds_nothing_twice(
    llava: TinyModel, records: list[Record], monkeypatch: pytest.MonkeyPatch
):
    editor = trained_editor(llava)
    llava.model.requires_grad_(False)
    step = Counted(editor)
    _, expected = gradient(editor, step, records, RowBudget(10**9))
    real, calls = torch.autograd.grad, {"n": 0}

    def failing(*arguments: Any, **options: Any) -> Any:
        found = real(*arguments, **options)
        calls["n"] += 1
        if calls["n"] == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    monkeypatch.setattr(torch.autograd, "grad", failing)
    _, found = gradient(editor, step, records, RowBudget(10**9))
    assert step.ran[1:] == [4, 2, 2]
    for got, wanted in zip(found, expected, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-6)
    llava.model.requires_grad_(True)


def test_counting_tokens_reads_no_picture_again(
    llava: TinyModel, records: list[Record], monkeypatch: pytest.MonkeyPatch
):
    editor = editor_of(llava)
    llava.model.requires_grad_(False)
    read = {"n": 0}
    real = type(editor.encoder).read

    def counted(self: Any, queries: Any) -> Any:
        read["n"] += sum(len(query.shown) for query in queries)
        return real(self, queries)

    def reading(step: TrainingStep, *, whole: bool) -> int:
        step.losses(records[:1], CONFIG)  # compares itself with whole forwards
        read["n"] = 0
        if whole:
            step.losses(records[1:], CONFIG)
        else:
            BatchGradient(editor, step, CONFIG, RowBudget(1)).add(records[1:])
        return read["n"]

    monkeypatch.setattr(type(editor.encoder), "read", counted)
    assert reading(Counted(editor), whole=False) == reading(TrainingStep(editor), whole=True) > 0
    llava.model.requires_grad_(True)


def trained(tiny: TinyModel, records: list[Record], config: TrainingConfig) -> list[Tensor]:
    torch.manual_seed(0)
    editor = editor_of(tiny)
    train(editor, records, config, progress=False)
    return [parameter.detach().clone() for parameter in editor.adapters.parameters()]


def test_memory_that_is_allowed_bounds_a_training_which_stays_the_same(
    llava: TinyModel, records: list[Record], monkeypatch: pytest.MonkeyPatch
):
    config = fast(steps=2, gate_steps=0)
    expected = trained(llava, records, config)
    weights = sum(p.numel() * p.element_size() for p in llava.model.parameters())
    ran: list[int] = []
    real = TrainingStep.answers

    def counted(self: TrainingStep, records: Sequence[Record], *rest: Any, **options: Any) -> Any:
        ran.append(len(records))
        return real(self, records, *rest, **options)

    monkeypatch.setattr(TrainingStep, "answers", counted)
    with allowed_memory(weights + 2**19):
        found = trained(llava, records, config)
    assert ran == [1] * 8
    for got, wanted in zip(found, expected, strict=True):
        # Adam's first steps are the signs of the gradient: where that is noise, so are they.
        assert float(torch.isclose(got, wanted, atol=1e-4).float().mean()) > 0.98
    with allowed_memory(weights // 2), pytest.raises(BackboneError, match="weights alone"):
        trained(llava, records, config)
