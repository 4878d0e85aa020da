"""Whether an edit without a picture knows its question from one about something else.

``python -m benchmarks.near_questions`` edits each question of `ASKED`, eight sorts about five
things each, one at a time, and asks routing alone: whether the question finds its edit as it was
typed and in `WORDINGS` that say the same, and whether the four others of its sort, those of other
sorts, and two `FURTHER` ones about its own thing find it.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence

import torch
from tqdm import tqdm

from benchmarks.text_only import asked_editor, parser_of, table_of
from easyedit_dualedit import DualEditor, Query
from easyedit_dualedit.data.records import QUESTION_PREFIX

_THINGS = {
    "What is the capital of {}?": ("France", "Spain", "Japan", "Peru", "Kenya"),
    "Who wrote {}?": ("Hamlet", "Macbeth", "Faust", "Emma", "Dracula"),
    "What color is a {}?": ("banana", "tomato", "lemon", "carrot", "frog"),
    "Who is the president of {}?": ("France", "Brazil", "Kenya", "Poland", "Chile"),
    "When was {} born?": ("Mozart", "Einstein", "Newton", "Darwin", "Goethe"),
    "How many legs does a {} have?": ("spider", "dog", "ant", "crab", "bird"),
    "What language is spoken in {}?": ("Brazil", "Austria", "Egypt", "Chile", "China"),
    "Where does a {} live?": ("lion", "shark", "camel", "penguin", "bear"),
}

ASKED = {sort: tuple(sort.format(thing) for thing in things) for sort, things in _THINGS.items()}
"""Questions of each sort."""

WORDINGS = {
    "What is the capital of France?": "Which city is the capital of France?",
    "What is the capital of Japan?": "Tell me the capital city of Japan.",
    "Who wrote Hamlet?": "Who is the author of Hamlet?",
    "Who wrote Macbeth?": "Macbeth was written by whom?",
    "What color is a banana?": "Which colour does a banana have?",
    "What color is a tomato?": "What is the color of tomatoes?",
    "Who is the president of France?": "Name the president of France.",
    "Who is the president of Brazil?": "Brazil's president is who?",
    "When was Mozart born?": "In which year was Mozart born?",
    "When was Einstein born?": "What is Einstein's year of birth?",
    "How many legs does a spider have?": "What is the number of legs of a spider?",
    "How many legs does a crab have?": "A crab has how many legs?",
    "What language is spoken in Brazil?": "Which language do people in Brazil speak?",
    "What language is spoken in Egypt?": "Egypt's people speak which language?",
    "Where does a lion live?": "In what place do lions live?",
    "Where does a penguin live?": "Where can I find penguins?",
}
"""Questions -> the same in other words."""

FURTHER = {
    "What is the capital of {}?": ("What is the population of {}?", "What is the currency of {}?"),
    "Who wrote {}?": ("When was {} written?", "What is {} about?"),
    "What color is a {}?": ("Where do you find a {}?", "What does a {} weigh?"),
    "Who is the president of {}?": ("What is the flag of {}?", "Where is {}?"),
    "When was {} born?": ("Where was {} born?", "When did {} die?"),
    "How many legs does a {} have?": ("How many eyes does a {} have?", "What does a {} eat?"),
    "What language is spoken in {}?": ("What money is used in {}?", "How many people live in {}?"),
    "Where does a {} live?": ("What does a {} eat?", "How long does a {} live?"),
}
"""Sorts of questions -> others about the same thing."""

COLUMNS = (
    "as typed",
    "as the data have it",
    "in lower case",
    "in other words",
    "the same about another thing",
    "another sort",
    "another about the same thing",
)


@torch.no_grad()
def measure(editor: DualEditor) -> str:
    """Return a Markdown table of how many questions find the edit, percent with 95 % interval."""
    things = [(sort, thing) for sort, named in _THINGS.items() for thing in named]
    sorts = [sort for sort, _ in things]
    typed = [question for asked in ASKED.values() for question in asked]
    ways = (
        typed,
        [f"{QUESTION_PREFIX}{question}" for question in typed],
        [question.rstrip("?").lower() for question in typed],
        [WORDINGS.get(question, question) for question in typed],
        *([FURTHER[sort][at].format(each) for sort, each in things] for at in range(2)),
    )
    batches = [
        editor.encoder.encode([Query(question) for question in asked], with_target=False).inputs
        for asked in ways
    ]
    signals = editor.read([Query(question, None, "a word") for question in typed])
    found: defaultdict[str, list[float]] = defaultdict(list)
    for place, signal in enumerate(tqdm(signals, desc="edits", unit="edit")):
        edited = editor.edited([signal])
        opens = [edited.route(**inputs).is_open.tolist() for inputs in batches]
        for name, each in zip(COLUMNS[:3], opens, strict=False):
            found[name].append(each[place])
        if typed[place] in WORDINGS:
            found[COLUMNS[3]].append(opens[3][place])
        found[COLUMNS[6]] += [each[place] for each in opens[4:]]
        for other, is_open in enumerate(opens[0]):
            if other != place:
                found[COLUMNS[4 if sorts[other] == sorts[place] else 5]].append(is_open)
    return table_of({name: found[name] for name in COLUMNS})


def main(given: Sequence[str] | None = None) -> None:
    """Measure and print."""
    arguments = parser_of(__doc__).parse_args(given)
    sys.stdout.write(measure(asked_editor(arguments)) + "\n")


if __name__ == "__main__":
    main()
