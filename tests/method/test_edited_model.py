"""The edited model: where it finds the prompt, what it passes through and what it refuses."""

import copy
import gc
import pickle
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from tiny_editors import hooks_of_ours, picture, request_of, shared, trained_editor
from tiny_families import FAMILIES
from tiny_models import TinyModel
from torch import nn
from transformers import DynamicCache, StaticCache
from transformers.utils import generic

from easyedit_dualedit.errors import (
    CalibrationError,
    ChunkedPrefillError,
    DataError,
    PromptEndError,
)
from easyedit_dualedit.method.config import GateConfig
from easyedit_dualedit.method.edited_call import layout_of_call as call_layout
from easyedit_dualedit.method.edited_model import EditedModel
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.inputs import CACHE_NAMES, IGNORED, Query, TokenLayout

OTHER = Query("How many squares are there?", picture("blue"), "three four")
ORDERS = pytest.mark.parametrize(
    ("text_layer", "vision_layer"), [(1, 2), (2, 1)], ids=["below", "above"]
)


def edited_of(tiny: TinyModel, **changes: Any) -> tuple[DualEditor, EditedModel]:
    editor = trained_editor(tiny, **changes)
    return editor, editor.edited(editor.read([request_of()]))


def prompt_inputs(editor: DualEditor, *queries: Query) -> dict[str, torch.Tensor]:
    return editor.encoder.encode(queries or [request_of()], with_target=False).inputs


