"""Peculiarities of the published files of records, counted and never mended."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from easyedit_dualedit.data.records import QUESTION_PREFIX, Record
from easyedit_dualedit.model.inputs import Query


def quirks(records: Sequence[Record]) -> dict[str, int]:
    """Return how many records have each peculiarity of the published files, zeros included.

    None of them is mended, so that numbers stay those of the published data. What is done with
    each:

    - the prefix "nq question: " of a text-locality prompt is kept, as every published number has
      it; only the leak audit compares questions without it.
    - a newline in a target is kept, and is part of the answer.
    - a newline in a prompt, as where a rephrase lists several wordings, is kept; around the text
      it was removed.
    - white space around a target is kept: it is part of what an edit says, and its tokens count, as
      they do for EasyEdit's evaluator. Exact match takes no notice of it.
    - a rephrase equal to its source measures reliability again; it is kept and measured as it is.
    - a target equal to the prediction is an edit to what the data set says the model answers
      already; it is made and measured like any other. Case, white space around, and underscores
      for spaces do not count.
    - text beyond ASCII is kept, and compared by exact match after NFKC normalisation.
    - a rephrased picture equal to the edit's own measures reliability again; kept and measured.
    - records with one (picture, prompt) and different targets contradict each other only where
      edits are held together: there the newest answer wins, and `EditMemory.add` warns. Alone,
      each is made and measured like any other.
    - records with one (picture, prompt) and the same target are one edit, measured as often as it
      stands in the file.

    A target is that of the edit, of a locality query or of a portability query. Prompts are looked
    at without their template.
    """
    answers: dict[tuple[object, ...], list[str]] = {}
    for record in records:
        answers.setdefault(_edited_place(record), []).append(_target(record))
    counts = {name: sum(map(has, records)) for name, has in _QUIRKS.items()}
    counts["picture and prompt of another record, different target"] = sum(
        len(given) for given in answers.values() if len(set(given)) > 1
    )
    counts["picture, prompt and target of another record"] = sum(
        count for given in answers.values() for count in Counter(given).values() if count > 1
    )
    return counts


def _target(record: Record) -> str:
    return (record.request.target or "").strip()


def _edited_place(record: Record) -> tuple[object, ...]:
    # Pictures in memory cannot be hashed; records read from a file hold paths.
    pictures = (item if isinstance(item, Path) else id(item) for item in record.request.files)
    return (record.question(record.request), *pictures)


def _all_queries(record: Record) -> tuple[Query, ...]:
    return (*record.queries, *record.portability)


def _targets(record: Record) -> list[str]:
    return [query.target or "" for query in _all_queries(record)]


def _questions(record: Record) -> list[str]:
    return [record.question(query) for query in _all_queries(record)]


def _has_newline(texts: Sequence[str]) -> bool:
    return any("\n" in text or "\r" in text for text in texts)


def _folded(text: str) -> str:
    return " ".join(text.replace("_", " ").split()).casefold()


_QUIRKS: dict[str, Callable[[Record], bool]] = {
    "text-locality prompt with the prefix 'nq question: '": lambda record: (
        record.text_locality.prompt.startswith(QUESTION_PREFIX)
    ),
    "newline in a target": lambda record: _has_newline(_targets(record)),
    "newline in a prompt": lambda record: _has_newline(_questions(record)),
    "white space around a target": lambda record: any(
        text != text.strip() for text in _targets(record)
    ),
    "rephrase equal to its source": lambda record: (
        record.question(record.text_rephrase) == record.question(record.request)
    ),
    "target equal to the prediction": lambda record: (
        _folded(_target(record)) == _folded(record.prediction)
    ),
    "text beyond ASCII": lambda record: (
        not "".join([*_targets(record), *_questions(record), record.prediction]).isascii()
    ),
    "rephrased picture equal to the edit's": lambda record: (
        record.image_rephrase.shown == record.request.shown
    ),
}
