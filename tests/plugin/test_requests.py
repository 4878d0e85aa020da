"""Requests, samples and checkpoints of EasyEdit, without EasyEdit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_editors import picture, request_of, trained_editor
from tiny_models import TinyModel

from easyedit_dualedit.errors import DataError, PromptEndError
from easyedit_dualedit.model.inputs import IGNORED
from easyedit_dualedit.plugin.legacy import LegacyModel, LegacySamples, picture_of
from easyedit_dualedit.plugin.requests import requested_queries
from easyedit_dualedit.plugin.samples import (
    ITEM_KEYS,
    TransformersSamples,
    answered,
    questions_of,
    records_of,
)
from easyedit_dualedit.train.losses import answer_cross_entropy

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
DEVIATION = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


def tensor_of(image: Image.Image) -> torch.Tensor:
    """Return what EasyEdit's image processor makes of a picture, without its resizing."""
    pixels = torch.tensor(list(image.convert("RGB").tobytes())).float() / 255
    pixels = pixels.view(image.height, image.width, 3).permute(2, 0, 1)
    return (pixels - MEAN) / DEVIATION


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_request_in_each_form_becomes_a_query(wrapped: bool) -> None:
    image = picture()
    request = {"prompt": "What?", "target": "blue", "image": [image] if wrapped else image}
    (query,) = requested_queries(request)
    assert (query.prompt, query.target, query.image) == ("What?", "blue", image)
    assert requested_queries([request]) == [query]


def test_a_path_stays_a_path_and_text_needs_no_picture() -> None:
    path, text = requested_queries(
        [
            {"prompt": "What?", "target": "blue", "image": "a.png"},
            {"prompt": "What?", "target": "blue", "image": "a.png", "file_type": "text"},
        ]
    )
    assert path.image == Path("a.png")
    assert text.image is None