def logits(model: Any, *args: Any, **inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(*args, **inputs).logits
    return result


def layout_of_call(edited: EditedModel, inputs: dict[str, torch.Tensor]) -> TokenLayout:
    """Return the layout that a call of the model finds."""
    found: list[TokenLayout] = []
    layout = edited._encoder.layout

    def spy(*args: Any, **options: Any) -> TokenLayout:
        found.append(layout(*args, **options))
        return found[-1]

    edited._encoder.layout = spy  # type: ignore[method-assign]
    try:
        logits(edited, **inputs)
    finally:
        edited._encoder.layout = layout  # type: ignore[method-assign]
    return found[0]


def test_attributes_are_those_of_the_base_model(tiny: TinyModel):
    editor, edited = edited_of(tiny)
    assert edited.base_model is tiny.model
    assert edited.config is tiny.model.config
    assert edited.device == tiny.model.device and edited.dtype == torch.float32
    assert edited.get_output_embeddings() is tiny.model.get_output_embeddings()
    assert [signal.request.target for signal in edited.edits] == ["blue"]
    assert editor.edited([]).edits == ()
    for name in ("nonsense", "__nonsense__"):
        with pytest.raises(AttributeError, match=name):
            getattr(edited, name)


def test_a_half_made_edited_model_has_no_endless_attributes():
    with pytest.raises(AttributeError, match="base_model"):
        EditedModel.__new__(EditedModel).base_model  # noqa: B018


@pytest.mark.parametrize("call", [lambda m: m.eval(), lambda m: m.to("cpu")], ids=["eval", "to"])
def test_methods_that_return_the_model_keep_the_edit(llava: TinyModel, call: Any):
    editor, edited = edited_of(llava)
    inputs = prompt_inputs(editor)
    expected = logits(edited, **inputs)
    assert not torch.equal(expected, logits(llava.model, **inputs))
    assert torch.equal(logits(call(edited), **inputs), expected)


@ORDERS
def test_token_ids_may_be_positional(tiny: TinyModel, text_layer: int, vision_layer: int):
    editor, edited = edited_of(tiny, text_layer=text_layer, vision_layer=vision_layer)
    inputs = prompt_inputs(editor)
    expected = logits(edited, **inputs)
    ids = inputs.pop("input_ids")
    assert not torch.equal(expected, logits(tiny.model, ids, **inputs))
    assert torch.equal(logits(edited, ids, **inputs), expected)


def test_pictures_may_be_positional(llava: TinyModel):
    editor, edited = edited_of(llava, text_layer=2, vision_layer=1)
    inputs = prompt_inputs(editor)
    expected = logits(edited, **inputs)
    ids, pixels = inputs.pop("input_ids"), inputs.pop("pixel_values")
    assert torch.equal(logits(edited, ids, pixels, **inputs), expected)


def test_embeddings_instead_of_token_ids_are_refused(tiny: TinyModel):
    editor, edited = edited_of(tiny)
    embeddings = torch.randn(1, 5, editor.backbone.hidden_size)
    for call in (edited, edited.route):
        with pytest.raises(PromptEndError, match="needs input_ids.*not inputs_embeds"):
            call(inputs_embeds=embeddings)
    with pytest.raises(DataError, match="generate needs input_ids"):
        edited.generate([[1, 2]])
    with pytest.raises(DataError, match="generate needs input_ids"):
        edited.generate(inputs_embeds=embeddings, max_new_tokens=1)


def test_the_layout_is_found_at_the_marker_at_the_labels_or_given(tiny: TinyModel):
    editor, edited = edited_of(tiny)
    batch = editor.encoder.encode([request_of(), OTHER])
    at_marker = layout_of_call(edited, batch.inputs)
    at_labels = layout_of_call(edited, batch.inputs | {"labels": batch.labels})
    assert torch.equal(at_marker.gate, batch.layout.gate)
    assert torch.equal(at_labels.gate, batch.layout.gate)
    earlier = batch.labels.clone()
    rows = torch.arange(2)
    earlier[rows, batch.layout.gate] = batch.inputs["input_ids"][rows, batch.layout.gate]
    moved = layout_of_call(edited, batch.inputs | {"labels": earlier})
    assert torch.equal(moved.gate, batch.layout.gate - 1), "labels come before the marker"

    given = editor.encoder.layout(
        batch.inputs["input_ids"], batch.inputs["attention_mask"], gate=batch.layout.gate - 2
    )
    by_hand = logits(edited, **batch.inputs, layout=given)
    assert not torch.equal(by_hand, logits(edited, **batch.inputs))


def test_labels_without_padding_images_and_special_tokens_leave_it_to_the_marker(
    every: TinyModel,
):
    editor, edited = edited_of(every)
    batch = editor.encoder.encode([request_of()])
    ids = batch.inputs["input_ids"]
    labels = ids.masked_fill(editor.encoder.vision_positions(ids), -100)
    special = torch.tensor(editor.encoder.tokenizer.all_special_ids)
    for given in (labels, labels.masked_fill(torch.isin(ids, special), -100)):
        found = layout_of_call(edited, batch.inputs | {"labels": given})
        assert torch.equal(found.gate, batch.layout.gate)


def test_labels_that_say_nothing_of_the_prompt_leave_it_to_the_marker(tiny: TinyModel):
    editor, edited = edited_of(tiny)
    batch = editor.encoder.encode([request_of(), Query(OTHER.prompt, OTHER.image)])
    ids = batch.inputs["input_ids"]
    some_rows = torch.where(torch.tensor([[True], [False]]), ids, IGNORED)
    everywhere = ids
    for labels in (batch.labels, some_rows, everywhere):
        found = layout_of_call(edited, batch.inputs | {"labels": labels})
        assert torch.equal(found.gate, batch.layout.gate)
    found = call_layout(batch.inputs | {"labels": ids[:, :3]}, editor.encoder, None)
    assert torch.equal(found.gate, batch.layout.gate), "labels of another shape"


def test_labels_that_ignore_only_padding_leave_the_prompt_to_the_marker(tiny: TinyModel):
    editor, edited = edited_of(tiny)
    batch = editor.encoder.encode([request_of(), OTHER])
    inputs = {}
    for name in ("input_ids", "attention_mask"):
        filler = tiny.processor.tokenizer.pad_token_id if name == "input_ids" else 0
        padding = torch.full((2, 3), filler)
        inputs[name] = torch.cat([padding, batch.inputs[name]], 1)
    labels = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], IGNORED)
    found = call_layout(inputs | {"labels": labels}, editor.encoder, None)
    assert torch.equal(found.gate, batch.layout.gate + 3)


def test_a_prompt_without_end_is_refused_and_nothing_is_left(tiny: TinyModel):
    _, edited = edited_of(tiny)
    ids = tiny.processor.tokenizer(["Where is the star?"], return_tensors="pt")["input_ids"]
    with pytest.raises(PromptEndError, match="add_generation_prompt=True"):
        edited(input_ids=ids)
    with pytest.raises(PromptEndError, match="add_generation_prompt=True"):
        edited.route(input_ids=ids)


