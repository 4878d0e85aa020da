"""What a model must answer, and where a prompt ends."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_editors import backbone_of, picture, request_of, shared, trained_editor
from tiny_families import FAMILIES
from tiny_models import LAYERS, TinyModel, tiny_llava
from torch import nn

from easyedit_dualedit.errors import BackboneError, LayerError, PromptEndError
from easyedit_dualedit.model.backbone import Backbone, PromptMarker
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Query, input_device


class Part(nn.Module):
    """A module with whatever attributes a test gives it."""

    def __init__(self, **attributes: Any):
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)


class Wrapper(Part):
    def get_decoder(self) -> nn.Module:
        decoder: nn.Module = self.decoder
        return decoder


class Circle(Part):
    def get_decoder(self) -> nn.Module:
        return self


def config_of(**values: Any) -> SimpleNamespace:
    return SimpleNamespace(get_text_config=lambda: SimpleNamespace(hidden_size=8), **values)


def layers(count: int = 3) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(2, 2) for _ in range(count))


def test_the_parts_of_a_real_model(tiny: TinyModel):
    backbone = backbone_of(tiny)
    assert backbone.model is tiny.model
    assert len(backbone.layers) == LAYERS
    assert backbone.layers == tuple(tiny.model.get_decoder().layers)
    assert backbone.hidden_size == 32
    tokenizer = tiny.processor.tokenizer
    assert backbone.image_token_id == tokenizer.convert_tokens_to_ids("<image>")
    assert input_device(backbone.model) == torch.device("cpu")


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_decoder_layers_are_found_below_wrappers(depth: int):
    found = layers()
    model: nn.Module = Part(layers=found)
    for _ in range(depth):
        model = Wrapper(decoder=model)
    model.config = config_of(image_token_id=5)  # type: ignore[assignment]
    backbone = Backbone.of(model)
    assert backbone.layers == tuple(found)
    assert (backbone.hidden_size, backbone.image_token_id) == (8, 5)


@pytest.mark.parametrize(
    "model",
    [
        Part(),
        Part(layers=nn.ModuleList()),
        Part(layers=[nn.Linear(2, 2)]),
        Circle(),
        Wrapper(decoder=None),
    ],
    ids=["bare", "no-layers", "plain-list", "circle", "no-decoder"],
)
def test_a_model_without_decoder_layers_is_refused(model: nn.Module):
    with pytest.raises(BackboneError, match=r"does not say where its decoder layers are.*use a"):
        Backbone.of(model)


def test_the_older_name_of_the_image_token_is_read_too():
    assert (
        Backbone.of(Part(layers=layers(), config=config_of(image_token_index=0))).image_token_id
        == 0
    )
    both = config_of(image_token_id=4, image_token_index=9)
    assert Backbone.of(Part(layers=layers(), config=both)).image_token_id == 4


@pytest.mark.parametrize("config", [None, config_of()], ids=["no-config", "text-model"])
def test_a_model_without_an_image_token_is_refused(config: Any):
    with pytest.raises(BackboneError, match="which positions are vision.*image_token_id"):
        Backbone.of(Part(layers=layers(), config=config))


@pytest.mark.parametrize("layer", [-1, LAYERS, LAYERS + 20])
def test_a_layer_that_does_not_exist_is_named(llava: TinyModel, layer: int):
    backbone = backbone_of(llava)
    names = ("text_layer", "vision_layer")
    with pytest.raises(LayerError, match=rf"vision_layer = {layer}, but .* {LAYERS} .*\(0-3\)"):
        backbone.require_layers((0, layer), names=names)
    with pytest.raises(LayerError, match=f"^layer = {layer}"):
        backbone.require_layers([layer])
    backbone.require_layers(range(LAYERS), names=names)


def test_an_offloaded_model_takes_inputs_where_it_runs():
    accelerate = pytest.importorskip("accelerate")
    model = tiny_llava().model
    accelerate.cpu_offload(model, execution_device="cpu")
    assert input_device(model) == torch.device("cpu")


def ids_of(text: str) -> tuple[int, ...]:
    """Return a token a character."""
    return tuple(ord(character) for character in text)


def test_the_marker_is_what_ends_every_prompt():
    assert PromptMarker.of(lambda text: ids_of(f"<u>{text}<a>")) == PromptMarker(ids_of("<a>"))


def test_a_long_marker_is_cut_to_its_end():
    marker = PromptMarker.of(lambda text: ids_of(text + "0123456789" * 3))
    assert marker == PromptMarker(ids_of(("0123456789" * 3)[-16:]))


def test_without_a_common_ending_there_is_no_marker():
    assert PromptMarker.of(lambda text: ids_of(f"<u>{text}")) is None


def test_the_marker_of_a_real_processor_ends_its_prompts(tiny: TinyModel):
    marker = Encoder(backbone_of(tiny), tiny.processor).marker
    assert marker is not None
    text = tiny.processor.tokenizer.decode(marker.ids)
    prompt = tiny.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}]}],
        add_generation_prompt=True,
        tokenize=False,
    )
    assert prompt.endswith(text) and "assistant" in text.lower()


MARKER = PromptMarker((8, 9))


def rows(*values: list[int]) -> torch.Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize(
    ("row", "mask", "expected"),
    [
        ([1, 8, 9, 2, 3], [1, 1, 1, 1, 1], 2),
        ([1, 8, 9, 8, 9], [1, 1, 1, 1, 1], 4),
        ([8, 9, 8, 8, 9], [1, 1, 1, 1, 1], 4),
        ([8, 9, 5, 9, 8], [1, 1, 1, 1, 1], 1),
        ([0, 0, 8, 9, 5], [0, 0, 1, 1, 1], 3),
        ([8, 9, 5, 8, 9], [1, 1, 1, 0, 0], 1),
        ([8, 9, 8, 9, 5], [0, 0, 1, 1, 1], 3),
    ],
    ids=["once", "twice", "start-repeated", "halves", "left", "in-right-padding", "in-left"],
)
def test_the_last_real_occurrence_ends_the_prompt(row: list[int], mask: list[int], expected: int):
    assert MARKER.last_index(rows(row), rows(mask)).tolist() == [expected]
    assert MARKER.last_index(rows(row), rows(mask).bool()).tolist() == [expected]


def test_rows_of_a_batch_do_not_meet():
    ids = rows([1, 8, 9, 2], [8, 9, 4, 4], [9, 8, 8, 9])
    assert MARKER.last_index(ids, torch.ones_like(ids)).tolist() == [2, 1, 3]
    long = PromptMarker((1, 8, 9, 2))
    assert long.last_index(ids[:1], torch.ones(1, 4)).tolist() == [3]


def test_rows_without_marker_are_named_with_the_remedy():
    ids = rows([1, 8, 9, 2], [8, 1, 9, 4], [9, 8, 8, 9], [9, 0, 0, 8])
    with pytest.raises(
        PromptEndError, match=r"rows \[1, 3\].*\[8, 9\].*add_generation_prompt=True.*labels"
    ):
        MARKER.last_index(ids, torch.ones_like(ids))
    with pytest.raises(PromptEndError, match=r"rows \[0\]"):
        MARKER.last_index(ids[:1], rows([1, 1, 0, 0]))


@pytest.mark.parametrize(
    ("row", "mask", "expected"),
    [
        ([1, 8, 9, 2, 3], [1, 1, 1, 1, 1], 2),
        ([1, 2, 3, 8, 9], [1, 1, 1, 1, 1], -1),
        ([1, 2, 8, 9, 0], [1, 1, 1, 1, 0], -1),
        ([0, 8, 9, 2, 3], [0, 1, 1, 1, 1], 2),
        ([8, 9, 2, 7, 3], [1, 1, 1, 1, 1], -1),
        ([8, 9, 2, 3, 7], [1, 1, 1, 1, 0], 1),
        ([1, 2, 3, 4, 5], [1, 1, 1, 1, 1], -1),
    ],
    ids=["begun", "ends", "padded", "left", "another-turn", "padded-begun", "no-marker"],
)
def test_an_answer_that_was_begun_is_told_from_another_turn(
    row: list[int], mask: list[int], expected: int
):
    special = torch.tensor([0, 7])
    assert MARKER.before_begun_answer(rows(row), rows(mask), special).tolist() == [expected]
    single = PromptMarker((9,))
    assert single.before_begun_answer(rows(row), rows(mask), special).tolist() == [-1]


def test_rows_shorter_than_the_marker_are_named():
    with pytest.raises(PromptEndError, match=r"rows \[0, 1\]"):
        MARKER.last_index(rows([8], [9]), torch.ones(2, 1))


def state_of(model: Any) -> dict[str, Any]:
    """Return everything that the modules of a model hold beside their weights and hooks."""
    held = {}
    for name, part in model.named_modules():
        for key, value in vars(part).items():
            if not key.startswith("_"):
                held[f"{name}.{key}"] = value
    return held


def same(one: Any, other: Any) -> bool:
    return (
        torch.equal(one, other) if isinstance(one, torch.Tensor) else one is other or one == other
    )


def test_reading_leaves_nothing_on_the_model(every: TinyModel):
    editor = trained_editor(every, gate={"kind": "cosine", "threshold": 0.9})
    with torch.no_grad():
        every.model(**editor.encoder.encode([request_of()]).inputs)  # what a base call leaves
    every.model.train()
    layer = editor.backbone.layers[1]
    layer.eval()
    before = state_of(every.model)
    try:
        signals = editor.read([request_of("Where is the star?", "two", "green")])
        query = editor.encoder.encode([request_of()], with_target=False)
        editor.edited(signals).route(**query.inputs)
        after = state_of(every.model)
        assert before.keys() == after.keys()
        assert [name for name in before if not same(before[name], after[name])] == []
        assert every.model.training and not layer.training
    finally:
        every.model.eval()


def test_an_edit_is_read_without_dropout():
    tiny = FAMILIES["llava"]()
    editor = trained_editor(tiny)
    expected = editor.read([request_of()])[0].states
    tiny.model.train()
    dropped = 0
    for module in tiny.model.modules():
        for name in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.5)
                dropped += 1
    assert dropped
    for _ in range(2):
        states = editor.read([request_of()])[0].states
        assert all(torch.equal(states[layer], expected[layer]) for layer in expected)


@pytest.mark.parametrize("family", ["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "qwen3.5"])
def test_somebody_may_decode_by_hand_while_edits_are_made(family: str):
    tiny = shared(family)
    editor = trained_editor(tiny, gate={"kind": "cosine", "threshold": 0.9})
    wide = Query("What colour is the circle?", picture(size=(112, 56)))
    prompt = editor.encoder.encode([wide], with_target=False).inputs

    @torch.no_grad()
    def decode(*, edits: bool) -> torch.Tensor:
        output = tiny.model(**prompt, use_cache=True)
        if edits:
            edited = editor.edit(picture(size=(56, 56)), "Where is the star?", "blue")
            edited.route(**editor.encoder.encode([request_of()], with_target=False).inputs)
        token = output.logits[:, -1:].argmax(-1)
        cache = output.past_key_values
        step = tiny.model(input_ids=token, past_key_values=cache, use_cache=True)
        return step.logits

    assert torch.equal(decode(edits=True), decode(edits=False))


ONE_TURN = {"paligemma"}  # its prompts are the question alone
FIRST_OTHERWISE = {"llava"}  # a small tokenizer, which has other tokens for the first "USER"


def test_what_stands_before_the_last_turn_is_told(every: TinyModel):
    encoder = Encoder(Backbone.of(every.model), every.processor)
    if every.family in ONE_TURN:
        assert encoder.turn is None
        return
    assert encoder.turn is not None
    chat: list[dict[str, Any]] = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in (("user", "Where is it?"), ("assistant", "left"), ("user", "How many?"))
    ]
    template = {"chat_template": encoder.template} if encoder.template else {}
    text = every.processor.apply_chat_template(chat, add_generation_prompt=True, **template)
    rows = [encoder.prompt_text(Query("How many?")), text]
    ids = encoder.tokenizer(rows, return_tensors="pt", padding=True, add_special_tokens=False)
    layout = encoder.layout(ids["input_ids"], ids["attention_mask"])
    asked = encoder.turn.last_turn(layout) & layout.real
    own = [encoder.tokenizer.decode(row[seen]) for row, seen in zip(layout.ids, asked, strict=True)]
    assert all("How many?" in each for each in own)
    if every.family not in FIRST_OTHERWISE:
        assert own[0].split("How many?")[1] == own[1].split("How many?")[1]
        assert "Where is it?" not in own[1] and "left" not in own[1]
