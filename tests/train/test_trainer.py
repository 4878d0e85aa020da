"""Training: losses fall, only adapters change, runs continue where they stopped."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_data import editor_of, fast, step_losses, write_data
from tiny_editors import PARAMETERS, shared, tiny_config
from tiny_models import TinyModel
from torch._dynamo.exc import TorchDynamoException

from easyedit_dualedit.data.records import METRICS, Record, load_records
from easyedit_dualedit.data.training_targets import targets_of
from easyedit_dualedit.errors import ArchiveError, CalibrationError, DataError
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model import compiled as compiled_layers
from easyedit_dualedit.train import gate_stage, trainer
from easyedit_dualedit.train.batch_gradient import BatchGradient
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.drawn_targets import answering
from easyedit_dualedit.train.gate_trainer import calibrate
from easyedit_dualedit.train.losses import StepLosses
from easyedit_dualedit.train.progress import TrainingProgress
from easyedit_dualedit.train.step import TrainingStep
from easyedit_dualedit.train.trainer import batch_indices, records_of_steps, train


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder = tmp_path_factory.mktemp("data")
    return load_records(write_data(folder), folder)


def test_training_lowers_the_loss(llava: TinyModel, records: list[Record]):
    editor = editor_of(llava)
    config = fast(steps=25)
    start = step_losses(editor, records[:4], config)
    assert set(start.by_metric) == set(METRICS)
    # An untrained adapter changes nothing, so it diverges by nothing.
    assert start.by_metric["image_locality"] == pytest.approx(0.0, abs=1e-6)
    calibrations = train(editor, records, config, progress=False)
    end = step_losses(editor, records[:4], config)
    assert float(end.total.detach()) < 0.8 * float(start.total.detach())
    assert set(calibrations) == {"cosine", "centred", "last-token", "learned"}
    assert editor.gate.threshold == pytest.approx(calibrations["cosine"].threshold)
    assert editor.training_targets == targets_of(records)


def test_what_adapters_were_trained_on_before_still_counts(llava: TinyModel, records: list[Record]):
    editor = editor_of(llava)
    editor.training_targets = ("zebra",)
    train(editor, records, fast(steps=len(records), gate_steps=0), progress=False)
    assert editor.training_targets == (*targets_of(records), "zebra")


def test_targets_that_no_step_draws_are_none_of_the_training(
    llava: TinyModel, records: list[Record]
):
    editor = editor_of(llava)
    named = [answering(record, f"thing {place}") for place, record in enumerate(records)]
    config = fast(steps=1, batch_size=2, gate_steps=0)
    train(editor, named, config, progress=False)
    drawn = [named[place] for place in batch_indices(0, len(named), config)]
    assert editor.training_targets == targets_of(drawn) and len(drawn) == 2


def test_an_epoch_whose_last_part_is_left_out_draws_no_more_than_its_batches():
    config = TrainingConfig(steps=2, batch_size=4)
    records: Any = list(range(10))
    drawn = sorted({place for step in range(2) for place in batch_indices(step, 10, config)})
    assert len(drawn) == 8 and records_of_steps(records, config) == drawn
    assert records_of_steps(records, replace(config, steps=8)) == records


def test_training_changes_the_adapters_alone(every: TinyModel, records: list[Record]):
    before = {k: v.clone() for k, v in every.model.state_dict().items()}
    required = [p.requires_grad for p in every.model.parameters()]
    editor = stirred(every)
    untrained = {n: p.detach().clone() for n, p in editor.adapters.named_parameters()}
    train(editor, records[:4], fast(steps=2, batch_size=2, gate_steps=1), progress=False)
    assert all(torch.equal(v, before[k]) for k, v in every.model.state_dict().items())
    assert required == [p.requires_grad for p in every.model.parameters()]
    assert all(p.grad is None for p in every.model.parameters())
    assert all(p.grad is not None for p in editor.adapters.parameters())
    changed = {
        name.split(".")[1]
        for name, parameter in editor.adapters.named_parameters()
        if not torch.equal(parameter, untrained[name])
    }
    # The window of this Gemma's layers is too short to see the picture from the answer.
    assert changed == ({"text"} if every.family == "gemma3" else {"text", "vision"})


UNLIKE = ("llava", "qwen3-vl", "gemma3", "qwen3.5", "blip2")
"""Families whose decoders differ: pictures added above the first layer or read both ways; a running
state in place of attention; a decoder that is called without a template."""


def stirred(tiny: TinyModel, **changes: int) -> DualEditor:
    """Return an editor whose adapters change something."""
    torch.manual_seed(0)
    editor = editor_of(tiny, **changes)
    with torch.no_grad():
        for name, parameter in editor.adapters.named_parameters():
            if "output" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return editor


@pytest.fixture(autouse=True)
def _no_gradient_of_the_models() -> Iterator[None]:
    """Forget the gradients that steps without `train`, which freezes the model, leave on it."""
    yield
    for parameters in PARAMETERS.values():
        for parameter in parameters:
            parameter.grad = None


def gradients(
    editor: DualEditor, records: list[Record], config: TrainingConfig, times: int = 1
) -> list[torch.Tensor]:
    """Return the gradients of a step's total, times a factor, and forget them."""
    editor.adapters.zero_grad()
    (step_losses(editor, records, config).total * times).backward()
    return [parameter.grad.clone() for parameter in editor.adapters.parameters()]