def test_generate_takes_prompts_without_the_chat_template(tiny: TinyModel):
    _, edited = edited_of(tiny, gate="open")
    ids = tiny.processor.tokenizer(["Where is the star?"], return_tensors="pt")["input_ids"]
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": -1}
    tokens = edited.generate(ids, **options)
    assert torch.equal(tokens, edited.generate(input_ids=ids, **options))
    assert torch.equal(tokens, edited.generate(inputs=ids, **options))
    scores = options | {"return_dict_in_generate": True, "output_logits": True}
    first = [model.generate(ids, **scores).logits[0] for model in (edited, tiny.model)]
    assert not torch.allclose(*first, atol=1e-3)


def test_an_answer_that_was_begun_is_gone_on_with_as_a_forward_reads_it(every: TinyModel):
    """As `continue_final_message` of a chat template leaves it."""
    editor, edited = edited_of(every)
    ends = every.processor.tokenizer("red blue", add_special_tokens=False)["input_ids"]
    inputs = prompt_inputs(editor)
    begun = torch.tensor([ends[:2]])
    ids = torch.cat([inputs["input_ids"], begun], 1)
    mask = torch.ones_like(ids)
    longer = {**inputs, "input_ids": ids, "attention_mask": mask}
    for name in inputs.keys() & {"token_type_ids", "mm_token_type_ids"}:
        longer[name] = torch.cat([inputs[name], torch.zeros_like(begun)], 1)
    marker = editor.encoder.marker
    assert marker is not None
    if len(marker.ids) == 1:
        # A single token may stand anywhere in a prompt that follows no template.
        assert every.family == "paligemma"
        return
    expected = logits(edited, **longer)[0, -1]
    assert not torch.allclose(expected, logits(every.model, **longer)[0, -1], atol=1e-4)
    made = edited.generate(
        **longer,
        max_new_tokens=1,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    torch.testing.assert_close(made.logits[0][0], expected, atol=1e-4, rtol=1e-4)


@ORDERS
@pytest.mark.parametrize("answers", [True, False], ids=["answers", "prompts-alone"])
@pytest.mark.parametrize("name", CACHE_NAMES)
def test_steps_with_a_cache_go_on_as_generate_does(
    tiny: TinyModel, text_layer: int, vision_layer: int, answers: bool, name: str
):
    if Version(transformers.__version__) < Version("5.24") and name == "cache":
        pytest.skip("older transformers has no such argument")
    editor, edited = edited_of(
        tiny, text_layer=text_layer, vision_layer=vision_layer, answer_tokens=answers
    )
    inputs = prompt_inputs(editor)
    expected = edited.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=-1)
    plain = tiny.model.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=-1)
    assert not torch.equal(expected, plain)
    tokens, mask = inputs["input_ids"], inputs["attention_mask"]
    with torch.no_grad():
        output = edited(**inputs, **{name: DynamicCache()}, use_cache=True)
        for _ in range(5):
            token = output.logits[:, -1:].argmax(-1)
            tokens = torch.cat([tokens, token], 1)
            mask = torch.cat([mask, torch.ones_like(token)], 1)
            step = {"input_ids": token, "attention_mask": mask, "use_cache": True}
            cache = output[name]
            plain_step = tiny.model(**step, **{name: copy.deepcopy(cache)})
            output = edited(**step, **{name: cache})
            passes = torch.equal(output.logits, plain_step.logits)
            assert passes != answers, "the answer's tokens are edited where that is asked for"
    assert torch.equal(tokens, expected)


@ORDERS
@pytest.mark.parametrize(
    "options",
    [
        {"cache_implementation": "static"},
        {"past_key_values": DynamicCache},
        {"return_dict_in_generate": True, "output_scores": True},
        {"use_cache": False},
    ],
    ids=["static", "empty-cache", "dictionary", "no-cache"],
)
def test_every_way_of_greedy_generation_gives_the_same_tokens(
    llava: TinyModel, text_layer: int, vision_layer: int, options: dict[str, Any]
):
    editor, edited = edited_of(llava, text_layer=text_layer, vision_layer=vision_layer)
    inputs = prompt_inputs(editor)
    usual = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": -1}
    expected = edited.generate(**inputs, **usual)
    assert not torch.equal(expected, llava.model.generate(**inputs, **usual))
    made = {key: value() if isinstance(value, type) else value for key, value in options.items()}
    tokens = edited.generate(**inputs, **usual, **made)
    assert torch.equal(tokens if isinstance(tokens, torch.Tensor) else tokens.sequences, expected)


