"""The model card of a testbed model, with figures as measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from string import Template

from easyedit_dualedit.testbed.evaluation import ALL_VQA, FACTS, Score
from easyedit_dualedit.testbed.questions import VQA_FAMILIES

_CARD = Template("""\
---
license: mit
library_name: transformers
pipeline_tag: image-text-to-text
tags: [llava-onevision, knowledge-editing, test]
---

# LLaVA-OneVision testbed

A LLaVA-OneVision of $parameters parameters that knows a small world by heart: pictures of one to
four colored shapes in a grid of three by three, and 100 facts about countries that do not exist.
It is for testing methods of knowledge editing on a CPU, with answers that are really known before
an edit. It is of no use for anything else, and knows no English beyond its question templates.

- Vision: SigLIP type, 3 layers, width 96, pictures of 48 by 48 pixels in patches of 16; a picture
  is 21 image tokens (9 for the whole, 9 for its one tile, 3 newlines).
- Language: Qwen2 type, 6 layers, width 128, 8 heads of 32, byte-level BPE vocabulary of 640.
- Weights are stored in float16 and load in float32.
- Prompts: questions on color, shape, number and position; captions ("a photo of"); facts, also with
  "nq question: " before and "?" behind; all of these plain, as "Question: {} Short answer:" and as
  "{} The answer is:". "List by color." and "List by shape." were drills of its training.

## Accuracy

Exact match of greedy `generate` through the model's own processor. Pictures show scenes of the
evaluation split, of which training has seen none in any arrangement. Questions come in all
wordings and prompt forms, facts in each of their twelve forms.

$table

Measured when the model was made; `python -m easyedit_dualedit.testbed.evaluation` measures again.

## Making

    python -m easyedit_dualedit.testbed.make $arguments

took $minutes minutes on one core. Everything was drawn and trained from seed $seed; no other data
or weights went in.
""")


@dataclass(frozen=True)
class Making:
    """How a model was made: seed, command line arguments, duration, and its size."""

    seed: int
    arguments: str
    seconds: float
    parameters: int


def write_card(scores: Mapping[str, Score], making: Making) -> str:
    """Return the text of the model card."""
    first = (ALL_VQA, *VQA_FAMILIES, "caption", FACTS)
    order = [*first, *(group for group in scores if group not in first)]
    lines = ["| asked for | exact answers | of |", "|---|---|---|"]
    lines += [
        f"| {group} | {100 * scores[group].share:.1f} % | {scores[group].asked} |"
        for group in order
    ]
    return _CARD.substitute(
        parameters=f"{making.parameters:,}",
        table="\n".join(lines),
        arguments=making.arguments,
        minutes=f"{making.seconds / 60:.0f}",
        seed=making.seed,
    )
