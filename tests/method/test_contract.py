"""What always holds, over every family (design, section 4)."""

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import full_width
import pytest
import torch
from tiny_editors import (
    entering,
    hooks_of_ours,
    picture,
    request_of,
    shared,
    silence,
    tiny_config,
    trained_editor,
)
from tiny_families import FAMILIES
from tiny_models import TinyModel

from easyedit_dualedit.errors import ChunkedPrefillError, NotEditedError
from easyedit_dualedit.method.config import GateConfig
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.inputs import Query

OTHER = Query("How many squares are there?", picture("blue"), "three four")
TEXT_ONLY = Query("Where is the star?", None, "top left")
LAYERS = pytest.mark.parametrize(
    ("text_layer", "vision_layer"), [(1, 2), (2, 1), (2, 2)], ids=["below", "above", "equal"]
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test on a tiny model of every family, or on models of full width."""
    if "tiny" in metafunc.fixturenames:
        wide = metafunc.config.getoption("--full-width")
        names = sorted(full_width.MODELS) if wide else sorted(FAMILIES)
        metafunc.parametrize("tiny", names, indirect=True, scope="module")


@pytest.fixture(scope="module")
def tiny(request: pytest.FixtureRequest) -> TinyModel:
    """The model that a test runs on."""
    return made(request.param) if request.param in full_width.MODELS else shared(request.param)


def made(name: str) -> TinyModel:
    """Return a new model: a tiny one of a family, or one of full width."""
    if name in FAMILIES:
        return FAMILIES[name]()
    return dataclasses.replace(
        full_width.built(name, layers=4, tower=2, few_image_tokens=True), family=name
    )


def logits(model: Any, batch: Any, **extra: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch.inputs, **extra).logits


@LAYERS
def test_an_open_gate_changes_the_answer(tiny: TinyModel, text_layer: int, vision_layer: int):
    editor = trained_editor(tiny, text_layer=text_layer, vision_layer=vision_layer)
    request = request_of()
    edited = editor.edit(request.image, request.prompt, request.target)
    batch = editor.encoder.encode([request])
    assert bool(edited.route(**batch.inputs).is_open.all())
    assert not torch.equal(logits(tiny.model, batch), logits(edited, batch))


@LAYERS
def test_a_closed_gate_is_bit_identical(tiny: TinyModel, text_layer: int, vision_layer: int):
    editor = trained_editor(
        tiny,
        text_layer=text_layer,
        vision_layer=vision_layer,
        gate={"kind": "cosine", "threshold": 1.0},
    )
    edited = editor.edited(editor.read([request_of()]))
    batch = editor.encoder.encode([OTHER, TEXT_ONLY])
    assert not bool(edited.route(**batch.inputs).is_open.any())
    assert torch.equal(logits(tiny.model, batch), logits(edited, batch))


def test_no_edit_and_undo_are_bit_identical(tiny: TinyModel):
    editor = trained_editor(tiny)
    batch = editor.encoder.encode([request_of(), OTHER])
    before = logits(tiny.model, batch)
    assert torch.equal(before, logits(editor.edited([]), batch))
    logits(editor.edited(editor.read([request_of()])), batch)
    assert torch.equal(before, logits(tiny.model, batch))


def test_hooks_vanish_after_an_error_and_foreign_hooks_stay(tiny: TinyModel):
    editor = trained_editor(tiny)
    layer = editor.backbone.layers[1]
    seen: list[int] = []
    foreign = layer.register_forward_hook(lambda *_: seen.append(1))
    edited = editor.edited(editor.read([request_of()]))
    batch = editor.encoder.encode([request_of()])
    editor.adapters["text"].query = torch.nn.Linear(3, 3)  # fails inside the hook
    try:
        with pytest.raises(RuntimeError):
            logits(edited, batch)
        assert not hooks_of_ours(tiny.model)
        seen.clear()
        logits(tiny.model, batch)
        assert seen == [1]
    finally:
        foreign.remove()


def test_an_untrained_adapter_changes_nothing(tiny: TinyModel):
    editor = DualEditor(tiny.model, tiny.processor, tiny_config())
    edited = editor.edited(editor.read([request_of()]), gate=editor.open_gate())
    batch = editor.encoder.encode([request_of()])
    assert torch.equal(logits(tiny.model, batch), logits(edited, batch))


@LAYERS
@pytest.mark.parametrize("kind", ["cosine", "centred", "open"])
def test_the_target_changes_nothing_before_it(
    tiny: TinyModel, text_layer: int, vision_layer: int, kind: str
):
    editor = trained_editor(
        tiny,
        text_layer=text_layer,
        vision_layer=vision_layer,
        gate={"kind": kind, "threshold": 0.5},
    )
    edited = editor.edited(editor.read([request_of()]))
    prompts = []
    for target in ("blue", "green yellow top"):
        batch = editor.encoder.encode([request_of(target=target)], padding_side="right")
        assert bool(edited.route(**batch.inputs).is_open.all())
        prompts.append(logits(edited, batch)[0, : int(batch.layout.gate[0]) + 1])
    assert torch.equal(*prompts) or torch.allclose(*prompts, atol=1e-5, rtol=1e-5)


def test_the_last_token_gate_reads_the_label(tiny: TinyModel):
    editor = trained_editor(tiny, gate={"kind": "last-token", "threshold": 0.99999})
    edited = editor.edited(editor.read([request_of(target="blue")]))
    routings, prompts = [], []
    for target in ("blue", "green yellow top"):
        batch = editor.encoder.encode([request_of(target=target)], padding_side="right")
        routings.append(bool(edited.route(layout=batch.layout, **batch.inputs).is_open[0]))
        prompts.append(
            logits(edited, batch, layout=batch.layout)[0, : int(batch.layout.gate[0]) + 1]
        )
    assert routings == [True, False]
    assert not torch.allclose(*prompts, atol=1e-3)


@LAYERS
@pytest.mark.parametrize("target_length", [1, 4])
def test_teacher_forcing_equals_generation(
    tiny: TinyModel, text_layer: int, vision_layer: int, target_length: int
):
    editor = trained_editor(tiny, text_layer=text_layer, vision_layer=vision_layer)
    request = request_of()
    edited = editor.edited(editor.read([request]))
    prompt = editor.encoder.encode([Query(request.prompt, request.image)])
    tokens = edited.generate(
        **prompt.inputs, max_new_tokens=target_length, do_sample=False, eos_token_id=-1
    )
    plain = tiny.model.generate(
        **prompt.inputs, max_new_tokens=target_length, do_sample=False, eos_token_id=-1
    )
    # One token of a random model may happen to be the same.
    assert target_length == 1 or not torch.equal(tokens, plain)
    answer = tokens[:, prompt.inputs["input_ids"].shape[1] :]
    inputs = dict(prompt.inputs)
    inputs["input_ids"] = tokens
    inputs["attention_mask"] = torch.ones_like(tokens)
    kinds = {"token_type_ids": editor.backbone.family.answer_token_type, "mm_token_type_ids": 0}
    for name in set(kinds) & set(inputs):
        kind = torch.full_like(answer, kinds[name])
        inputs[name] = torch.cat([inputs[name], kind.to(inputs[name].dtype)], 1)
    labels = torch.full_like(tokens, -100)
    labels[:, -answer.shape[1] :] = answer
    with torch.no_grad():
        chain = edited(**inputs, labels=labels).logits.argmax(-1)
    first = int(prompt.layout.gate[0])
    assert torch.equal(chain[:, first : first + answer.shape[1]], answer)


@pytest.mark.parametrize(
    ("text_layer", "vision_layer", "side"),
    [(1, 2, "left"), (2, 1, "right"), (2, 2, "left")],
    ids=["below-left", "above-right", "equal-left"],
)
def test_a_batch_equals_its_rows(tiny: TinyModel, text_layer: int, vision_layer: int, side: str):
    editor = trained_editor(tiny, text_layer=text_layer, vision_layer=vision_layer)
    edits = editor.read([request_of(), Query("How many stars?", picture("green"), "two")])
    queries = [request_of(), OTHER, TEXT_ONLY, Query("How many stars?", picture("green"), "two")]
    batch = editor.encoder.encode(queries, padding_side=side)
    # Random models of some families give almost the same state to every prompt.
    others = float(editor.edited(edits).route(**batch.inputs).similarity[1:3].max())
    gate = editor.gate.with_config(GateConfig("cosine", (1 + others) / 2))
    edited = editor.edited(edits, gate=gate)
    together = logits(edited, batch)
    routing = edited.route(**batch.inputs)
    assert routing.is_open.any() and not routing.is_open.all()
    for row, query in enumerate(queries):
        alone = editor.encoder.encode([query])
        expected = logits(edited, alone)[0]
        assert torch.equal(
            edited.route(**alone.inputs).edit_index, routing.edit_index[row : row + 1]
        )
        real = batch.layout.real[row]
        torch.testing.assert_close(together[row, real], expected, atol=1e-4, rtol=1e-4)


def test_edits_read_in_a_batch_equal_edits_read_alone(tiny: TinyModel):
    editor = trained_editor(tiny)
    requests = [request_of(), OTHER, TEXT_ONLY]
    together = editor.read(requests)
    for request, signal in zip(requests, together, strict=True):
        (alone,) = editor.read([request])
        torch.testing.assert_close(signal.gate_state, alone.gate_state, atol=1e-4, rtol=1e-4)
        for layer, states in alone.states.items():
            torch.testing.assert_close(signal.states[layer], states, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("last_prompt_token", [True, False])
@pytest.mark.parametrize("layer", [1, 2])
def test_only_the_masked_positions_change(tiny: TinyModel, layer: int, last_prompt_token: bool):
    editor = trained_editor(tiny, last_prompt_token=last_prompt_token)
    edited = editor.edited(editor.read([request_of()]), gate=editor.open_gate())
    batch = editor.encoder.encode([request_of(), TEXT_ONLY])
    # Other layers' adapters are left out, so that the difference is this layer's alone.
    modality = "text" if layer == 1 else "vision"
    other = "vision" if layer == 1 else "text"
    with torch.no_grad():
        silence(editor.adapters[other])
    # What the next layer gets: a hook on the layer itself would run before ours.
    following = editor.backbone.layers[layer + 1]
    plain, seen = (entering(following, model, batch) for model in (tiny.model, edited))
    text = batch.layout.text | batch.layout.answer
    mask = text if modality == "text" else batch.layout.vision
    differs = (seen != plain).any(-1)
    assert torch.equal(differs, mask)
    gate = batch.layout.text[torch.arange(2), batch.layout.gate]
    assert bool(gate.all()) == last_prompt_token


def test_two_editors_and_two_threads_do_not_meet(tiny: TinyModel):
    editors = [trained_editor(tiny), trained_editor(tiny, text_layer=2, vision_layer=3)]
    edited = [editor.edited(editor.read([request_of()])) for editor in editors]
    batch = editors[0].encoder.encode([request_of()])
    models: list[Callable[..., Any]] = [tiny.model, *edited]
    alone = [logits(model, batch) for model in models]
    wrong: list[int] = []

    def work(place: int) -> None:
        for _ in range(10):
            if not torch.equal(logits(models[place], batch), alone[place]):
                wrong.append(place)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not torch.equal(alone[1], alone[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_edits_and_generates(tiny: TinyModel, dtype: torch.dtype):
    other = made(tiny.family)
    other.model.to(dtype)
    editor = trained_editor(other)
    edited = editor.edited(editor.read([request_of()]))
    batch = editor.encoder.encode([request_of(), TEXT_ONLY])
    output = logits(edited, batch)
    assert output.dtype == dtype and bool(output.isfinite().all())
    assert not torch.equal(output[0], logits(other.model, batch)[0])
    prompt = editor.encoder.encode([request_of()], with_target=False)
    tokens = edited.generate(**prompt.inputs, max_new_tokens=3)
    assert tokens.shape[1] > prompt.inputs["input_ids"].shape[1]


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": True, "num_return_sequences": 2},
    ],
    ids=["greedy", "beam", "sample"],
)
def test_generation_in_a_mixed_batch_equals_generation_alone(
    tiny: TinyModel, options: dict[str, Any]
):
    editor = trained_editor(tiny)
    edited = editor.edited(editor.read([request_of()]))
    queries = [request_of(), OTHER, TEXT_ONLY]
    batch = editor.encoder.encode(queries, with_target=False)
    torch.manual_seed(1)
    together = edited.generate(**batch.inputs, max_new_tokens=4, **options)
    if options["do_sample"]:
        assert together.shape[0] == 2 * len(queries)
        return
    width = batch.inputs["input_ids"].shape[1]
    for row, query in enumerate(queries):
        alone = editor.encoder.encode([query], with_target=False)
        expected = edited.generate(**alone.inputs, max_new_tokens=4, **options)
        new = expected[0, alone.inputs["input_ids"].shape[1] :]
        assert torch.equal(together[row, width : width + len(new)], new)


def test_a_split_prompt_is_refused(tiny: TinyModel):
    editor = trained_editor(tiny)
    edited = editor.edited(editor.read([request_of()]))
    batch = editor.encoder.encode([TEXT_ONLY], with_target=False)
    with pytest.raises(NotEditedError, match="prefill_chunk_size"):
        edited.generate(**batch.inputs, max_new_tokens=2, prefill_chunk_size=4)
    assert not hooks_of_ours(tiny.model)
    with torch.no_grad():
        output = tiny.model(**batch.inputs, use_cache=True)
    # BLIP-2 keeps what its language model returned apart.
    cache = getattr(output, "language_model_outputs", output).past_key_values
    with pytest.raises(ChunkedPrefillError, match="past_key_values"):
        edited.generate(**batch.inputs, past_key_values=cache, max_new_tokens=2)


def test_a_step_behind_a_tuple_of_keys_and_values_is_refused(llava: TinyModel):
    editor = trained_editor(llava)
    edited = editor.edited(editor.read([request_of()]), gate=editor.open_gate())
    states = torch.zeros(1, 1, 3, 4)
    with pytest.raises(ChunkedPrefillError, match="tuple"):
        edited(input_ids=torch.tensor([[5]]), past_key_values=((states, states),))


def test_an_edit_runs_only_the_layers_that_it_needs(tiny: TinyModel):
    editor = trained_editor(tiny, text_layer=1, vision_layer=2)
    counts = {"layers": 0, "head": 0, "vision": 0}
    handles = [
        layer.register_forward_hook(lambda *_: counts.update(layers=counts["layers"] + 1))
        for layer in editor.backbone.layers
    ]
    head = tiny.model.get_output_embeddings()
    handles.append(head.register_forward_hook(lambda *_: counts.update(head=counts["head"] + 1)))
    (tower,) = [
        module
        for name, module in tiny.model.named_modules()
        if name.rpartition(".")[2] in ("vision_tower", "vision_model", "visual")
        and not any(part in name for part in ("vision_tower.", "vision_model."))
    ]
    handles.append(
        tower.register_forward_hook(lambda *_: counts.update(vision=counts["vision"] + 1))
    )
    try:
        editor.edited(editor.read([request_of()]))
    finally:
        for handle in handles:
            handle.remove()
    assert counts == {"layers": 3, "head": 0, "vision": 1}