@ORDERS
def test_a_cache_that_is_emptied_and_used_again_brings_no_edit_with_it(
    llava: TinyModel, text_layer: int, vision_layer: int
):
    editor, edited = edited_of(llava, text_layer=text_layer, vision_layer=vision_layer)
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": -1}
    options |= {"return_dict_in_generate": True, "output_logits": True}

    def emptied(cache: StaticCache) -> dict[str, Any]:
        cache.reset()
        return {**options, "past_key_values": cache}

    def new() -> StaticCache:
        return StaticCache(config=llava.model.config.get_text_config(), max_cache_len=64)

    closed = prompt_inputs(editor, Query("How many squares are there?", picture("blue")))
    cache = new()
    edited.generate(**prompt_inputs(editor), **emptied(cache))
    found = edited.generate(**closed, **emptied(cache))
    expected = llava.model.generate(**closed, **emptied(new()))
    for mine, plain in zip(found.logits, expected.logits, strict=True):
        assert torch.equal(mine, plain)
    again = edited.generate(**prompt_inputs(editor), **emptied(cache))
    first = edited.generate(**prompt_inputs(editor), **emptied(new()))
    assert torch.equal(again.sequences, first.sequences)


def test_steps_with_a_copy_of_a_cache_go_on_as_with_the_cache(llava: TinyModel):
    editor, edited = edited_of(llava)
    inputs = prompt_inputs(editor)
    name = CACHE_NAMES[1]
    with torch.no_grad():
        cache = edited(**inputs, **{name: DynamicCache()}, use_cache=True)[name]
        mask = torch.cat([inputs["attention_mask"], inputs["attention_mask"][:, -1:]], 1)
        step = {"input_ids": inputs["input_ids"][:, -1:], "attention_mask": mask}
        *copies, third = [copy.deepcopy(cache) for _ in range(3)]
        mine, theirs, plain = (
            model(**step, **{name: each}, use_cache=True).logits
            for model, each in zip((edited, edited, llava.model), (cache, *copies), strict=True)
        )
        assert torch.equal(mine, theirs) and not torch.equal(mine, plain)
        other = editor.edited(editor.read([OTHER]))
        with pytest.raises(ChunkedPrefillError, match="of another edited model"):
            other(**step, **{name: third}, use_cache=True)
    del cache, copies, third
    gc.collect()
    assert not edited._decisions, "nothing is kept of caches that are gone"


def test_steps_whose_output_is_a_tuple_go_on_as_others_do(llava: TinyModel):
    editor, edited = edited_of(llava)
    inputs = prompt_inputs(editor)
    found: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    for named, logits in found.items():
        cache = DynamicCache()
        options = {CACHE_NAMES[1]: cache, "use_cache": True, "return_dict": named}
        mask = inputs["attention_mask"]
        with torch.no_grad():
            output = edited(**inputs, **options)
            for _ in range(3):
                logits.append(output[0] if not named else output.logits)
                mask = torch.cat([mask, mask[:, -1:]], 1)
                token = logits[-1][:, -1:].argmax(-1)
                output = edited(input_ids=token, attention_mask=mask, **options)
    for mine, other in zip(*found.values(), strict=True):
        assert torch.equal(mine, other)
    step = llava.model(**inputs, use_cache=True)
    assert not torch.equal(step.logits, found[True][0])


def test_a_tuple_holds_a_cache_that_is_marked(llava: TinyModel):
    editor, edited = edited_of(llava)
    inputs = prompt_inputs(editor)
    mask = torch.cat([inputs["attention_mask"], inputs["attention_mask"][:, -1:]], 1)
    step = {"input_ids": inputs["input_ids"][:, -1:], "attention_mask": mask}
    with torch.no_grad():
        named = edited(**inputs, use_cache=True)
        output = edited(**inputs, use_cache=True, return_dict=False)
        (cache,) = (part for part in output if hasattr(part, "get_seq_length"))
        mine = edited(**step, past_key_values=cache)
        expected = edited(**step, past_key_values=named.past_key_values)
    assert torch.equal(mine.logits, expected.logits)


