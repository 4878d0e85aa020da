"""Whether edits of questions without a picture take, and what they leave alone.

``python -m benchmarks.text_only`` makes edits of the held-out records' text-locality questions,
each alone and with the target of its record, and prints how many answer the question as it was
typed, as the data have it ("nq question: ...") and beside a picture, and how many answers to other
such questions and to questions about pictures stay. A second edit asks the record's own question
without its picture. With ``--together`` all edits are kept in one model, and routing alone is
asked: whether a question finds its own edit, and whether others find none.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from easyedit_dualedit import DualEditor, EditedModel, EditMemory, Query
from easyedit_dualedit.commands.editors import editor_of
from easyedit_dualedit.commands.records import own_records
from easyedit_dualedit.data.records import QUESTION_PREFIX, Record
from easyedit_dualedit.measure.intervals import interval
from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams
from easyedit_dualedit.testbed.untaught import with_untaught_targets

ASKED = ("as typed", "as the data have it", "beside a picture")
OWN = "a picture's question without it"
STAYS = ("another question", "about a picture")
TOGETHER = (
    "as typed finds its edit",
    "as the data have it",
    "finds another edit",
    "another question finds an edit",
)


def measure(
    editor: DualEditor,
    records: Sequence[Record],
    others: Sequence[Record],
    *,
    is_open: bool = False,
) -> str:
    """Return a Markdown table, percent with 95 % interval.

    Args:
        editor: edits its model.
        records: each gives a question, a target and pictures.
        others: for each another one, whose question has to be left alone.
        is_open: whether the gate is held open, so that adapters alone are measured; nothing is
            then asked that has to stay.
    """
    gate = editor.open_gate() if is_open else None
    unedited = editor.edited([])
    right: defaultdict[str, list[float]] = defaultdict(list)
    for record, after in tqdm(list(zip(records, others, strict=True)), desc="edits", unit="edit"):
        asked = record.text_locality.prompt
        typed = asked.removeprefix(QUESTION_PREFIX)
        target = record.request.target or ""
        own = record.request.prompt
        reads = editor.read([Query(typed, None, target), Query(own, None, target)])
        edited, alone = (editor.edited([each], gate=gate) for each in reads)
        shown = record.image_rephrase.image
        queries = (Query(typed), Query(asked), Query(typed, shown))
        for name, query in zip(ASKED, queries, strict=True):
            right[name].append(answer_of(edited, editor, query, target) == target.strip())
        right[OWN].append(answer_of(alone, editor, Query(own), target) == target.strip())
        elsewhere = after.text_locality.prompt.removeprefix(QUESTION_PREFIX)
        stays = (Query(elsewhere), replace(record.image_locality, target=None))
        for name, query in zip(STAYS, () if is_open else stays, strict=False):
            before = answer_of(unedited, editor, query, target)
            right[name].append(answer_of(edited, editor, query, target) == before)
    return table_of(right)


@torch.no_grad()
def measure_together(editor: DualEditor, records: Sequence[Record], count: int) -> str:
    """Return a Markdown table of edits that are kept in one model, percent with 95 % interval.

    Args:
        editor: reads its model.
        records: whose text-locality questions are edited, each once, and then asked.
        count: of edits; questions beyond them belong to none.
    """
    questions = list({record.text_locality.prompt: record for record in records}.values())
    asked = [record.text_locality.prompt for record in questions]
    typed = [prompt.removeprefix(QUESTION_PREFIX) for prompt in asked]
    targets = [record.request.target or "" for record in questions]
    memory = EditMemory(editor)
    for prompt, target in tqdm(
        list(zip(typed, targets, strict=True))[:count], desc="edits", unit="edit"
    ):
        memory.add([Query(prompt, None, target)])
    right: defaultdict[str, list[float]] = defaultdict(list)
    for place, prompts in enumerate(tqdm(list(zip(typed, asked, strict=True)), desc="asking")):
        own = place if place < count else -1
        for name, prompt in zip(TOGETHER, prompts, strict=False):
            inputs = editor.encoder.encode([Query(prompt)], with_target=False).inputs
            found = int(memory.model.route(**inputs).edit_index[0])
            if own >= 0:
                right[name].append(found == own)
                right[TOGETHER[2]].append(found not in (own, -1))
            else:
                right[TOGETHER[3]].append(found >= 0)
    return table_of({name: right[name] for name in TOGETHER})


def table_of(right: Mapping[str, Sequence[float]]) -> str:
    """Return a Markdown table of one row: shares, percent with 95 % interval."""
    lines = [f"| {' | '.join(right)} |", f"|{'---|' * len(right)}"]
    found = [interval(each) for each in right.values()]
    shares = [f"{each.mean:.1f} ({each.low:.1f}–{each.high:.1f})" for each in found]
    return "\n".join([*lines, f"| {' | '.join(shares)} |"])


def answer_of(model: EditedModel, editor: DualEditor, query: Query, target: str) -> str:
    """Return the greedy answer to a question, with room to run on after the target."""
    room = len(editor.encoder.tokenizer(target)["input_ids"]) + 4
    inputs = editor.encoder.encode([query], with_target=False).inputs
    made = model.generate(**inputs, max_new_tokens=room, do_sample=False)
    start = inputs["input_ids"].shape[1]
    return str(editor.encoder.tokenizer.decode(made[0, start:], skip_special_tokens=True)).strip()


def parser_of(about: str | None) -> argparse.ArgumentParser:
    """Return a parser of what says which adapters are asked."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("--hparams", default="emoji", help="emoji or testbed")
    parser.add_argument("--archive", help="other adapters than those of the hparams")
    parser.add_argument("--dtype", help="another than that of the hparams, such as float32")
    return parser


