"""Weights of tokens: what a question is about weighs most in it."""

from tiny_models import TinyModel

from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.train.token_rarity import Rarity

QUESTIONS = [
    f"What is the {what} of the {thing}?"
    for what in ("color", "place")
    for thing in ("star", "circle", "square", "heart")
]


def encoder_of(tiny: TinyModel) -> Encoder:
    return Encoder(Backbone.of(tiny.model), tiny.processor)


def test_what_every_prompt_has_weighs_nothing_and_what_few_have_weighs_most(every: TinyModel):
    encoder = encoder_of(every)
    rarity = Rarity.of(encoder, QUESTIONS)
    prompts, _ = encoder.read([Query(QUESTIONS[0]), Query(QUESTIONS[1])])
    one, other = (each["input_ids"].tolist() for each in prompts)
    weights = rarity.weights[one]
    assert float(weights.amin()) == 0.0 < float(weights.amax()) <= 1.0
    alike = [token for token in one if token in other]
    apart = [token for token in one if token not in other]
    assert max(rarity.weights[apart].tolist()) > max(rarity.weights[alike].tolist())


def test_a_sibling_asks_the_same_about_something_else(llava: TinyModel):
    rarity = Rarity.of(encoder_of(llava), QUESTIONS)
    found = rarity.siblings(QUESTIONS[:4])
    assert found == [*QUESTIONS[1:4], QUESTIONS[0]]
    assert (
        rarity.siblings(["What is the color of the star?"] * 2)
        == ["What is the color of the star?"] * 2
    ), "there is no other word"