def test_a_call_says_nothing_of_names_that_transformers_has_given_up(
    llava: TinyModel, monkeypatch: pytest.MonkeyPatch
):
    said: list[str] = []
    monkeypatch.setattr(generic.logger, "warning_once", lambda text, *_: said.append(str(text)))
    editor, edited = edited_of(llava)
    inputs = prompt_inputs(editor)
    with torch.no_grad():
        edited(**inputs, use_cache=False)
        edited.generate(**inputs, max_new_tokens=2)
    assert not said


def test_a_cache_of_another_edited_model_is_refused(llava: TinyModel):
    """What concerns its prompt is known to the one that began."""
    editor, edited = edited_of(llava)
    inputs = prompt_inputs(editor)
    mask = torch.cat([inputs["attention_mask"], inputs["attention_mask"][:, -1:]], 1)
    step = {"input_ids": inputs["input_ids"][:, -1:], "attention_mask": mask}
    with torch.no_grad():
        cache = edited(**inputs, use_cache=True).past_key_values
        edited(**step, past_key_values=copy.deepcopy(cache))
        for other in (edited.with_gate(GateConfig("open")), editor.edited(edited.edits)):
            with pytest.raises(ChunkedPrefillError, match="another edited model: go on with that"):
                other(**step, past_key_values=copy.deepcopy(cache))
        unread = pickle.loads(pickle.dumps(cache))
        with pytest.raises(ChunkedPrefillError, match="another edited model"):
            edited(**step, past_key_values=unread)


@pytest.mark.parametrize(("text_layer", "vision_layer"), [(1, 2), (2, 1)])
def test_blip2_generates_from_larger_pictures_and_takes_pixels_first(
    text_layer: int, vision_layer: int
):
    tiny = shared("blip2")
    editor = trained_editor(tiny, text_layer=text_layer, vision_layer=vision_layer)
    edited = editor.edited(editor.read([request_of()]))
    inputs = prompt_inputs(editor)
    pixels = inputs["pixel_values"]
    wide = {**inputs, "pixel_values": nn.functional.interpolate(pixels, scale_factor=2)}
    options = {"max_new_tokens": 2, "do_sample": False}
    made = edited.generate(**wide, interpolate_pos_encoding=True, **options)
    assert made.shape[1] > inputs["input_ids"].shape[1]
    named = edited.generate(**inputs, **options)
    rest = {name: value for name, value in inputs.items() if name != "pixel_values"}
    assert torch.equal(edited.generate(pixels, **rest, **options), named)


@pytest.mark.parametrize("hooked_first", [True, False])
def test_a_hook_of_the_user_on_the_gate_s_layer_hides_nothing_from_the_gate(
    llava: TinyModel, hooked_first: bool
):
    editor = trained_editor(llava)
    torch.manual_seed(1)
    vector = 20 * torch.randn(editor.backbone.hidden_size)

    def steer(_module: Any, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + vector, *output[1:])
        return output + vector

    layer = editor.backbone.layers[editor.config.text_layer]
    request = request_of()
    edited = None if hooked_first else editor.edited(editor.read([request]))
    handle = layer.register_forward_hook(steer)
    try:
        edited = edited or editor.edited(editor.read([request]))
        inputs = editor.encoder.encode([request]).inputs
        watched, decided = edited.watched()
        with torch.no_grad():
            routed = edited.route(**inputs)
            answer = watched(**inputs).logits
            plain = llava.model(**inputs).logits
        assert bool(routed.is_open.all())
        (seen,) = decided
        torch.testing.assert_close(seen.similarity, routed.similarity)
        assert not torch.equal(answer, plain), "the edit applies"
    finally:
        handle.remove()


