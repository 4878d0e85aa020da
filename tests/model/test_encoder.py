"""Encoding: which token stands where, for every mix of rows, and what is refused."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_editors import backbone_of, picture, request_of, shared
from tiny_families import FAMILIES
from tiny_models import TinyModel

from easyedit_dualedit.errors import BackboneError, ConfigError, DataError, PromptEndError
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import IGNORED, Batch, Query, open_image

QUERIES = [
    request_of(),
    Query("Where is the star?", None, "top left bottom right"),
    Query("How many squares are there in the picture?", picture("blue"), None),
    Query("How many?", picture("green", (60, 20)), "two"),
]
SIDES = pytest.mark.parametrize("side", ["left", "right"])


def encoder_of(tiny: TinyModel, **options: Any) -> Encoder:
    return Encoder(backbone_of(tiny), tiny.processor, **options)


def prompt_ids(tiny: TinyModel, query: Query) -> list[int]:
    """Return the prompt as transformers alone writes it for `generate`."""
    processor, images = tiny.processor, [query.image] if query.image is not None else []
    if tiny.family == "blip2":
        text = f"Question: {query.prompt} Answer:"
    elif tiny.family == "paligemma":
        text = "<image>" * len(images) + query.prompt
        if not images:  # which PaliGemma's processor refuses
            text = f"<s>{text}\n"
    else:
        content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
        content.append({"type": "text", "text": query.prompt})
        ids = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
        )["input_ids"]
        return [int(token) for token in (ids[0] if isinstance(ids[0], list) else ids)]
    encoded = processor(text=[text], images=images) if images else processor.tokenizer([text])
    return [int(token) for token in encoded["input_ids"][0]]


def answer_ids(tiny: TinyModel, query: Query) -> list[int]:
    if query.target is None:
        return []
    text = f" {query.target}" if tiny.family == "blip2" else query.target
    return list(tiny.processor.tokenizer(text, add_special_tokens=False)["input_ids"])


def real_ids(batch: Batch, row: int) -> list[int]:
    ids: list[int] = batch.inputs["input_ids"][row, batch.layout.real[row]].tolist()
    return ids


@pytest.mark.parametrize("prompt", ["", "  \n", None, 5], ids=repr)
def test_a_query_needs_a_prompt(prompt: Any):
    with pytest.raises(DataError, match="prompt = .*needs a prompt of text"):
        Query(prompt)


@pytest.mark.parametrize("target", ["", " ", 5, ["blue"]], ids=repr)
def test_a_target_needs_text(target: Any):
    with pytest.raises(DataError, match="target = .*needs text; give the new answer"):
        Query("Who?", None, target)


@pytest.mark.parametrize(("prompt", "target"), [("W\udce9?", "blue"), ("Who?", "bl\ud800e")])
def test_text_that_is_no_unicode_is_refused(prompt: str, target: str):
    with pytest.raises(DataError, match="is no valid Unicode text"):
        Query(prompt, None, target)


def test_a_prompt_that_holds_the_image_token_is_refused(tiny: TinyModel):
    with pytest.raises(DataError, match="holds '<image>', which stands for a picture"):
        encoder_of(tiny).encode([Query("What is <image> here?", picture())])


def test_a_processor_must_have_tokenizer_and_template(llava: TinyModel):
    backbone, tokenizer = backbone_of(llava), llava.processor.tokenizer
    for processor in (
        SimpleNamespace(chat_template="some"),
        SimpleNamespace(tokenizer=tokenizer, chat_template=None),
        SimpleNamespace(tokenizer=tokenizer),
        tokenizer,
    ):
        with pytest.raises(BackboneError, match="does not say where a prompt ends.*AutoProcessor"):
            Encoder(backbone, processor)


@SIDES
def test_the_prompt_of_a_teacher_forced_row_is_what_generate_sees(every: TinyModel, side: str):
    encoder = encoder_of(every)
    forced = encoder.encode(QUERIES, padding_side=side)
    asked = encoder.encode(QUERIES, with_target=False, padding_side=side)
    for row, query in enumerate(QUERIES):
        prompt = prompt_ids(every, query)
        assert real_ids(asked, row) == prompt
        assert real_ids(forced, row) == prompt + answer_ids(every, query)
    assert not asked.target.any() and bool((asked.labels == IGNORED).all())


@SIDES
@pytest.mark.parametrize("end_of_answer", [False, True])
def test_targets_labels_and_gates_stand_where_they_should(
    every: TinyModel, side: str, end_of_answer: bool
):
    batch = encoder_of(every).encode(QUERIES, padding_side=side, end_of_answer=end_of_answer)
    ids, layout = batch.inputs["input_ids"], batch.layout
    eos = every.processor.tokenizer.eos_token_id
    assert batch.size == len(QUERIES)
    for row, query in enumerate(QUERIES):
        answer = answer_ids(every, query)
        assert ids[row, batch.target[row]].tolist() == answer
        labelled = batch.labels[row] != IGNORED
        assert torch.equal(batch.labels[row, labelled], ids[row, labelled])
        assert ids[row, labelled].tolist() == answer + ([eos] if answer and end_of_answer else [])
        gate, last = int(layout.gate[row]), int(layout.last[row])
        assert ids[row, : gate + 1][layout.real[row, : gate + 1]].tolist() == prompt_ids(
            every, query
        )
        ends = bool(answer) and end_of_answer
        assert last == int(layout.real[row].nonzero().max()) - ends, "the end is no target"
        assert last - gate == len(answer)
        if answer:
            assert int(batch.target[row].nonzero().min()) == gate + 1


@SIDES
def test_padding_is_on_the_side_that_was_asked_for(every: TinyModel, side: str):
    batch = encoder_of(every).encode(QUERIES, padding_side=side)
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    assert torch.equal(mask.bool(), batch.layout.real)
    assert mask.sum(1).amax() == mask.shape[1] and mask.sum(1).amin() < mask.shape[1]
    assert bool((ids[mask == 0] == every.processor.tokenizer.pad_token_id).all())
    step = mask.diff(dim=1)
    assert bool((step >= 0).all() if side == "left" else (step <= 0).all())


@SIDES
@pytest.mark.parametrize("last_prompt_token", [True, False])
def test_text_is_the_prompt_after_the_picture(every: TinyModel, side: str, last_prompt_token: bool):
    encoder = encoder_of(every, last_prompt_token=last_prompt_token)
    batch = encoder.encode(QUERIES, padding_side=side)
    ids, layout = batch.inputs["input_ids"], batch.layout
    bos = every.processor.tokenizer.bos_token_id
    image = encoder.backbone.image_token_id
    for row, query in enumerate(QUERIES):
        prompt = prompt_ids(every, query)
        assert int(layout.vision[row].sum()) == prompt.count(image)
        if query.image is not None:
            assert prompt.count(image) > 0
            expected = prompt[len(prompt) - prompt[::-1].index(image) :]
        else:
            expected = prompt
        expected = expected[1:] if expected[0] == bos else expected
        if not last_prompt_token:
            expected = expected[:-1]
        assert ids[row, layout.text[row]].tolist() == expected
        assert not (layout.text & layout.vision).any()
        assert not (layout.text & ~layout.real).any()
        assert not (layout.text & batch.target).any()


def test_the_beginning_of_sequence_is_no_text(llava: TinyModel):
    encoder = encoder_of(llava)
    batch = encoder.encode([Query("Where is the star?")])
    assert int(batch.inputs["input_ids"][0, 0]) == llava.processor.tokenizer.bos_token_id
    assert batch.layout.text[0].tolist() == [False] + [True] * int(batch.layout.gate[0])


@SIDES
def test_rows_of_a_batch_are_rows_alone(every: TinyModel, side: str):
    encoder = encoder_of(every)
    together = encoder.encode(QUERIES, padding_side=side)
    for row, query in enumerate(QUERIES):
        alone = encoder.encode([query])
        real = together.layout.real[row]
        for mine, theirs in (
            (together.inputs["input_ids"], alone.inputs["input_ids"]),
            (together.labels, alone.labels),
            (together.target, alone.target),
            (together.layout.text, alone.layout.text),
            (together.layout.vision, alone.layout.vision),
        ):
            assert torch.equal(mine[row, real], theirs[0])


def test_pictures_reach_the_model_only_where_there_are_any(tiny: TinyModel):
    encoder = encoder_of(tiny)
    assert "pixel_values" not in encoder.encode([Query("Where is the star?")]).inputs
    batch = encoder.encode(QUERIES)
    assert batch.inputs["pixel_values"].shape[0] == 3
    with torch.no_grad():
        assert bool(tiny.model(**batch.inputs).logits.isfinite().all())


@SIDES
def test_the_end_of_a_prompt_is_found_without_being_given(every: TinyModel, side: str):
    encoder = encoder_of(every)
    batch = encoder.encode(QUERIES, padding_side=side)
    found = encoder.layout(batch.inputs["input_ids"], batch.inputs["attention_mask"])
    for name in ("vision", "text", "gate", "last", "real"):
        assert torch.equal(getattr(found, name), getattr(batch.layout, name)), name


def test_a_layout_without_mask_takes_every_token_as_real(tiny: TinyModel):
    encoder = encoder_of(tiny)
    batch = encoder.encode(QUERIES[:1])
    found = encoder.layout(batch.inputs["input_ids"])
    assert bool(found.real.all())
    assert torch.equal(found.text, batch.layout.text)


def test_a_given_end_of_the_prompt_is_taken(tiny: TinyModel):
    encoder = encoder_of(tiny)
    ids = encoder.encode([Query("Where is the star?")]).inputs["input_ids"]
    found = encoder.layout(ids, gate=torch.tensor([3]))
    assert found.gate.tolist() == [3] and found.last.tolist() == [ids.shape[1] - 1]
    assert found.text[0].nonzero()[:, 0].max() == 3
    moved = found.to(torch.device("cpu"))
    assert torch.equal(moved.text, found.text) and torch.equal(moved.gate, found.gate)


def test_image_tokens_after_the_prompt_are_no_vision(tiny: TinyModel):
    encoder = encoder_of(tiny)
    ids = encoder.encode([Query("Where is the star?")]).inputs["input_ids"]
    ids[0, [2, 5]] = encoder.backbone.image_token_id
    found = encoder.layout(ids, gate=torch.tensor([4]))
    assert found.vision[0].nonzero()[:, 0].tolist() == [2]
    assert found.text[0].nonzero()[:, 0].tolist() == [3, 4]


def test_rows_without_chat_template_have_no_end(tiny: TinyModel):
    ids = tiny.processor.tokenizer(["Where is the star?"], return_tensors="pt")["input_ids"]
    with pytest.raises(PromptEndError, match=r"rows \[0\]"):
        encoder_of(tiny).layout(ids)


def test_nothing_to_encode_is_refused(llava: TinyModel):
    with pytest.raises(DataError, match="no queries to encode"):
        encoder_of(llava).encode([])


def test_a_side_that_does_not_exist_is_refused(llava: TinyModel):
    with pytest.raises(ConfigError, match="padding_side = 'centre'; give 'left' or 'right'"):
        encoder_of(llava).encode([Query("What is this?")], padding_side="centre")


def test_a_target_that_tokenises_to_nothing_is_refused(
    llava: TinyModel, monkeypatch: pytest.MonkeyPatch
):
    encoder = encoder_of(llava)
    whole = encoder.tokenizer

    class Dropping:
        """Loses accents, as tokenizers with a normaliser may."""

        def __getattr__(self, name: str) -> Any:
            return getattr(whole, name)

        def __call__(self, text: str | list[str], **options: Any) -> Any:
            texts = [text] if isinstance(text, str) else text
            kept = [item.replace("\u0301", "") for item in texts]
            return whole(kept[0] if isinstance(text, str) else kept, **options)

    monkeypatch.setattr(encoder, "tokenizer", Dropping())
    with pytest.raises(DataError, match="tokenises to nothing; give one the model can say"):
        encoder.encode([Query("Who?", None, "\u0301")])
    assert encoder.target_ids("blue") == answer_ids(llava, request_of())


def test_a_target_with_a_special_token_is_refused(every: TinyModel):
    encoder = encoder_of(every)
    assert encoder.target_ids("blue")
    with pytest.raises(DataError, match="holds a special token, which no answer shows; leave it"):
        encoder.target_ids(f"blue{encoder.tokenizer.eos_token}")


def picture_file(folder: Path, name: str = "circle.png", mode: str = "RGB") -> Path:
    path = folder / name
    picture().convert(mode).save(path)
    return path


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK"])
def test_pictures_of_every_mode_become_rgb(tmp_path: Path, mode: str):
    path = picture_file(tmp_path, "circle.tiff", mode)
    for image in (open_image(path), open_image(picture().convert(mode))):
        assert image.mode == "RGB" and image.size == picture().size


def test_a_file_is_the_same_as_its_picture(llava: TinyModel, tmp_path: Path):
    encoder = encoder_of(llava)
    from_file = encoder.encode([Query("Who?", picture_file(tmp_path))])
    from_memory = encoder.encode([Query("Who?", picture())])
    assert from_file.inputs.keys() == from_memory.inputs.keys()
    for name, value in from_memory.inputs.items():
        assert torch.equal(from_file.inputs[name], value), name


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files in /proc")
def test_files_are_closed_whether_they_are_pictures_or_not(tmp_path: Path):
    good, bad = picture_file(tmp_path), tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:60])
    before = open_files()
    kept = [open_image(good) for _ in range(3)]
    for _ in range(3):
        with pytest.raises(DataError):
            open_image(bad)
    assert open_files() == before
    assert kept[0].getpixel((0, 0)) == (128, 128, 128), "read before its file was closed"


def test_a_missing_picture_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="no picture at .*absent.png; check the images folder"):
        open_image(tmp_path / "absent.png")


@pytest.mark.parametrize("kind", ["text", "empty", "folder", "truncated"])
def test_what_is_no_picture_is_named(llava: TinyModel, tmp_path: Path, kind: str):
    path = tmp_path / "odd.png"
    if kind == "folder":
        path.mkdir()
    else:
        whole = picture_file(tmp_path).read_bytes()
        path.write_bytes({"text": b"hello", "empty": b""}.get(kind, whole[: len(whole) // 2]))
    with pytest.raises(DataError, match="odd.png cannot be read as a picture .*; replace it"):
        encoder_of(llava).encode([Query("Who?", path)])


def test_a_picture_too_large_for_pillow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = picture_file(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="cannot be read as a picture"):
        open_image(path)


def test_a_target_that_holds_an_image_token_is_refused(every: TinyModel):
    encoder = Encoder(backbone_of(every), every.processor)
    shown = {encoder.backbone.image_token_id, encoder.backbone.video_token_id} - {None}
    for token in encoder.tokenizer.convert_ids_to_tokens(sorted(shown)):
        with pytest.raises(DataError, match="a token of a picture; leave it out"):
            encoder.encode([Query("What?", picture(), f"a {token} b")])
        with pytest.raises(DataError, match="which stands for a picture; leave it out"):
            encoder.encode([Query(f"What is {token}?", picture(), "blue")])


_END = "{% if add_generation_prompt %}{{ 'answer:' }}{% endif %}"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("{{ m['role'] + ': ' + m['content'] + ' ' }}", "TypeError: can only"),
        ("{{ m['role'] }}: {{ m['content'] }} ", "takes only text as the content"),
        ("{{ raise_exception('no system') }}", "TemplateError: no system"),
        ("{{ m['role'] ", "TemplateSyntaxError: expected"),
        ("{{ m.content[7].text.upper() }}", "UndefinedError"),
    ],
)
def test_a_chat_template_that_fails_is_named(body: str, said: str):
    tiny = FAMILIES["llava"]()
    tiny.processor.chat_template = "{% for m in messages %}" + body + "{% endfor %}" + _END
    with pytest.raises(
        BackboneError, match="chat template of LlavaProcessor .*list of parts"
    ) as told:
        Encoder(backbone_of(tiny), tiny.processor)
    assert said in str(told.value) and "\n" not in str(told.value)


def test_one_image_token_may_be_all_that_a_small_picture_takes():
    tiny = FAMILIES["qwen2-vl"]()
    reader = tiny.processor.image_processor
    side = reader.patch_size * reader.merge_size
    reader.size = {"shortest_edge": side**2, "longest_edge": 64 * side**2}
    encoder = Encoder(backbone_of(tiny), tiny.processor)
    one = Query("What?", picture(size=(side, side)), "blue")
    batch = encoder.encode([one])
    assert batch.layout.vision.sum() == 1
    # A picture that stands for itself, in a processor that never expands it, is still refused.
    encoder._reader._expands_pictures = False
    with pytest.raises(BackboneError, match="puts 1 image tokens"):
        encoder.encode([one])


@pytest.mark.parametrize("family", ["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "llava-onevision"])
def test_tokens_of_a_video_are_vision_and_no_prompt_text(family: str):
    tiny = shared(family)
    encoder = Encoder(backbone_of(tiny), tiny.processor)
    token = tiny.processor.video_token
    shown = f"<|vision_start|>{token}<|vision_end|>" if "qwen" in family else token
    text = f"<|im_start|>user\n{shown}What colour?<|im_end|>\n<|im_start|>assistant\n"
    frames = np.zeros((4, 56, 56, 3), np.uint8)
    inputs = tiny.processor(
        text=[text], videos=[frames], return_tensors="pt", do_sample_frames=False
    )
    layout = encoder.layout(inputs["input_ids"], inputs["attention_mask"])
    is_video = inputs["input_ids"] == tiny.processor.tokenizer.convert_tokens_to_ids(token)
    assert is_video.any()
    assert torch.equal(layout.vision, is_video)
    assert not (layout.text & is_video).any() and layout.text.any()
