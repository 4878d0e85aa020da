"""The shared step gives the losses of whole forwards, and runs no part twice."""

import gc
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_data import editor_of, fast, write_data
from tiny_editors import shared, trained_editor
from tiny_families import FAMILIES
from tiny_models import TinyModel

from easyedit_dualedit.data.records import METRICS, Record, load_records
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.train.batch_gradient import BatchGradient
from easyedit_dualedit.train.plain_step import plain_losses
from easyedit_dualedit.train.step import TrainingStep


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder = tmp_path_factory.mktemp("data")
    return load_records(write_data(folder), folder)


def test_losses_stay_those_of_whole_forwards_over_several_steps(
    every: TinyModel, records: list[Record]
):
    editors = [trained_editor(every) for _ in range(2)]
    optimisers = [torch.optim.SGD(e.adapters.parameters(), lr=1e-3) for e in editors]
    shared = TrainingStep(editors[0])
    config = fast(text_locality_weight=0.5)
    every.model.requires_grad_(False)
    for step in range(3):  # the third is of edits that were tried before
        chosen = [records[(step * 2 + i) % 4] for i in range(3)]
        got = shared.losses(chosen, config)
        expected = plain_losses(editors[1], chosen, config)
        assert got.by_metric == pytest.approx(expected.by_metric, rel=1e-5), step
        assert got.accuracy == pytest.approx(expected.accuracy), step
        assert float(got.total.detach()) == pytest.approx(float(expected.total.detach()), rel=1e-5)
        for optimiser, losses in zip(optimisers, (got, expected), strict=True):
            optimiser.zero_grad()
            losses.total.backward()
            optimiser.step()
    every.model.requires_grad_(True)
    assert not shared.is_plain, "no family needs whole forwards"


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_only_causal_attention_shares_beginnings(family: str, records: list[Record]):
    steps = TrainingStep(editor_of(shared(family)))
    steps.losses(records[:2], fast())
    # Pictures are read both ways in two of them; the third keeps a running state instead.
    assert steps.frozen.shares == (family not in ("gemma3", "paligemma", "qwen3.5"))
    assert steps.frozen.trims and not steps.is_plain


def test_accuracy_out_of_scope_is_agreement_with_the_unedited_model(
    llava: TinyModel, records: list[Record]
):
    """Some of it holds, and some does not, so that neither may be taken for granted."""
    editor = trained_editor(llava)
    config = fast(end_of_answer=False)
    got = TrainingStep(editor).losses(records, config).accuracy
    expected = plain_losses(editor, records, config).accuracy
    for metric in ("text_locality", "image_locality"):
        agreed = []
        for record in records:
            edited = editor.edited(editor.read([record.request]), gate=editor.open_gate())
            query = record.queries[METRICS.index(metric)]
            batch = editor.encoder.encode([query])
            start = int(batch.layout.gate[0])
            with torch.no_grad():
                before = llava.model(**batch.inputs).logits[0, start:-1].argmax(-1)
                after = edited(**batch.inputs).logits[0, start:-1].argmax(-1)
            agreed += (before == after).tolist()
        share = sum(agreed) / len(agreed)
        assert share < 1
        assert got[metric] == pytest.approx(share) == expected[metric]


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llava", {"text_layer": 2, "vision_layer": 1}),
        ("llava", {"text_layer": 1, "vision_layer": 1}),
        ("llava", {"text_layer": 2, "vision_layer": 0}),
        ("llava", {"text_layer": 0, "vision_layer": 2}),
        ("llava", {"modalities": ("text",), "text_layer": 0}),
        ("blip2", {"text_layer": 0, "vision_layer": 2}),
        ("gemma3", {"text_layer": 0, "vision_layer": 2}),
        ("llava", {"signal": "all"}),
        ("gemma3", {"signal": "all"}),
    ],
)
def test_either_layer_may_be_the_deeper_and_any_positions_the_signal(
    family: str, records: list[Record], changes: dict[str, Any]
):
    editor = trained_editor(shared(family), **changes)
    got = TrainingStep(editor).losses(records[:3], fast())
    expected = plain_losses(editor, records[:3], fast())
    for metric, loss in expected.by_metric.items():
        assert got.by_metric[metric] == pytest.approx(loss, rel=1e-5)
    weights = list(editor.adapters.parameters())
    found = [torch.autograd.grad(losses.total, weights) for losses in (got, expected)]
    for name, one, other in zip(dict(editor.adapters.named_parameters()), *found, strict=True):
        atol = 1e-4 * float(other.abs().max())
        torch.testing.assert_close(one, other, atol=atol, rtol=1e-3, msg=name)