def test_a_cache_out_of_which_rows_or_tokens_were_taken_is_refused(llava: TinyModel):
    editor, edited = edited_of(llava)
    queries = [request_of(), OTHER, request_of()]
    batch = editor.encoder.encode([each for each in queries], with_target=False)
    mask = batch.inputs["attention_mask"]

    def filled() -> DynamicCache:
        cache = DynamicCache()
        edited(**batch.inputs, past_key_values=cache, use_cache=True)
        return cache

    def step(cache: DynamicCache, rows: list[int]) -> Any:
        columns = cache.get_seq_length()
        real = torch.cat([mask[rows, :columns], mask[rows, -1:]], 1)
        ids = batch.inputs["input_ids"][rows, -1:]
        return edited(input_ids=ids, attention_mask=real, past_key_values=cache)

    with torch.no_grad():
        for rows in ([1, 2], [0]):
            cache = filled()
            cache.batch_select_indices(torch.tensor(rows))
            with pytest.raises(ChunkedPrefillError, match="that filled it with 3 rows"):
                step(cache, rows)
        cache = filled()
        cache.crop(-3)
        with pytest.raises(ChunkedPrefillError, match=r"has \d+ tokens, .* taken out of it"):
            step(cache, [0, 1, 2])
        # The answer's tokens may be taken back.
        cache = filled()
        expected = step(copy.deepcopy(cache), [0, 1, 2]).logits
        step(cache, [0, 1, 2])
        cache.crop(-1)
        torch.testing.assert_close(step(cache, [0, 1, 2]).logits, expected)


@ORDERS
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_static_cache_edits_padded_rows_as_any_other(
    family: str, text_layer: int, vision_layer: int
):
    """For one, `generate` makes masks of four dimensions, or several by name."""
    if family == "qwen3.5" and Version(transformers.__version__) < Version("5.6"):
        pytest.skip("transformers 5.5 has no static cache for it")
    editor, edited = edited_of(shared(family), text_layer=text_layer, vision_layer=vision_layer)
    queries = [request_of(), Query("How many squares are there in it?", picture("blue"))]
    batch = editor.encoder.encode(queries, with_target=False)
    assert not bool(batch.layout.real.all()), "a row is padded"
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": -1}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    expected = edited.generate(**batch.inputs, **options)
    plain = editor.backbone.model.generate(**batch.inputs, **options)
    assert not torch.allclose(plain.logits[0], expected.logits[0], atol=1e-3)
    options["cache_implementation"] = "static"
    found = edited.generate(**batch.inputs, **options)
    torch.testing.assert_close(found.logits[0], expected.logits[0], atol=1e-4, rtol=1e-4)
    assert torch.equal(found.sequences, expected.sequences)
    options |= {"do_sample": True, "num_return_sequences": 2}
    twice = edited.generate(**batch.inputs, **options).logits[0]
    torch.testing.assert_close(twice, expected.logits[0].repeat_interleave(2, 0))


@ORDERS
@pytest.mark.parametrize("rows", [1, 2])
def test_a_static_cache_needs_no_mask(llava: TinyModel, text_layer: int, vision_layer: int, rows):
    editor, edited = edited_of(llava, text_layer=text_layer, vision_layer=vision_layer)
    inputs = editor.encoder.encode([request_of()] * rows, with_target=False).inputs
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": -1}
    expected = edited.generate(**inputs, **options)
    del inputs["attention_mask"]
    for more in ({}, {"cache_implementation": "static"}):
        assert torch.equal(edited.generate(**inputs, **options, **more), expected)


def test_a_call_needs_to_know_which_tokens_are_real(llava: TinyModel):
    editor, edited = edited_of(llava)
    inputs = prompt_inputs(editor)
    wide = inputs["attention_mask"][:, None, None].bool()
    with pytest.raises(DataError, match="two dimensions"):
        edited(**inputs | {"attention_mask": wide})


@ORDERS
def test_candidate_tokens_after_the_prompt_are_no_prompt(
    llava: TinyModel, text_layer: int, vision_layer: int
):
    editor, edited = edited_of(llava, text_layer=text_layer, vision_layer=vision_layer, gate="open")
    # Without a picture, since a model refuses image tokens that were copied as candidates.
    inputs = prompt_inputs(editor, Query("one two three one two three: one two"))
    usual = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": -1}
    expected = edited.generate(**inputs, **usual)
    assert not torch.equal(expected, llava.model.generate(**inputs, **usual))
    lengths: list[int] = []
    handle = llava.model.register_forward_pre_hook(
        lambda _model, _args, options: lengths.append(options["input_ids"].shape[1]),
        with_kwargs=True,
    )
    try:
        tokens = edited.generate(**inputs, **usual, prompt_lookup_num_tokens=3)
    finally:
        handle.remove()
    assert lengths[0] > inputs["input_ids"].shape[1], "otherwise this tests nothing"
    assert torch.equal(tokens, expected)


