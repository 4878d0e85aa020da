"""EasyEdit's LoRA, WISE, GRACE and IKE, run for real on tiny models, and the model after them."""

import dataclasses
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from easyedit_fixtures import needs_easyedit, needs_master, needs_release
from tiny_editors import picture, request_of
from tiny_models import LAYERS, TinyModel, tiny_llava, tiny_llava_onevision

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.errors import ConfigError, DataError
from easyedit_dualedit.measure.contender import Bench, Contender, Edited
from easyedit_dualedit.measure.easyedit_rows import joined_row
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.plugin import register, unregister
from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.rows.ike import (
    GRACE,
    IKE,
    LORA,
    WISE,
    Algorithm,
    baselines,
    hyperparameters,
    unchanged,
)
from easyedit_dualedit.train.losses import answer_cross_entropy

pytestmark = needs_easyedit

CHANGING = ("LoRA", "WISE", "GRACE")
BUILDERS = {"llava": tiny_llava, "llava-onevision": tiny_llava_onevision}
# As shipped, five steps of EasyEdit's LoRA hardly move a tiny model.
FASTER = {"LoRA": {"num_steps": 20, "lr": 2.0}}


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    yield register()
    unregister()
    logging.getLogger("easyeditor").handlers.clear()


@pytest.fixture(params=sorted(BUILDERS))
def fresh(request: pytest.FixtureRequest) -> TinyModel:
    """A tiny model that no other test reads."""
    return BUILDERS[request.param]()


def contender(host: Host, name: str) -> Contender:
    return next(row for row in baselines(host) if row.name == name)


def record_of(index: int = 0, **changes: Any) -> Record:
    request = request_of()
    record = Record(
        index,
        request,
        Query("The circle is?", request.image, "blue"),
        Query(request.prompt, picture("red", (34, 38)), "blue"),
        Query("Where is the star?", None, "top left"),
        Query("How many squares are there?", picture("green"), "three"),
        "red",
    )
    return dataclasses.replace(record, **changes)


def bench_of(tiny: TinyModel, folder: Path, *, training: Any = (), **settings: Any) -> Bench:
    return Bench(
        "tiny", lambda: (tiny.model, tiny.processor), "cpu", folder, training, settings=settings
    )


def method_of(host: Host, name: str, tiny: TinyModel, folder: Path, **settings: Any) -> Any:
    given = {**FASTER.get(name, {}), **settings}
    return contender(host, name).make(bench_of(tiny, folder, **given))


@torch.no_grad()
def loss_of(model: Any, encoder: Encoder, query: Query) -> float:
    row = joined_row(encoder, query)
    return float(answer_cross_entropy(model(**row.inputs).logits, row.labels))


@torch.no_grad()
def answer_of(edited: Edited, encoder: Encoder, query: Query) -> torch.Tensor:
    batch = encoder.encode([edited.asked(query)], with_target=False)
    tokens: torch.Tensor = edited.model.generate(
        **batch.inputs, max_new_tokens=4, do_sample=False, use_cache=True
    )
    return tokens[0, batch.inputs["input_ids"].shape[1] :]


