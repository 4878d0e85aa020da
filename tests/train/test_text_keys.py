"""Keys of questions without a picture: what they are fitted to, and what they tell apart."""

import logging
import random
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from tiny_data import fast, write_data
from tiny_editors import shared, tiny_config
from tiny_models import TinyModel

from easyedit_dualedit.data.records import QUESTION_PREFIX, Record, load_records
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.gate_keys import EDIT_COUNTS, KEY_WIDTH, TextKeys
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.testbed.architecture import build_tokenizer
from easyedit_dualedit.train import text_keys
from easyedit_dualedit.train.gate_reading import read_gate_states
from easyedit_dualedit.train.gate_stage import GateStage
from easyedit_dualedit.train.gate_trainer import make_gate
from easyedit_dualedit.train.text_keys import FEWEST_QUESTIONS, Wordings, fit_text_keys

COUNT = 60


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """Return records, each with a text-locality question of its own."""
    made = load_records(write_data(tmp_path, COUNT), tmp_path)
    return [
        replace(
            record,
            text_locality=replace(
                record.text_locality, prompt=f"{QUESTION_PREFIX}{question(place)}"
            ),
        )
        for place, record in enumerate(made)
    ]


def question(place: int) -> str:
    """Return a question of its own; those of places from `COUNT` on are in no record."""
    source = random.Random(place)
    one, two, three, four = source.sample(words(), 4)
    return f"who is the {one} of the {two} {three} with a {four}?"


@cache
def words() -> list[str]:
    """Return words that are tokens of the tiny models' tokenizer."""
    names = [name[1:] for name in build_tokenizer().get_vocab() if name[0] == "Ġ"]
    return sorted(name for name in names if name.isalpha() and name.islower() and len(name) > 3)


def editor_of(tiny: TinyModel) -> DualEditor:
    return DualEditor(tiny.model, tiny.processor, tiny_config(gate={"kind": "learned"}))


def test_each_question_is_asked_in_two_ways_and_comes_once(records: list[Record]):
    found = Wordings.of([*records, *records])
    assert len(set(found.asked)) == len(found.asked) == len(found.again)
    pairs = dict(zip(found.asked, found.again, strict=True))
    for record in records:
        typed = record.text_locality.prompt.removeprefix(QUESTION_PREFIX)
        assert typed in pairs and pairs[typed] != typed
        assert record.request.prompt in pairs
    assert pairs[records[0].request.prompt] == records[0].text_rephrase.prompt
    assert any(again.startswith(QUESTION_PREFIX) for again in found.again)


def test_no_more_questions_than_can_be_read(records: list[Record], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text_keys, "_MOST", 10)
    assert len(Wordings.of(records).asked) == 10 + min(
        10, len({record.request.prompt for record in records})
    )


def test_a_question_without_a_picture_follows_its_own_edit_alone(
    every: TinyModel, records: list[Record]
):
    editor = editor_of(every)
    # It counts as trained; what has no picture is none of its business.
    editor.gate.projection.thresholds.fill_(0.9)
    fit_text_keys(editor, records, fast(), progress=False)
    asked = [question(place) for place in range(COUNT, COUNT + 8)]
    edits = editor.read([Query(each, None, "a word") for each in asked])
    one = editor.edited(edits[:1])
    inputs = editor.encoder.encode([*map(Query, asked)], with_target=False).inputs
    assert one.route(**inputs).is_open.tolist() == [True] + [False] * 7
    assert editor.edited(edits).route(**inputs).edit_index.tolist() == list(range(8))
    again = [Query(f"{QUESTION_PREFIX}{each}") for each in asked]
    keys = editor.gate.text
    assert keys is not None
    asked_again = keys(read_gate_states(editor, again).text)
    similarity = asked_again @ keys(torch.stack([edit.text_state for edit in edits])).T
    own = similarity.diagonal()
    others = (similarity.sum(1) - own) / 7
    # States of random weights: a few questions are lost.
    assert float((own - others).mean()) > 0.2 and int((own > others).sum()) >= 6, (own, others)


def test_too_few_questions_fit_no_keys(
    llava: TinyModel, records: list[Record], caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.WARNING)
    editor = editor_of(llava)
    fit_text_keys(editor, records[:3], fast(), progress=False)
    assert editor.gate.text is None
    assert f"it takes {FEWEST_QUESTIONS}, and the gate has no keys of them" in caplog.text
    kept = editor.gate.text = TextKeys(len(editor.gate.mean))
    fit_text_keys(editor, records[:3], fast(), progress=False)
    assert editor.gate.text is kept
    assert "the gate keeps the keys that it had" in caplog.text


def test_a_gate_from_before_there_were_keys_is_made_anew(llava: TinyModel, records: list[Record]):
    stage = GateStage(editor_of(llava), records, fast(gate_steps=2))
    assert stage.run(progress=False)
    kept = stage.state_dict()
    for made_of, is_due in ((kept["made_of"], False), ({**kept["made_of"]}, True)):
        if is_due:
            del made_of["text_keys"]
        later = GateStage(editor_of(llava), records, fast(gate_steps=2))
        later.load_state_dict({**kept, "made_of": made_of})
        assert later.run(progress=False) is is_due


