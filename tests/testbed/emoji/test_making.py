"""Making: every stage on a tiny model, going on after a kill, measured, with a card."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_emoji_model import SHAPE, THINGS, tiny_drawings, tiny_language

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.model.loading import load_model
from easyedit_dualedit.testbed.emoji import make as making
from easyedit_dualedit.testbed.emoji.architecture import build_model, build_processor
from easyedit_dualedit.testbed.emoji.assembling import put_together
from easyedit_dualedit.testbed.emoji.card import missed, write_card
from easyedit_dualedit.testbed.emoji.decoder import DecoderLesson, DecoderPlan, OwnAnswer
from easyedit_dualedit.testbed.emoji.drawing import GRID, Picture, Placed, draw_pair, draw_single
from easyedit_dualedit.testbed.emoji.low_rank import Changes
from easyedit_dualedit.testbed.emoji.make import Plan, make
from easyedit_dualedit.testbed.emoji.measuring import NAME, TEXT, Share
from easyedit_dualedit.testbed.emoji.patch_states import patch_states
from easyedit_dualedit.testbed.emoji.patch_words import PatchWords
from easyedit_dualedit.testbed.emoji.picture_source import PictureSource
from easyedit_dualedit.testbed.emoji.stage import Stage
from easyedit_dualedit.testbed.emoji.tower import TowerLesson, TowerPlan, choose_patches
from easyedit_dualedit.testbed.emoji.word_memory import MemoryPlan

LANGUAGE = tiny_language()
EMBEDDINGS = LANGUAGE.state["model.embed_tokens.weight"]
WORDS = PatchWords(THINGS, LANGUAGE.tokenizer, EMBEDDINGS)
PLAN = Plan(
    tower=TowerPlan(steps=3, whole_steps=2, batch=4, memory=MemoryPlan(8, 2, 1, 2, patches=16)),
    decoder=DecoderPlan(oracle_steps=2, steps=2, pictures=2, questions=2, rank=2),
    shape=SHAPE,
    pictures=4,
)
QUESTIONS = [f"What is number {number}?" for number in range(8)]


def _said(picture: Picture) -> list[list[str]]:
    tokens = WORDS.tokens[WORDS.token_of_entry[WORDS.of([picture])[0][0]]]
    texts = LANGUAGE.tokenizer.convert_ids_to_tokens(tokens.tolist())
    return [texts[row * GRID : (row + 1) * GRID] for row in range(GRID)]


def test_a_patch_says_the_token_of_its_own_column() -> None:
    wanted = LANGUAGE.tokenizer.tokenize(" cat")
    assert len(wanted) <= 4
    rows = _said(Picture((Placed("cat", "noto", 4, 1, 2),), "red"))
    ground = LANGUAGE.tokenizer.tokenize(" red")[0]
    assert rows[0] == [ground] * GRID
    row = [wanted[column % len(wanted)] for column in range(2, 6)]
    assert rows[1] == rows[4] == [ground, ground, *row]


def test_a_long_name_goes_on_in_the_next_row() -> None:
    wanted = LANGUAGE.tokenizer.tokenize(" hot dog")
    assert len(wanted) > 3
    rows = _said(Picture((Placed("hot dog", "noto", 3, 0, 0),), "red"))
    said = [each for row in rows[:3] for each in row[:3]]
    assert said == [wanted[place % len(wanted)] for place in range(9)]


def test_things_and_entries_of_patches() -> None:
    pictures = [
        Picture((Placed("tiger", "noto", 5, 0, column),), ground)
        for column, ground in ((1, "red"), (0, "blue"))
    ]
    entries, things = (each.view(2, GRID, GRID) for each in WORDS.of(pictures))
    names = [thing.name for thing in THINGS]
    assert things[0, 0].tolist() == [len(names), *[names.index("tiger")] * 5]
    assert entries[0, 0, 1] == entries[1, 0, 1] < WORDS.name_entries
    assert WORDS.name_entries <= entries[0, 0, 0] != entries[1, 5, 5] >= WORDS.name_entries
    tokens = WORDS.tokens[WORDS.token_of_entry[: WORDS.name_entries]].tolist()
    spoken = [LANGUAGE.tokenizer(f" {name}", add_special_tokens=False).input_ids for name in names]
    assert tokens == [token for name in spoken for token in name]


def test_patches_are_kept_of_both_things() -> None:
    source = random.Random(0)
    pictures = [draw_pair("cat", "tiger", source), draw_single("cat", source)]
    things = WORDS.of(pictures)[1]
    keep = choose_patches(things, len(THINGS), torch.Generator().manual_seed(0))
    shown = things.gather(1, keep)
    assert [int((shown[0] == number).sum()) for number in (1, 3)] == [6, 6]
    assert int((shown[1] == 1).sum()) == 12
    assert (shown == len(THINGS)).sum(1).tolist() == [3, 3]
    assert all(len(set(row)) == 15 for row in keep.tolist())


def test_the_tower_is_asked_for_the_place_of_a_patch() -> None:
    """Without it the entries, which are of a thing and a place, were not learned."""
    model: Any = build_model(LANGUAGE, SHAPE)
    seen = model.model.vision_tower.embeddings.position_embedding.weight
    assert float(seen.detach().std()) > 0.5
    lesson = TowerLesson(model.model.vision_tower, WORDS, tiny_drawings())
    pictures = [draw_single("tiger", random.Random(number)) for number in range(4)]
    keep = choose_patches(WORDS.of(pictures)[1], len(THINGS), torch.Generator().manual_seed(0))
    optimiser = torch.optim.Adam(lesson.places.parameters(), 0.03)
    for kept in (keep, None):
        for _ in range(60):
            optimiser.zero_grad()
            torch.autograd.backward(lesson.loss(pictures, kept, torch.Generator().manual_seed(0)))
            optimiser.step()
    assert lesson.measure(pictures)["place"] > 0.8


def test_the_projector_reads_the_states_that_the_model_gives_it() -> None:
    model: Any = build_model(LANGUAGE, SHAPE).eval()
    pixels = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
        assert torch.allclose(patch_states(model.model.vision_tower, pixels), states, atol=1e-5)
        keep = torch.tensor([[3, 30, 7], [1, 2, 3]])
        assert patch_states(model.model.vision_tower, pixels, keep).shape == (2, 3, 32)
        below = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
        found = patch_states(model.model.vision_tower, pixels, below_last=True)
        assert torch.allclose(found, below, atol=1e-5)


def test_image_tokens_are_laid_out_as_the_model_does() -> None:
    model: Any = build_model(LANGUAGE, SHAPE).eval()
    drawings = tiny_drawings()
    picture = draw_single("tiger", random.Random(0))
    processor: Any = build_processor(LANGUAGE.tokenizer)
    prompt = "<|im_start|>user\n<image>\nWhat is this?"
    inputs = processor(images=[drawings.draw(picture)], text=[prompt], return_tensors="pt")
    with torch.no_grad():
        features = model.model.get_image_features(
            inputs["pixel_values"],
            inputs["image_sizes"],
            batch_num_images=inputs["batch_num_images"],
        )
    features = getattr(features, "pooler_output", features)
    lesson = DecoderLesson(
        model, LANGUAGE.tokenizer, WORDS, drawings, THINGS, [], PLAN.decoder, seed=0
    )
    with torch.no_grad():
        mine = lesson._laid_out(lesson._said([picture]))
    assert torch.allclose(mine[0], features[0], atol=1e-4)


def test_changes_begin_as_nothing_and_can_be_switched_off_and_removed() -> None:
    model: Any = build_model(LANGUAGE, SHAPE).eval()
    decoder = model.model.language_model
    ids = torch.arange(5)[None]
    with torch.no_grad():
        before = decoder(ids).last_hidden_state
        changes = Changes(decoder, rank=2)
        assert torch.equal(decoder(ids).last_hidden_state, before)
        for matrix in changes.matrices():
            matrix.normal_()
        assert not torch.allclose(decoder(ids).last_hidden_state, before)
        with changes.off():
            assert torch.equal(decoder(ids).last_hidden_state, before)
        kept = changes.state_dict()
        for matrix in changes.matrices():
            matrix.zero_()
        changes.load_state_dict(kept)
        assert all(torch.equal(kept[name], each) for name, each in changes.state_dict().items())
        changes.remove()
        assert torch.equal(decoder(ids).last_hidden_state, before)
    assert len(kept) == 2 * 2 * 3


def test_flags_are_drawn_more_often_and_no_unseen_picture_is_taught() -> None:
    pictures = PictureSource(THINGS, seed=0, single=1.0).draw(400)
    assert not any(picture.unseen for picture in pictures)
    flags = sum(picture.things[0].name == "Chad flag" for picture in pictures)
    assert 110 < flags < 170


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Packages of a tiny model."""

    class _Parts:
        things = staticmethod(lambda: THINGS)
        drawings = staticmethod(lambda _: tiny_drawings())
        gguf = staticmethod(lambda: Path("model.gguf"))

    monkeypatch.setattr(making, "read_language_model", lambda _: tiny_language())
    monkeypatch.setattr(making, "_MEASURED_QUESTIONS", 3)
    return _Parts()