@pytest.mark.parametrize("recomputes", [False, True])
def test_nothing_is_kept_for_a_gradient_of_what_no_edit_reaches(
    llava: TinyModel, records: list[Record], recomputes: bool
):
    editor = trained_editor(llava, text_layer=0, vision_layer=2)
    others = {f"{metric}_weight": 0.0 for metric in METRICS if metric != "reliability"}
    config = fast(checkpoint_activations=recomputes, **others)
    batch = editor.encoder.encode([records[0].request], end_of_answer=config.end_of_answer)
    begin, width = int(batch.layout.text.nonzero()[0, 1]), batch.layout.text.shape[1]
    assert begin > int(batch.layout.vision.sum()) > 0
    steps = TrainingStep(editor)
    steps.losses(records[:1], config)  # the first step compares itself with whole forwards
    kept: list[int] = []

    def note(_module: Any, args: tuple[torch.Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            kept.append(args[0].shape[1])

    layers: Any = editor.backbone.layers
    with ExitStack() as stack:
        for layer in layers[1:3]:
            stack.callback(layer.mlp.up_proj.register_forward_pre_hook(note).remove)
        steps.losses(records[:1], config).total.backward()
    assert set(kept) == {width - begin}
    assert len(kept) == 2 * (1 + recomputes)
    llava.model.zero_grad(set_to_none=True)  # it is shared, and only `train` freezes it


def test_a_model_that_cannot_be_continued_runs_whole_forwards(
    llava: TinyModel, records: list[Record], monkeypatch: pytest.MonkeyPatch
):
    editor = trained_editor(llava)
    monkeypatch.setattr(
        "easyedit_dualedit.train.step.head_of",
        lambda model: lambda hidden: model.get_output_embeddings()(hidden) * 2,
    )
    steps = TrainingStep(editor)
    got = steps.losses(records[:3], fast())
    assert steps.is_plain
    assert got.by_metric == plain_losses(editor, records[:3], fast()).by_metric


def test_known_pictures_skip_the_vision_tower(every: TinyModel, records: list[Record]):
    editor = trained_editor(every)
    steps = TrainingStep(editor)
    first = steps.losses(records[:2], fast()).by_metric
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
        again = steps.losses(records[:2], fast()).by_metric
    assert again == first
    assert not calls


def painted(record: Record, shade: int) -> Record:
    """Return a record with pictures of one size that no other shade has."""
    own, other, third = (Image.new("RGB", (32, 32), (shade, part, 0)) for part in range(3))
    return replace(
        record,
        request=replace(record.request, image=own),
        text_rephrase=replace(record.text_rephrase, image=own),
        image_rephrase=replace(record.image_rephrase, image=other),
        image_locality=replace(record.image_locality, image=third),
    )


@pytest.mark.parametrize("ahead", [False, True])
def test_the_processor_reads_the_new_pictures_of_a_step_at_once(
    llava: TinyModel, records: list[Record], monkeypatch: pytest.MonkeyPatch, ahead: bool
):
    monkeypatch.setattr("easyedit_dualedit.model.query_cache._COMPARED", 0)
    editor, config = trained_editor(llava), fast()
    steps = TrainingStep(editor)
    work: Any = BatchGradient(editor, steps, config).add if ahead else None
    work = work or partial(steps.losses, config=config)
    work([painted(record, 10 + place) for place, record in enumerate(records[:2])])
    calls: list[int] = []
    real = editor.encoder.read

    def noting(queries: Sequence[Query]) -> Any:
        calls.append(sum(len(query.pictures) for query in queries))
        return real(queries)

    monkeypatch.setattr(editor.encoder, "read", noting)
    work([painted(record, 20 + place) for place, record in enumerate(records[:2])])
    assert calls == [2 * 3], "three pictures a record, whatever is asked about them"


def test_another_answer_to_a_known_question_is_another_query(
    llava: TinyModel, records: list[Record]
):
    editor = trained_editor(llava)
    steps = TrainingStep(editor)
    steps.losses(records[:1], fast())
    request = replace(records[0].request, target="three four")
    other = [replace(records[0], request=request, image_rephrase=request)]
    expected = plain_losses(editor, other, fast()).by_metric
    assert steps.losses(other, fast()).by_metric == pytest.approx(expected, rel=1e-5)


def test_pictures_beyond_the_budget_are_read_again(llava: TinyModel, records: list[Record]):
    editor = trained_editor(llava)
    steps = TrainingStep(editor, budget=0)
    got = [steps.losses(records[:4], fast()).by_metric for _ in range(2)]
    assert got[0] == got[1]
    assert len(steps.frozen.pictures.cache) == 0


def test_a_step_leaves_no_tensor_to_the_garbage_collector(every: TinyModel, records: list[Record]):
    editor = trained_editor(every)
    steps = TrainingStep(editor)
    every.model.requires_grad_(False)
    chosen = [records[:1], records[1:2], records[:1]]
    steps.losses(records[2:3], fast()).total.backward()  # compares itself with whole forwards
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