def test_earlier_turns_have_no_part_in_what_an_editor_compares():
    tiny = shared("llava-onevision")
    editor = editor_of(tiny)
    editor.gate.text = TextKeys(len(editor.gate.mean))
    chat = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in (("user", "Where is it?"), ("assistant", "left"), ("user", "How many?"))
    ]
    text = tiny.processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = editor.encoder.tokenizer(text, return_tensors="pt")
    layout = editor.encoder.layout(inputs["input_ids"], inputs["attention_mask"])
    hidden = torch.randn(1, layout.ids.shape[1], len(editor.gate.mean))
    before = editor.gate.said(hidden, layout)
    assert bool(before.any())
    hidden[:, :8] = 1.0 - hidden[:, :8]
    assert torch.equal(editor.gate.said(hidden, layout), before)
    hidden[:, -6] = 1.0 - hidden[:, -6]
    assert not torch.equal(editor.gate.said(hidden, layout), before)


def test_without_steps_the_projection_stays_and_the_keys_are_made(
    llava: TinyModel, records: list[Record]
):
    editor = editor_of(llava)
    make_gate(editor, records[:6], fast(gate_steps=5), progress=False)
    before = {name: value.clone() for name, value in editor.gate.projection.state_dict().items()}
    assert editor.gate.text is None
    make_gate(editor, records, fast(gate_steps=0), progress=False)
    after = editor.gate.projection.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert editor.gate.text is not None


def test_directions_in_which_wordings_differ_are_left_out():
    """Questions differ in ten directions, wordings in two others far more."""
    source = torch.Generator().manual_seed(0)
    count, width = 300, 40
    asked, again, near = (torch.zeros(count, width) for _ in range(3))
    meant = torch.randn(count, 10, generator=source)
    for text in (asked, again, near):
        text[:, :10] = meant
        text[:, 10:12] = 3 * torch.randn(count, 2, generator=source)
    near[:, :4] = torch.randn(count, 4, generator=source)
    keys = fitted(asked[:200], again[:200])
    some, rows = torch.ones(100, dtype=torch.bool), torch.arange(100)
    held_out = asked[200:], again[200:], near[200:]
    text_keys._choose_thresholds(keys, *held_out, some, rows, 0.01)
    similarity = keys(again[200:]) @ keys(asked[200:]).T
    plain = torch.nn.functional.normalize(again[200:], dim=-1)
    plain = plain @ torch.nn.functional.normalize(asked[200:], dim=-1).T

    def best(found: torch.Tensor) -> float:
        return float((found.argmax(1) == rows).float().mean())

    assert best(similarity) > 0.9 > 0.5 > best(plain)
    opens = similarity >= keys.threshold(1)
    assert float(opens.diagonal().float().mean()) > 0.9
    assert float(opens.float().mean()) < 0.05
    assert keys.thresholds.tolist() == sorted(keys.thresholds.tolist())
    assert keys.axes.shape == (width, KEY_WIDTH) and len(keys.thresholds) == len(EDIT_COUNTS)
    strict = keys.threshold(1)
    text_keys._choose_thresholds(keys, *held_out, ~some, rows, 0.01)
    beside = (keys(near[200:]) * keys(asked[200:])).sum(-1)
    assert keys.threshold(1) < strict, "what asks the same about something else stays shut"
    assert float((beside >= strict).float().mean()) < float(
        (beside >= keys.threshold(1)).float().mean()
    )


def test_a_threshold_leaves_room_below_one():
    """Questions whose wordings are all alike: distances from 1 would have no unit."""
    keys = fitted(torch.ones(40, 8), torch.ones(40, 8))
    same, some = torch.ones(10, 8), torch.ones(10, dtype=torch.bool)
    text_keys._choose_thresholds(keys, same, same, same, some, torch.arange(10), 0.0)
    assert float(keys.thresholds.amax()) < 1.0


def fitted(asked: torch.Tensor, again: torch.Tensor) -> TextKeys:
    keys = TextKeys(asked.shape[1])
    text_keys._fit(keys, asked, again)
    return keys


def test_letters_bring_a_question_in_capitals_nearer(llava: TinyModel, records: list[Record]):
    """In capitals every word has other tokens."""
    editor = editor_of(llava)
    fit_text_keys(editor, records, fast(), progress=False)
    keys = editor.gate.text
    assert keys is not None and float(keys.letters) == 0.5
    asked = [question(COUNT), question(COUNT).upper()]
    said = read_gate_states(editor, [Query(prompt) for prompt in asked]).text
    one, other = keys(said)
    keys.letters.zero_()
    first, second = keys(said)
    assert float(one @ other) > 0.25 + 0.5 * float(first @ second)
