"""Asking: what is kept is what the model says, alone and together, and nothing else is asked."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_data import BOUND, write_data
from tiny_editors import trained_editor
from tiny_models import TinyModel, tiny_llava
from torch import Tensor

from easyedit_dualedit.data.binding import Binding
from easyedit_dualedit.data.records import METRICS, Record, load_records
from easyedit_dualedit.experiments.dualedit_rows import AdaptedEditor
from easyedit_dualedit.measure.asking import Asker, Replies
from easyedit_dualedit.measure.contender import Edited
from easyedit_dualedit.measure.easyedit_rows import joined_row
from easyedit_dualedit.measure.metrics import LOCALITY
from easyedit_dualedit.measure.panel import Panel
from easyedit_dualedit.measure.questions import Questions
from easyedit_dualedit.measure.scores import score
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.families import family_of
from easyedit_dualedit.model.inputs import IGNORED, Query
from easyedit_dualedit.model.row_budget import RowBudget
from easyedit_dualedit.plugin.processors import CompleteProcessor

IN_SCOPE = tuple(metric for metric in METRICS if metric not in LOCALITY)
QUERIES = ("request", "text_rephrase", "image_rephrase", "text_locality", "image_locality")
FORCED = ("generate", "visedit", "easyedit")


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return records_in(tmp_path)[0]


def records_in(folder: Path) -> list[Record]:
    return load_records(write_data(folder / "data", 2), folder / "data")


@pytest.fixture
def encoder(tiny: TinyModel) -> Encoder:
    return Encoder(Backbone.of(tiny.model), tiny.processor)


def asked(encoder: Encoder, record: Record, edited: Edited, protocols=FORCED):
    questions = Questions.of(record, protocols)
    asker = Asker(encoder, [questions], protocols)
    (before,), (after,) = asker.ask(Edited(encoder.backbone.model, 0)), asker.ask(edited)
    return questions, before, after


def test_values_agree_with_numpy(every: TinyModel, record: Record):
    """Invariant 9 of the design, over every family."""
    family = family_of(every.model.config)
    # As the benchmark loads it: complete where the family's own processor lacks something.
    completed = every.processor
    if family.chat_template is not None:
        completed = CompleteProcessor(every.processor, family)
    encoder = Encoder(Backbone.of(every.model), completed)
    editor = trained_editor(every, gate="open")
    with AdaptedEditor(editor).edit(record) as edited:
        questions, before, after = asked(encoder, record, edited)
        scores = score(questions, before, after, encoder, FORCED)
        for name, query in questions.own.items():
            batch, row = encoder.encode([query]), joined_row(encoder, query)
            plain, changed = (
                [
                    np.asarray(model(**inputs).logits.detach()[0])
                    for inputs in (batch.inputs, row.inputs)
                ]
                for model in (encoder.backbone.model, edited.model)
            )
            places = np.flatnonzero(np.asarray(batch.target[0])) - 1
            named = changed[0][places].argmax(-1)
            if name in IN_SCOPE:
                share = np.mean(named == encoder.target_ids(str(query.target)))
                labels = np.asarray(row.labels[0, 1:])
                hits = changed[1][:-1].argmax(-1)[labels != IGNORED] == labels[labels != IGNORED]
                easyedit = np.float32(hits.sum()) / np.float32(len(hits))
            else:
                share = np.mean(named == plain[0][places].argmax(-1))
                count = 1 if name == "text_locality" else 10
                ranks = [np.argsort(-logits, -1)[:, :count] for logits in (plain[1], changed[1])]
                easyedit = np.float32(np.mean(ranks[0] == ranks[1]))
            assert scores["visedit"][name] == pytest.approx(share)
            assert scores["easyedit"][name] == pytest.approx(float(easyedit))
            prompt = encoder.encode([query], with_target=False)
            length = len(encoder.target_ids(str(query.target))) + 8
            texts = []
            for model in (encoder.backbone.model, edited.model):
                tokens = model.generate(**prompt.inputs, max_new_tokens=length, do_sample=False)
                new = tokens[0, prompt.inputs["input_ids"].shape[1] :]
                texts.append(encoder.tokenizer.decode(new, skip_special_tokens=True).strip())
            wanted = texts[0] if name in LOCALITY else query.target
            assert scores["generate"][name] == float(texts[1] == wanted)


def test_a_closed_gate_changes_nothing_under_any_protocol(
    tiny: TinyModel, encoder: Encoder, tmp_path: Path
):
    record, other = records_in(tmp_path)
    editor = trained_editor(tiny, gate={"kind": "cosine", "threshold": 0.999999})
    with AdaptedEditor(editor).edit(other) as edited:
        questions, before, after = asked(encoder, record, edited)
    scores = score(questions, before, after, encoder, FORCED)
    own = score(questions, before, before, encoder, FORCED)
    assert scores == own
    assert all(scores[protocol][metric] == 1.0 for protocol in FORCED for metric in LOCALITY)
    assert all(reply.is_open is False for reply in after.to.values())


def test_only_what_a_protocol_needs_is_computed(llava: TinyModel, record: Record):
    calls = []

    class Counting:
        def __call__(self, **inputs):
            calls.append("forward")
            return llava.model(**inputs)

        def generate(self, **inputs):
            calls.append("generate")
            return llava.model.generate(**inputs)

    encoder = Encoder(Backbone.of(llava.model), llava.processor)
    edited = Edited(Counting(), 0)
    for protocols, forwards in ((("generate",), 1), (("visedit",), 5), (("easyedit",), 6)):
        calls.clear()
        Asker(encoder, [Questions.of(record, protocols)], protocols).ask(edited)
        assert calls == ["forward"] * forwards + ["generate"] * 5


class RunsOn:
    """Says given tokens to every prompt and goes on until it is stopped."""

    def __init__(self, model: Any, tokens: list[int]):
        self._model = model
        self.parameters = model.parameters
        self.config = model.config
        self._tokens = tokens
        self.allowed: list[int] = []

    def __call__(self, **inputs: Any) -> Any:
        return self._model(**inputs)

    def generate(self, *, input_ids: Tensor, max_new_tokens: int, **_options: Any) -> Tensor:
        if max_new_tokens > 1:  # one token tries what the model takes
            self.allowed.append(max_new_tokens)
        said = (self._tokens * max_new_tokens)[:max_new_tokens]
        return torch.cat([input_ids, input_ids.new_tensor([said] * len(input_ids))], 1)


def replies_of(
    encoder: Encoder, questions: list[Questions], model: RunsOn, together: bool
) -> list[Replies]:
    """Return what a model says, question by question or in batches of a panel."""
    if not together:
        return Asker(encoder, questions, ("generate",)).ask(Edited(model, 0))
    encoder = Encoder(replace(encoder.backbone, model=model), encoder.processor)
    return Panel(encoder, RowBudget(4096)).ask(questions, {}, ("generate",))[0]


@pytest.mark.parametrize("together", [False, True])
def test_an_answer_that_runs_on_past_the_target_is_not_exact(
    llava: TinyModel, record: Record, together: bool
):
    encoder = Encoder(Backbone.of(llava.model), llava.processor)
    target = encoder.target_ids(str(record.request.target))
    same = replace(record, **dict.fromkeys(QUERIES, record.request))
    questions = Questions.of(same, ("generate",))
    model = RunsOn(llava.model, target)
    (replies,) = replies_of(encoder, [questions], model, together)
    assert all(str(text).startswith(str(record.request.target)) for text in replies.texts.values())
    values = score(questions, replies, replies, encoder, ("generate",))["generate"]
    assert [values[metric] for metric in IN_SCOPE] == [0.0, 0.0, 0.0]
    assert model.allowed == [len(target) + 8] * (2 if together else 5)


@pytest.mark.parametrize("together", [False, True])
def test_how_long_an_answer_may_be(llava: TinyModel, record: Record, together: bool):
    """Alone, what its own target asks for; together, what the longest target of its record does."""
    encoder = Encoder(Backbone.of(llava.model), llava.processor)
    longer = replace(record.request, target="one two three four five")
    questions = [
        Questions.of(record, ("generate",)),
        Questions.of(replace(record, request=longer), ("generate",)),
    ]
    token = encoder.target_ids("one")[-1]
    said = replies_of(encoder, questions, RunsOn(llava.model, [token]), together)
    for asked_of, replies in zip(questions, said, strict=True):
        counts = {n: len(encoder.target_ids(str(q.target))) for n, q in asked_of.own.items()}
        longest = max(counts.values())
        for name, text in replies.texts.items():
            length = (longest if together else counts[name]) + 8
            assert text == encoder.tokenizer.decode([token] * length).strip()


def test_a_method_may_put_its_own_words_to_the_model(llava: TinyModel, record: Record):
    encoder = Encoder(Backbone.of(llava.model), llava.processor)
    seen = []

    def asks(query: Query) -> Query:
        seen.append(query.prompt)
        return replace(query, prompt=f"New fact. {query.prompt}")

    edited = Edited(llava.model, 0, asked=asks)
    questions, before, after = asked(encoder, record, edited)
    assert seen == [query.prompt for query in record.queries]
    scores = score(questions, before, after, encoder, FORCED)
    assert set(scores) == set(FORCED)
    # Rows of different lengths are compared at their ends.
    assert 0.0 < scores["easyedit"]["image_locality"] < 1.0


def test_asking_leaves_gradients_and_the_model_alone(record: Record):
    llava = tiny_llava()  # of its own: other tests may leave gradients on a shared one
    encoder = Encoder(Backbone.of(llava.model), llava.processor)
    before = {name: value.clone() for name, value in llava.model.state_dict().items()}
    asked(encoder, record, Edited(llava.model, 0))
    assert all(torch.equal(value, before[name]) for name, value in llava.model.state_dict().items())
    assert all(value.grad is None for value in llava.model.parameters())


def test_an_answer_may_be_as_long_as_that_of_the_true_thing(
    llava: TinyModel, record: Record, monkeypatch: pytest.MonkeyPatch
):
    encoder = Encoder(Backbone.of(llava.model), llava.processor)
    bound = replace(record, binding=Binding.of(BOUND, record.request.image, "{}"))
    limits: dict[str, int] = {}

    def noted(_model: Any, encoder: Encoder, batch: Any, given: list[int]) -> list[str]:
        limits[encoder.tokenizer.decode(batch.inputs["input_ids"][0])] = given[0]
        return ["" for _ in given]

    monkeypatch.setattr("easyedit_dualedit.measure.asking.greedy_answers", noted)
    Asker(encoder, [Questions.of(bound, ("binding",))], ("binding",)).ask(Edited(llava.model, 0))
    (limit,) = (limit for text, limit in limits.items() if BOUND["picture_q"] in text)
    old, new = (len(encoder.target_ids(BOUND[name])) for name in ("picture_old", "picture_new"))
    assert limit >= old > new
