"""RI, NI and CI: each query shares with the edit what it should and nothing else."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_data import write_data
from tiny_editors import picture, tiny_config, trained_editor
from tiny_models import TinyModel

from easyedit_dualedit.data.records import METRICS, Record, load_records
from easyedit_dualedit.data.scope import NO_IMAGE, OTHER_IMAGE, OTHER_QUESTION
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.measure import sample_features, specificity
from easyedit_dualedit.measure.evaluation import evaluate, evaluate_together
from easyedit_dualedit.measure.metrics import summary
from easyedit_dualedit.measure.protocols import EVALUATION_PROTOCOLS
from easyedit_dualedit.measure.run import Run
from easyedit_dualedit.measure.specificity import (
    FAMILIES,
    KINDS,
    SIMILAR_IMAGE,
    SIMILAR_TEXT,
    specificity_queries,
)
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.inputs import Query


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    return load_records(write_data(tmp_path / "data", 8), tmp_path / "data")


def editor_of(tiny: TinyModel) -> DualEditor:
    return DualEditor(tiny.model, tiny.processor, tiny_config())


def asked(prompt: str, image: Path, index: int = 0) -> Record:
    """Return a record of which only the request matters."""
    request = Query(prompt, image, "blue")
    return Record(index, *([request] * 5), prediction="")


def test_each_query_shares_with_the_edit_what_its_name_says(tiny: TinyModel, records: list[Record]):
    found = specificity_queries(records[:4], records, editor_of(tiny).encoder, progress=False)
    assert len(found) == 4
    others = {(record.request.prompt, record.request.image) for record in records}
    for record, queries in zip(records, found, strict=False):
        own = record.request
        assert tuple(queries) == KINDS
        assert queries[OTHER_IMAGE].prompt == own.prompt
        assert queries[OTHER_IMAGE].image not in (None, own.image)
        assert queries[OTHER_QUESTION].image == own.image
        assert queries[NO_IMAGE].prompt == own.prompt and queries[NO_IMAGE].image is None
        for kind in (SIMILAR_TEXT, SIMILAR_IMAGE):
            pair = (queries[kind].prompt, queries[kind].image)
            assert pair in others and pair != (own.prompt, own.image)
        assert all(query.target for query in queries.values())


def test_the_draws_depend_on_the_seed_alone(llava: TinyModel, records: list[Record]):
    encoder = editor_of(llava).encoder
    first, again, other = (
        specificity_queries(records, records, encoder, seed=seed, progress=False)
        for seed in (3, 3, 4)
    )
    assert first == again != other


def test_the_draws_of_an_edit_do_not_depend_on_the_others(
    llava: TinyModel, records: list[Record], monkeypatch: pytest.MonkeyPatch
):
    encoder = editor_of(llava).encoder
    every = specificity_queries(records, records, encoder, progress=False)
    some = specificity_queries(records[3:5], records, encoder, progress=False)
    monkeypatch.setattr(specificity, "TOGETHER", 1)
    alone = specificity_queries(records, records, encoder, progress=False)
    assert some == every[3:5] and alone == every


def test_the_most_similar_sample_is_found(llava: TinyModel, tmp_path: Path):
    paths = {}
    for name, colour in (("a", "red"), ("b", "green"), ("c", "blue"), ("d", "red")):
        paths[name] = tmp_path / f"{name}.png"
        picture(colour).save(paths[name])
    edit = asked("What colour is the circle?", paths["a"])
    others = [
        asked("Where is the star?", paths["d"], 1),
        asked("What colour is the circle there?", paths["b"], 2),
        asked("How many are there?", paths["c"], 3),
    ]
    (found,) = specificity_queries([edit], others, editor_of(llava).encoder, progress=False)
    assert found[SIMILAR_TEXT].image == paths["b"]
    assert found[SIMILAR_IMAGE].image == paths["d"]


def test_another_picture_is_never_the_edits_own_where_there_is_a_choice(
    llava: TinyModel, tmp_path: Path
):
    own, other = tmp_path / "own.png", tmp_path / "other.png"
    picture("red").save(own)
    picture("blue").save(other)
    edit = asked("What colour is the circle?", own)
    beside = [asked(f"How many are there of {n}?", own, n) for n in range(1, 8)]
    elsewhere = asked("Where is the star?", other, 9)
    encoder = editor_of(llava).encoder
    for seed in range(3):
        (queries,) = specificity_queries(
            [edit], [*beside, elsewhere], encoder, seed=seed, progress=False
        )
        assert queries[OTHER_IMAGE].image == other
        assert queries[OTHER_QUESTION].prompt == elsewhere.request.prompt
        assert queries[SIMILAR_TEXT].image == queries[SIMILAR_IMAGE].image == other
    (queries,) = specificity_queries([edit], beside, encoder, progress=False)
    assert queries[OTHER_IMAGE].image == own, "the only picture there is"


def test_a_rephrase_of_the_edit_is_never_out_of_scope(llava: TinyModel, tmp_path: Path):
    own, rephrase, other = (tmp_path / f"{name}.png" for name in ("own", "rephrase", "other"))
    for path, colour in ((own, "red"), (rephrase, "pink"), (other, "blue")):
        picture(colour).save(path)
    question = "What colour is the circle?"
    edit = replace(asked(question, own), image_rephrase=Query(question, rephrase, "blue"))
    others = [asked(question, rephrase, 1), asked("Where is the star?", other, 2)]
    encoder = editor_of(llava).encoder
    for seed in range(3):
        (queries,) = specificity_queries([edit], others, encoder, seed=seed, progress=False)
        shown = {kind: queries[kind].image for kind in (OTHER_IMAGE, SIMILAR_TEXT, SIMILAR_IMAGE)}
        assert set(shown.values()) == {other}


@pytest.mark.parametrize(
    ("kind", "measure"),
    [(SIMILAR_TEXT, "text_features"), (SIMILAR_IMAGE, "picture_features")],
)
def test_similarity_is_the_cosine_after_the_mean_of_the_others_is_taken_from_both_sides(
    llava: TinyModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    measure: str,
):
    """The mean is (6, 1.5): without it on either side, one of the two edits gets the other."""
    states = {
        "to the left?": (2.0, 1.0),
        "to the right?": (10.0, 2.0),
        "left of the mean?": (4.0, 1.5),
        "above the mean?": (6.0, 2.5),
    }

    def features(
        _encoder: object, queries: list[Query], *_rest: object, **_more: object
    ) -> torch.Tensor:
        return torch.tensor([states[query.prompt] for query in queries])

    paths = [tmp_path / f"{place}.png" for place in range(4)]
    for path in paths:
        picture().save(path)
    left, right, *edits = (asked(*pair) for pair in zip(states, paths, strict=True))
    monkeypatch.setattr(sample_features, measure, features)
    found = specificity_queries(edits, [left, right], editor_of(llava).encoder, progress=False)
    assert [queries[kind].prompt for queries in found] == ["to the left?", "to the right?"]


def test_a_question_that_is_answered_like_the_edits_own_is_drawn_again(
    llava: TinyModel, records: list[Record], monkeypatch: pytest.MonkeyPatch
):
    """Only one of the other questions begins with another token."""
    different = records[5].request.prompt
    monkeypatch.setattr(specificity, "_DRAWS", 200)
    monkeypatch.setattr(
        specificity,
        "first_answer_tokens",
        lambda _encoder, queries, _size: torch.tensor([q.prompt == different for q in queries]),
    )
    edits = [record for record in records if record.request.prompt != different]
    found = specificity_queries(edits, records, editor_of(llava).encoder, progress=False)
    assert {queries[OTHER_QUESTION].prompt for queries in found} == {different}


def test_a_random_question_is_never_the_edits_own(
    llava: TinyModel, records: list[Record], caplog: pytest.LogCaptureFixture
):
    """Most samples of a data set of captions ask what the edit asks, or all of them do."""
    encoder = editor_of(llava).encoder

    def asking(prompt: str) -> list[Record]:
        return [replace(one, request=replace(one.request, prompt=prompt)) for one in records]

    alike = asking("a photo of")
    one_asks_otherwise = [*alike[:-1], records[-1]]
    found = specificity_queries(alike[:4], one_asks_otherwise, encoder, progress=False)
    assert {q[OTHER_QUESTION].prompt for q in found} == {records[-1].request.prompt}
    found = specificity_queries(alike[:2], alike, encoder, progress=False)
    assert [tuple(queries) for queries in found] == [
        tuple(kind for kind in KINDS if kind != OTHER_QUESTION)
    ] * 2
    assert "2 of 2 edits have no random question" in caplog.text
    assert "are answered like the edit's own" not in caplog.text
    editor = trained_editor(llava, gate="open")
    makers = {"edited": lambda record: editor.edited(editor.read([record.request]))}
    further = {
        alike[0].index: found[0],
        records[1].index: specificity_queries(records[1:2], records, encoder, progress=False)[0],
    }
    cases = evaluate_together([alike[0], records[1]], encoder, makers, further=further)
    values = [case["methods"]["edited"]["values"]["generate"] for case in cases]
    assert OTHER_QUESTION not in values[0] and OTHER_QUESTION in values[1]
    told = summary(values)
    assert told[OTHER_QUESTION].n == 1 and told[OTHER_IMAGE].n == told["RI"].n == 2
    halves = [values[0][OTHER_IMAGE], (values[1][OTHER_IMAGE] + values[1][OTHER_QUESTION]) / 2]
    assert told["RI"].mean == pytest.approx(50 * sum(halves))


def test_a_random_question_is_never_a_rephrase_of_the_edit(
    llava: TinyModel, records: list[Record], monkeypatch: pytest.MonkeyPatch
):
    """Also where another record asks it, about its own picture and in capitals."""
    encoder = editor_of(llava).encoder
    own = records[0].text_rephrase.prompt
    others = [
        replace(one, request=replace(one.request, prompt=own.upper() if place % 2 else own))
        for place, one in enumerate(records[1:])
    ]
    for answers in ("alike", "each otherwise"):
        numbers = itertools.count()
        monkeypatch.setattr(
            specificity,
            "first_answer_tokens",
            lambda _encoder, asked, _size, answers=answers, numbers=numbers: torch.tensor(
                [next(numbers) * (answers != "alike") for _ in asked]
            ),
        )
        found = specificity_queries(records[:1], others, encoder, progress=False)
        assert OTHER_QUESTION not in found[0]
        some = specificity_queries(records[:1], [*others, records[-1]], encoder, progress=False)
        assert some[0][OTHER_QUESTION].prompt == records[-1].request.prompt


def test_nothing_to_compare_with_is_one_clear_line(llava: TinyModel, records: list[Record]):
    encoder = editor_of(llava).encoder
    with pytest.raises(DataError, match="give more records"):
        specificity_queries(records[:1], records[:1], encoder, progress=False)
    blind = replace(records[0], request=replace(records[0].request, image=None))
    with pytest.raises(DataError, match="need edits of pictures"):
        specificity_queries([blind], records, encoder, progress=False)


def test_specificity_is_agreement_with_the_unedited_model(
    tiny: TinyModel, records: list[Record], tmp_path: Path
):
    editor = trained_editor(tiny, gate="open")
    queries = specificity_queries(records[:2], records, editor.encoder, progress=False)
    further = {record.index: more for record, more in zip(records, queries, strict=False)}
    methods = {
        "unedited": lambda _record: None,
        "edited": lambda record: editor.edited(editor.read([record.request])),
    }
    run = Run(tmp_path / "run", {})
    cases = evaluate(
        records[:2], editor.encoder, methods, run, further=further, batch_size=2, progress=False
    )
    for place, case in enumerate(cases):
        assert list(case["queries"]) == [*METRICS, *KINDS]
        for kind in KINDS:
            assert case["methods"]["unedited"]["values"]["generate"][kind] == 1.0
            before, after = case["before"][kind], case["methods"]["edited"]["answers"][kind]
            value = case["methods"]["edited"]["values"]["generate"][kind]
            assert value == float(before == after), (place, kind)
            # The answers are cut at different lengths.
            assert case["queries"][kind]["target"][:4] in (before[:4], ".")
    metrics = run.finish(cases)["methods"]["edited"]["protocols"]
    for protocol in EVALUATION_PROTOCOLS:
        for name, kinds in FAMILIES.items():
            halves = [metrics[protocol][kind]["mean"] for kind in kinds]
            assert metrics[protocol][name]["mean"] == pytest.approx(sum(halves) / len(halves))


def test_further_queries_leave_the_five_metrics_as_they_were(
    llava: TinyModel, records: list[Record]
):
    editor = trained_editor(llava)
    makers = {"edited": lambda record: editor.edited(editor.read([record.request]))}
    queries = specificity_queries(records[:2], records, editor.encoder, progress=False)
    further = {record.index: more for record, more in zip(records, queries, strict=False)}
    plain = evaluate_together(records[:2], editor.encoder, makers)
    asked_more = evaluate_together(records[:2], editor.encoder, makers, further=further)
    for alone, together in zip(plain, asked_more, strict=True):
        own, more = alone["methods"]["edited"], together["methods"]["edited"]
        for metric in METRICS:
            assert more["gate"][metric]["open"] == own["gate"][metric]["open"]
            for protocol in EVALUATION_PROTOCOLS:
                assert more["values"][protocol][metric] == own["values"][protocol][metric]


def test_a_summary_without_further_queries_has_no_further_numbers():
    assert not {"RI", "NI", "CI"} & set(summary([dict.fromkeys(METRICS, 1.0)]))
