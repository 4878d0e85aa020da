"""Prompts are tokenised once and told apart by what is read of them; what a full cache keeps."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_editors import request_of, trained_editor
from tiny_models import TinyModel

from easyedit_dualedit.model import query_cache as module
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.model.query_cache import Prompt, TensorCache, TokenisedPrompts

FIRST = request_of()
SECOND = request_of("How many squares are there?")


def get(
    prompts: TokenisedPrompts, query: Query, prepared: dict[Any, Any], casts: bool = False
) -> Prompt:
    return prompts.get(query, (query.shown_keys, casts), prepared)


@pytest.fixture
def tokenised(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the prompts that are tokenised from now on."""
    asked: list[str] = []
    real = Encoder.tokenised

    def noting(self: Encoder, query: Query) -> Any:
        asked.append(query.prompt)
        return real(self, query)

    monkeypatch.setattr(Encoder, "tokenised", noting)
    return asked


def test_a_prompt_is_tokenised_once_whatever_its_answer(every: TinyModel, tokenised: list[str]):
    encoder = trained_editor(every).encoder
    prompts, prepared = TokenisedPrompts(encoder), {}
    first = get(prompts, FIRST, prepared)
    assert get(prompts, replace(FIRST, target="red"), prepared) is first
    get(prompts, SECOND, prepared)
    assert tokenised == [FIRST.prompt, SECOND.prompt]
    assert len(prepared) == 1, "one picture"
    own = encoder.encode([FIRST], with_target=False)
    for name, tokens in first.tokens.items():
        assert torch.equal(tokens, own.inputs[name][0])
    assert "pixel_values" not in first.small and first.digest == ""


