"""SERAC, through the wrapper that speaks its dialect."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from easyedit_fixtures import needs_master, shared_workplace
from tiny_trainings import records_of, training_bench

from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.measure.easyedit_rows import joined_row
from easyedit_dualedit.model.inputs import IGNORED
from easyedit_dualedit.model.loading import load_model
from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.rows.serac import serac
from easyedit_dualedit.plugin.rows.small_models import vocabulary_of

pytestmark = [needs_master, pytest.mark.usefixtures("nothing_written")]


def test_serac_mixes_token_for_token(host: Host, tmp_path: Path) -> None:
    workplace = shared_workplace("llava-onevision")
    method: Any = serac(host).make(training_bench(workplace, tmp_path / "bench"))
    dialect, record = method._dialect, records_of(workplace)[0]
    for query in record.queries:
        row = joined_row(dialect.encoder, query)
        samples = dialect.samples(row.inputs, row.labels)
        ids = row.inputs["input_ids"][0]
        text = ids[ids != dialect.encoder.backbone.image_token_id].tolist()
        again = method._alg.replacement_tok(samples["text_input"], add_special_tokens=False)
        assert again["input_ids"][0] == text
        assert samples["labels"][0].tolist() == row.labels[row.labels != IGNORED].tolist()
    row = joined_row(dialect.encoder, record.request)
    with method.edit(record) as edited:
        samples = dialect.samples(row.inputs, row.labels)
        with torch.no_grad():
            similarity, _, _ = edited.model._edited.run_classifier(samples)
        assert float(similarity) == 1
        logits = edited.model(**row.inputs).logits
        # EasyEdit adds a little to every probability.
        total = logits.exp().sum(-1)
        torch.testing.assert_close(total, torch.ones_like(total), atol=1e-3, rtol=0)
    assert serac(host).reads_label


def test_serac_sees_the_features_that_the_language_model_gets(host: Host, tmp_path: Path) -> None:
    workplace = shared_workplace("llava")
    method: Any = serac(host).make(training_bench(workplace, tmp_path / "bench"))
    dialect, record = method._dialect, records_of(workplace)[0]
    row = joined_row(dialect.encoder, record.request)
    samples = dialect.samples(row.inputs)
    with torch.no_grad():
        dialect(samples)
        expected = dialect.base.get_image_features(row.inputs["pixel_values"])
    expected = getattr(expected, "pooler_output", expected)
    torch.testing.assert_close(samples["image"], torch.cat(list(expected))[None])


def test_a_counterfactual_model_of_another_vocabulary_is_refused(
    host: Host, tmp_path: Path
) -> None:
    from transformers import OPTConfig

    OPTConfig(vocab_size=7).save_pretrained(tmp_path / "small-opt")
    bench = training_bench(
        shared_workplace("llava"), tmp_path / "bench", small_name=str(tmp_path / "small-opt")
    )
    with pytest.raises(ConfigError, match="vocabulary of 7 tokens"):
        serac(host).make(bench)


def test_the_models_own_language_model_is_the_counterfactual_one(
    host: Host, tmp_path: Path
) -> None:
    workplace = shared_workplace("llava-onevision")
    bench = training_bench(workplace, tmp_path / "bench", small_name="own", lr=1e-3)
    method: Any = serac(host).make(bench)
    assert host.trainers["SERAC_MULTI"] is type(method._alg)
    assert {"opt"} & {path.name for path in bench.folder.rglob("*")} == set()
    dialect, record = method._dialect, records_of(workplace)[0]
    ids = torch.arange(20, 30)[None]
    with torch.no_grad():
        expected = dialect.base(input_ids=ids).logits
        fresh = transformers.AutoModelForCausalLM.from_pretrained(
            bench.folder / "easyedit-serac-parts" / "own"
        )
        torch.testing.assert_close(fresh(input_ids=ids).logits, expected)
        # What was trained is a copy.
        trained = method._alg.replacement(input_ids=ids).logits
        assert not torch.allclose(trained, expected)
    row = joined_row(dialect.encoder, record.request)
    with method.edit(record) as edited:
        logits = edited.model(**row.inputs).logits
    assert logits.shape[:2] == row.inputs["input_ids"].shape
    total = logits.exp().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-3, rtol=0)


def test_a_named_language_model_with_other_rows_for_the_same_tokens_is_taken(
    host: Host, tmp_path: Path
) -> None:
    workplace = shared_workplace("llava-onevision")
    model, processor = load_model(str(workplace.model))
    tokens = vocabulary_of(model)
    folder = tmp_path / "small"
    small = transformers.GPT2Config(vocab_size=tokens + 5, n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(small).save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    bench = training_bench(workplace, tmp_path / "bench", small_name=str(folder))
    method: Any = serac(host).make(bench)
    logits = method._alg.replacement(input_ids=torch.arange(5)[None]).logits
    assert logits.shape == (1, 5, tokens)