def add_records(parser: argparse.ArgumentParser) -> None:
    """Add what says how many records are asked about."""
    parser.add_argument("--count", type=int, default=100, help="edits")
    parser.add_argument("--data", type=Path, default=Path("outputs/demo/data"))


def asked_editor(arguments: argparse.Namespace) -> DualEditor:
    """Return the editor that a command line of `parser_of` names."""
    torch.set_num_threads(1)
    hparams = DualEditMultimodalHparams.from_hparams(arguments.hparams)
    asked = {"archive": arguments.archive, "dtype": arguments.dtype}
    return editor_of(replace(hparams, **{name: each for name, each in asked.items() if each}))


def asked_records(arguments: argparse.Namespace) -> list[Record]:
    """Return the held-out records of the model that a command line of `parser_of` names."""
    hparams = DualEditMultimodalHparams.from_hparams(arguments.hparams)
    return own_records(hparams.model_name, arguments.data, "eval")


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    add_records(parser)
    parser.add_argument("--untaught", action="store_true", help="words that no training taught")
    parser.add_argument("--open", action="store_true", help="hold the gate open")
    parser.add_argument(
        "--together", action="store_true", help="all edits in one model, and other questions"
    )
    arguments = parser.parse_args()
    if arguments.together and (arguments.open or arguments.untaught):
        parser.error("--together asks routing alone: leave out --open and --untaught")
    records = asked_records(arguments)
    if arguments.together:
        most = len({record.text_locality.prompt for record in records}) - 1
        if arguments.count > most:
            parser.error(f"--count {arguments.count}: there are other questions up to {most}")
        sys.stdout.write(measure_together(asked_editor(arguments), records, arguments.count) + "\n")
        return
    others = [*records[1:], records[0]][: arguments.count]
    records = records[: arguments.count]
    if arguments.untaught:
        records = with_untaught_targets(records)
    editor = asked_editor(arguments)
    sys.stdout.write(measure(editor, records, others, is_open=arguments.open) + "\n")


if __name__ == "__main__":
    main()