def test_several_pictures_stay_together() -> None:
    pictures = [picture(), picture("blue")]
    request = {"prompt": "What?", "target": "b", "image": pictures, "file_type": "multi-image"}
    (query,) = requested_queries(request)
    assert query.pictures == tuple(pictures)


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([], "no requests to edit"),
        ([{"prompt": "What?"}], "request 0 has no target"),
        ([{}], "request 0 has no prompt and no target"),
        ([{"prompt": "a", "target": "b", "file_type": "sound"}], "file_type 'sound'"),
        ([{"prompt": "a", "target": "b", "image": [1, 2]}], "image of type int"),
        ([{"prompt": "a", "target": "b", "image": torch.zeros(3, 4, 4)}], "image of type Tensor"),
    ],
)
def test_what_cannot_be_edited_is_named(requests: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        requested_queries(requests)


def test_the_picture_behind_an_image_tensor_is_recovered_exactly() -> None:
    image = picture("green")
    assert picture_of(tensor_of(image)).tobytes() == image.tobytes()


def collated(tiny: TinyModel, padding_side: str) -> tuple[dict[str, Any], list[str]]:
    """Return a batch as master's datasets collate it: two rows, wrong labels, and its answers."""
    answers = [" a red circle", " two"]
    questions = ["What colour is it?", "How many squares are there in the picture?"]
    prompts = [
        tiny.processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        for question in questions
    ]
    side, tiny.processor.tokenizer.padding_side = (
        tiny.processor.tokenizer.padding_side,
        padding_side,
    )
    try:
        batch = dict(
            tiny.processor(
                text=[p + a for p, a in zip(prompts, answers, strict=True)],
                images=[picture("red"), picture("blue")],
                padding=True,
                return_tensors="pt",
            )
        )
    finally:
        tiny.processor.tokenizer.padding_side = side
    batch["labels"] = torch.full_like(batch["input_ids"], 7)
    return batch, answers


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_labels_of_a_tokenised_batch_are_its_answers_whatever_the_padding(
    tiny: TinyModel, padding_side: str
) -> None:
    samples, answers = collated(tiny, padding_side)
    batch = TransformersSamples(trained_editor(tiny).encoder).read(samples)
    tokenizer = tiny.processor.tokenizer
    for row, answer in enumerate(answers):
        labelled = batch.labels[row] != IGNORED
        assert tokenizer.decode(batch.labels[row, labelled]) == answer
        assert torch.equal(batch.labels[row, labelled], batch.inputs["input_ids"][row, labelled])
        assert int(labelled.nonzero()[0]) == int(batch.layout.gate[row]) + 1
    assert "labels" not in batch.inputs


def test_rows_without_the_end_of_a_prompt_are_refused(tiny: TinyModel) -> None:
    ids = torch.tensor([tiny.processor.tokenizer.encode("no chat template here at all")])
    with pytest.raises(PromptEndError, match="end of the prompt"):
        TransformersSamples(trained_editor(tiny).encoder).read({"input_ids": ids})


def dataset_item() -> dict[str, Any]:
    """Return an item of a dataset of EasyEdit."""
    return {
        "prompt": "What colour?",
        "target": "blue",
        "rephrase_prompt": "Which colour?",
        "image": picture("red"),
        "image_rephrase": [picture("red", (20, 20))],
        "locality_prompt": "Where is the star?",
        "locality_ground_truth": "top left",
        "multimodal_locality_image": picture("green"),
        "multimodal_locality_prompt": "How many squares?",
        "multimodal_locality_ground_truth": "three",
    }


def test_questions_of_a_dataset_are_those_that_the_editor_measures(tiny: TinyModel) -> None:
    parts = questions_of([dataset_item(), dataset_item()])
    asked = {name: part.queries[1] for name, part in parts.items() if part is not None}
    assert {name: (q.prompt, q.target) for name, q in asked.items()} == {
        "edit_inner": ("What colour?", "blue"),
        "edit_outer": ("Which colour?", "blue"),
        "edit_outer_image": ("What colour?", "blue"),
        "loc": ("Where is the star?", "top left"),
        "loc_image": ("How many squares?", "three"),
    }
    assert asked["loc"].image is None
    assert asked["edit_outer_image"].image.size == (20, 20)
    encoder = trained_editor(tiny).encoder
    inner, locality = parts["edit_inner"], parts["loc"]
    assert inner is not None
    assert locality is not None
    reader, eos = TransformersSamples(encoder), tiny.processor.tokenizer.eos_token_id
    assert int(reader.read(inner, with_end=True).labels[0, -1]) == eos
    assert int(reader.read(inner).labels[0, -1]) != eos
    assert int(reader.read(locality, with_end=True).labels[0, -1]) != eos


def legacy_samples(tiny: TinyModel, special: bool = False) -> dict[str, Any]:
    """Return a sample dictionary as EasyEdit's release makes them."""
    tokenizer = tiny.processor.tokenizer
    return {
        "text_input": ["Question: What colour? Short answer: blue"],
        "image": tensor_of(picture("red")).unsqueeze(0),
        "labels": tokenizer("blue", return_tensors="pt", add_special_tokens=special)["input_ids"],
        "prompts_len": [7],
    }


@pytest.mark.parametrize("special", [False, True])
def test_the_last_logits_of_a_legacy_answer_are_those_of_its_labels(
    tiny: TinyModel, special: bool
) -> None:
    samples = legacy_samples(tiny, special)
    model = LegacyModel(tiny.model, tiny.processor)
    with torch.no_grad():
        output = model(samples)
    answer = tiny.processor.tokenizer("blue", add_special_tokens=False)["input_ids"]
    # How EasyEdit's release finds the predictions of the answer.
    found = output.logits[:, :-1][:, -len(answer) :]
    expected = torch.nn.functional.cross_entropy(found[0], torch.tensor(answer))
    torch.testing.assert_close(answer_cross_entropy(output.logits, output.labels), expected)
    assert int(output.attention_mask.sum()) == len(answer)


def test_legacy_samples_without_a_picture_are_text(tiny: TinyModel) -> None:
    samples = legacy_samples(tiny) | {"image": None, "labels": ["blue"]}
    batch = LegacySamples(trained_editor(tiny).encoder).read(samples)
    assert "pixel_values" not in batch.inputs
    assert not bool(batch.layout.vision.any())


@pytest.mark.parametrize("labels", [["green"], torch.tensor([[IGNORED]])])
def test_a_text_that_does_not_end_with_its_answer_is_refused(tiny: TinyModel, labels: Any) -> None:
    samples = legacy_samples(tiny) | {"labels": labels}
    with pytest.raises(DataError, match="does not end with its answer"):
        LegacySamples(trained_editor(tiny).encoder).read(samples)


def test_a_legacy_model_moves_to_the_cpu_by_the_name_that_easyedit_gives_it(
    llava: TinyModel,
) -> None:
    model = LegacyModel(llava.model, llava.processor)
    assert model.to("cuda:cpu").device == torch.device("cpu")
    assert model.to(torch.float32) is model


def test_what_a_trainer_looks_for_is_in_the_output(tiny: TinyModel) -> None:
    editor = trained_editor(tiny)
    batch = editor.encoder.encode([request_of(), request_of("Why?", "a red circle")])
    with torch.no_grad():
        output = answered(tiny.model(**batch.inputs), batch)
    predicting = output.attention_mask.bool()
    assert torch.equal(predicting[:, :-1], batch.labels[:, 1:] != IGNORED)
    assert not bool(predicting[:, -1].any())


def test_a_record_may_say_nothing_or_a_number_of_what_the_model_answers() -> None:
    texts = {key for prompt, answer, _ in ITEM_KEYS.values() for key in (prompt, answer)}
    item = dict.fromkeys(texts, "What is it?") | {
        "image": "a.png",
        "image_rephrase": "b.png",
        "multimodal_locality_image": "c.png",
    }
    said = [record.prediction for record in records_of([item | {"pred": None}, item | {"pred": 5}])]
    assert said == ["", "5"] and records_of([item])[0].prediction == ""
