"""EasyEdit's IKE, run for real on tiny models."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from easyedit_fixtures import needs_easyedit, needs_master, needs_release
from tiny_editors import request_of, shared
from tiny_models import TinyModel, tiny_llava, tiny_llava_onevision
from tiny_rows import answer_of, assert_same, bench_of, loss_of, record_of, state_of
from tiny_videos import video_of

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.rows.ike import ike

pytestmark = needs_easyedit


def test_an_unknown_setting_of_ike_is_named(host: Host, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown keys in the settings of IKE: shots.*known.* k,"):
        ike(host).make(bench_of(tiny_llava(), tmp_path, shots=3))
    with pytest.raises(ConfigError, match="k = -1"):
        ike(host).make(bench_of(tiny_llava(), tmp_path, k=-1))


def test_ike_puts_the_fact_before_every_question(
    host: Host, fresh: TinyModel, tmp_path: Path
) -> None:
    encoder = Encoder(Backbone.of(fresh.model), fresh.processor)
    before = state_of(fresh.model, encoder)
    record, method = record_of(), ike(host).make(bench_of(fresh, tmp_path))
    assert method.trained_parameters == 0
    with method.edit(record) as edited:
        assert edited.model is fresh.model
        fact = f"New Fact: {record.request.prompt} blue\nPrompt: {record.request.prompt}\n\n"
        assert edited.stored_bytes == len(fact)
        for query in record.queries:
            asked = edited.asked(query)
            assert asked == dataclasses.replace(query, prompt=fact + query.prompt)
            assert loss_of(edited.model, encoder, asked) != loss_of(fresh.model, encoder, query)
            assert len(answer_of(edited, encoder, query)) > 0
    assert_same(before, state_of(fresh.model, encoder))


@pytest.mark.parametrize("family", ["llava-onevision", "qwen2-vl"])
def test_ike_puts_the_fact_before_a_question_about_a_video(
    host: Host, family: str, tmp_path: Path
) -> None:
    tiny = shared(family)
    encoder = Encoder(Backbone.of(tiny.model), tiny.processor)
    video = video_of("red", "green", "blue", "blue")
    record = record_of()
    record = dataclasses.replace(record, request=dataclasses.replace(record.request, image=video))
    with ike(host).make(bench_of(tiny, tmp_path)).edit(record) as edited:
        asked = edited.asked(record.request)
        assert asked.video is video and asked.prompt.startswith("New Fact: ")
        assert loss_of(edited.model, encoder, asked) != loss_of(tiny.model, encoder, record.request)
        assert len(answer_of(edited, encoder, record.request)) > 0


@needs_master
def test_without_examples_ike_asks_what_easyedits_editor_asks(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny, record, seen = tiny_llava_onevision(), record_of(), []
    module = host.module("editors.multimodal_editor")

    def spy(_model: Any, _name: str, _hparams: Any, _tok: Any, request: Any, _device: Any) -> Any:
        seen.append(request)
        raise InterruptedError

    monkeypatch.setattr(module, "compute_multimodal_hf_edit_results", spy)
    method = ike(host).make(bench_of(tiny, tmp_path))
    editor = object.__new__(module.MultimodalEditor)
    editor.model, editor.tok, editor.alg_name = tiny.model, tiny.processor, "IKE"
    editor.model_name, editor.hparams = "llava-onevision", method._config
    request = easyedit_request(record)
    monkeypatch.setattr(editor, "_prepare_requests", lambda *_, **__: [request], raising=False)
    with pytest.raises(InterruptedError):
        editor.edit(["?"], ["?"], ["?"])
    with method.edit(record) as edited:
        asked = [edited.asked(query).prompt for query in record.queries]
    names = ("prompt", "rephrase_prompt", "prompt", "locality_prompt", "multimodal_locality_prompt")
    assert asked == [seen[0][name] for name in names]


def training_records(count: int = 6) -> list[Record]:
    found = []
    for index in range(count):
        query = request_of(f"What colour is square {index}?", "green", "blue")
        found.append(
            record_of(index, request=query, text_rephrase=Query("Square?", query.image, "green"))
        )
    return found


@needs_master
def test_with_examples_ike_asks_what_easyedits_evaluator_asks(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny, record, seen = tiny_llava_onevision(), record_of(), []
    method = ike(host).make(bench_of(tiny, tmp_path, training=training_records(), k=3))
    module = host.module("evaluate.multimodal_evaluate")
    original = module.prepare_multimodal_hf_edit

    def spy(hparams: Any, processor: Any, target: str, prompts: Any, *rest: Any) -> Any:
        seen.append((prompts[0], target))
        return original(hparams, processor, target, prompts, *rest)

    monkeypatch.setattr(module, "prepare_multimodal_hf_edit", spy)
    config = method._config
    config.dtype = torch.float32
    examples = method._looked_up(record.request)
    assert len(examples) == 4
    fact = f"{record.request.prompt} blue"
    assert examples[-1] == f"New Fact: {fact}\nPrompt: {fact}\n\n"
    assert all(text.startswith("New Fact: What colour is square") for text in examples[:-1])
    module.compute_icl_multimodal_edit_quality(
        tiny.model,
        "llava-onevision",
        config,
        tiny.processor,
        examples,
        easyedit_request(record),
        "cpu",
    )
    with method.edit(record) as edited:
        asked = [edited.asked(query) for query in record.queries]
        assert edited.stored_bytes == len((seen[0][0]).encode()) - len(record.request.prompt)
    assert [(query.prompt, query.target) for query in asked] == seen
    assert [query.image for query in asked] == [query.image for query in record.queries]


def easyedit_request(record: Record) -> dict[str, Any]:
    return {
        "prompt": record.request.prompt,
        "target": record.request.target,
        "image": record.request.image,
        "file_type": "image",
        "rephrase_prompt": record.text_rephrase.prompt,
        "image_rephrase": record.image_rephrase.image,
        "locality_prompt": record.text_locality.prompt,
        "locality_ground_truth": record.text_locality.target,
        "multimodal_locality_image": record.image_locality.image,
        "multimodal_locality_prompt": record.image_locality.prompt,
        "multimodal_locality_ground_truth": record.image_locality.target,
    }


def test_ike_with_examples_edits(host: Host, tmp_path: Path) -> None:
    tiny, record = tiny_llava(), record_of()
    bench = bench_of(tiny, tmp_path, training=training_records(), k=2)
    encoder = Encoder(Backbone.of(tiny.model), tiny.processor)
    with ike(host).make(bench).edit(record) as edited:
        asked = edited.asked(record.request)
        assert asked.prompt.count("New Fact:") == 4
        assert len(answer_of(edited, encoder, record.request)) > 0
    module = host.module("models.ike.ike_main")
    assert module.torch is torch
    assert isinstance(module.SentenceTransformer, type)


def test_the_nearest_example_comes_first(host: Host, tmp_path: Path) -> None:
    tiny = tiny_llava()
    near = record_of(request=request_of("How many stars are there?", "four"))
    training = [*training_records(3), near]
    method = ike(host).make(bench_of(tiny, tmp_path, training=training, k=2))
    with method.edit(near) as edited:
        first = edited.asked(near.request).prompt.split("\n")[0]
    assert first == "New Fact: How many stars are there? four"


def test_the_examples_are_encoded_once(host: Host, tmp_path: Path) -> None:
    def made(training: Any) -> list[str]:
        ike(host).make(bench_of(tiny_llava(), tmp_path, training=training, k=2))
        return sorted(os.listdir(tmp_path / "IKE" / "embedding"))

    first = made(training_records())
    assert len(first) == 1
    assert first[0].endswith("_embeddings.pkl")
    changed = (tmp_path / "IKE" / "embedding" / first[0]).stat().st_mtime_ns
    assert made(training_records()) == first
    assert (tmp_path / "IKE" / "embedding" / first[0]).stat().st_mtime_ns == changed
    assert len(made(training_records(5))) == 2


def test_examples_that_do_not_fit_are_left_out_the_farthest_first(
    host: Host, tmp_path: Path
) -> None:
    tiny, record = tiny_llava(), record_of()
    bench = bench_of(tiny, tmp_path, training=training_records(), k=4)
    method = ike(host).make(bench)
    encoder = Encoder(Backbone.of(tiny.model), tiny.processor)
    with method.edit(record) as edited:
        whole = edited.asked(record.request)
    assert whole.prompt.count("New Fact:") == 6
    width = encoder.encode([whole]).inputs["input_ids"].shape[1]
    tiny.model.config.get_text_config().max_position_embeddings = width
    method = ike(host).make(bench)
    with method.edit(record) as edited:
        cut = edited.asked(record.request)
    assert cut.prompt.count("New Fact:") == 5
    assert encoder.encode([cut]).inputs["input_ids"].shape[1] + 16 <= width
    kept, everything = cut.prompt.split("\n\n"), whole.prompt.split("\n\n")
    assert kept == everything[:3] + everything[4:]


def test_examples_need_records_and_a_sentence_model(host: Host, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="k = 2, but there are no training records"):
        ike(host).make(bench_of(tiny_llava(), tmp_path, k=2))
    settings = {"k": 1, "sentence_model_name": str(tmp_path / "none")}
    bench = bench_of(tiny_llava(), tmp_path, training=training_records(2), **settings)
    with pytest.raises(ConfigError, match="sentence_model_name = .*none.* cannot be loaded"):
        ike(host).make(bench)


@needs_release
def test_the_release_says_what_is_done_to_it(host: Host) -> None:
    assert "CUDA" in ike(host).remarks[-1]