@torch.no_grad()
def state_of(model: Any, encoder: Encoder) -> dict[str, Any]:
    """Return all that an edit might have changed, by what it is."""
    row = joined_row(encoder, request_of())
    modules = dict(model.named_modules())
    hooks = [name for name in vars(model) if "hook" in name and isinstance(vars(model)[name], dict)]
    return {
        "logits": model(**row.inputs).logits.tolist(),
        "weights": {k: (v.dtype, v.float().tolist()) for k, v in model.state_dict().items()},
        "modules": {name: id(module) for name, module in modules.items()},
        "parameters": {name: id(value) for name, value in model.named_parameters()},
        "requires_grad": {n: value.requires_grad for n, value in model.named_parameters()},
        "gradients": [n for n, value in model.named_parameters() if value.grad is not None],
        "training": {name: module.training for name, module in modules.items()},
        "hooks": {n: [list(vars(m)[hook]) for hook in hooks] for n, m in modules.items()},
        "attributes": {name: sorted(vars(module)) for name, module in modules.items()},
        "checkpointing": {
            n: getattr(m, "gradient_checkpointing", None) for n, m in modules.items()
        },
        "config": model.config.to_dict(),
        "use_cache": getattr(model.config, "use_cache", None),
        "generation": model.generation_config.to_dict(),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name, value in before.items():
        assert after[name] == value, name


def test_the_rows_are_those_of_the_edition(host: Host) -> None:
    names = [row.name for row in baselines(host)]
    assert names == (["LoRA", "WISE", "GRACE", "IKE"] if host.edition == "master" else ["IKE"])
    assert all(row.remarks for row in baselines(host))
    # WISE trains on the answer to the text locality question.
    assert [row.name for row in baselines(host) if row.reads_label] == (
        ["WISE"] if host.edition == "master" else []
    )


@needs_master
@pytest.mark.parametrize("name", CHANGING)
def test_an_edit_lowers_the_loss_and_leaves_no_trace(
    host: Host, fresh: TinyModel, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = record_of()
    encoder = Encoder(Backbone.of(fresh.model), fresh.processor)
    answers = [answer_of(Edited(fresh.model, 0), encoder, q).tolist() for q in record.queries]
    before = state_of(fresh.model, encoder)
    plain = loss_of(fresh.model, encoder, record.request)
    method = method_of(host, name, fresh, tmp_path)
    assert_same(before, state_of(fresh.model, encoder))
    side = fresh.processor.tokenizer.padding_side
    with method.edit(record) as edited:
        assert loss_of(edited.model, encoder, record.request) < plain - 0.05
        assert edited.stored_bytes > 0
        for query in record.queries:
            assert 0 < len(answer_of(edited, encoder, query)) <= 4
    assert_same(before, state_of(fresh.model, encoder))
    assert fresh.processor.tokenizer.padding_side == side
    after = [answer_of(Edited(fresh.model, 0), encoder, q).tolist() for q in record.queries]
    assert after == answers
    assert capsys.readouterr().out == ""


@needs_master
@pytest.mark.parametrize("name", CHANGING)
def test_an_edit_is_undone_if_what_asks_fails(host: Host, name: str, tmp_path: Path) -> None:
    tiny = tiny_llava()
    encoder = Encoder(Backbone.of(tiny.model), tiny.processor)
    before = state_of(tiny.model, encoder)
    method = method_of(host, name, tiny, tmp_path)
    with pytest.raises(ZeroDivisionError), method.edit(record_of()):
        raise ZeroDivisionError
    assert_same(before, state_of(tiny.model, encoder))


@needs_master
@pytest.mark.parametrize("name", CHANGING)
def test_the_same_draws_make_the_same_edit_again(host: Host, name: str, tmp_path: Path) -> None:
    import transformers

    tiny = tiny_llava()
    encoder = Encoder(Backbone.of(tiny.model), tiny.processor)
    method, found = method_of(host, name, tiny, tmp_path), []
    for _ in range(2):
        transformers.set_seed(3)
        with method.edit(record_of()) as edited:
            # Dropout left on would tell two questions apart.
            found.append([loss_of(edited.model, encoder, record_of().request) for _ in range(2)])
    assert found[0] == found[1]
    assert found[0][0] == found[0][1]


@needs_master
@pytest.mark.parametrize("name", CHANGING)
def test_bfloat16_comes_back(host: Host, name: str, tmp_path: Path) -> None:
    tiny = tiny_llava()
    tiny.model.to(torch.bfloat16)
    encoder = Encoder(Backbone.of(tiny.model), tiny.processor)
    before = state_of(tiny.model, encoder)
    with method_of(host, name, tiny, tmp_path).edit(record_of()) as edited:
        assert loss_of(edited.model, encoder, record_of().request) > 0
        # EasyEdit's LoRA computes in float32 whatever the model does.
        assert tiny.model.dtype == (torch.float32 if name == "LoRA" else torch.bfloat16)
    assert_same(before, state_of(tiny.model, encoder))


@needs_master
def test_what_is_trained_and_stored(host: Host, tmp_path: Path) -> None:
    tiny = tiny_llava()
    lora = method_of(host, "LoRA", tiny, tmp_path, num_steps=1)
    with lora.edit(record_of()) as edited:
        adapter = {n: v for n, v in edited.model.named_parameters() if v.requires_grad}
        assert len(adapter) == LAYERS * 2 * 3  # AdaLoRA's A, B and E of queries and values
        assert all("language_model" in name for name in adapter)
        assert lora.trained_parameters == sum(value.numel() for value in adapter.values())
        assert edited.stored_bytes == 4 * lora.trained_parameters
    wise = method_of(host, "WISE", tiny, tmp_path)
    assert wise.trained_parameters == round(0.2 * 32 * 64)
    with wise.edit(record_of()) as edited:
        assert edited.stored_bytes == 32 * 64 * 4 + 32 * 64 // 8
    grace = method_of(host, "GRACE", tiny, tmp_path)
    assert grace.trained_parameters == 32
    with grace.edit(record_of()) as edited:
        assert edited.stored_bytes == 4 * (64 + 32 + 1)


@needs_master
@pytest.mark.parametrize(("name", "layer"), [("WISE", 3), ("GRACE", 2)])
def test_layers_are_in_proportion(host: Host, name: str, layer: int, tmp_path: Path) -> None:
    tiny = tiny_llava()
    with method_of(host, name, tiny, tmp_path).edit(record_of()):
        changed = [
            place
            for place, part in enumerate(Backbone.of(tiny.model).layers)
            if not isinstance(part.mlp.down_proj, torch.nn.Linear)
        ]
    assert changed == [layer]


@needs_master
def test_another_weight_can_be_named(host: Host, tmp_path: Path) -> None:
    tiny = tiny_llava()
    name = "model.language_model.layers[0].mlp.down_proj.weight"
    with method_of(host, "GRACE", tiny, tmp_path, inner_params=[name]).edit(record_of()):
        first = Backbone.of(tiny.model).layers[0]
        assert not isinstance(first.mlp.down_proj, torch.nn.Linear)
    with pytest.raises(ConfigError, match="inner_params has 'language_model.down'"):
        method_of(host, "WISE", tiny, tmp_path, inner_params=["language_model.down"])


@needs_master
def test_wise_keeps_no_history(host: Host, tmp_path: Path) -> None:
    tiny = tiny_llava()
    module = host.module("models.wise.WISE")
    method = method_of(host, "WISE", tiny, tmp_path)
    for _ in range(2):
        with method.edit(record_of()):
            assert module.edit_history == module.merge_group_edit_history == []


@needs_master
def test_wise_is_given_the_locality_question(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    original = host.editors["WISE"]

    def spy(model: Any, processor: Any, requests: Any, hparams: Any, **options: Any) -> Any:
        seen.append((requests, hparams, processor.tokenizer.padding_side))
        return original(model, processor, requests, hparams, **options)

    monkeypatch.setitem(host.editors, "WISE", spy)
    tiny = tiny_llava()
    tiny.processor.tokenizer.padding_side = "right"
    with method_of(host, "WISE", tiny, tmp_path).edit(record_of()):
        pass
    ((request,), hparams, side) = seen[0]
    assert (request["locality_prompt"], request["locality_ground_truth"]) == (
        "Where is the star?",
        "top left",
    )
    assert request["file_type"] == "image"
    assert type(hparams).__name__ == "WISEMultimodalHyperParams"
    assert (hparams.n_iter, hparams.alpha, hparams.beta, hparams.gamma) == (10, 5.0, 20.0, 10.0)
    assert side == "left"
    assert tiny.processor.tokenizer.padding_side == "right"


@needs_master
@pytest.mark.parametrize("algorithm", [LORA, WISE, GRACE, IKE], ids=lambda a: a.name)
def test_a_package_without_the_folder_hparams_has_the_same_numbers(
    host: Host, algorithm: Algorithm, tmp_path: Path
) -> None:
    alone = ModuleType("easyeditor")
    alone.__file__ = str(tmp_path / "easyeditor" / "__init__.py")
    bench = bench_of(tiny_llava(), tmp_path)
    found = vars(hyperparameters(dataclasses.replace(host, package=alone), algorithm, bench))
    shipped = vars(hyperparameters(host, algorithm, bench))
    for name in algorithm.values:
        if name not in ("inner_params", "target_modules"):
            assert found[name] == shipped[name], name
            assert type(found[name]) is type(shipped[name]), name


@needs_master
@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("LoRA", {"stepz": 1}, "unknown keys in the settings of LoRA: stepz.*num_steps"),
        ("GRACE", {"device": 0}, "unknown keys in the settings of GRACE: device"),
        ("WISE", {"n_iter": 2.5}, "n_iter = 2.5: a whole number, such as 10"),
        ("GRACE", {"eps": "wide", "n_iter": True}, "eps = 'wide': a number.*n_iter = True"),
    ],
)
def test_bad_settings_are_named(
    host: Host, name: str, settings: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=told):
        method_of(host, name, tiny_llava(), tmp_path, **settings)


@needs_master
def test_settings_replace_what_is_shipped(host: Host, tmp_path: Path) -> None:
    bench = bench_of(tiny_llava(), tmp_path, lr="1e-2", num_steps=7)
    found = hyperparameters(host, LORA, bench)
    assert (found.lr, found.num_steps, found.rank) == (0.01, 7, 8)


@needs_master
@pytest.mark.parametrize("name", CHANGING)
def test_a_request_without_a_picture_is_refused(host: Host, name: str, tmp_path: Path) -> None:
    record = record_of(request=Query("What?", None, "blue"))
    method = method_of(host, name, tiny_llava(), tmp_path)
    with pytest.raises(DataError, match=f"without a picture.*{name}"), method.edit(record):
        pass


def test_an_unknown_setting_of_ike_is_named(host: Host, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown keys in the settings of IKE: shots.*known.* k,"):
        method_of(host, "IKE", tiny_llava(), tmp_path, shots=3)
    with pytest.raises(ConfigError, match="k = -1"):
        method_of(host, "IKE", tiny_llava(), tmp_path, k=-1)


def test_ike_puts_the_fact_before_every_question(
    host: Host, fresh: TinyModel, tmp_path: Path
) -> None:
    encoder = Encoder(Backbone.of(fresh.model), fresh.processor)
    before = state_of(fresh.model, encoder)
    record, method = record_of(), method_of(host, "IKE", fresh, tmp_path)
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
    method = method_of(host, "IKE", tiny, tmp_path)
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
    method = contender(host, "IKE").make(bench_of(tiny, tmp_path, training=training_records(), k=3))
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
    with contender(host, "IKE").make(bench).edit(record) as edited:
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
    method = contender(host, "IKE").make(bench_of(tiny, tmp_path, training=training, k=2))
    with method.edit(near) as edited:
        first = edited.asked(near.request).prompt.split("\n")[0]
    assert first == "New Fact: How many stars are there? four"


def test_the_examples_are_encoded_once(host: Host, tmp_path: Path) -> None:
    def made(training: Any) -> list[str]:
        contender(host, "IKE").make(bench_of(tiny_llava(), tmp_path, training=training, k=2))
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
    method = contender(host, "IKE").make(bench)
    encoder = Encoder(Backbone.of(tiny.model), tiny.processor)
    with method.edit(record) as edited:
        whole = edited.asked(record.request)
    assert whole.prompt.count("New Fact:") == 6
    width = encoder.encode([whole]).inputs["input_ids"].shape[1]
    tiny.model.config.get_text_config().max_position_embeddings = width
    method = contender(host, "IKE").make(bench)
    with method.edit(record) as edited:
        cut = edited.asked(record.request)
    assert cut.prompt.count("New Fact:") == 5
    assert encoder.encode([cut]).inputs["input_ids"].shape[1] + 16 <= width
    kept, everything = cut.prompt.split("\n\n"), whole.prompt.split("\n\n")
    assert kept == everything[:3] + everything[4:]


def test_examples_need_records_and_a_sentence_model(host: Host, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="k = 2, but there are no training records"):
        method_of(host, "IKE", tiny_llava(), tmp_path, k=2)
    settings = {"k": 1, "sentence_model_name": str(tmp_path / "none")}
    bench = bench_of(tiny_llava(), tmp_path, training=training_records(2), **settings)
    with pytest.raises(ConfigError, match="sentence_model_name = .*none.* cannot be loaded"):
        contender(host, "IKE").make(bench)


@needs_release
def test_the_release_says_what_is_done_to_it(host: Host) -> None:
    assert "CUDA" in contender(host, "IKE").remarks[-1]


def test_whatever_is_done_to_a_model_is_undone() -> None:
    tiny = tiny_llava()
    model = tiny.model
    encoder = Encoder(Backbone.of(model), tiny.processor)
    before = state_of(model, encoder)
    with unchanged(model):
        first = Backbone.of(model).layers[0]
        first.mlp = torch.nn.Identity()
        first.register_forward_hook(lambda *_: None)
        model.surplus = torch.nn.Linear(2, 2)
        model.note = 1
        model.train().to(torch.float64).requires_grad_(False)
        model.config.use_cache = False
        model.config.get_text_config().hidden_act = "relu"
        model.generation_config.max_new_tokens = 3
        del model.model.language_model.norm
    assert_same(before, state_of(model, encoder))
