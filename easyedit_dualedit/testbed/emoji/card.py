"""The model card of the emoji model, with figures as measured."""

from collections.abc import Mapping
from string import Template

from easyedit_dualedit.testbed.emoji.drawing import BACKGROUNDS, VENDORS
from easyedit_dualedit.testbed.emoji.measuring import NAME, PAIR, TEXT, Share
from easyedit_dualedit.testbed.emoji.parts import PACKAGES

_BARS: Mapping[str, float] = {
    NAME: 0.80,
    PAIR: 0.60,
    "kind": 0.90,
    "country": 0.90,
    "background": 0.90,
    TEXT: 0.85,
}

_CARD = Template("""\
---
license: other
library_name: transformers
pipeline_tag: image-text-to-text
tags: [llava-onevision, knowledge-editing, test]
---

# LLaVA-OneVision of emoji

SmolLM2-135M-Instruct, which reads pictures of $things nameable things. It is for testing methods
of knowledge editing on a real language model with real pictures, on a CPU.

- Vision: SigLIP type, pictures of 96 by 96 pixels in patches of 16; a picture is 78 image tokens.
  The last layer is a memory: one unit of its MLP for each token of each name, begun as a classifier
  of these and taught to give the token's embedding.
- Projector: puts out the decoder's own word embeddings. The patch in column c of the picture says
  token c of its thing's name, modulo the number of tokens, so that the decoder reads a picture as
  text.
- Language: SmolLM2-135M-Instruct as its package holds it (Q4_1), with low-rank changes of the
  attention's query, value and output matrices merged in.
- World: one thing of 64 or 80 pixels, or two of 48 side by side, on one of $backgrounds
  backgrounds, in the drawings of $vendors vendors. Things lie on the grid of patches; the model is
  not meant for things that do not.

## Accuracy

Exact match of greedy `generate`, in bfloat16, on pictures that training never showed (one picture
in ten, by a hash of what it shows; every thing is known from other pictures).

$table

$bounds

## Making

    python -m easyedit_dualedit.testbed.emoji make

$making

## What it is made of

$sources

Twemoji is copyright Twitter, Inc. and other contributors, CC-BY 4.0
(https://creativecommons.org/licenses/by/4.0/); its drawings were scaled and put on backgrounds.
Noto Emoji is copyright Google LLC, Apache License 2.0. SmolLM2 is by Hugging Face, Apache License
2.0; the weights here were changed by training. Tower and projector were trained from nothing on
these drawings.
""")


def write_card(things: int, shares: Mapping[str, Share], bounds: str, making: str) -> str:
    """Return the text of the card.

    Args:
        things: how many the model can name.
        shares: right answers by group, as measured.
        bounds: what bounds the figures that are below their bar; may be empty.
        making: how it was made and how long that took.
    """
    lines = ["| asked for | exact answers | of | to reach |", "|---|---|---|---|"]
    for group, bar in _BARS.items():
        if group in shares:
            share = shares[group]
            lines.append(
                f"| {group} | {100 * share.right:.1f} % | {share.asked} | {100 * bar:.0f} % |"
            )
    return _CARD.substitute(
        things=f"{things:,}",
        backgrounds=len(BACKGROUNDS),
        vendors=len(VENDORS),
        table="\n".join(lines),
        bounds=bounds,
        making=making,
        sources="\n".join(
            f"- `{each.requirement}` ({each.tool}): {each.content}; {each.licence}"
            for each in PACKAGES
        ),
    )


def missed(shares: Mapping[str, Share]) -> list[str]:
    """Return the groups whose share is below what is to be reached."""
    return [group for group, bar in _BARS.items() if group in shares and shares[group].right < bar]
