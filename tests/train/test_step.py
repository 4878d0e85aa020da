"""The shared step gives the losses of whole forwards, and runs no part twice."""

import gc
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from tiny_data import editor_of, fast, write_data
from tiny_editors import shared, trained_editor
from tiny_families import FAMILIES
from tiny_models import TinyModel

from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.train.step import SharedSteps, plain_losses


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    return load_records(write_data(tmp_path), tmp_path)


@pytest.mark.parametrize("signal", ["target", "all"])
def test_losses_stay_those_of_whole_forwards_over_twenty_steps(
    every: TinyModel, records: list[Record], signal: str
):
    editors = [trained_editor(every, signal=signal) for _ in range(2)]
    optimisers = [torch.optim.SGD(e.adapters.parameters(), lr=1e-3) for e in editors]
    shared = SharedSteps(editors[0])
    config = fast(text_locality_weight=0.5)
    every.model.requires_grad_(False)
    for step in range(20):
        chosen = [records[(step * 3 + i) % len(records)] for i in range(4)]
        got = shared.losses(chosen, config)
        expected = plain_losses(editors[1], chosen, config)
        for metric, loss in expected.by_metric.items():
            assert got.by_metric[metric] == pytest.approx(loss, rel=1e-5), (step, metric)
        for optimiser, losses in zip(optimisers, (got, expected), strict=True):
            optimiser.zero_grad()
            losses.total.backward()
            optimiser.step()
    every.model.requires_grad_(True)
    assert not shared.is_plain, "no family needs whole forwards"


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_only_causal_attention_shares_beginnings(family: str, records: list[Record]):
    steps = SharedSteps(editor_of(shared(family)))
    steps.losses(records[:2], fast())
    # Pictures are read both ways in two of them; the third keeps a running state instead.
    assert steps.prefix.shares == (family not in ("gemma3", "paligemma", "qwen3.5"))
    assert steps.prefix.trims and not steps.is_plain


@pytest.mark.parametrize("layers", [(2, 1), (1, 1), (2, 0)])
def test_either_layer_may_be_the_deeper(
    llava: TinyModel, records: list[Record], layers: tuple[int, int]
):
    editor = trained_editor(llava, text_layer=layers[0], vision_layer=layers[1])
    got = SharedSteps(editor).losses(records[:3], fast())
    expected = plain_losses(editor, records[:3], fast())
    for metric, loss in expected.by_metric.items():
        assert got.by_metric[metric] == pytest.approx(loss, rel=1e-5)


def test_a_model_that_cannot_be_continued_runs_whole_forwards(
    llava: TinyModel, records: list[Record], monkeypatch: pytest.MonkeyPatch
):
    editor = trained_editor(llava)
    monkeypatch.setattr(
        "easyedit_dualedit.train.step.head_of",
        lambda model: lambda hidden: model.get_output_embeddings()(hidden) * 2,
    )
    steps = SharedSteps(editor)
    got = steps.losses(records[:3], fast())
    assert steps.is_plain
    assert got.by_metric == plain_losses(editor, records[:3], fast()).by_metric


def test_known_pictures_skip_the_vision_tower(every: TinyModel, records: list[Record]):
    editor = trained_editor(every)
    steps = SharedSteps(editor)
    first = steps.losses(records[:4], fast()).by_metric
    calls: list[str] = []
    decoder = set(editor.backbone.decoder.modules()) | {every.model}
    head = every.model.get_output_embeddings()
    embeddings = every.model.get_input_embeddings()
    with ExitStack() as stack:
        for name, part in every.model.named_modules():
            inside = any(item in decoder for item in part.modules())
            if not inside and part not in (head, embeddings):
                hook = part.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
                stack.callback(hook.remove)
        again = steps.losses(records[:4], fast()).by_metric
    assert again == first
    assert not calls


def test_pictures_beyond_the_budget_are_read_again(llava: TinyModel, records: list[Record]):
    editor = trained_editor(llava)
    steps = SharedSteps(editor, budget=0)
    got = [steps.losses(records[:4], fast()).by_metric for _ in range(2)]
    assert got[0] == got[1]
    assert len(steps.prefix.vision.cache) == 0


def test_a_step_leaves_no_tensor_to_the_garbage_collector(every: TinyModel, records: list[Record]):
    editor = trained_editor(every)
    steps = SharedSteps(editor)
    every.model.requires_grad_(False)
    chosen = [records[:2], records[2:4], records[:2]]
    steps.losses(records[4:6], fast()).total.backward()  # compares itself with whole forwards
    gc.collect()
    gc.disable()
    try:
        for part in chosen:
            steps.losses(part, fast()).total.backward()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [tuple(item.shape) for item in gc.garbage if isinstance(item, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
        every.model.requires_grad_(True)
    assert not left