def test_made_measured_and_written(parts: Any, tmp_path: Path) -> None:
    out = tmp_path / "llava-onevision-tiny"
    weights = make(parts, out, tmp_path / "scratch", QUESTIONS, PLAN)
    names = {path.name for path in weights.iterdir()}
    assert names == {"README.md", "shape.json", "eyes.safetensors", "decoder_changes.safetensors"}
    card = (out / "README.md").read_text()
    assert "CC-BY 4.0" in card and "Apache-2.0" in card and "of 4 nameable things" in card
    assert f"| {NAME} |" in card or "| kind |" in card
    model, _ = load_model(str(out))
    whole = put_together(tiny_language(), weights).state_dict()
    parts_made = ("vision_tower", "multi_modal_projector")
    eyes = {n: v for n, v in model.state_dict().items() if any(part in n for part in parts_made)}
    assert eyes and all(torch.equal(value, whole[name]) for name, value in eyes.items())
    # Another training goes on from these weights; all stages of this one are done.
    again = make(
        parts, tmp_path / "llava-onevision-2", tmp_path / "two", QUESTIONS, PLAN, begin=weights
    )
    assert again != weights


def test_a_killed_training_goes_on_where_it_was(
    parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[str, int]] = []
    advance = Stage.advance

    def counted(stage: Stage) -> None:
        advance(stage)
        stage.save()
        steps.append((stage.file.stem, stage.step))
        if len(steps) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Stage, "advance", counted)
    things, drawings = parts.things(), parts.drawings(())
    with pytest.raises(KeyboardInterrupt):
        making.train(LANGUAGE, things, drawings, tmp_path, QUESTIONS, PLAN)
    made = making.train(LANGUAGE, things, drawings, tmp_path, QUESTIONS, PLAN)
    assert steps == [
        *(("tower-patches", step) for step in (1, 2, 3)),
        *(("tower-whole", step) for step in (1, 2)),
        *(("tower-entries", step) for step in (1, 2)),
        ("tower-units", 1),
        *(("tower-words", step) for step in (1, 2)),
        *(("decoder-oracle", step) for step in (1, 2)),
        *(("decoder-real", step) for step in (1, 2)),
    ]
    assert len(made.measured_answers) == 3
    saved = json.loads((tmp_path / "own-answers.json").read_text())
    assert [OwnAnswer(**each) for each in saved[-3:]] == list(made.measured_answers)


def test_no_tower_to_keep_is_refused(parts: Any, tmp_path: Path) -> None:
    plan = replace(PLAN, tower=None)
    with pytest.raises(DataError, match="no tower to keep"):
        making.train(LANGUAGE, parts.things(), parts.drawings(()), tmp_path, QUESTIONS, plan)


def test_the_card_says_what_was_missed() -> None:
    shares = {NAME: Share(0.7, 100), TEXT: Share(0.9, 100)}
    assert missed(shares) == [NAME]
    card = write_card(1037, shares, "Below: names.", "took 5 minutes")
    assert f"| {NAME} | 70.0 % | 100 | 80 % |" in card
    assert "1,037 nameable things" in card and "Below: names." in card
