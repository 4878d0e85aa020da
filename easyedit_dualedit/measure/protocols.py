"""The protocols of the benchmark: numbers of different ones never share a column."""

from collections.abc import Mapping
from typing import Literal, get_args

ProtocolName = Literal[
    "generate", "visedit", "easyedit", "specificity", "portability", "binding", "comprehendedit"
]
PROTOCOLS: tuple[ProtocolName, ...] = get_args(ProtocolName)
"""In the order in which tables show them."""

EVALUATION_PROTOCOLS: tuple[ProtocolName, ...] = ("visedit", "generate")
"""Those of `evaluate`, the demo and the ablation, in the order of their files."""

OF_SOME_RECORDS: tuple[ProtocolName, ...] = ("portability", "binding", "comprehendedit")
"""Those whose questions only some records have: each number counts the records that have its own.
They have no average."""

EXPLANATIONS: Mapping[str, str] = {
    "generate": (
        "Free greedy answers to the prompt alone. Reliability and generality are exact matches with"
        " the target, but for case, white space and a final stop; locality is the same text before"
        " and after the edit. No target is fed in."
    ),
    "visedit": (
        "The published papers' protocol: the target is fed in, and each of its tokens that the"
        " arg-max names counts. Locality is the share of answer positions with the same arg-max"
        " before and after. Numbers are higher than those of free answers, and not comparable with"
        " them."
    ),
    "easyedit": (
        "What EasyEdit's own evaluator computes, with the target fed in: text locality compares"
        " the top token, image locality the ten top tokens place by place, both over the whole"
        " sequence. Comparable with other numbers from EasyEdit, and with nothing else here."
    ),
    "specificity": (
        "Queries that come close to the edit and are none of its business; what counts is the same"
        " answer before and after. RI: the edit's text with a random picture, or its picture with"
        " a random question. NI: its text without a picture. CI: the other samples most like it."
    ),
    "portability": (
        "Questions whose answers follow from the edit, without repeating it: exact match of free"
        " greedy answers, and token accuracy with the target fed in."
    ),
    "binding": (
        "After an edit that gives a picture another thing's name, under free greedy answers. Text"
        " untouched: the same answer before and after to a question about the true thing without a"
        " picture. Picture old, new, neither: another question about the same thing in the picture"
        " is answered as of the true thing (the old binding persists), as of the new one (the new"
        " binding generalises), or otherwise; the row of the unedited model is the yardstick."
        " Beside untouched: the same answer to a question about what else is in the picture."
    ),
    "comprehendedit": (
        "What an edit does to the samples nearest to it, by picture and by question, under free"
        " greedy answers (ComprehendEdit, arXiv 2412.12821). Knowledge generalisation: samples that"
        " models answered wrongly when the data was made, now answered rightly; the row of the"
        " unedited model is the yardstick. Knowledge preservation: samples answered rightly then,"
        " with the same answer before and after; the paper compares with the stored answers of its"
        " own two models instead."
    ),
}
"""What the numbers of each protocol are."""
