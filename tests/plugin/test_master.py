"""EasyEdit's master, run for real on tiny models: LLaVA-OneVision, and LLaVA-1.5 by our bridge."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from easyedit_fixtures import Workplace, needs_master, shared_workplace
from easyedit_runs import accuracies, dataset_of, editor_of, trained, trainer_of
from tiny_editors import hooks_of_ours

from easyedit_dualedit.errors import ConfigError, DataError, LayerError
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import IGNORED, Query
from easyedit_dualedit.plugin import find_host
from easyedit_dualedit.plugin.apply import end_sequence
from easyedit_dualedit.plugin.archives import training_targets_in
from easyedit_dualedit.plugin.samples import records_in
from easyedit_dualedit.train.plain_step import plain_losses

pytestmark = [needs_master, pytest.mark.usefixtures("host", "elsewhere")]

ACCURACIES = ("rewrite_acc", "rephrase_acc", "image_rephrase_acc")


@cache
def learned(family: str) -> Path:
    """Return a checkpoint that has learned its four records, made once."""
    workplace = shared_workplace(family)
    settings = {"batch_size": 4, "max_iters": 80, "val_interval": 79, "val_steps": 1, "lr": 2e-2}
    found = trained(
        workplace,
        workplace.model.parent / "learned",
        "DualEditTrainer",
        log_interval=1000,
        final_eval=False,
        end_of_answer=False,
        **settings,
    )
    return Path(found.save_path)


def test_an_edit_changes_the_answer_and_before_is_truly_before(workplace: Workplace) -> None:
    editor = editor_of(workplace, learned(workplace.family))
    unedited = {k: v.clone() for k, v in editor.model.state_dict().items()}
    metrics, edited, weights = editor.edit(**workplace.edit_arguments((0, 1, 2, 3), full=True))
    assert max(accuracies(metrics, "pre")) < 0.5
    assert sum(accuracies(metrics, "post")) / 4 > 0.7
    assert weights == {}
    for case in metrics:
        assert float(case["post"]["locality_acc"]) == 1
        assert float(case["post"]["multimodal_locality_acc"]) == 1
        assert set(ACCURACIES) <= set(case["pre"])
    assert len(edited.edits) == 1
    assert not hooks_of_ours(editor.model)
    assert all(torch.equal(unedited[k], v) for k, v in editor.model.state_dict().items())


def test_the_edited_model_generates_what_the_editor_measured(workplace: Workplace) -> None:
    editor = editor_of(workplace, learned(workplace.family))
    metrics, _, _ = editor.edit(**workplace.edit_arguments((0, 1, 2, 3), full=True))
    right = accuracies(metrics, "post").index(1.0)
    _, edited, _ = editor.edit(**workplace.edit_arguments((right,), full=True))
    record = workplace.record(right)
    query = Query(record["src"], workplace.pictures / record["image"])
    encoder = Encoder(Backbone.of(editor.model), editor.tok)
    batch = encoder.encode([query])
    answer = encoder.target_ids(record["alt"])
    length = batch.inputs["input_ids"].shape[1]
    made = edited.generate(**batch.inputs, max_new_tokens=len(answer), do_sample=False)
    assert made[0, length:].tolist() == answer


def test_a_dataset_is_edited_one_record_at_a_time(workplace: Workplace) -> None:
    editor = editor_of(workplace, learned(workplace.family))
    metrics, edited, _ = editor.edit_dataset(dataset_of(workplace, editor.hparams), verbose=False)
    assert len(metrics) == 4
    assert max(accuracies(metrics, "pre")) < 0.5
    assert sum(accuracies(metrics, "post")) / 4 > 0.7
    assert len(edited.edits) == 1


def test_sequential_edits_accumulate(workplace: Workplace) -> None:
    editor = editor_of(workplace, learned(workplace.family))
    arguments = workplace.edit_arguments((0, 1, 2, 3), full=True)
    metrics, edited, _ = editor.edit(**arguments, sequential_edit=True)
    assert [edit.request.target for edit in edited.edits] == arguments["targets"]
    assert max(accuracies(metrics, "pre")) < 0.5
    # Asked again at the end, the first record still has its new answer.
    again, _, _ = editor.edit(**workplace.edit_arguments((0,), full=True))
    evaluate = find_host().module("evaluate.multimodal_evaluate").compute_multimodal_hf_edit_results
    request = editor._prepare_requests(**workplace.edit_arguments((0,), full=True))[0]
    later = evaluate(edited, editor.model_name, editor.hparams, editor.tok, request, "cpu")
    assert float(later["rewrite_acc"]) == accuracies(again, "post")[0] > 0.5
    end_sequence(editor.model)
    _, edited, _ = editor.edit(**workplace.edit_arguments((0,), full=True), sequential_edit=True)
    assert len(edited.edits) == 1


def test_an_edit_without_more_than_a_prompt_a_target_and_a_picture(workplace: Workplace) -> None:
    arguments = workplace.edit_arguments((0,), full=True)
    metrics, _, _ = editor_of(workplace).edit(
        prompts=arguments["prompts"][0],
        targets=arguments["targets"][0],
        image=arguments["image"][0],
    )
    assert set(metrics[0]["post"]) == {"rewrite_acc", "metric_meta"}


@pytest.mark.parametrize("trainer", ["MultimodalTrainer", "DualEditTrainer"])
@pytest.mark.parametrize("data", ["VQADataset", "CaptionDataset"])
def test_a_trainer_runs_and_its_archive_edits(
    workplace: Workplace, tmp_path: Path, trainer: str, data: str
) -> None:
    found = trained(workplace, tmp_path / "results", trainer, data, batch_size=2)
    path = tmp_path / "results" / "models" / "DualEdit" / workplace.model.name
    assert Path(found.save_path) == path
    saved = torch.load(path, weights_only=True)
    assert saved["step"] == 4
    assert all(isinstance(value, torch.Tensor) for value in saved["model"].values())
    assert any(bool(value.any()) for key, value in saved["model"].items() if "output" in key)
    assert not any(key.startswith("model.") for key in saved["model"])
    if trainer == "DualEditTrainer":  # EasyEdit's own shows the data of a step alone
        items = json.loads(workplace.records.read_text(encoding="utf-8"))
        targets = dict(enumerate(item["alt"] for item in items)) | found.drawn
        assert 0 < len(found.drawn) < len(items)
        expected = {target.strip().casefold() for target in targets.values()}
        assert set(training_targets_in(path) or ()) == expected
    results = json.loads((tmp_path / "results" / "results.json").read_text())["results"]
    assert 0 <= results["inner/acc_val"] <= 1
    assert ("loss/reliability_val" in results) == (trainer == "DualEditTrainer")
    _, edited, _ = editor_of(workplace, path).edit(**workplace.edit_arguments((0,), full=True))
    assert len(edited.edits) == 1
    assert not hooks_of_ours(found.model.model)


def test_the_trainer_steps_as_whole_forwards_would(workplace: Workplace, tmp_path: Path) -> None:
    """Losses, accuracies and gradients are those of one forward for each purpose."""
    trainer = trainer_of(workplace, tmp_path / "results", "DualEditTrainer", batch_size=2)
    editor = trainer.model.editor
    for parameter in editor.adapters.parameters():  # untrained adapters change nothing
        torch.nn.init.normal_(parameter, std=0.1)
    batch = next(iter(trainer.train_loader))
    own = records_in(batch)
    assert own is not None and len(own) == 2
    total, _, _, _, info = trainer.edit_step(batch, training=True)
    shared = [parameter.grad.clone() for parameter in editor.adapters.parameters()]
    editor.adapters.zero_grad()
    expected = plain_losses(editor, own, trainer.weights)
    expected.total.backward()
    assert float(total) == pytest.approx(float(expected.total.detach()), rel=1e-5)
    assert info["loss/reliability"] == pytest.approx(expected.by_metric["reliability"], rel=1e-5)
    assert info["loss/image_loc"] == pytest.approx(
        expected.by_metric["image_locality"], rel=1e-4, abs=1e-6
    )
    assert info["edit/acc"] == expected.accuracy["text_generality"]
    assert info["loc/acc"] == expected.accuracy["text_locality"]
    for found, parameter in zip(shared, editor.adapters.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("trainer", ["MultimodalTrainer", "DualEditTrainer"])
def test_training_goes_on_from_an_archive_and_evaluates_one(tmp_path: Path, trainer: str) -> None:
    workplace = shared_workplace("llava")
    first = trained(workplace, tmp_path / "first", trainer, final_eval=False)
    settings = {"archive": str(first.save_path), "final_eval": True}
    second = trained(workplace, tmp_path / "second", trainer, **settings)
    only = trained(workplace, tmp_path / "third", trainer, eval_only=True, **settings)
    assert (tmp_path / "third" / "results.json").is_file()
    saved = torch.load(first.save_path, weights_only=True)["model"]
    after = torch.load(second.save_path, weights_only=True)["model"]
    for name, value in only.model.editor.state_dict().items():
        torch.testing.assert_close(value, saved[name], rtol=0, atol=0, equal_nan=True)
        # The gate keeps what it learned first; the adapters go on.
        if name.startswith("gate."):
            torch.testing.assert_close(after[name], saved[name], rtol=0, atol=0, equal_nan=True)
    assert any(not torch.equal(after[n], saved[n]) for n in saved if n.startswith("adapters."))


@pytest.mark.parametrize("trainer", ["MultimodalTrainer", "DualEditTrainer"])
def test_a_trainer_calibrates_the_gate(workplace: Workplace, tmp_path: Path, trainer: str) -> None:
    found = trained(workplace, tmp_path / "results", trainer)
    gate = torch.load(found.save_path, weights_only=True)["model"]
    assert not bool(gate["gate.thresholds"].isnan().any())
    assert bool(gate["gate.mean"].any())
    learned_too = not bool(gate["gate.projection.thresholds"][0].isnan())
    assert learned_too == (trainer == "DualEditTrainer")


@pytest.mark.parametrize("trainer", ["MultimodalTrainer", "DualEditTrainer"])
def test_qwen2_vl_trains_and_edits_too(tmp_path: Path, trainer: str) -> None:
    # Master makes these models bfloat16 whatever the configuration says, and wraps pictures in
    # lists; its editor loads them in the dtype that is asked for.
    workplace = shared_workplace("qwen2-vl")
    found = trained(workplace, tmp_path / "results", trainer, batch_size=2)
    assert found.model.model.dtype == torch.bfloat16
    editor = editor_of(workplace, found.save_path)
    assert editor.model.dtype == torch.float32
    metrics, edited, _ = editor.edit(**workplace.edit_arguments((0, 1), full=True))
    assert set(ACCURACIES) <= set(metrics[0]["post"])
    assert len(edited.edits) == 1


def test_training_leaves_the_base_model_as_it_was(workplace: Workplace, tmp_path: Path) -> None:
    before = editor_of(workplace).model.state_dict()
    found = trained(workplace, tmp_path / "results", "DualEditTrainer", final_eval=False)
    after = found.model.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not found.model.model.training
    assert not any(p.requires_grad for p in found.model.model.parameters())


def one_step(workplace: Workplace, tmp_path: Path, trainer: str, **changes: Any) -> Any:
    """Return a trainer before its run and the first batch of all four records."""
    made = trainer_of(workplace, tmp_path / "results", trainer, batch_size=4, **changes)
    records = made.train_set
    return made, records.collate_fn([records[index] for index in range(4)])


def test_only_our_trainer_has_a_loss_on_the_request(workplace: Workplace, tmp_path: Path) -> None:
    weights = {"cedit": 0, "iedit": 0, "cloc": 0, "cinner": 1}
    stock, batch = one_step(workplace, tmp_path, "MultimodalTrainer", **weights)
    assert stock.edit_step(batch, training=True)[0].item() == 0
    ours, batch = one_step(workplace, tmp_path, "DualEditTrainer", **weights)
    total, _, _, _, info = ours.edit_step(batch, training=True)
    assert total.item() == pytest.approx(info["loss/reliability"]) != 0
    gradients = [p.grad for p in ours.model.outer_parameters() if p.grad is not None]
    assert any(bool(gradient.any()) for gradient in gradients)


def test_both_trainers_agree_on_the_losses_that_both_have(
    workplace: Workplace, tmp_path: Path
) -> None:
    found = {}
    for trainer in ("MultimodalTrainer", "DualEditTrainer"):
        made, batch = one_step(workplace, tmp_path, trainer)
        made.model.load_state_dict(torch.load(learned(workplace.family))["model"])
        found[trainer] = made.edit_step(batch, training=True)[-1]
    stock, ours = found["MultimodalTrainer"], found["DualEditTrainer"]
    for name in ("loss/edit", "loss/image_edit", "loss/loc", "edit/acc", "inner/acc"):
        assert stock[name] == pytest.approx(ours[name], abs=1e-5), name


def test_the_loss_is_that_of_transformers_own(workplace: Workplace, tmp_path: Path) -> None:
    # Master compares each token with the logits of the token itself for transformers models.
    made, batch = one_step(workplace, tmp_path, "MultimodalTrainer", end_of_answer=False)
    output = made.model(batch["edit_inner"])
    read = made.model.samples.read(batch["edit_inner"])
    expected = made.model.model(**read.inputs, labels=read.labels).loss
    found = made.model.edit_loss_fn(made.config, output.logits, output.labels, multimodal=True)
    torch.testing.assert_close(found["nll"], expected)


def test_labels_of_masters_own_collation_are_mended(workplace: Workplace, tmp_path: Path) -> None:
    made, _ = one_step(workplace, tmp_path, "MultimodalTrainer")
    records = made.train_set
    original = type(records).collate_fn.__wrapped__
    batch = original(records, [records[index] for index in range(4)])["edit_inner"]
    read = made.model.samples.read(batch)
    tokenizer = records.tok.tokenizer
    answers = [
        tokenizer.decode(row[row != IGNORED], clean_up_tokenization_spaces=False)
        for row in read.labels
    ]
    assert answers == [" " + workplace.record(index)["alt"] for index in range(4)]
    # Fails once upstream is right, and then `TransformersSamples` may use its labels.
    assert not torch.equal(batch["labels"], read.labels)


def test_training_uses_the_tokens_that_the_editor_measures(
    workplace: Workplace, tmp_path: Path
) -> None:
    made, batch = one_step(workplace, tmp_path, "MultimodalTrainer")
    read = made.model.samples.read(batch["edit_inner"])
    prepare = find_host().module("evaluate.multimodal_evaluate").prepare_multimodal_hf_edit
    item = made.train_set[0]
    arguments = (item["target"], item["prompt"], item["image"], "image")
    measured = prepare(made.config, made.train_set.tok, *arguments)
    labels = measured["labels"][0]
    assert labels[labels != IGNORED].tolist() == read.labels[0][read.labels[0] != IGNORED].tolist()


def test_a_layer_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LayerError, match="text_layer = 7.*4 decoder layers"):
        trained(shared_workplace("llava"), tmp_path, "MultimodalTrainer", text_layer=7)


def test_training_without_layers_is_refused(tmp_path: Path) -> None:
    workplace = shared_workplace("llava")
    with pytest.raises(ConfigError, match="^text_layer is not set; give the decoder layers"):
        trained(workplace, tmp_path, "MultimodalTrainer", text_layer=None)


def test_several_pictures_are_one_request(workplace: Workplace) -> None:
    editor = editor_of(workplace)
    paths = [str(workplace.pictures / f"image_{index}.png") for index in (0, 1)]
    metrics, edited, _ = editor.edit(
        prompts=["What?"], targets=["blue"], image=[paths], file_type="multi-image"
    )
    assert "rewrite_acc" in metrics[0]["post"]
    assert len(edited.edits[0].request.pictures) == 2


def test_a_video_is_refused_where_the_model_takes_none(workplace: Workplace) -> None:
    editor = editor_of(workplace)
    path = str(workplace.pictures / "image_0.png")
    request = {"prompt": "What?", "target": "blue", "image": [path] * 2, "file_type": "video"}
    if workplace.family == "llava-onevision":
        edited, _ = editor.apply_algo(editor.model, editor.tok, [request], editor.hparams)
        assert edited.edits[0].request.video is not None
        return
    with pytest.raises(DataError, match="LlavaForConditionalGeneration takes none"):
        editor.apply_algo(editor.model, editor.tok, [request], editor.hparams)