@ORDERS
def test_one_edited_model_answers_one_prompt_after_another(
    tiny: TinyModel, text_layer: int, vision_layer: int
):
    editor, edited = edited_of(tiny, text_layer=text_layer, vision_layer=vision_layer)
    first, second = prompt_inputs(editor), prompt_inputs(editor, OTHER)
    once = [logits(edited, **inputs) for inputs in (first, second)]
    edited.generate(**second, max_new_tokens=2)
    again = [logits(edited, **inputs) for inputs in (first, second)]
    assert torch.equal(once[0], again[0]) and torch.equal(once[1], again[1])


def test_routing_says_which_edit_applies_and_runs_no_more_than_it_needs(tiny: TinyModel):
    editor = trained_editor(tiny, gate={"kind": "cosine", "threshold": 0.9999})
    edited = editor.edited(editor.read([OTHER, request_of()]))
    ran: list[int] = []
    handle = editor.backbone.layers[2].register_forward_hook(lambda *_: ran.append(2))
    try:
        batch = editor.encoder.encode([request_of(), Query("Where?"), OTHER])
        routing = edited.route(**batch.inputs, labels=batch.labels, use_cache=True)
    finally:
        handle.remove()
    assert routing.edit_index.tolist() == [1, -1, 0]
    assert routing.is_open.tolist() == [True, False, True]
    assert float(routing.similarity[0]) == pytest.approx(1.0, abs=1e-5)
    assert ran == []


