"""Calls that others make while an edited model generates: each answers as it does alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_editors import picture, request_of, trained_editor
from tiny_families import FAMILIES
from tiny_models import TinyModel
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from easyedit_dualedit.model.inputs import Query

OTHER = Query("How many squares are there?", picture("blue"), "three four")
GREEDY = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": -1}
KINDS = ["base", "base generates", "edited", "other edited", "edited generates", "route"]

Ask = Callable[[], torch.Tensor]


def asked(tiny: TinyModel, **changes: Any) -> tuple[Any, dict[str, Any], dict[str, Ask]]:
    """Return an edited model, its inputs, and what may be asked while it generates."""
    editor = trained_editor(tiny, gate="open", **changes)
    edited, another = (editor.edited(editor.read([each])) for each in (request_of(), OTHER))
    inputs = editor.encoder.encode([request_of()], with_target=False).inputs
    others = editor.encoder.encode([OTHER, request_of()], with_target=False).inputs
    return (
        edited,
        inputs,
        {
            "base": lambda: tiny.model(**others).logits,
            "base generates": lambda: tiny.model.generate(**others, **GREEDY),
            "edited": lambda: edited(**others).logits,
            "other edited": lambda: another(**inputs).logits,
            "edited generates": lambda: another.generate(**others, **GREEDY),
            "route": lambda: edited.route(**others).similarity,
        },
    )


class Asking(LogitsProcessor, StoppingCriteria, BaseStreamer):
    """Asks something at every step, wherever it is put."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.answers: list[torch.Tensor] = []

    def _note(self) -> None:
        with torch.no_grad():
            self.answers.append(self.ask())

    def put(self, _value: torch.Tensor) -> None:
        self._note()

    def end(self) -> None:
        self._note()

    def __call__(self, _input_ids: torch.Tensor, scores: Any) -> Any:
        self._note()
        return scores


class Stopping(Asking):
    """Asks, and never stops."""

    def __call__(self, input_ids: torch.Tensor, _scores: Any, **_rest: Any) -> Any:
        self._note()
        return torch.zeros(len(input_ids), dtype=torch.bool)


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "no-cache": {"use_cache": False},
    "beams": {"num_beams": 2},
}


def calls_inside() -> list[Any]:
    """Return what is asked of which family in which way.

    Whose a call is does not depend on the family: one is asked everything in every way, the
    others everything in one way each, in turn.
    """
    return [
        pytest.param(family, kind, way, id=f"{family}-{kind}-{way}")
        for place, family in enumerate(sorted(FAMILIES))
        for turn, kind in enumerate(KINDS)
        for number, way in enumerate(WAYS)
        if family == "llava" or (place + turn) % len(WAYS) == number
    ]


@pytest.mark.parametrize(("every", "kind", "way"), calls_inside(), indirect=["every"])
def test_a_call_inside_answers_as_alone(every: TinyModel, kind: str, way: str):
    options = WAYS[way]
    edited, inputs, asks = asked(every)
    with torch.no_grad():
        alone = asks[kind]()
    expected = edited.generate(**inputs, **GREEDY, **options)
    asking = Asking(asks[kind])
    found = edited.generate(
        **inputs, **GREEDY, **options, logits_processor=LogitsProcessorList([asking])
    )
    assert torch.equal(found, expected), "the outer answer"
    assert len(asking.answers) == 3
    for answer in asking.answers:
        assert torch.equal(answer, alone)


@pytest.mark.parametrize("layers", [(1, 2), (2, 1)], ids=["below", "above"])
@pytest.mark.parametrize("place", ["streamer", "stopping_criteria"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_may_be_made_by_streamers_and_stopping_criteria(
    llava: TinyModel, kind: str, place: str, layers: tuple[int, int]
):
    edited, inputs, asks = asked(llava, text_layer=layers[0], vision_layer=layers[1])
    with torch.no_grad():
        alone = asks[kind]()
    expected = edited.generate(**inputs, **GREEDY)
    assert not torch.equal(expected, llava.model.generate(**inputs, **GREEDY))
    asking = Asking(asks[kind]) if place == "streamer" else Stopping(asks[kind])
    given: Any = asking if place == "streamer" else StoppingCriteriaList([asking])
    found = edited.generate(**inputs, **GREEDY, **{place: given})
    assert torch.equal(found, expected)
    assert len(asking.answers) >= 3
    for answer in asking.answers:
        assert torch.equal(answer, alone)


def test_the_base_model_may_draft_for_the_edited_one(llava: TinyModel):
    """Its own calls are unedited, those that check its drafts are edited."""
    edited, inputs, _ = asked(llava)
    expected = edited.generate(**inputs, **GREEDY)
    assert torch.equal(edited.generate(**inputs, **GREEDY, assistant_model=llava.model), expected)
