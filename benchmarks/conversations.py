"""Whether an edit shows where its question does not stand alone: behind other turns of a chat.

``python -m benchmarks.conversations`` makes edits of held-out records, one at a time, asks each
in every `SETTINGS` through the processor's chat template, and prints how many answers are the
edit's, how many answers about another picture change, and how often the unedited model answers
as it does to the question alone.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from easyedit_dualedit import DualEditor, Query
from easyedit_dualedit.commands.editors import editor_of
from easyedit_dualedit.commands.records import own_records
from easyedit_dualedit.data.records import METRICS, Record, metric_queries
from easyedit_dualedit.model.inputs import input_device
from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams

_LONGEST = 12
"""Tokens of a generated answer; longer than any that is asked for."""

Message = Mapping[str, Any]


def _said(role: str, text: str) -> Message:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _opened(query: Query) -> Image.Image:
    (file,) = query.files
    return file if isinstance(file, Image.Image) else Image.open(file).convert("RGB")


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
        image: dict[str, Any] = {"type": "image", "image": _opened(query)}
        told = [_said("system", self.system)] if self.system else []
        earlier, answer = self.before or (query.prompt, "")
        shown = {"role": "user", "content": [image, {"type": "text", "text": earlier}]}
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


def measure(editor: DualEditor, records: Sequence[Record]) -> str:
    """Return a Markdown table of all settings, percent."""
    processor = editor.encoder.processor
    request, other = METRICS[0], METRICS[-1]

    def answer(model: Any, chat: Sequence[Message]) -> str:
        inputs = processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(input_device(editor.backbone.model))
        made = model.generate(**inputs, max_new_tokens=_LONGEST, do_sample=False)
        text = processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return str(text).strip()

    counts: Counter[tuple[str, str]] = Counter()
    for record in tqdm(records, desc="edits", unit="edit"):
        target = record.request.target or ""
        edited = editor.edit(_opened(record.request), record.request.prompt, target)
        (elsewhere,) = metric_queries([record], other)
        alone = None
        for setting in SETTINGS:
            chat = setting.messages(record.request)
            unedited = answer(editor.backbone.model, chat)
            alone = unedited if alone is None else alone
            counts[setting.name, "alike"] += unedited == alone
            counts[setting.name, request] += answer(edited, chat) == target
            chat = setting.messages(elsewhere)
            counts[setting.name, other] += answer(edited, chat) == answer(
                editor.backbone.model, chat
            )
    lines = [
        "| question | the edit's answer | another picture's answer stays"
        " | the unedited model answers as to the question alone |",
        "|---|---|---|---|",
    ]
    for setting in SETTINGS:
        shares = [counts[setting.name, each] / len(records) for each in (request, other, "alike")]
        lines.append(f"| {setting.name} | " + " | ".join(f"{100 * s:.1f}" for s in shares) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hparams", default="emoji", help="emoji or testbed")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--data", type=Path, default=Path("outputs/demo/data"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    hparams = DualEditMultimodalHparams.from_hparams(arguments.hparams)
    records = own_records(hparams.model_name, arguments.data, "eval")[: arguments.count]
    sys.stdout.write(measure(editor_of(hparams), records) + "\n")


if __name__ == "__main__":
    main()
