"""What a gate does among many edits, and what a decision costs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_data import write_data
from tiny_editors import trained_editor
from tiny_models import TinyModel

from easyedit_dualedit.data import scope
from easyedit_dualedit.data.records import METRICS, Record, load_records
from easyedit_dualedit.data.scope import IN_SCOPE, NO_IMAGE, OTHER_IMAGE, OTHER_QUESTION, SCOPE
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.experiments.gate_rates import routing_costs, routing_rates
from easyedit_dualedit.method.active_edits import ActiveEdits
from easyedit_dualedit.method.config import GateConfig
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.gate import Gate, Routing
from easyedit_dualedit.method.gate_keys import EDIT_COUNTS
from easyedit_dualedit.model.inputs import TokenLayout


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    return load_records(write_data(tmp_path, 12), tmp_path)


def editor_of(tiny: TinyModel, threshold: float) -> DualEditor:
    editor = trained_editor(tiny, gate="learned")
    editor.gate.projection.thresholds.fill_(threshold)
    return editor


def test_rates_agree_with_what_an_edited_model_routes(llava: TinyModel, records: list[Record]):
    editor = editor_of(llava, 0.9999)
    rates = routing_rates(editor, records, (1, 12, 100), progress=False)
    assert set(rates) == {1, 12} and set(rates[1]) == set(SCOPE)
    signals = editor.read([record.request for record in records])
    edited = editor.edited(signals)
    for place, metric in enumerate(METRICS):
        hits = []
        for row, record in enumerate(records):
            batch = editor.encoder.encode([record.queries[place]])
            index = int(edited.route(layout=batch.layout, **batch.inputs).edit_index[0])
            hits.append(index == row if metric in IN_SCOPE else index >= 0)
        assert rates[12][metric] == pytest.approx(sum(hits) / 12), metric


def test_a_gate_that_never_or_always_opens_has_the_rates_of_one(
    llava: TinyModel, records: list[Record]
):
    never = routing_rates(editor_of(llava, 1.5), records, (12,), progress=False)[12]
    assert set(never.values()) == {0.0}
    always = routing_rates(editor_of(llava, -1.0), records, (1,), progress=False)[1]
    assert all(always[kind] == 1.0 for kind in SCOPE if kind != OTHER_QUESTION)


def test_the_edit_whose_picture_is_shown_does_not_count(
    llava: TinyModel, records: list[Record], monkeypatch: pytest.MonkeyPatch
):
    """Its own text about another's picture: to open for that one's edit is no fault of locality."""
    editor = editor_of(llava, -1.0)
    partners = torch.tensor(scope.partners_of(len(records)))

    def routed(_self: Gate, queries: torch.Tensor, *_: object, **__: object) -> Routing:
        return Routing(torch.ones(len(queries)), partners)

    monkeypatch.setattr(Gate, "route", routed)
    rates = routing_rates(editor, records, (12,), progress=False)[12]
    assert rates[OTHER_IMAGE] == 0.0 and rates[NO_IMAGE] == 1.0


def easy_editor(tiny: TinyModel, kind: str) -> DualEditor:
    """Return an editor whose gate opens for the request alone."""
    editor = trained_editor(tiny, gate=GateConfig(kind, threshold=0.99999))
    editor.gate.projection.thresholds.copy_(torch.linspace(0.5, 0.9, len(EDIT_COUNTS)))
    return editor


def easy(records: list[Record]) -> list[Record]:
    return [replace(record, text_rephrase=record.request) for record in records]


@pytest.mark.parametrize("kind", ["cosine", "learned"])
def test_costs_are_told_for_each_number_of_edits(
    llava: TinyModel, records: list[Record], kind: str
):
    found = routing_costs(easy_editor(llava, kind), easy(records), (1, 12), repeats=5)
    assert found["forward_seconds"] > 0
    for case in ("closed", "open"):
        assert set(found[case]["seconds"]) == {1, 12}
        share = found[case]["seconds"][12] / found["forward_seconds"]
        assert found[case]["share"][12] == pytest.approx(share)


@pytest.mark.parametrize("count", [1, 12])
def test_what_is_timed_are_queries_of_no_edit_and_queries_of_their_own(
    llava: TinyModel, records: list[Record], count: int, monkeypatch: pytest.MonkeyPatch
):
    decided: dict[int, tuple[torch.Tensor, list[tuple[int, ...]]]] = {}
    real = ActiveEdits.decide

    def deciding(self: ActiveEdits, hidden: torch.Tensor, layout: TokenLayout) -> Routing:
        routing = real(self, hidden, layout)
        edits = tuple(routing.open_rows().values())
        decided.setdefault(id(hidden), (hidden, []))[1].append(edits)
        return routing

    monkeypatch.setattr(ActiveEdits, "decide", deciding)
    routing_costs(easy_editor(llava, "cosine"), easy(records), (count,), repeats=24)
    seen = [set(edits) for _, edits in decided.values()]
    assert seen == [{()}] * count + [{(place,)} for place in range(count)]
    assert all(len(edits) == 1 + 2 * 24 // count for _, edits in decided.values())


def test_a_query_that_is_decided_wrongly_is_not_timed(llava: TinyModel, records: list[Record]):
    never = trained_editor(llava, gate=GateConfig("learned"))
    never.gate.projection.thresholds.fill_(1.5)
    found = routing_costs(never, records, (1, 12), repeats=2)
    assert set(found["closed"]["seconds"]) == {1, 12} and found["open"]["seconds"] == {}
    always = trained_editor(llava, gate=GateConfig("cosine", threshold=-1.0))
    found = routing_costs(always, easy(records), (1, 12), repeats=2)
    assert found["closed"]["share"] == {} and set(found["open"]["share"]) == {1, 12}


def test_costs_need_as_many_records_as_edits(llava: TinyModel, records: list[Record]):
    with pytest.raises(DataError, match="13 edits to route among need as many records, not 12"):
        routing_costs(trained_editor(llava), records, (1, 13))