def test_accumulated_batches_make_one_step_of_their_mean(
    llava: TinyModel, records: list[Record], monkeypatch: pytest.MonkeyPatch
):
    shown: list[dict[str, float]] = []
    monkeypatch.setattr(TrainingProgress, "step", lambda _, losses, __: shown.append(dict(losses)))
    config = fast(steps=1, batch_size=2, accumulate=2, gate_steps=0)
    editor = stirred(llava)
    parts = [[records[i] for i in batch_indices(n, len(records), config)] for n in (0, 1)]
    assert not {r.index for r in parts[0]} & {r.index for r in parts[1]}
    first_losses, second_losses = (step_losses(editor, part, config).by_metric for part in parts)
    one, two = (gradients(editor, part, config) for part in parts)
    before = [parameter.detach().clone() for parameter in editor.adapters.parameters()]
    optimiser = torch.optim.Adam(editor.adapters.parameters(), lr=config.learning_rate)
    for parameter, first, second in zip(editor.adapters.parameters(), one, two, strict=True):
        parameter.grad = (first + second) / 2
    optimiser.step()
    expected = [parameter.detach().clone() for parameter in editor.adapters.parameters()]
    trained = stirred(llava)
    for parameter, value in zip(trained.adapters.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
    train(trained, records, config, progress=False)
    mean = {name: (loss + second_losses[name]) / 2 for name, loss in first_losses.items()}
    assert shown == [pytest.approx(mean, rel=1e-4, abs=1e-6)]
    for parameter, value in zip(trained.adapters.parameters(), expected, strict=True):
        # Adam's first step is the sign of the gradient: where that is noise, so is the step.
        close = torch.isclose(parameter, value, atol=1e-5)
        assert float(close.float().mean()) > 0.99


@pytest.mark.parametrize("family", UNLIKE)
def test_checkpointed_activations_change_no_gradient(family: str, records: list[Record]):
    editor = stirred(shared(family))
    kept = gradients(editor, records[:2], fast())
    again = gradients(editor, records[:2], fast(checkpoint_activations=True))
    for one, two in zip(kept, again, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    own = [record for record in caplog.records if record.name.startswith("easyedit_dualedit")]
    return [record.getMessage() for record in own]


@pytest.mark.parametrize("checkpointed", [False, True])
def test_compiled_layers_change_no_gradient(
    llava: TinyModel,
    records: list[Record],
    checkpointed: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    # Traces the layers as the default does, and makes no C++ of them.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(compiled_layers, "_COMPILED", {})
    editor = stirred(llava, text_layer=0, vision_layer=1)
    plain = gradients(editor, records[:2], fast())
    before = [layer.forward for layer in editor.backbone.layers]
    options = {"compile_layers": True, "checkpoint_activations": checkpointed}
    compiled = gradients(editor, records[:2], fast(**options))
    assert compiled_layers._COMPILED
    assert not warnings_in(caplog), "a fallback would warn"
    assert [layer.forward for layer in editor.backbone.layers] == before
    for one, two in zip(plain, compiled, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_without_a_compiler_layers_run_as_they_are(
    llava: TinyModel,
    records: list[Record],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    def compile_nothing(_function: object, **_options: object) -> object:
        def fail(*_args: object, **_kwargs: object) -> None:
            raise TorchDynamoException("no compiler\nhere")

        return fail

    monkeypatch.setattr(torch, "compile", compile_nothing)
    monkeypatch.setattr(compiled_layers, "_COMPILED", {})
    # Pictures change first, so that no layer is one that only runs in parts where none is compiled.
    editor = stirred(llava, text_layer=1, vision_layer=0)
    plain = gradients(editor, records[:2], fast())
    fallen = gradients(editor, records[:2], fast(compile_layers=True))
    line = "layers run as they are, not compiled: no compiler here"
    assert warnings_in(caplog) == [line] * len(compiled_layers._COMPILED), "once for each layer"
    assert compiled_layers._COMPILED
    for one, two in zip(plain, fallen, strict=True):
        assert torch.equal(one, two)


def test_checkpointed_layers_run_again_for_the_gradient(llava: TinyModel, records: list[Record]):
    editor = stirred(llava)
    runs = []
    last = editor.backbone.layers[-1].self_attn.k_proj
    hook = last.register_forward_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    try:
        for checkpointed in (False, True):
            runs.clear()
            total = step_losses(
                editor, records[:2], fast(checkpoint_activations=checkpointed)
            ).total
            forward = len(runs)
            total.backward()
            assert (len(runs) > forward) == checkpointed
    finally:
        hook.remove()


@pytest.mark.parametrize("family", UNLIKE)
def test_autocast_computes_the_model_in_half_precision(family: str, records: list[Record]):
    editor = stirred(shared(family))
    dtypes = set()
    part = next(
        m
        for n, m in editor.backbone.layers[-1].named_modules()
        if n.endswith("v_proj") or "qkv" in n
    )
    hook = part.register_forward_hook(lambda _m, _a, output: dtypes.add(output.dtype))
    try:
        full = step_losses(editor, records[:2], fast())
        assert dtypes == {torch.float32}
        half = step_losses(editor, records[:2], fast(autocast="bfloat16"))
        assert torch.bfloat16 in dtypes
    finally:
        hook.remove()
    assert not torch.is_autocast_enabled("cpu")
    total = float(full.total.detach())
    assert float(half.total.detach()) != total
    assert float(half.total.detach()) == pytest.approx(total, rel=0.05)
    half.total.backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in editor.adapters.parameters())


def test_caches_keep_to_the_bytes_they_are_given(llava: TinyModel, records: list[Record]):
    config = fast(feature_cache_bytes=0, state_cache_bytes=0)
    steps = TrainingStep.within(editor_of(llava), config)
    steps.losses(records[:4], config)
    assert len(steps.frozen.pictures.cache) == 0
    steps = TrainingStep.within(editor_of(llava), fast())
    steps.losses(records[:4], fast())
    assert len(steps.frozen.pictures.cache) > 0


def test_a_weight_of_zero_computes_nothing(llava: TinyModel, records: list[Record]):
    config = fast(text_locality_weight=0.0, image_locality_weight=0.0)
    losses = step_losses(editor_of(llava), records[:4], config)
    assert set(losses.by_metric) == {"reliability", "text_generality", "image_generality"}


def test_losses_equal_those_of_a_plain_implementation(every: TinyModel, records: list[Record]):
    editor = stirred(every)
    chosen = records[:2]
    got = step_losses(editor, chosen, fast(end_of_answer=False))
    logs: dict[str, list[torch.Tensor]] = {metric: [] for metric in METRICS}
    for item in chosen:
        edited = editor.edited(editor.read([item.request]), gate=editor.open_gate())
        for metric, query in zip(METRICS, item.queries, strict=True):
            batch = editor.encoder.encode([query])
            start = int(batch.layout.gate[0])
            answer = batch.inputs["input_ids"][0, start + 1 :]
            with torch.no_grad():
                after = edited(**batch.inputs).logits[0, start:-1].log_softmax(-1)
                before = every.model(**batch.inputs).logits[0, start:-1].log_softmax(-1)
            if "locality" in metric:
                logs[metric].append((before.exp() * (before - after)).sum(-1))
            else:
                logs[metric].append(-after.gather(1, answer[:, None])[:, 0])
    for metric, parts in logs.items():
        expected = float(torch.cat(parts).mean())
        assert got.by_metric[metric] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_one_seed_gives_one_result(llava: TinyModel, records: list[Record]):
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        editor = editor_of(llava)
        train(editor, records, fast(steps=3, gate_steps=2), progress=False)
        states.append(editor.state_dict())
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())


@pytest.mark.parametrize(("kept", "read"), [(2**30, 2), (2**8, 1), (0, 1)])
def test_an_interrupted_run_continues_as_if_unbroken(
    kept: int,
    read: int,
    llava: TinyModel,
    records: list[Record],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(trainer, "CHECKPOINT_EVERY", 2)
    caches = {"feature_cache_bytes": kept, "state_cache_bytes": kept}
    config = fast(steps=4, schedule="one-cycle", gate_steps=2, **caches)
    torch.manual_seed(5)
    whole = editor_of(llava)
    start = {k: v.clone() for k, v in whole.state_dict().items()}
    train(whole, records, config, progress=False)

    checkpoint = tmp_path / "run" / "training.pt"
    broken = editor_of(llava)
    broken.load_state_dict(start)
    calls = {"n": 0}
    real = BatchGradient.add

    def failing(*arguments: object) -> StepLosses:
        calls["n"] += 1
        if calls["n"] == 4:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(BatchGradient, "add", failing)
    with pytest.raises(KeyboardInterrupt):
        train(broken, records, config, checkpoint=checkpoint, progress=False)
    monkeypatch.setattr(BatchGradient, "add", real)
    assert checkpoint.is_file()
    continued = editor_of(llava)
    again = counted(monkeypatch, TrainingStep, "read_again")
    train(continued, records, config, checkpoint=checkpoint, progress=False)
    assert checkpoint.is_file(), "it stays until the adapters are saved"
    assert all(torch.equal(v, continued.state_dict()[k]) for k, v in whole.state_dict().items())
    assert len(again) == read, "no batch is read again of which nothing would be kept"


def counted(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> list[str]:
    """Return a list to which each call of a method adds its name."""
    calls: list[str] = []
    real = getattr(owner, name)

    def call(*arguments: object) -> object:
        calls.append(name)
        return real(*arguments)

    monkeypatch.setattr(owner, name, call)
    return calls


def test_a_checkpoint_of_another_run_is_refused(
    llava: TinyModel, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trainer, "CHECKPOINT_EVERY", 1)
    checkpoint = tmp_path / "training.pt"
    train(editor_of(llava), records, fast(steps=1), checkpoint=checkpoint, progress=False)
    with pytest.raises(ArchiveError, match="another configuration"):
        train(editor_of(llava), records, fast(steps=9), checkpoint=checkpoint, progress=False)
    checkpoint.write_bytes(b"no checkpoint")
    with pytest.raises(ArchiveError, match="damaged"):
        train(editor_of(llava), records, fast(steps=1), checkpoint=checkpoint, progress=False)


def test_a_checkpoint_from_before_text_only_goes_on_without(
    llava: TinyModel, records: list[Record], tmp_path: Path
):
    checkpoint = tmp_path / "training.pt"
    train(editor_of(llava), records, fast(steps=1), checkpoint=checkpoint, progress=False)
    saved = torch.load(checkpoint, weights_only=True)
    del saved["run"]["training"]["text_only"]
    torch.save(saved, checkpoint)
    train(editor_of(llava), records, fast(steps=1), checkpoint=checkpoint, progress=False)
    asked = fast(steps=1, text_only=0.5)
    with pytest.raises(ArchiveError, match=r"text_only was 0\.0 and is 0\.5"):
        train(editor_of(llava), records, asked, checkpoint=checkpoint, progress=False)


def test_a_training_that_keeps_its_gate_keeps_it_when_it_goes_on(
    llava: TinyModel, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = editor_of(llava)
    train(first, records, fast(steps=1, gate_steps=2), progress=False)
    start = {name: value.clone() for name, value in first.state_dict().items()}
    monkeypatch.setattr(gate_stage, "make_gate", lambda *_, **_k: pytest.fail("it is made anew"))
    monkeypatch.setattr(trainer, "CHECKPOINT_EVERY", 1)
    config, checkpoint = fast(steps=2, gate_steps=0), tmp_path / "training.pt"
    ended = []
    for path in (None, checkpoint, checkpoint):
        editor = editor_of(llava)
        editor.load_state_dict(start)
        train(editor, records, config, checkpoint=path, progress=False)
        ended.append(editor.state_dict())
    for name, value in ended[0].items():
        assert all(torch.equal(value, other[name]) for other in ended[1:]), name
        assert torch.equal(value, start[name]) or not name.startswith("gate."), name


def test_another_gate_costs_no_adapters(
    llava: TinyModel,
    records: list[Record],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    checkpoint = tmp_path / "training.pt"
    trained = editor_of(llava)
    first = fast(steps=2, gate_steps=3)
    gates = train(trained, records, first, checkpoint=checkpoint, progress=False)
    monkeypatch.setattr(BatchGradient, "add", lambda *_: pytest.fail("they are trained"))
    real = gate_stage.make_gate
    monkeypatch.setattr(gate_stage, "make_gate", lambda *_, **_k: pytest.fail("it is made"))
    again = editor_of(llava)
    assert train(again, records, first, checkpoint=checkpoint, progress=False) == gates
    found = again.state_dict()
    assert all(torch.equal(v, found[k]) for k, v in trained.state_dict().items())
    monkeypatch.setattr(gate_stage, "make_gate", real)
    # What the adapters do not depend on may be another now.
    others = {
        "gate_steps": 5,
        "feature_cache_bytes": 0,
        "state_cache_bytes": 0,
        "state_cache_folder": str(tmp_path),
        "checkpoint_activations": True,
        "autocast": "bfloat16",
    }
    config = tiny_config(gate={"kind": "learned"})
    continued = DualEditor(llava.model, llava.processor, config)
    train(continued, records, fast(steps=2, **others), checkpoint=checkpoint, progress=False)
    assert continued.gate.kind == "learned"
    assert "autocast: none, and goes on with bfloat16" in caplog.text
    found = continued.adapters.state_dict()
    assert all(torch.equal(v, found[k]) for k, v in trained.adapters.state_dict().items())
    with pytest.raises(ArchiveError, match="training"):
        train(editor_of(llava), records, fast(steps=3), checkpoint=checkpoint, progress=False)


def test_a_failed_gate_stage_costs_no_step(
    llava: TinyModel, records: list[Record], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gate_stage, "make_gate", lambda *_, **_k: 1 / 0)
    monkeypatch.setattr(BatchGradient, "add", lambda *_: pytest.fail("the gate comes first"))
    with pytest.raises(ZeroDivisionError):
        train(editor_of(llava), records, fast(steps=2), progress=False)


def test_too_few_records_are_refused(llava: TinyModel, records: list[Record]):
    with pytest.raises(DataError, match="2 records are fewer than a batch of 4"):
        train(editor_of(llava), records[:2], fast(), progress=False)
    with pytest.raises(CalibrationError, match="no records to calibrate"):
        calibrate(editor_of(llava), [])


def test_every_epoch_sees_every_record_once_in_another_order():
    config = fast(batch_size=3)
    epochs = [
        [i for step in range(e * 4, e * 4 + 4) for i in batch_indices(step, 12, config)]
        for e in (0, 1)
    ]
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 2
    assert epochs[0] != epochs[1]
