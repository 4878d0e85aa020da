"""Whether an edit shows where its question does not stand alone: behind other turns of a chat.

``python -m benchmarks.conversations`` makes edits of held-out records, one at a time, asks each
in every `SETTINGS` through the processor's chat template, and prints how many answers are the
edit's, how many answers about another picture change, and how often the unedited model answers
as it does to the question alone. With ``--without-picture`` the edits are those of the records'
text-locality questions, each with its record's target, and nothing in the chat shows a picture.
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from tqdm import tqdm

from benchmarks.text_only import add_records, asked_editor, asked_records, parser_of
from easyedit_dualedit import DualEditor, Query
from easyedit_dualedit.data.records import METRICS, QUESTION_PREFIX, Record, metric_queries
from easyedit_dualedit.model.inputs import input_device

_LONGEST = 12
"""Tokens of a generated answer; longer than any that is asked for."""

Message = Mapping[str, Any]


def _said(role: str, text: str) -> Message:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _opened(query: Query) -> Image.Image | None:
    if not query.files:
        return None
    (file,) = query.files
    return file if isinstance(file, Image.Image) else Image.open(file).convert("RGB")


def without_pictures(records: Sequence[Record]) -> list[tuple[Query, Query]]:
    """Return edits of text-locality questions as typed, and with each the next one's question.

    Args:
        records: at least two: of one, the next would be itself.
    """
    typed = [record.text_locality.prompt.removeprefix(QUESTION_PREFIX) for record in records]
    targets = [record.request.target for record in records]
    return [
        (Query(typed[place], None, target), Query(typed[(place + 1) % len(typed)]))
        for place, target in enumerate(targets)
    ]


def with_pictures(records: Sequence[Record]) -> list[tuple[Query, Query]]:
    """Return the records' edits, and with each the question about its locality picture."""
    others = metric_queries(records, METRICS[-1])
    return [(record.request, other) for record, other in zip(records, others, strict=True)]


@dataclass(frozen=True)
class Setting:
    """What stands before a question."""

    name: str
    system: str | None = None
    """What the system says first."""
    before: tuple[str, str] | None = None
    """A question about the same picture and its answer, a turn earlier."""

    def messages(self, query: Query) -> list[Message]:
        """Return the chat that ends with a query, its picture in the first turn of the user's."""
        picture = _opened(query)
        image: list[dict[str, Any]] = [{"type": "image", "image": picture}] if picture else []
        told = [_said("system", self.system)] if self.system else []
        earlier, answer = self.before or (query.prompt, "")
        shown = {"role": "user", "content": [*image, {"type": "text", "text": earlier}]}
        if self.before is None:
            return [*told, shown]
        return [*told, shown, _said("assistant", answer), _said("user", query.prompt)]


SETTINGS = (
    Setting("alone"),
    Setting("behind a system prompt", system="You are a helpful assistant."),
    Setting("behind a longer one", system="You are a careful assistant. Answer in one word."),
    Setting("in a second turn", before=("How many things are in the picture?", "One.")),
    Setting("both", "You are a helpful assistant.", ("What color is the background?", "Grey.")),
)


def measure(editor: DualEditor, asked: Sequence[tuple[Query, Query]]) -> str:
    """Return a Markdown table of all settings, percent.

    Args:
        editor: edits its model.
        asked: edits, each with another question that it has to leave alone.
    """
    processor, unedited = editor.encoder.processor, editor.backbone.model

    def answer(model: Any, chat: Sequence[Message]) -> str:
        inputs = processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(input_device(unedited))
        made = model.generate(**inputs, max_new_tokens=_LONGEST, do_sample=False)
        text = processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return str(text).strip()

    counts: Counter[tuple[str, str]] = Counter()
    for request, other in tqdm(asked, desc="edits", unit="edit"):
        edited = editor.edited(editor.read([request]))
        alone = None
        for setting in SETTINGS:
            chat = setting.messages(request)
            before = answer(unedited, chat)
            alone = before if alone is None else alone
            counts[setting.name, "alike"] += before == alone
            counts[setting.name, "edit"] += answer(edited, chat) == (request.target or "").strip()
            chat = setting.messages(other)
            counts[setting.name, "other"] += answer(edited, chat) == answer(unedited, chat)
    lines = [
        "| question | the edit's answer | another question's answer stays"
        " | the unedited model answers as to the question alone |",
        "|---|---|---|---|",
    ]
    for setting in SETTINGS:
        shares = [counts[setting.name, each] / len(asked) for each in ("edit", "other", "alike")]
        lines.append(f"| {setting.name} | " + " | ".join(f"{100 * s:.1f}" for s in shares) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    add_records(parser)
    parser.add_argument("--without-picture", action="store_true", help="edits of text alone")
    arguments = parser.parse_args()
    records = asked_records(arguments)
    asked = without_pictures(records) if arguments.without_picture else with_pictures(records)
    sys.stdout.write(measure(asked_editor(arguments), asked[: arguments.count]) + "\n")


if __name__ == "__main__":
    main()
