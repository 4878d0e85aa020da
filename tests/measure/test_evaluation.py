"""Evaluation: what a case says is what the models say, and a run can stop at any moment."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_data import BOUND, write_data
from tiny_editors import tiny_config, trained_editor
from tiny_models import TinyModel, tiny_llava

from easyedit_dualedit.data.binding import Binding
from easyedit_dualedit.data.records import METRICS, Record, load_records
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.measure.asking import Asker
from easyedit_dualedit.measure.contender import Edited
from easyedit_dualedit.measure.evaluation import evaluate, evaluate_together
from easyedit_dualedit.measure.metrics import LOCALITY
from easyedit_dualedit.measure.protocols import EVALUATION_PROTOCOLS, OF_SOME_RECORDS
from easyedit_dualedit.measure.questions import Questions
from easyedit_dualedit.measure.run import METRICS_FILE, Run
from easyedit_dualedit.measure.scores import score
from easyedit_dualedit.method.edited_model import EditedModel
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import IGNORED

IN_SCOPE = tuple(metric for metric in METRICS if metric not in LOCALITY)


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    return load_records(write_data(tmp_path / "data", 4), tmp_path / "data")


def edit_of(editor: DualEditor, record: Record) -> EditedModel:
    return editor.edited(editor.read([record.request]))


@dataclass(frozen=True)
class Case:
    """What a stored case says of one method."""

    before: dict[str, str]
    values: dict[str, dict[str, float]]
    answers: dict[str, str]
    gate: dict[str, dict[str, Any]]

    @property
    def opened(self) -> list[bool]:
        return [self.gate[metric]["open"] for metric in METRICS]

    @property
    def similarity(self) -> list[float]:
        return [self.gate[metric]["similarity"] for metric in METRICS]


def cases_of(
    encoder: Encoder, records: Sequence[Record], edits: Sequence[EditedModel | None]
) -> list[Case]:
    """Return the case of each record under its own edited model, asked in one batch."""
    made = {id(record): edited for record, edited in zip(records, edits, strict=True)}
    cases = evaluate_together(records, encoder, {"edited": lambda record: made[id(record)]})
    return [Case(case["before"], **case["methods"]["edited"]) for case in cases]


def case_of(encoder: Encoder, record: Record, edited: EditedModel | None = None) -> Case:
    """Return the case of one record on its own."""
    (case,) = cases_of(encoder, [record], [edited])
    return case


def methods_of(editor: DualEditor) -> dict[str, Callable[[Record], EditedModel | None]]:
    return {"unedited": lambda _record: None, "edited": lambda record: edit_of(editor, record)}


def model_that_answers(record: Record) -> Encoder:
    """Return the encoder of a tiny model that answers the queries of a record with their targets.

    The states of its last layer are random, so its head is fitted to what each should say.
    """
    tiny = tiny_llava(seed=4)
    encoder = Encoder(Backbone.of(tiny.model), tiny.processor)
    batch = encoder.encode(record.queries, end_of_answer=True)
    with torch.no_grad():
        output = tiny.model(**batch.inputs, output_hidden_states=True)
    expected = batch.labels[:, 1:]
    states = output.hidden_states[-1][:, :-1][expected != IGNORED]
    head = tiny.model.lm_head.weight
    optimiser = torch.optim.Adam([head], lr=0.1)
    for _ in range(200):
        loss = torch.nn.functional.cross_entropy(states @ head.T, expected[expected != IGNORED])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.1
    tiny.model.requires_grad_(False)
    return encoder


def test_a_model_that_says_the_targets_scores_one_under_both_protocols(records: list[Record]):
    case = case_of(model_that_answers(records[0]), records[0])
    assert list(case.before.values()) == [str(query.target) for query in records[0].queries]
    assert case.values == {
        protocol: dict.fromkeys(METRICS, 1.0) for protocol in EVALUATION_PROTOCOLS
    }


def test_other_targets_than_what_the_model_says_score_nothing_when_generated(
    records: list[Record],
):
    encoder = model_that_answers(records[0])
    other = Record(0, *records[1].queries, prediction="")
    case = case_of(encoder, other)
    assert [case.values["generate"][metric] for metric in IN_SCOPE] == [0.0, 0.0, 0.0]
    assert all(case.values["visedit"][metric] < 1.0 for metric in IN_SCOPE)


def test_teacher_forcing_gives_part_of_a_target_where_generation_gives_nothing(
    records: list[Record],
):
    encoder = model_that_answers(records[0])
    target = str(records[0].request.target)
    longer = type(records[0].request)(
        records[0].request.prompt, records[0].request.image, target + " bottom right one two three"
    )
    queries = (longer, *records[0].queries[1:])
    values = case_of(encoder, Record(0, *queries, prediction="")).values
    count = len(encoder.target_ids(str(longer.target)))
    least = len(encoder.target_ids(target)) / count
    assert values["generate"]["reliability"] == 0.0
    assert least <= values["visedit"]["reliability"] < 1.0


def test_the_unedited_model_agrees_with_itself(tiny: TinyModel, records: list[Record]):
    encoder = Encoder(Backbone.of(tiny.model), tiny.processor)
    case = case_of(encoder, records[0])
    for protocol in EVALUATION_PROTOCOLS:
        assert [case.values[protocol][metric] for metric in LOCALITY] == [1.0, 1.0]
    assert case.gate == {}


def test_a_closed_gate_agrees_exactly_and_an_open_one_does_not(
    tiny: TinyModel, records: list[Record]
):
    closed = trained_editor(tiny, gate={"kind": "cosine", "threshold": 0.99999})
    opened = trained_editor(tiny, gate="open")
    for record in records[:2]:
        case = case_of(closed.encoder, record, edit_of(closed, record))
        assert case.opened[3:] == [False, False]
        assert [case.answers[metric] for metric in LOCALITY] == [
            case.before[metric] for metric in LOCALITY
        ]
        for protocol in EVALUATION_PROTOCOLS:
            assert [case.values[protocol][metric] for metric in LOCALITY] == [1.0, 1.0]
        case = case_of(opened.encoder, record, edit_of(opened, record))
        assert case.opened == [True] * 5
        assert sum(case.values["generate"][metric] for metric in LOCALITY) < 2.0


def test_values_are_those_of_one_query_at_a_time(llava: TinyModel, records: list[Record]):
    editor = trained_editor(llava, gate={"kind": "cosine", "threshold": 0.3})
    for record in records:
        edited = edit_of(editor, record)
        case = case_of(editor.encoder, record, edited)
        for place, metric in enumerate(METRICS):
            query = record.queries[place]
            batch = editor.encoder.encode([query])
            start = int(batch.layout.gate[0])
            expected = batch.inputs["input_ids"][0, start + 1 :].numpy()
            with torch.no_grad():
                before = llava.model(**batch.inputs).logits[0, start:-1].numpy().argmax(-1)
                after = edited(**batch.inputs).logits[0, start:-1].numpy().argmax(-1)
            compared = before if metric in LOCALITY else expected
            assert case.values["visedit"][metric] == pytest.approx(np.mean(after == compared))
            routing = edited.route(**batch.inputs)
            assert case.opened[place] == bool(routing.is_open[0])
            assert case.similarity[place] == pytest.approx(float(routing.similarity[0]), abs=1e-4)


def test_the_label_decides_nothing_about_generated_answers(llava: TinyModel, records: list[Record]):
    editor = trained_editor(llava, gate={"kind": "cosine", "threshold": 0.3})
    record = records[0]
    without_label = []
    for place in (1, 2):
        # The same number of tokens, since the longest target decides how long answers may be.
        answers = [str(records[place].request.target)] * 5
        queries = [
            type(query)(query.prompt, query.image, answer)
            for query, answer in zip(record.queries, answers, strict=True)
        ]
        asked = Record(0, *queries, prediction="")
        case = case_of(editor.encoder, asked, edit_of(editor, record))
        shortened = [answer[:4] for answer in case.answers.values()]
        without_label.append((case.similarity, case.opened, shortened))
    assert without_label[0] == without_label[1]


def test_an_edit_that_was_learnt_scores_under_both_protocols(
    llava: TinyModel, records: list[Record]
):
    from easyedit_dualedit.train.config import TrainingConfig
    from easyedit_dualedit.train.step import TrainingStep

    editor = DualEditor(llava.model, llava.processor, tiny_config(gate="open", width=32))
    config = TrainingConfig.from_dict(
        {
            "batch_size": 1,
            "image_locality_weight": 0.0,
            "text_locality_weight": 0.0,
        }
    )
    optimiser = torch.optim.Adam(editor.adapters.parameters(), lr=0.02)
    step = TrainingStep(editor)
    for _ in range(60):
        optimiser.zero_grad()
        step.losses(records[:1], config).total.backward()
        optimiser.step()
    llava.model.zero_grad(set_to_none=True)
    case = case_of(editor.encoder, records[0], edit_of(editor, records[0]))
    plain = case_of(editor.encoder, records[0])
    for protocol in EVALUATION_PROTOCOLS:
        assert case.values[protocol]["reliability"] == 1.0
        assert plain.values[protocol]["reliability"] < 1.0


def test_a_case_on_disk_has_the_documented_form(
    llava: TinyModel, records: list[Record], tmp_path: Path
):
    editor = trained_editor(llava)
    run = Run(tmp_path / "run", {})
    cases = evaluate(records[:1], editor.encoder, methods_of(editor), run, progress=False)
    stored = json.loads((tmp_path / "run" / "cases" / "00000.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(cases[0]))
    assert set(stored) == {"index", "queries", "before", "methods"}
    assert stored["index"] == 0
    assert list(stored["queries"]) == list(stored["before"]) == list(METRICS)
    assert stored["queries"]["reliability"] == {
        "prompt": "What colour is circle 0?",
        "image": "0.png",
        "target": "green",
    }
    assert stored["queries"]["text_locality"]["image"] is None
    assert list(stored["methods"]) == ["unedited", "edited"]
    for name, method in stored["methods"].items():
        assert set(method) == {"values", "answers", "gate"}
        assert set(method["values"]) == set(EVALUATION_PROTOCOLS)
        for values in method["values"].values():
            assert list(values) == list(METRICS)
            assert all(0.0 <= value <= 1.0 for value in values.values())
        assert list(method["answers"]) == list(METRICS)
        assert list(method["gate"]) == ([] if name == "unedited" else list(METRICS))
    gate = stored["methods"]["edited"]["gate"]["reliability"]
    assert gate == {"similarity": pytest.approx(1.0, abs=1e-5), "open": True}


def test_the_numbers_of_a_run_have_the_documented_form_and_are_means_of_its_cases(
    llava: TinyModel, records: list[Record], tmp_path: Path
):
    editor = trained_editor(llava, gate="open")
    run = Run(tmp_path / "run", {})
    cases = evaluate(records, editor.encoder, methods_of(editor), run, progress=False)
    metrics = run.finish(cases)
    assert metrics == json.loads((tmp_path / "run" / METRICS_FILE).read_text(encoding="utf-8"))
    assert list(metrics) == ["methods"]
    assert list(metrics["methods"]) == ["unedited", "edited"]
    for name, method in metrics["methods"].items():
        assert list(method) == ["protocols"]
        assert set(method["protocols"]) == set(EVALUATION_PROTOCOLS)
        for protocol, values in method["protocols"].items():
            assert list(values) == [*METRICS, "average"]
            table = [
                [case["methods"][name]["values"][protocol][metric] for metric in METRICS]
                for case in cases
            ]
            means = np.append(np.mean(table, 0), np.mean(table)) * 100
            for value, mean in zip(values.values(), means, strict=True):
                assert list(value) == ["mean", "low", "high", "n"]
                assert value["mean"] == pytest.approx(mean)
                assert value["low"] <= value["mean"] <= value["high"]
                assert value["n"] == len(records)


def test_what_only_some_records_have_is_asked_as_of_each_alone(
    llava: TinyModel, records: list[Record]
):
    bound = Binding.of(BOUND, records[0].request.image, "{}")
    ported = records[1].request
    records = [
        replace(records[0], binding=bound, portability=(ported,)),
        replace(records[1], portability=(ported, ported)),
        records[2],
        replace(records[3], binding=replace(bound, text=None, picture=None, picture_old=None)),
    ]
    editor = trained_editor(llava, gate="open")
    together = evaluate_together(
        records, editor.encoder, methods_of(editor), protocols=OF_SOME_RECORDS
    )
    asked = {
        place: Questions.of_some(record, OF_SOME_RECORDS) for place, record in enumerate(records)
    }
    assert [len(questions.every) for questions in asked.values()] == [4, 2, 0, 1]
    for place, case in enumerate(together):
        names = [*METRICS, *asked[place].every]
        assert list(case["queries"]) == list(case["before"]) == names
        outcome = case["methods"]["edited"]
        assert list(outcome["answers"]) == list(outcome["gate"]) == names
        assert case["methods"]["unedited"]["answers"] == case["before"]
        measured = set(outcome["values"]) - set(EVALUATION_PROTOCOLS)
        some = {"portability": asked[place].ported, "binding": asked[place].bound}
        assert measured == {protocol for protocol, questions in some.items() if questions}
        if not measured:
            continue
        asker = Asker(editor.encoder, [asked[place]], OF_SOME_RECORDS)
        (before,) = asker.ask(Edited(llava.model, 0))
        (after,) = asker.ask(Edited.by_dualedit(edit_of(editor, records[place])))
        for name, text in after.texts.items():
            assert outcome["answers"][name].startswith(text or "")
        values = score(asked[place], before, after, editor.encoder, OF_SOME_RECORDS)
        assert {name: outcome["values"][name] for name in measured} == values
    # Each record's own edit answers: with the open gate they differ.
    assert together[0]["methods"]["edited"]["answers"] != together[0]["before"]


def counted(
    methods: Mapping[str, Callable[[Record], Any]], calls: list[int], stop_at: int | None = None
) -> dict[str, Callable[[Record], Any]]:
    """Return methods that note the record of each call, and are interrupted at one of them."""

    def wrap(method: Callable[[Record], Any]) -> Callable[[Record], Any]:
        def call(record: Record) -> Any:
            if record.index == stop_at:
                raise KeyboardInterrupt
            calls.append(record.index)
            return method(record)

        return call

    return {name: wrap(method) for name, method in methods.items()}


def test_stored_cases_are_not_made_again(llava: TinyModel, records: list[Record], tmp_path: Path):
    editor = trained_editor(llava)
    calls: list[int] = []
    methods = counted(methods_of(editor), calls)
    settings = {"records": 4}
    options = {"batch_size": 1, "progress": False}
    evaluate(records[:2], editor.encoder, methods, Run(tmp_path, settings), **options)
    assert sorted(calls) == [0, 0, 1, 1]
    again = evaluate(records, editor.encoder, methods, Run(tmp_path, settings), **options)
    assert sorted(calls[4:]) == [2, 2, 3, 3]
    assert [case["index"] for case in again] == [0, 1, 2, 3]
    (tmp_path / "cases" / "00001.json").unlink()
    evaluate(records, editor.encoder, methods, Run(tmp_path, settings), **options)
    assert calls[8:] == [1, 1]
    fresh = Run(tmp_path, settings, fresh=True)
    evaluate(records, editor.encoder, methods, fresh, **options)
    assert sorted(calls[10:]) == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_an_interrupted_run_continues_to_the_same_bytes(
    llava: TinyModel, records: list[Record], tmp_path: Path, batch_size: int
):
    editor = trained_editor(llava)
    methods = methods_of(editor)
    options = {"batch_size": batch_size, "progress": False}
    whole = Run(tmp_path / "whole", {"records": 4})
    whole.finish(evaluate(records, editor.encoder, methods, whole, **options))

    calls: list[int] = []
    broken = Run(tmp_path / "broken", {"records": 4})
    with pytest.raises(KeyboardInterrupt):
        stopping = counted(methods, calls, stop_at=2)
        evaluate(records, editor.encoder, stopping, broken, **options)
    assert case_files(tmp_path / "broken") == ["00000.json", "00001.json"]
    assert not (tmp_path / "broken" / METRICS_FILE).exists()

    calls.clear()
    continued = Run(tmp_path / "broken", {"records": 4})
    cases = evaluate(records, editor.encoder, counted(methods, calls), continued, **options)
    continued.finish(cases)
    assert sorted(calls) == [2, 2, 3, 3]
    same_files(tmp_path / "broken", tmp_path / "whole")


def case_files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "cases").iterdir())


def same_files(first: Path, second: Path) -> None:
    for name in ["run.json", METRICS_FILE, *(f"cases/{name}" for name in case_files(second))]:
        assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.fixture
def uneven(tmp_path: Path) -> list[Record]:
    """Records of which the first has a much longer target than the others."""
    path = write_data(tmp_path / "uneven", 4)
    items = json.loads(path.read_text(encoding="utf-8"))
    items[0]["alt"] = "a photo of a red circle and a blue square at the bottom right " * 2
    path.write_text(json.dumps(items), encoding="utf-8")
    return load_records(path, tmp_path / "uneven")


def test_a_case_does_not_depend_on_the_records_beside_it(llava: TinyModel, uneven: list[Record]):
    editor = trained_editor(llava)
    edits = [edit_of(editor, record) for record in uneven]
    together = cases_of(editor.encoder, uneven, edits)
    for record, edited, case in zip(uneven, edits, together, strict=True):
        alone = case_of(editor.encoder, record, edited)
        assert case.answers == alone.answers
        assert case.values == alone.values
        assert case.opened == alone.opened


def test_a_run_stopped_within_a_batch_continues_to_the_same_bytes(
    llava: TinyModel, uneven: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    editor = trained_editor(llava)
    methods = methods_of(editor)
    whole = Run(tmp_path / "whole", {})
    whole.finish(evaluate(uneven, editor.encoder, methods, whole, progress=False))
    broken = Run(tmp_path / "broken", {})
    real = Run.store

    def stopping(self: Run, index: int, case: Mapping[str, object]) -> Path:
        if index == 2:
            raise KeyboardInterrupt
        return real(self, index, case)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Run, "store", stopping)
        evaluate(uneven, editor.encoder, methods, broken, progress=False)
    assert case_files(tmp_path / "broken") == ["00000.json", "00001.json"]
    continued = Run(tmp_path / "broken", {})
    continued.finish(evaluate(uneven, editor.encoder, methods, continued, progress=False))
    same_files(tmp_path / "broken", tmp_path / "whole")


def test_records_beside_each_other_each_see_their_own_edit(tiny: TinyModel, records: list[Record]):
    editor = trained_editor(tiny, gate="open")
    edits = [edit_of(editor, record) for record in records]
    together = cases_of(editor.encoder, records, edits)
    assert len({tuple(case.answers.values()) for case in together}) == len(records)
    for record, edited, case in zip(records, edits, together, strict=True):
        alone = case_of(editor.encoder, record, edited)
        assert case.values["visedit"] == pytest.approx(alone.values["visedit"])
        assert case.similarity == pytest.approx(alone.similarity, abs=1e-4)
        for got, expected in zip(case.answers.values(), alone.answers.values(), strict=True):
            shorter = min(len(got), len(expected)) - 2
            assert got[:shorter] == expected[:shorter]


def test_a_picture_that_cannot_be_read_leaves_the_cases_before_it(
    llava: TinyModel, records: list[Record], tmp_path: Path
):
    picture = tmp_path / "data" / "2_other.png"
    picture.write_bytes(picture.read_bytes()[:70])
    editor = trained_editor(llava)
    run = Run(tmp_path / "run", {})
    with pytest.raises(DataError, match="2_other.png cannot be read as a picture"):
        evaluate(records, editor.encoder, methods_of(editor), run, batch_size=1, progress=False)
    assert [run.case(index) is not None for index in range(4)] == [True, True, False, False]


def test_the_model_is_as_it_was_after_an_evaluation(
    llava: TinyModel, records: list[Record], tmp_path: Path
):
    before = {key: value.clone() for key, value in llava.model.state_dict().items()}
    editor = trained_editor(llava, gate="open")
    first = case_of(editor.encoder, records[0])
    evaluate(records[:2], editor.encoder, methods_of(editor), Run(tmp_path, {}), progress=False)
    assert case_of(editor.encoder, records[0]) == first
    assert all(torch.equal(value, before[key]) for key, value in llava.model.state_dict().items())
