"""EasyEdit's trainers train adapters for its own ports."""

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from easyedit_fixtures import shared_workplace
from tiny_ports import (
    NAMES,
    ORDERS,
    easyedit,
    hparams_of,
    image,
    logits,
    needs_ports,
    request,
    samples,
)
from torch import nn

from easyedit_dualedit.model.inputs import IGNORED
from easyedit_dualedit.plugin import find_host
from easyedit_dualedit.plugin.apply import apply_dualedit_to_multimodal_model as apply
from easyedit_dualedit.plugin.hparams import DualEditMultimodalTrainingHparams
from easyedit_dualedit.plugin.ports.model import PortModel
from easyedit_dualedit.plugin.ports.samples import port_samples_of

pytestmark = needs_ports


def parts_of(port: Any) -> dict[str, Any]:
    """Return a training batch as EasyEdit's datasets make it."""
    return {
        "edit_inner": samples(port),
        "edit_outer": samples(port, ("The colour of the circle is?",)),
        "edit_outer_image": {**samples(port), "image": image(1)[None]},
        "loc": samples(port, ("Where is the star?",), ("top left",), seeing=False),
        "loc_image": samples(port, ("How many squares are there?",), ("three",)),
    }


@pytest.mark.parametrize("order", ORDERS)
def test_easyedits_trainer_lowers_the_loss_and_leaves_the_port_alone(
    port: Any, tmp_path: Path, order: dict[str, int]
) -> None:
    module = importlib.import_module("easyedit_dualedit.plugin.editable")
    config = DualEditMultimodalTrainingHparams(
        model_name=NAMES[type(port).__name__],
        device="cpu",
        width=16,
        heads=2,
        results_dir=str(tmp_path),
        **order,
    )
    before = {name: value.clone() for name, value in port.state_dict().items()}
    editable = module.DualEditEditable(port, config, lambda: port).train()
    parts = parts_of(port)
    optimiser = torch.optim.Adam(editable.outer_parameters(), lr=1e-2)
    losses = []
    for _ in range(2):
        edited, _ = editable.edit(parts["edit_inner"], parts.get("cond"))
        loss = torch.zeros(())
        for name in ("edit_inner", "edit_outer", "edit_outer_image"):
            output = edited(parts[name])
            loss = (
                loss
                + editable.edit_loss_fn(config, output.logits, output.labels, multimodal=True)[
                    "nll"
                ]
            )
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[1] < losses[0]
    for name, value in port.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in port.parameters())
    # The loss is that of the answer's tokens, each by the logits before it.
    plain = editable(parts["edit_inner"])
    given = editable.edit_loss_fn(config, plain.logits, plain.labels, multimodal=True)["nll"]
    own = port(parts["edit_inner"])
    expected = nn.functional.cross_entropy(own.logits[0, :-1], own.labels[0, 1:])
    torch.testing.assert_close(given, expected)
    for name in ("loc", "loc_image"):
        base, post = editable(parts[name]), edited(parts[name])
        mask = post.attention_mask
        assert mask.sum() == (base.labels != IGNORED).sum()
        kl = easyedit("trainer.losses").kl_loc_loss(base.logits, post.logits, mask=mask)
        assert bool(torch.isfinite(kl))
    assert set(editable.state_dict()) == {*editable.editor.state_dict(), "description"}


def test_a_step_of_easyedits_trainer_on_records_of_unequal_answers(
    port: Any,
) -> None:
    module = importlib.import_module("easyedit_dualedit.plugin.editable")
    config = DualEditMultimodalTrainingHparams(
        model_name=NAMES[type(port).__name__], device="cpu", width=16, heads=2, **ORDERS[0]
    )
    editable = module.DualEditEditable(port, config, lambda: port)
    tokenizer = PortModel(port).tokenizer.tokenizer
    items = [request(), request("How many squares?", "a red circle and a star", 3)]
    batch = port_samples_of(items, tokenizer)
    stepped = SimpleNamespace(model=editable, original_model=port, config=config, train_set=items)
    step = easyedit("trainer.MultimodalTrainer").MultimodalTrainer.edit_step
    losses = []
    optimiser = torch.optim.Adam(editable.outer_parameters(), lr=1e-2)
    for _ in range(3):
        losses.append(float(step(stepped, batch, training=True)[0].detach()))
        optimiser.step()
        optimiser.zero_grad()
    assert losses[-1] < losses[0]
    assert len(editable.scope) >= 2
    numbers = step(stepped, batch, training=False)[-1]
    assert 0 <= numbers["edit/acc"] <= 1
    # For one record with an equal answer, the samples are those of EasyEdit's own collation.
    dataset = easyedit("dataset.vqa").VQADataset
    collating = SimpleNamespace(
        config=config, tok=tokenizer, prompt="{}", max_length=32, __class__=dataset
    )
    collate = getattr(dataset.collate_fn, "__wrapped__", dataset.collate_fn)
    theirs = collate(collating, [{**items[0], "cond": "", "file_type": "image"}])
    ours = port_samples_of(items[:1], tokenizer)
    for name in ("edit_inner", "edit_outer", "edit_outer_image", "loc", "loc_image"):
        for key in ("text_input", "prompts_len"):
            assert ours[name][key] == theirs[name][key], name
        one, other = ours[name]["image"], theirs[name]["image"]
        assert one is other if one is None else torch.equal(one, other)


def test_what_the_trainer_saves_edits_the_port(port: Any, tmp_path: Path) -> None:
    module = importlib.import_module("easyedit_dualedit.plugin.editable")
    config = DualEditMultimodalTrainingHparams(
        model_name=NAMES[type(port).__name__], device="cpu", width=16, heads=2, **ORDERS[0]
    )
    editable = module.DualEditEditable(port, config, lambda: port)
    with torch.no_grad():
        for name, parameter in editable.editor.adapters.named_parameters():
            if "output" in name:
                parameter.normal_()
    path = tmp_path / "checkpoint"
    torch.save({"model": editable.state_dict()}, path)
    hparams = hparams_of(port, path, gate={"kind": "open"})
    edited, _ = apply(port, SimpleNamespace(), [request()], hparams)
    assert not torch.equal(logits(edited, samples(port)), logits(port, samples(port)))


@pytest.mark.parametrize("trainer", ["MultimodalTrainer", "DualEditTrainer"])
@pytest.mark.parametrize("data", ["VQADataset", "CaptionDataset"])
def test_a_trainer_runs_on_a_port_and_its_archive_edits(
    port: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer: str, data: str
) -> None:
    # The trainer builds its ports from checkpoints; everything after that is its own.
    name = type(port).__name__
    module = "blip2_opt" if name == "Blip2OPT" else "mini_gpt4"
    monkeypatch.setattr(easyedit(f"trainer.blip2_models.{module}"), name, lambda **_: port)
    PortModel(port).tokenizer.tokenizer.save_pretrained(tmp_path / "model")
    workplace = shared_workplace("llava")
    settings = workplace.training_settings(
        tmp_path / "results", model_name=NAMES[name], name=str(tmp_path / "model"), batch_size=2
    )
    config = DualEditMultimodalTrainingHparams.from_dict(settings)
    package = find_host().package
    records = getattr(package, data)(str(workplace.records), config=config)
    found = getattr(package, trainer)(config, records, records)
    found.run()
    saved = torch.load(found.save_path, weights_only=True)["model"]
    assert any(bool(value.any()) for key, value in saved.items() if "output" in key)
    edited, _ = apply(port, None, [request()], hparams_of(port, Path(found.save_path)))
    assert len(edited.edits) == 1
