"""What measures edits, on a device: evaluation, specificity, locate, ablate, many edits, rates."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_data import fast
from tiny_devices import NAMES, Subject, is_there
from tqdm import tqdm

from easyedit_dualedit.experiments.ablate import Variant, ablate
from easyedit_dualedit.experiments.gate_rates import routing_costs, routing_rates
from easyedit_dualedit.experiments.layer_probe import LocateConfig
from easyedit_dualedit.experiments.locate import locate
from easyedit_dualedit.experiments.many_edits import (
    Group,
    SharedMemory,
    UneditedAnswers,
    measure_group,
    point_of,
    untouched,
)
from easyedit_dualedit.measure.asking import Asker
from easyedit_dualedit.measure.contender import Edited
from easyedit_dualedit.measure.evaluation import evaluate
from easyedit_dualedit.measure.protocols import PROTOCOLS
from easyedit_dualedit.measure.questions import Questions
from easyedit_dualedit.measure.run import Run
from easyedit_dualedit.measure.scores import score
from easyedit_dualedit.measure.specificity import KINDS, specificity_queries


@pytest.fixture(autouse=True)
def _short_answers(subject_of: Callable[[str], Subject], monkeypatch: pytest.MonkeyPatch) -> None:
    """Any token ends an answer: long ones, which other tests generate, only take time here."""
    for tiny in (subject_of(name).tiny for name in NAMES):
        ends = list(range(len(tiny.processor.tokenizer)))
        for module in tiny.model.modules():  # BLIP-2 has a language model that generates for it
            if getattr(module, "generation_config", None) is not None:
                monkeypatch.setattr(module.generation_config, "eos_token_id", ends)


def test_records_are_evaluated_together(subject: Subject, tmp_path: Path):
    editor = subject.editor
    run = Run(tmp_path, {})
    makers = {
        "edited": lambda record: editor.edited(editor.read([record.request])),
        "unedited": lambda _record: None,
    }
    cases = evaluate(subject.records[:2], editor.encoder, makers, run, progress=False)
    means = run.finish(cases)["methods"]["unedited"]["protocols"]["visedit"]
    assert means["image_locality"]["mean"] == 100


def test_a_record_is_asked_alone_also_what_comes_close_to_it(subject: Subject):
    editor, (record, *others) = subject.editor, subject.records
    (close,) = specificity_queries([record], others, editor.encoder, progress=False)
    assert set(close) == set(KINDS)
    # BLIP-2 takes no text alone in the row that EasyEdit makes of it.
    blind = subject.tiny.family == "blip2"
    protocols = [name for name in PROTOCOLS if not (blind and name == "easyedit")]
    questions = Questions.of(record, protocols, close)
    asker = Asker(editor.encoder, [questions], protocols)
    (before,) = asker.ask(Edited(subject.model, 0))
    edited = editor.edited(editor.read([record.request]), gate=subject.always())
    (after,) = asker.ask(Edited.by_dualedit(edited))
    assert all(reply.is_open for reply in after.to.values())
    values = score(questions, before, after, editor.encoder, protocols)
    assert {"generate", "visedit", "specificity"} <= set(values)


def test_layers_are_probed(subject: Subject, tmp_path: Path):
    config = LocateConfig((1, 3), draws=1)
    run = Run(tmp_path, {})
    found = locate(subject.records[:1], subject.editor.encoder, config, run, progress=False)
    assert [each["layer"] for each in found["layers"]] == [1, 3]


def test_many_edits_are_measured(subject: Subject, tmp_path: Path):
    editor, records = subject.editor, tuple(subject.records[:2])
    group = Group(2, 0, records)
    unedited = UneditedAnswers(subject.model, editor.encoder, Run(tmp_path / "unedited", {}))
    with tqdm(disable=True) as bar:
        run = Run(tmp_path / group.name, {})
        measure_group(SharedMemory(editor, "int8"), group, unedited, editor.encoder, run, bar=bar)
    assert point_of(tmp_path, [group]) is not None
    left = untouched(editor, records[:1], "int8")
    assert not left["different"]
    assert not left["after_removal"]


# Trained and evaluated for each family by other tests; here only what binds the two.
def test_a_variant_is_trained_and_measured(llava: Subject, tmp_path: Path):
    config = llava.fresh().config
    variant = Variant("both", config, fast(steps=1, batch_size=2, gate_steps=2))
    for _ in range(2):  # the second reads the adapters that the first has saved
        rows = ablate(
            [variant],
            llava.model,
            llava.tiny.processor,
            llava.records,
            llava.records[:1],
            tmp_path,
            {},
            progress=False,
        )
        assert len(rows) == len(variant.gates)
        for path in tmp_path.rglob("metrics.json"):
            path.unlink()


@pytest.mark.parametrize("kind", ["cosine", "learned"])
def test_rates_and_costs_of_routing(llava: Subject, kind: str):
    editor = llava.fresh()
    editor.gate = editor.gate.with_config(type(editor.gate.config)(kind, 0.5))
    rates = routing_rates(editor, llava.records, [1, 4], progress=False)
    assert set(rates) == {1, 4}
    assert routing_costs(editor, llava.records, [1, 4], repeats=2)["forward_seconds"] > 0
    assert is_there(editor.gate.mean)
    assert torch.is_grad_enabled()