def test_an_assignment_chooses_the_edit_of_each_row(tiny: TinyModel):
    editor = trained_editor(tiny)
    edits = editor.read([request_of(), Query("How many stars?", picture("green"), "two")])
    inputs = prompt_inputs(editor, request_of(), request_of())
    alone = [logits(editor.edited([edit], gate=editor.open_gate()), **inputs) for edit in edits]
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)
    assigned = editor.edited(edits, assignment=torch.tensor([1, 0]), gate=editor.open_gate())
    together = logits(assigned, **inputs)
    torch.testing.assert_close(together[0], alone[1][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[1], alone[0][1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("wrong", [[0, 2], [-1, 0]])
def test_an_assignment_to_edits_that_there_are_not_is_told(llava: TinyModel, wrong: list[int]):
    editor = trained_editor(llava)
    edits = editor.read([request_of(), request_of()])
    with pytest.raises(DataError, match="and there are 2: give 0 to 1"):
        editor.edited(edits, assignment=torch.tensor(wrong))


def test_an_assignment_follows_rows_through_beam_search(tiny: TinyModel):
    editor = trained_editor(tiny)
    edits = editor.read([request_of(), Query("How many stars?", picture("green"), "two")])
    inputs = prompt_inputs(editor, request_of(), request_of())
    options = {"max_new_tokens": 3, "num_beams": 2, "do_sample": False, "eos_token_id": -1}
    alone = [
        editor.edited([edit], gate=editor.open_gate()).generate(**inputs, **options)
        for edit in edits
    ]
    assigned = editor.edited(edits, assignment=torch.tensor([1, 0]), gate=editor.open_gate())
    together = assigned.generate(**inputs, **options)
    assert torch.equal(together[0], alone[1][0]) and torch.equal(together[1], alone[0][1])


def test_a_gate_without_threshold_is_refused_only_when_it_has_to_decide(tiny: TinyModel):
    editor = trained_editor(tiny, gate="cosine")
    inputs = prompt_inputs(editor)
    edited = editor.edit(request_of().image, request_of().prompt, "blue")
    for call in (edited, edited.route, edited.generate):
        with pytest.raises(CalibrationError, match="cosine gate has no threshold"):
            call(**inputs)
    assert torch.equal(logits(editor.edited([]), **inputs), logits(tiny.model, **inputs))


@pytest.mark.parametrize("modality", ["text", "vision"])
@ORDERS
def test_one_modality_alone_changes_the_answer(
    tiny: TinyModel, text_layer: int, vision_layer: int, modality: str
):
    editor, edited = edited_of(
        tiny, text_layer=text_layer, vision_layer=vision_layer, modalities=[modality]
    )
    assert set(edited._active.projected) == {modality}
    inputs = prompt_inputs(editor)
    assert not torch.equal(logits(edited, **inputs), logits(tiny.model, **inputs))


def test_without_a_picture_the_vision_adapter_has_nothing_to_do(tiny: TinyModel):
    editor, edited = edited_of(tiny, modalities=["vision"], gate="open")
    inputs = prompt_inputs(editor, Query("Where is the star?"))
    assert bool(edited.route(**inputs).is_open.all())
    assert torch.equal(logits(edited, **inputs), logits(tiny.model, **inputs))


@ORDERS
def test_gradients_reach_the_adapters_and_not_the_model(
    llava: TinyModel, text_layer: int, vision_layer: int
):
    editor = trained_editor(llava, text_layer=text_layer, vision_layer=vision_layer)
    batch = editor.encoder.encode([request_of(), OTHER])
    signals = editor.read([request_of()])
    flags = [parameter.requires_grad for parameter in llava.model.parameters()]
    llava.model.requires_grad_(False)
    try:
        edited = editor.edited(signals, gate=editor.open_gate())
        edited(**batch.inputs, labels=batch.labels).loss.backward()
    finally:
        for parameter, flag in zip(llava.model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
    for name, parameter in editor.adapters.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
        # A vision adapter acts where no answer stands yet.
        if not name.endswith(("key.bias", "vision.words.place.weight")):
            assert float(parameter.grad.abs().sum()) > 0, name
    assert all(parameter.grad is None for parameter in llava.model.parameters())


def test_layers_are_hooked_only_where_something_may_change(llava: TinyModel):
    gate = GateConfig("cosine", threshold=0.99)
    editor = trained_editor(llava, gate=gate, text_layer=1, vision_layer=2)
    request = request_of()
    edited = editor.edited(editor.read([request]))
    seen: list[list[str]] = []
    last = editor.backbone.layers[3].register_forward_pre_hook(
        lambda *_: seen.append([name.split(".")[-1] for name in hooks_of_ours(llava.model)])
    )
    other = Query("Where is the star?", None, "left")
    try:
        with torch.no_grad():
            for query in (request, other):
                batch = editor.encoder.encode([query])
                edited(**batch.inputs, layout=batch.layout)
            assert seen == [["1", "2"], ["1"]]
            seen.clear()
            prompt = editor.encoder.encode([request], with_target=False)
            edited.generate(**prompt.inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    finally:
        last.remove()
    layers = [[name for name in names if name.isdigit()] for names in seen]
    assert layers == [["1", "2"], ["1"], ["1"]], "decode steps edit the answer's tokens alone"
    assert [len(names) for names in seen] == [2, 1, 1], "nothing but layers has hooks"


def test_a_generation_config_of_its_own_is_used_and_the_base_keeps_its_own(llava: TinyModel):
    editor, edited = edited_of(llava)
    inputs = prompt_inputs(editor)
    before = llava.model.generation_config
    edited.generation_config = transformers.GenerationConfig(max_new_tokens=2)
    width = inputs["input_ids"].shape[1]
    assert edited.generate(**inputs).shape[1] == width + 2
    assert edited.generate(**inputs, max_new_tokens=1).shape[1] == width + 1
    given = transformers.GenerationConfig(max_new_tokens=3)
    assert edited.generate(**inputs, generation_config=given).shape[1] == width + 3
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    assert edited.generate(inputs["input_ids"], given, **rest).shape[1] == width + 3
    assert llava.model.generation_config is before
    empty = editor.edited([])
    empty.generation_config = transformers.GenerationConfig(max_new_tokens=2)
    assert empty.generate(**inputs).shape[1] == width + 2


def test_editors_and_edited_models_can_be_copied(llava: TinyModel):
    editor = trained_editor(llava)
    edited = editor.edited(editor.read([request_of()]))
    inputs = prompt_inputs(editor)
    expected = edited.generate(**inputs, max_new_tokens=3)
    other = copy.deepcopy(edited)
    assert other.base_model is not edited.base_model
    assert torch.equal(other.generate(**inputs, max_new_tokens=3), expected)
    twin = copy.deepcopy(editor)
    assert twin.encoder.backbone.model is twin.backbone.model is not editor.backbone.model
    again = twin.edited(twin.read([request_of()]))
    assert torch.equal(again.generate(**inputs, max_new_tokens=3), expected)
