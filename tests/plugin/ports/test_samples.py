"""Sample dictionaries and queries, read as the port itself reads them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_editors import picture, tiny_config, trained_editor
from tiny_models import IMAGE_SIZE, TinyModel
from tiny_ports import (
    HAVE_PORTS,
    QUERIES,
    TWO,
    easyedit,
    samples,
)

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.method.config import DualEditConfig
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.inputs import IGNORED, Query
from easyedit_dualedit.plugin.ports.samples import PortSamples


@pytest.mark.parametrize("seeing", [True, False])
def test_token_ids_give_what_the_port_gives(port: Any, tiny_one: TinyModel, seeing: bool) -> None:
    given = samples(port, *TWO, seeing=seeing)
    port_tokenizer = tiny_one.processor.tokenizer.tokenizer
    port_tokenizer.padding_side = "right"  # the port leaves it as it is for text alone
    editor = trained_editor(tiny_one)
    batch = PortSamples.of(editor).read(given)
    own = port(given)
    with torch.no_grad():
        ours = tiny_one.model(**batch.inputs)
    assert torch.equal(ours.logits, own.logits)
    assert torch.equal(batch.labels, own.labels)
    assert torch.equal(batch.inputs["attention_mask"], own.attention_mask)
    assert bool((batch.labels != IGNORED).any(1).all())


def test_the_layout_is_that_of_the_samples(port: Any, tiny_one: TinyModel) -> None:
    batch = PortSamples.of(trained_editor(tiny_one)).read(samples(port, *TWO))
    layout = batch.layout
    assert layout.vision.sum(1).tolist() == [QUERIES, QUERIES]
    tokenizer = tiny_one.processor.tokenizer
    for row, (prompt, target) in enumerate(zip(*TWO, strict=True)):
        ids = batch.inputs["input_ids"][row]
        assert tokenizer.decode(ids[layout.text[row]]).endswith(prompt)
        assert tokenizer.decode(ids[batch.target[row]]) == " " + target
        assert int(layout.gate[row]) + 1 == int(batch.target[row].to(torch.uint8).argmax())


def test_samples_in_a_list_give_what_the_port_gives(port: Any, tiny_one: TinyModel) -> None:
    both = [samples(port), samples(port, TWO[0][1:], TWO[1][1:], seeing=False)]
    batch = PortSamples.of(trained_editor(tiny_one)).read(both)
    own = port(both)
    with torch.no_grad():
        ours = tiny_one.model(**batch.inputs)
    real = batch.layout.real
    assert torch.equal(ours.logits[real], own.logits[real])
    assert torch.equal(batch.labels, own.labels)


@pytest.mark.skipif(not HAVE_PORTS, reason="needs EasyEdit's own reader of pictures")
def test_queries_are_encoded_as_samples_are(port: Any, tiny_one: TinyModel, tmp_path: Path) -> None:
    config = DualEditConfig.from_dict(tiny_config().to_dict())
    editor = DualEditor(tiny_one.model, tiny_one.processor, config)
    assert editor.encoder.marker is None
    pixels = tiny_one.processor.pixels(picture())
    reader = easyedit("dataset.processor.blip_processors").BlipImageEvalProcessor(
        image_size=IMAGE_SIZE, mean=None, std=None
    )
    picture().save(tmp_path / "picture.png")
    assert torch.equal(pixels, reader(str(tmp_path / "picture.png"), "image"))
    for seeing in (True, False):
        query = Query(TWO[0][0], picture() if seeing else None, TWO[1][0])
        given = {**samples(port), "image": pixels[None] if seeing else None}
        expected = PortSamples.of(editor).read(given)
        found = editor.encoder.encode([query], padding_side="right")
        assert found.inputs.keys() == expected.inputs.keys()
        for name, value in expected.inputs.items():
            assert torch.equal(found.inputs[name], value), name
        assert torch.equal(found.labels, expected.labels)
        assert torch.equal(found.layout.text, expected.layout.text)
    with pytest.raises(DataError, match="<ImageHere>"):
        editor.encoder.encode([Query("What is <ImageHere>?", picture())])