def test_the_oldest_are_forgotten(
    llava: TinyModel, tokenised: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_MOST", 2)
    prompts = TokenisedPrompts(trained_editor(llava).encoder)
    asked = [request_of(f"What colour is circle {i}?") for i in (0, 1, 2, 1, 0)]
    for query in asked:
        get(prompts, query, {})
    assert tokenised == [asked[i].prompt for i in (0, 1, 2, 0)]


def test_a_name_tells_all_that_is_read(llava: TinyModel):
    encoder = trained_editor(llava).encoder
    prompts = TokenisedPrompts(encoder, names=True)

    def name(query: Query, *, end: bool = False, casts: bool = False) -> str:
        prompt = get(prompts, query, {}, casts)
        batch = encoder.assemble([query], [prompt.tokens], prompt.small, ends=[end])
        return prompt.name_in(batch, 0)

    others = [
        name(SECOND),
        name(replace(FIRST, target="red")),
        name(FIRST, end=True),
        name(FIRST, casts=True),
        name(request_of(colour="yellow")),
        name(replace(FIRST, image=None)),
    ]
    assert len({name(FIRST), *others}) == 1 + len(others)
    again = TokenisedPrompts(encoder, names=True)
    assert get(again, request_of(), {}).digest == get(prompts, FIRST, {}).digest != ""


def test_padding_is_no_part_of_a_name(llava: TinyModel):
    encoder = trained_editor(llava).encoder
    prompts = TokenisedPrompts(encoder, names=True)
    queries = [replace(FIRST, target="red green blue yellow red green"), FIRST]
    own = [get(prompts, query, {}) for query in queries]
    tokens = [prompt.tokens for prompt in own]
    merged = {n: torch.cat([p.small[n] for p in own]) for n in own[0].small}
    together = encoder.assemble(queries, tokens, merged, ends=[False, False])
    alone = encoder.assemble(queries[1:], tokens[1:], own[1].small, ends=[False])
    assert not bool(together.layout.real[1].all())
    assert own[1].name_in(together, 1) == own[1].name_in(alone, 0)


def test_queries_are_read_at_once_as_each_alone(every: TinyModel, monkeypatch: pytest.MonkeyPatch):
    encoder = trained_editor(every).encoder
    wide = Query("What is this?", Image.new("RGB", (90, 40), "green"))
    queries = [FIRST, SECOND, request_of(colour="blue"), wide, replace(FIRST, image=None)]
    keys = [(query.shown_keys, False) for query in queries]
    together, alone = TokenisedPrompts(encoder, names=True), TokenisedPrompts(encoder, names=True)
    alone.joins = False
    prepared: dict[Any, Any] = {}
    own: dict[Any, Any] = {}
    calls: list[int] = []
    real = encoder.read

    def noting(asked: Sequence[Query]) -> Any:
        calls.append(len(asked))
        return real(asked)

    with monkeypatch.context() as patch:
        patch.setattr(encoder, "read", noting)
        together.read(queries, keys, prepared)
        together.read(queries, keys, prepared)
    assert calls == [3, 1], "those of one size; nothing again"
    for query, key in zip(queries, keys, strict=True):
        expected = alone.get(query, key, own)
        found = together.get(query, key, prepared)
        assert found.digest == expected.digest, "the same pixels"
        for name, tokens in expected.tokens.items():
            assert torch.equal(found.tokens[name], tokens)


OTHER = request_of(colour="yellow")
BOTH = replace(OTHER, prompt=SECOND.prompt)


def test_a_known_question_about_a_known_picture_is_put_together(
    every: TinyModel, tokenised: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_COMPARED", 0)
    encoder = trained_editor(every).encoder
    prompts = TokenisedPrompts(encoder, names=True)
    for query in (FIRST, SECOND, OTHER):
        get(prompts, query, {})
    asked = len(tokenised)
    joined = get(prompts, BOTH, {})
    assert len(tokenised) == asked, "the processor does not run"
    whole = get(TokenisedPrompts(encoder, names=True), BOTH, {})
    assert joined.digest == whole.digest
    for name, tokens in whole.tokens.items():
        assert torch.equal(joined.tokens[name], tokens)
    assert all(torch.equal(joined.small[name], value) for name, value in whole.small.items())


def test_what_does_not_fit_together_is_tokenised(llava: TinyModel, tokenised: list[str]):
    prompts = TokenisedPrompts(trained_editor(llava).encoder)
    for query in (FIRST, SECOND, OTHER):
        get(prompts, query, {})
    end = prompts._ends[SECOND.prompt]["input_ids"]
    end[0] = end[0] + 1
    whole = prompts._encoder.tokenised(BOTH)[0]
    assert torch.equal(get(prompts, BOTH, {}).tokens["input_ids"], whole["input_ids"])
    assert not prompts.joins
    asked = len(tokenised)
    get(prompts, replace(request_of(colour="green"), prompt=SECOND.prompt), {})
    assert len(tokenised) == asked + 1


def hits(cache: TensorCache, count: int, epochs: int) -> tuple[float, int]:
    """Return the share of values found, and how often one was copied, asked in random orders."""
    source, found, copied = random.Random(0), 0, 0
    for _ in range(epochs):
        for key in source.sample(range(count), count):
            if cache.get(key) is not None:
                found += 1
            else:
                held = len(cache)
                cache.put(key, torch.zeros(1))
                copied += len(cache) > held or not cache.stays
    return found / (count * epochs), copied


def test_where_a_few_fit_those_are_found_each_time_and_nothing_else_is_copied():
    """As picture features of E-VQA: 1 GiB holds 227 of 14,332."""
    overwriting, overwrites = hits(TensorCache(4 * 20), 1200, 20)
    staying, copies = hits(TensorCache(4 * 20, stays=True), 1200, 20)
    assert copies == 20 and overwrites > 20_000
    assert abs(staying - 20 * 19 / (1200 * 20)) < 1e-9
    assert staying > 1.5 * overwriting


def test_what_came_last_is_kept_by_default():
    cache = TensorCache(8)
    for key in range(3):
        cache.put(key, torch.zeros(1))
    assert cache.get(0) is None and cache.get(2) is not None


def test_one_that_stays_takes_nothing_more_once_something_did_not_fit():
    cache = TensorCache(40, stays=True)
    cache.put("first", torch.zeros(8))
    assert not cache.is_closed
    cache.put("large", torch.zeros(4))
    assert cache.is_closed
    cache.put("small", torch.zeros(1))
    assert len(cache) == 1 and cache.get("small") is None
    other = TensorCache(40)
    other.put("large", torch.zeros(20))
    assert not other.is_closed
