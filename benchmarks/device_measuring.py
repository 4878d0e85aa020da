"""What measures edits, tried on a device: evaluation, specificity, locate, ablation, many edits."""

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.device_subject import DeviceSubject
from benchmarks.trials import Trial, require
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
from easyedit_dualedit.train.config import TrainingConfig

_FEW = 2


def measuring(subject: DeviceSubject) -> dict[str, Trial]:
    """Return the trials of what measures edits by name."""
    trials = (
        ("evaluate", _evaluated),
        ("the benchmark's protocols, specificity with them", _asked),
        ("locate", _located),
        ("ablate", _ablated),
        ("many edits", _many),
        ("routing rates and costs", _routed),
    )
    return {name: partial(trial, subject) for name, trial in trials}


def _evaluated(subject: DeviceSubject) -> str:
    editor, records = subject.editor, subject.records[:_FEW]
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), {})
        methods = {
            "edited": lambda record: editor.edited(editor.read([record.request])),
            "unedited": lambda _record: None,
        }
        cases = evaluate(records, editor.encoder, methods, run, progress=False)
        metrics = run.finish(cases)["methods"]["unedited"]["protocols"]["visedit"]
    kept = metrics["image_locality"]["mean"]
    require(kept == 100, f"the unedited model agrees with itself in {kept} %")
    return f"{len(cases)} records, 2 methods"


@torch.no_grad()
def _asked(subject: DeviceSubject) -> str:
    editor, records = subject.editor, subject.records[:_FEW]
    encoder = editor.encoder
    *others, last = subject.records[_FEW:]
    otherwise = replace(last.request, prompt=last.image_locality.prompt)
    others.append(replace(last, request=otherwise))  # all records ask alike
    close = specificity_queries(records, others, encoder, progress=False)
    require(set(close[0]) == set(KINDS), "not every kind of specificity is asked")
    values: dict[str, dict[str, float]] = {}
    for one, queries in zip(records, close, strict=True):
        questions = Questions.of(one, PROTOCOLS, queries)
        asker = Asker(encoder, [questions], PROTOCOLS)
        (before,) = asker.ask(Edited(subject.model, 0))
        edited = editor.edited(editor.read([one.request]))
        (after,) = asker.ask(Edited.by_dualedit(edited))
        values = score(questions, before, after, encoder, PROTOCOLS)
    return ", ".join(values)


def _located(subject: DeviceSubject) -> str:
    last = subject.shapes.layers - 1
    config = LocateConfig((0, last // 2, last), draws=2, rows=16)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), {})
        found = locate(subject.records[:_FEW], subject.editor.encoder, config, run, progress=False)
    require("attention" in found["layers"][0], "the model does not tell its attention")
    return (
        f"layers {config.layers}, attention of {subject.model.config._attn_implementation} put back"
    )


def _ablated(subject: DeviceSubject) -> str:
    editor = subject.editor
    config = TrainingConfig(steps=1, gate_steps=2)
    variant = Variant("both adapters", editor.config, config, ("open", "learned"))
    with tempfile.TemporaryDirectory() as folder:
        rows = ablate(
            [variant],
            subject.model,
            editor.encoder.processor,
            subject.records,
            subject.records[:1],
            Path(folder),
            {},
            progress=False,
        )
    return f"{len(rows)} rows"


def _many(subject: DeviceSubject) -> str:
    editor, records = subject.editor, subject.records[:_FEW]
    group = Group(_FEW, 0, tuple(records))
    with tempfile.TemporaryDirectory() as name, tqdm(disable=True) as bar:
        folder = Path(name)
        unedited = UneditedAnswers(subject.model, editor.encoder, Run(folder / "unedited", {}))
        method, run = SharedMemory(editor, "int8"), Run(folder / group.name, {})
        measure_group(method, group, unedited, editor.encoder, run, bar=bar)
        point = point_of(folder, [group])
    require(point is not None, "a case is missing")
    left = untouched(editor, records, "int8")
    require(not left["different"] and not left["after_removal"], f"edits are left: {left}")
    return f"{_FEW} edits"


def _routed(subject: DeviceSubject) -> str:
    rates = routing_rates(subject.editor, subject.records, [1, 4], progress=False)
    costs = routing_costs(subject.editor, subject.records, [1, 4], repeats=4)
    forward = 1e3 * costs["forward_seconds"]
    return f"among {', '.join(map(str, rates))}; a forward takes {forward:.1f} ms"
