"""EasyEdit's MEND and SERAC, trained by EasyEdit's own trainer on tiny models."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from easyedit_fixtures import FOLDERS, Workplace, needs_master, needs_release, shared_workplace

from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.errors import ConfigError, DataError, UpstreamError
from easyedit_dualedit.measure.contender import Bench, Contender
from easyedit_dualedit.measure.easyedit_rows import joined_row
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import IGNORED, Query
from easyedit_dualedit.model.loading import load_model
from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.registry import register, unregister

STEPS = 6


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """EasyEdit with our bridges."""
    yield register()
    unregister()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    yield
    assert not list(here.iterdir()), "something was written to the working folder"


def records_of(workplace: Workplace) -> list[Record]:
    """Return the four records of a workplace."""
    return load_records(workplace.records, workplace.pictures)


def bench_of(workplace: Workplace, folder: Path, **settings: Any) -> Bench:
    """Return a bench for a short training."""
    return Bench(
        str(workplace.model),
        lambda: load_model(str(workplace.model)),
        "cpu",
        folder,
        records_of(workplace),
        {"max_iters": STEPS, **settings},
        progress=False,
    )


def contender(host: Host, name: str) -> Contender:
    """Return the row of a method."""
    from easyedit_dualedit.plugin.rows.serac import serac
    from easyedit_dualedit.plugin.rows.training import mend

    return {"MEND": mend, "SERAC": serac}[name](host)


def base_of(method: Any) -> torch.nn.Module:
    """Return the model that a method edits."""
    base: torch.nn.Module = method._alg.model
    return getattr(base, "base", base)


def encoder_of(workplace: Workplace) -> Encoder:
    """Return an encoder of a model that no method has touched."""
    model, processor = load_model(str(workplace.model))
    return Encoder(Backbone.of(model), processor)


@needs_master
@pytest.mark.parametrize("family", sorted(FOLDERS))
@pytest.mark.parametrize("name", ["MEND", "SERAC"])
def test_an_edit_changes_answers_and_leaves_the_model_alone(
    host: Host, tmp_path: Path, name: str, family: str
) -> None:
    workplace = shared_workplace(family)
    # Large enough that a tiny model says something else.
    method = contender(host, name).make(bench_of(workplace, tmp_path / "bench", edit_lr=-0.1))
    base, encoder = base_of(method), encoder_of(workplace)
    before = {key: value.clone() for key, value in base.state_dict().items()}
    record = records_of(workplace)[0]
    batch = encoder.encode([record.request])
    prompt = encoder.encode([record.request], with_target=False)
    with torch.no_grad():
        plain = encoder.backbone.model(**batch.inputs).logits
        for _ in range(2):
            with method.edit(record) as edited:
                logits = edited.model(**batch.inputs).logits
                said = edited.model.generate(**prompt.inputs, max_new_tokens=3, do_sample=False)
            assert logits.shape == plain.shape
            assert not torch.allclose(logits.log_softmax(-1), plain.log_softmax(-1), atol=1e-3)
            first = edited.model(**prompt.inputs).logits[0, -1].argmax()
            assert said[0, prompt.inputs["input_ids"].shape[1]] == first
            assert edited.stored_bytes > 0
            for parameter in base.parameters():
                assert parameter.grad is None
                assert not {"__x__", "__delta__"} & set(vars(parameter))
            after = base(**batch.inputs).logits
            assert torch.equal(after, plain)
    assert all(torch.equal(before[key], value) for key, value in base.state_dict().items())
    assert method.trained_parameters > 0


@needs_master
def test_mend_learns_from_easyedits_trainer(host: Host, tmp_path: Path) -> None:
    workplace = shared_workplace("llava-onevision")
    bench = bench_of(workplace, tmp_path / "bench", max_iters=40, lr=1e-3)
    untrained = contender(host, "MEND").make(
        bench_of(workplace, tmp_path / "other", max_iters=2, lr=1e-9, lr_lr=1e-9)
    )
    trained = contender(host, "MEND").make(bench)
    encoder = encoder_of(workplace)

    def loss(method: Any, record: Record) -> float:
        batch = encoder.encode([record.request])
        with method.edit(record) as edited, torch.no_grad():
            return float(edited.model(**batch.inputs, labels=batch.labels).loss)

    losses = [[loss(m, r) for r in records_of(workplace)] for m in (untrained, trained)]
    assert sum(losses[1]) < sum(losses[0])


@needs_master
@pytest.mark.parametrize("name", ["MEND", "SERAC"])
@pytest.mark.parametrize("steps", [3, 5, 10])
def test_every_step_is_made_and_the_last_one_saved(
    host: Host, tmp_path: Path, name: str, steps: int
) -> None:
    # EasyEdit rounds four records to passes, and stops before the last step without saving.
    folder = tmp_path / "bench"
    contender(host, name).make(bench_of(shared_workplace("llava"), folder, max_iters=steps))
    (saved,) = (folder / f"easyedit-{name.lower()}" / "models").glob("*/*")
    archive = torch.load(saved, weights_only=False)
    assert archive["step"] == steps
    accumulated = {"MEND": 2, "SERAC": 1}[name]
    made = {int(state["step"]) for state in archive["opt"]["state"].values()}
    assert made == {steps // accumulated}


@needs_master
def test_step_sizes_learn_at_their_own_rate(host: Host, tmp_path: Path) -> None:
    # EasyEdit's other optimiser clears their gradients first.
    bench = bench_of(shared_workplace("llava"), tmp_path, lr=1e-9, lr_lr=1e-2, edit_lr=1e-4)
    method: Any = contender(host, "MEND").make(bench)
    moved = (method._alg.edit_lrs.detach() - 1e-4).abs()
    # Adam moves by no more than its rate a step, and EasyEdit makes one of every two iterations.
    assert bool((moved > 1e-3).all())
    assert bool((moved <= 1e-2 * STEPS / 2 + 1e-6).all())


@needs_master
def test_a_finished_training_is_used_again_and_no_other(host: Host, tmp_path: Path) -> None:
    workplace, folder = shared_workplace("llava"), tmp_path / "bench"

    def made(**settings: Any) -> int:
        contender(host, "MEND").make(bench_of(workplace, folder, **settings))
        (saved,) = (folder / "easyedit-mend" / "models").glob("*/*")
        return saved.stat().st_mtime_ns

    first = made()
    assert made() == first
    other = made(max_iters=STEPS + 1)
    assert other != first
    (folder / "easyedit-mend" / "done.json").unlink()
    assert made(max_iters=STEPS + 1) != other


@needs_master
@pytest.mark.parametrize("name", ["MEND", "SERAC"])
def test_an_archive_of_the_trainer_needs_no_training(host: Host, tmp_path: Path, name: str) -> None:
    workplace = shared_workplace("llava")
    first = contender(host, name).make(bench_of(workplace, tmp_path / "first"))
    (saved,) = (tmp_path / "first" / f"easyedit-{name.lower()}" / "models").glob("*/*")
    bench = bench_of(workplace, tmp_path / "second", archive=str(saved))
    again = contender(host, name).make(dataclasses.replace(bench, training=()))
    values = [[v.clone() for v in m._alg.outer_parameters()] for m in (first, again)]
    assert all(torch.equal(a, b) for a, b in zip(*values, strict=True))


@needs_master
def test_what_mend_edits_with_is_what_easyedits_dataset_makes(host: Host, tmp_path: Path) -> None:
    from easyedit_dualedit.plugin.rows import training as module

    workplace = shared_workplace("llava-onevision")
    bench = bench_of(workplace, tmp_path / "bench")
    contender(host, "MEND").make(bench)
    config = module.hyperparameters(host, module._MEND, bench)
    config = module.copy_of(config, dtype=torch.float32, name=str(workplace.model))
    data = tmp_path / "bench" / "easyedit-mend" / "train.json"
    processor = bench.load()[1]
    records = module.TrainingRecords(host, config, data, processor, 4)
    encoder = encoder_of(workplace)
    for index, record in enumerate(records_of(workplace)):
        parts = records.collate_fn([records[index]])
        for name, query in (
            ("edit_inner", record.request),
            ("edit_outer", record.text_rephrase),
            ("edit_outer_image", record.image_rephrase),
            ("loc", record.text_locality),
        ):
            row = joined_row(encoder, query)
            assert torch.equal(parts[name]["labels"], row.labels)
            for key, value in row.inputs.items():
                assert torch.equal(parts[name][key], value)


@needs_master
def test_the_loss_of_the_training_is_transformers_own(host: Host) -> None:
    from easyedit_dualedit.plugin.rows.training import _shifted_loss

    workplace = shared_workplace("llava")
    encoder = encoder_of(workplace)
    batch = encoder.encode([records_of(workplace)[0].request])
    with torch.no_grad():
        output = encoder.backbone.model(**batch.inputs, labels=batch.labels)
    theirs = host.module("trainer.losses").masked_log_probs

    class Config:
        model_class = "llava-onevision"

    found = _shifted_loss(theirs, Config(), output.logits, batch.labels, multimodal=True)
    torch.testing.assert_close(found["nll"], output.loss)


@needs_master
@pytest.mark.parametrize("name", ["MEND", "SERAC"])
def test_what_cannot_be_is_refused(host: Host, tmp_path: Path, name: str) -> None:
    workplace, folder = shared_workplace("llava"), tmp_path / "bench"
    make = contender(host, name).make
    with pytest.raises(ConfigError, match=r"no settings \['batch_size', 'typo'\].*edit_lr"):
        make(bench_of(workplace, folder, typo=1, batch_size=4))
    with pytest.raises(ConfigError, match="lr = 'fast': a number"):
        make(bench_of(workplace, folder, lr="fast"))
    with pytest.raises(ConfigError, match="= 'no': true or false"):
        make(bench_of(workplace, folder, **{"MEND": {"norm": "no"}, "SERAC": {"cos": "no"}}[name]))
    with pytest.raises(ConfigError, match="max_iters = 0"):
        make(bench_of(workplace, folder, max_iters=0))
    with pytest.raises(ConfigError, match="no records to train"):
        make(dataclasses.replace(bench_of(workplace, folder), training=()))
    with pytest.raises(ConfigError, match=r"archive = 'nowhere' is no file"):
        make(bench_of(workplace, folder, archive="nowhere"))
    bench = bench_of(workplace, folder)
    blind = dataclasses.replace(bench.training[0], request=Query("What?", None, "blue"))
    with pytest.raises(DataError, match="a query with 0 pictures"):
        make(dataclasses.replace(bench, training=(blind,)))


@needs_master
def test_parameters_that_are_not_there_are_named(host: Host, tmp_path: Path) -> None:
    workplace = shared_workplace("llava")
    names = ["language_model.model.layers.25.mlp.up_proj.weight"]
    with pytest.raises(ConfigError, match="inner_params has 'language_model.model.layers.25"):
        contender(host, "MEND").make(bench_of(workplace, tmp_path, inner_params=names))


@needs_master
def test_serac_mixes_token_for_token(host: Host, tmp_path: Path) -> None:
    workplace = shared_workplace("llava-onevision")
    method: Any = contender(host, "SERAC").make(bench_of(workplace, tmp_path / "bench"))
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
    assert contender(host, "SERAC").reads_label


@needs_master
def test_serac_sees_the_features_that_the_language_model_gets(host: Host, tmp_path: Path) -> None:
    workplace = shared_workplace("llava")
    method: Any = contender(host, "SERAC").make(bench_of(workplace, tmp_path / "bench"))
    dialect, record = method._dialect, records_of(workplace)[0]
    row = joined_row(dialect.encoder, record.request)
    samples = dialect.samples(row.inputs)
    with torch.no_grad():
        dialect(samples)
        expected = dialect.base.get_image_features(row.inputs["pixel_values"])
    expected = getattr(expected, "pooler_output", expected)
    torch.testing.assert_close(samples["image"], torch.cat(list(expected))[None])


@needs_master
def test_a_counterfactual_model_of_another_vocabulary_is_refused(
    host: Host, tmp_path: Path
) -> None:
    from transformers import OPTConfig

    OPTConfig(vocab_size=7).save_pretrained(tmp_path / "small-opt")
    bench = bench_of(
        shared_workplace("llava"), tmp_path / "bench", small_name=str(tmp_path / "small-opt")
    )
    with pytest.raises(ConfigError, match="vocabulary of 7 tokens"):
        contender(host, "SERAC").make(bench)


@needs_release
@pytest.mark.parametrize("name", ["MEND", "SERAC"])
def test_the_release_is_refused_with_a_reason(host: Host, tmp_path: Path, name: str) -> None:
    with pytest.raises(UpstreamError, match=r"0\.0\.1\.dev0 cannot train its multimodal"):
        contender(host, name).make(bench_of(shared_workplace("llava"), tmp_path))
