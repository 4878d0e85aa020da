"""The learned gate: trained without any target, calibrated on records held out."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_data import fast, write_data
from tiny_editors import picture, request_of, tiny_config, trained_editor
from tiny_models import TinyModel

from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.data.scope import IN_SCOPE, NO_IMAGE, OTHER_IMAGE, OTHER_QUESTION, SCOPE
from easyedit_dualedit.errors import CalibrationError
from easyedit_dualedit.method.adapter import CrossAttentionAdapter
from easyedit_dualedit.method.config import DualEditConfig
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.gate_keys import GateForm, GateProjection
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.train import gate_fit, gate_trainer
from easyedit_dualedit.train.gate_reading import read_gate_states
from easyedit_dualedit.train.gate_thresholds import CountCalibration
from easyedit_dualedit.train.gate_trainer import calibrate, make_gate, records_for_gate, train_gate
from easyedit_dualedit.train.held_out import divided
from easyedit_dualedit.train.scope_states import ScopeQueries, ScopeStates, collect


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    return load_records(write_data(tmp_path, 24), tmp_path)


def editor_of(tiny: TinyModel, **gate: object) -> DualEditor:
    return DualEditor(tiny.model, tiny.processor, tiny_config(gate={"kind": "learned", **gate}))


def test_training_teaches_the_gate_what_is_in_scope(tiny: TinyModel, records: list[Record]):
    editor = editor_of(tiny)
    found = train_gate(editor, records, fast(gate_steps=300), progress=False)
    assert editor.gate.kind == "learned"
    assert editor.gate.threshold == pytest.approx(found.threshold)
    states = collect(editor, records, progress=False)
    edits = editor.gate.key(states.gate["reliability"], states.vision["reliability"])
    rates = {}
    for kind in SCOPE:
        keys = editor.gate.key(states.gate[kind], states.vision[kind])
        similarity = (keys * edits).sum(-1)[states.counts[kind]]
        rates[kind] = float((similarity >= editor.gate.threshold).float().mean())
    assert rates["reliability"] == 1.0
    assert all(rates[kind] >= 0.8 for kind in IN_SCOPE), rates
    # Other questions differ in a number alone, and four records chose the threshold.
    allowed = {OTHER_QUESTION: 0.5}
    outside = {kind: rate for kind, rate in rates.items() if kind not in IN_SCOPE}
    assert all(rate <= allowed.get(kind, 0.2) for kind, rate in outside.items()), rates


def test_the_threshold_keeps_to_the_false_open_rate(llava: TinyModel, records: list[Record]):
    strict = train_gate(
        editor_of(llava, false_open_rate=0.0), records, fast(gate_steps=5), progress=False
    )
    assert strict.false_open_rate == 0.0
    loose = train_gate(
        editor_of(llava, false_open_rate=1.0), records, fast(gate_steps=5), progress=False
    )
    assert loose.threshold <= strict.threshold


def test_thresholds_come_from_records_that_taught_nothing(llava: TinyModel, records: list[Record]):
    editor = editor_of(llava)
    rates = train_gate(editor, records, fast(gate_steps=30), progress=False)
    learned = editor.gate.projection.thresholds.clone()

    def calibrated_on(part: list[Record]) -> CountCalibration:
        states = collect(editor, part, progress=False)
        rate = editor.config.gate.false_open_rate
        projection = editor.gate.projection
        return gate_trainer._calibrate_projection(projection, states, false_open_rate=rate)[0]

    division = divided(records, 4)  # a sixth of them
    single = calibrated_on(division.held_out)
    assert (single.threshold, single.true_open_rate) == (rates.threshold, rates.true_open_rate)
    assert torch.equal(editor.gate.projection.thresholds, learned)
    calibrated_on(division.teaching)
    assert not torch.equal(editor.gate.projection.thresholds, learned)


def test_near_twins_that_are_answered_otherwise_raise_the_thresholds():
    """Requests come in pairs that hardly differ; rephrases differ less, the rest much."""
    count, width = 40, 64
    source = torch.Generator().manual_seed(0)

    def draw(scale: float) -> torch.Tensor:
        return scale * torch.randn(count, width, generator=source)

    request = draw(1.0)
    request[1::2] = request[::2] + draw(0.4)[1::2]
    gate = {kind: request + draw(0.1) if kind in IN_SCOPE else draw(1.0) for kind in SCOPE}
    gate["reliability"] = request
    counts = {kind: torch.ones(count, dtype=torch.bool) for kind in SCOPE}
    answers = torch.arange(count)
    states = ScopeStates(gate, gate, gate, counts, torch.full((count,), -1), answers)
    projection = GateProjection(width)
    strict, loose = (
        gate_trainer._calibrate_projection(projection, each, false_open_rate=0.01)[0]
        for each in (states, replace(states, answers=answers // 2))
    )
    keys = projection(request, request)
    twins = (keys[::2] * keys[1::2]).sum(-1)
    assert loose.threshold < float(twins.median()) < strict.threshold
    assert strict.true_open_rate > 0.95


def test_what_the_model_answers_to_each_request_is_kept(llava: TinyModel, records: list[Record]):
    editor = editor_of(llava)
    requests = [replace(record.request, target=None) for record in records]
    read = read_gate_states(editor, requests, first=[True] * len(requests))
    assert torch.equal(collect(editor, records, progress=False).answers, read.first)


@pytest.mark.parametrize("better", [fitting.form for fitting in gate_fit.FITTINGS])
def test_the_form_that_does_better_on_held_out_records_is_kept(
    llava: TinyModel, records: list[Record], monkeypatch: pytest.MonkeyPatch, better: GateForm
):
    def rates(projection: GateProjection, _states: Any, **_: Any) -> list[CountCalibration]:
        projection.thresholds.fill_(0.5)
        rate = 0.9 if projection.form == better else 0.8
        return [CountCalibration(0.5, rate, 0.0, rate)]

    monkeypatch.setattr(gate_trainer, "_calibrate_projection", rates)
    editor = editor_of(llava)
    found = train_gate(editor, records, fast(gate_steps=2), progress=False)
    assert editor.gate.projection.form == better and found.true_open_rate == 0.9


def test_what_is_held_out_is_not_taught(
    llava: TinyModel, records: list[Record], monkeypatch: pytest.MonkeyPatch
):
    """Every second record shows the picture of the one before, and locality comes from a pool."""
    pool = [Query(f"How many? {n}", picture("green", (40 + n, 40)), "two") for n in range(8)]
    shared = []
    for place, record in enumerate(records):
        image = records[place // 2 * 2].request.image
        own = [replace(query, image=image) for query in (record.request, record.image_rephrase)]
        locality = pool[place % 8]
        changes = {"request": own[0], "image_rephrase": own[1], "image_locality": locality}
        shared.append(replace(record, **changes))
    taught: list[ScopeStates] = []
    fit = gate_trainer.fit_projection

    def noting_states(states: ScopeStates, *rest: Any, **options: Any) -> GateProjection:
        taught.append(states)
        return fit(states, *rest, **options)

    monkeypatch.setattr(gate_trainer, "fit_projection", noting_states)
    collected: list[list[Record]] = []
    real = ScopeQueries.of

    def noting(part: list[Record], **options: int) -> ScopeQueries:
        collected.append(part)
        return real(part, **options)

    monkeypatch.setattr(ScopeQueries, "of", noting)
    train_gate(editor_of(llava), shared, fast(), progress=False)
    teaching, held_out = collected
    assert len(held_out) == 4 and len(teaching) == 20
    assert not {r.request.image for r in teaching} & {r.request.image for r in held_out}
    asked = {r.image_locality.prompt for r in held_out}
    used = taught[0].counts["image_locality"].tolist()
    assert used == [r.image_locality.prompt not in asked for r in teaching]
    assert any(used) and not all(used)


def test_the_loss_is_that_of_finding_the_own_edit_or_none():
    """Against NumPy, query by query; the states are what a projection has made of them."""
    count, scale, none = 5, 7.0, 0.4
    source = torch.Generator().manual_seed(0)
    states = {kind: torch.randn(count, 6, generator=source) for kind in SCOPE}
    states = {kind: each / each.norm(dim=-1, keepdim=True) for kind, each in states.items()}
    partners = torch.tensor([3, -1, 0, 1, -1])
    states[OTHER_IMAGE][0] = states["reliability"][3]  # its partner's edit may rightly answer
    everywhere = torch.ones(count, dtype=torch.bool)
    counts = {kind: everywhere for kind in SCOPE} | {OTHER_QUESTION: torch.arange(count) % 2 == 0}
    batch = ScopeStates(states, states, states, counts, partners, torch.arange(count))
    got = gate_fit._routing_loss(
        lambda gate: gate,
        lambda queries, edits: queries @ edits.T,
        batch,
        torch.tensor(scale),
        torch.tensor(none),
    )
    total = 0.0
    edits = states["reliability"].double().numpy()
    for kind in SCOPE:
        logits = scale * states[kind].double().numpy() @ edits.T
        if kind in IN_SCOPE and kind != "reliability":
            meant = [np.log(np.exp(logits[:, i]).sum()) - logits[i, i] for i in range(count)]
            total += float(np.mean(meant)) / 2
        losses = []
        for row in range(count):
            if not bool(counts[kind][row]):
                continue
            partner = int(partners[row]) if kind == OTHER_IMAGE else -1
            rivals = [logits[row, i] for i in range(count) if i != partner] + [scale * none]
            right = logits[row, row] if kind in IN_SCOPE else scale * none
            losses.append(np.log(np.exp(rivals).sum()) - right)
        total += float(np.mean(losses))
    assert float(got) == pytest.approx(total / len(SCOPE), rel=1e-5)


def test_a_question_that_is_answered_alike_does_not_teach(
    llava: TinyModel, records: list[Record], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        "easyedit_dualedit.train.gate_reading._first_tokens",
        lambda rows, _logits: torch.zeros(len(rows), dtype=torch.long),
    )
    states = collect(editor_of(llava), records, progress=False)
    assert not bool(states.counts[OTHER_QUESTION].any())
    assert all(bool(states.counts[kind].all()) for kind in SCOPE if kind != OTHER_QUESTION)
    # Where it is answered otherwise about one of the two pictures alone, it may still be the same.
    asked = ScopeQueries.of(records)
    read = read_gate_states(editor_of(llava), asked.queries)
    count = len(records)
    for place, kind in enumerate(SCOPE):
        first = replace(
            read,
            gate=read.gate[read.row],
            last=read.last[read.row],
            vision=read.vision[read.row],
            text=read.text[read.row],
            row=torch.arange(len(asked.queries)),
            first=torch.arange(len(asked.queries)),
        )
        if kind == OTHER_QUESTION:
            assert bool(asked.states(first).counts[kind].all())
            own = first.first[:count]
            first.first[place * count : (place + 1) * count] = own
            assert not bool(asked.states(first).counts[kind].any())
        if kind == OTHER_IMAGE:
            partners = torch.tensor(asked.partners)
            first.first[place * count : (place + 1) * count] = first.first[:count][partners]
            assert not bool(asked.states(first).counts[OTHER_QUESTION].any())
    alone = collect(editor_of(llava), records[:1], progress=False)
    assert not bool(alone.counts[OTHER_IMAGE].any()), "it would show its own picture"


def test_a_hard_query_that_is_the_request_of_a_record_does_not_count(
    llava: TinyModel, records: list[Record]
):
    pictures = [records[place // 3 * 3].request.image for place in range(6)]
    few = [
        replace(record, request=replace(record.request, image=image))
        for record, image in zip(records[:6], pictures, strict=True)
    ]
    few[5] = replace(few[5], request=replace(few[5].request, image=None))
    few[0] = replace(few[0], request=replace(few[0].request, prompt=few[3].request.prompt + " "))
    asked = ScopeQueries.of(few)
    requests = [(each.request.prompt.strip(), each.request.image) for each in few]
    counts = collect(editor_of(llava), few, progress=False).counts
    never: dict[str, list[bool]] = {OTHER_IMAGE: [], OTHER_QUESTION: [], NO_IMAGE: []}
    for (prompt, image), partner in zip(requests, asked.partners, strict=True):
        never[OTHER_IMAGE].append((prompt, requests[partner][1]) in requests)
        never[OTHER_QUESTION].append((requests[partner][0], image) in requests)
        never[NO_IMAGE].append((prompt, None) in requests)
    assert dict(asked.asked) == never
    assert 0 < sum(never[OTHER_IMAGE]) < 6 and sum(never[NO_IMAGE]) == 1
    for kind in (OTHER_IMAGE, NO_IMAGE):
        assert counts[kind].tolist() == [not each for each in never[kind]]
    assert not bool(counts[OTHER_QUESTION][torch.tensor(never[OTHER_QUESTION])].any())


def test_a_gate_that_is_made_at_once_is_that_of_both_stages(
    llava: TinyModel, records: list[Record]
):
    editors = [editor_of(llava) for _ in range(2)]
    config = fast(gate_steps=5)
    apart = calibrate(editors[0], records)
    apart["learned"] = train_gate(editors[0], records, config, progress=False)
    at_once = make_gate(editors[1], records, config, progress=False)
    assert list(at_once) == list(apart)
    for kind, each in apart.items():
        assert at_once[kind].threshold == pytest.approx(each.threshold, abs=2e-3)
    states = [editor.gate.state_dict() for editor in editors]
    assert all(torch.allclose(states[1][n], v, atol=2e-3) for n, v in states[0].items())
    calibrated = make_gate(editor_of(llava), records, fast(gate_steps=0), progress=False)
    assert "learned" not in calibrated


def test_as_many_records_teach_as_the_adapters_were_trained_on():
    records = range(10_000)
    trained = fast(steps=100, batch_size=8, accumulate=2)
    assert records_for_gate(records, trained) == range(1600)
    assert records_for_gate(records, fast(steps=1)) == range(500)
    assert records_for_gate(range(30), trained) == range(30)
    assert records_for_gate(records, replace(trained, gate_records=7)) == range(7)
    assert records_for_gate(records, replace(trained, steps=10_000)) == range(6000)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_decision_ignores_target_batch_and_padding(
    tiny: TinyModel, records: list[Record], side: str
):
    editor = trained_editor(tiny, gate="learned")
    train_gate(editor, records, fast(gate_steps=60), progress=False)
    request = records[0].request
    edited = editor.edited(editor.read([request]))
    others = [records[1].request, Query("Where is the star?", None, "top left")]

    def similarity(queries: list[Query]) -> float:
        batch = editor.encoder.encode(queries, padding_side=side)
        return float(edited.route(layout=batch.layout, **batch.inputs).similarity[0])

    alone = similarity([request])
    for queries in (
        [Query(request.prompt, request.image, "yellow yellow green")],
        [Query(request.prompt, request.image)],
        [request, *others],
    ):
        assert similarity(queries) == pytest.approx(alone, abs=1e-4)


def test_training_depends_on_the_seed_alone(llava: TinyModel, records: list[Record]):
    weights = []
    for _ in range(2):
        editor = editor_of(llava)
        train_gate(editor, records, fast(gate_steps=5), progress=False)
        weights.append(editor.gate.projection.state_dict())
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_an_untrained_gate_falls_back_to_cosine_and_says_so(
    llava: TinyModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    editor = trained_editor(llava, gate={"kind": "learned", "threshold": 0.9})
    editor.save(tmp_path)
    with caplog.at_level(logging.WARNING):
        loaded = DualEditor.load(llava.model, llava.processor, tmp_path)
    assert "the weights hold no trained learned gate; the cosine gate decides" in caplog.text
    assert loaded.gate.kind == "cosine"
    signals = loaded.read([request_of()])
    batch = loaded.encoder.encode([request_of(colour="red"), Query("How?", picture("green"))])
    cosine = editor.gate.with_config(tiny_config(gate="cosine").gate)
    expected = cosine.key(signals[0].gate_state)
    assert torch.allclose(loaded.gate.key(signals[0].gate_state), expected)
    assert batch.size == 2


def test_too_few_records_are_refused(llava: TinyModel, records: list[Record]):
    with pytest.raises(CalibrationError, match="3 records are too few .* gate_steps to 0"):
        train_gate(editor_of(llava), records[:3], fast(), progress=False)


def test_the_projection_is_small_beside_the_adapters_of_a_large_model():
    config = DualEditConfig(text_layer=16, vision_layer=19)
    with torch.device("meta"):
        projection = GateProjection(4096)
        adapter = CrossAttentionAdapter(4096, config.width, config.heads)
    sizes = [sum(p.numel() for p in module.parameters()) for module in (projection, adapter)]
    assert sizes[0] <= 0.07 * 2 * sizes[1]


def test_states_on_another_device_are_selected_by_rows_on_the_processor():
    states = torch.empty(6, 4, device="meta")
    counts = torch.empty(6, dtype=torch.bool, device="meta")
    partners = torch.empty(6, dtype=torch.long, device="meta")
    found = ScopeStates(
        {"a": states}, {"a": states}, {"a": states}, {"a": counts}, partners, partners
    )
    part = found.select(torch.tensor([4, 1]))
    assert len(part) == 2
    every = (part.gate["a"], part.vision["a"], part.counts["a"], part.partners, part.answers)
    assert all(each.is_meta and len(each) == 2 for each in every)
