"""Draws `docs/pictures/edit.png`: one edit of the bundled testbed model, before and after.

python docs/pictures/edit.py [--record 15]

Nothing is drawn by hand: the answers are the model's, and the similarities are those that the gate
compares with its threshold. The record was chosen because both of its pictures show a green thing;
of the first sixteen, record 3 shows a miss (the gate stays closed for its third question). Needs
matplotlib (the extra `plots`).
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
from PIL import Image

from easyedit_dualedit import DualEditor, Query, load_model
from easyedit_dualedit.data.records import load_records
from easyedit_dualedit.testbed import adapters_folder, model_folder, write_records

matplotlib.use("agg")
from matplotlib import pyplot  # noqa: E402

OUTPUT = Path(__file__).with_name("edit.png")
RECORDS = 16

OPEN, CLOSED, INK, FAINT = "#1b7f5a", "#8a8f98", "#1f2328", "#d7dbe0"


@dataclass(frozen=True)
class Row:
    """One question: what the model says before and after the edit, and what the gate decides."""

    title: str
    query: Query
    before: str
    after: str
    similarity: float
    is_open: bool


def asked(records: list[Any], number: int) -> list[tuple[str, Query]]:
    """Return what is asked of the edit of a record: in scope first, then out of it."""
    record = records[number]
    request: Query = record.request
    other = records[(number + 1) % len(records)].request
    return [
        ("the edit itself", request),
        ("the same in other words", record.text_rephrase),
        ("another picture of the same", record.image_rephrase),
        ("the same words, another picture", Query(request.prompt, other.image)),
        ("an unrelated question", record.image_locality),
    ]


@torch.no_grad()
def rows_of(number: int, folder: Path) -> tuple[list[Row], float]:
    """Return the rows of the picture, and the gate's threshold."""
    path = write_records(folder, "vqa", "eval", RECORDS)
    records = load_records(path, folder / "images")
    model, processor = load_model(str(model_folder()))
    editor = DualEditor.load(model, processor, adapters_folder("default"))
    request = records[number].request
    edited = editor.edit(request.image, request.prompt, request.target or "")
    rows = []
    for title, query in asked(records, number):
        batch = editor.encoder.encode([query], with_target=False)
        routing = edited.route(layout=batch.layout, **batch.inputs)
        answers = []
        for answering in (model, edited):
            tokens = answering.generate(**batch.inputs, max_new_tokens=16, do_sample=False)
            new = tokens[0, batch.inputs["input_ids"].shape[1] :]
            answers.append(processor.tokenizer.decode(new, skip_special_tokens=True).strip())
        similarity, is_open = float(routing.similarity[0]), bool(routing.is_open[0])
        rows.append(Row(title, query, *answers, similarity, is_open))
    return rows, editor.gate.threshold


def draw(rows: list[Row], threshold: float, output: Path) -> None:
    """Write the picture of the rows."""
    height = len(rows) + 0.55
    figure = pyplot.figure(figsize=(10.5, 0.83 * height), dpi=110, facecolor="white")
    page = figure.add_axes((0, 0, 1, 1))
    page.set(xlim=(0, 10.5), ylim=(height, 0))
    page.axis("off")
    left, right = 7.3, 10.25
    for place, text in ((1.05, "question"), (4.75, "before"), (5.95, "after")):
        page.text(place, 0.33, text, color=CLOSED, va="center", fontsize=10)
    page.text(left, 0.33, "similarity to the edit", color=CLOSED, va="center", fontsize=10)

    def place_of(similarity: float) -> float:
        return left + (right - left) * min(max(similarity, 0.0), 1.0)

    for number, row in enumerate(rows):
        top = number + 0.55
        middle = top + 0.5
        colour = OPEN if row.is_open else CLOSED
        page.plot((0.15, 10.35), (top, top), color=FAINT, linewidth=0.8)
        with Image.open(row.query.pictures[0]) as picture:  # type: ignore[arg-type]
            page.imshow(
                picture.convert("RGB"),
                extent=(0.15, 0.15 + 0.86 * 0.83, top + 0.93, top + 0.07),
                interpolation="nearest",
                aspect="auto",
            )
        page.text(1.05, middle - 0.17, row.query.prompt, color=INK, va="center", fontsize=10.5)
        page.text(1.05, middle + 0.2, row.title, color=CLOSED, va="center", fontsize=9)
        page.text(4.75, middle, row.before, color=INK, va="center", fontsize=11)
        weight = "bold" if row.after != row.before else "normal"
        page.text(5.95, middle, row.after, color=colour, va="center", fontsize=11, weight=weight)
        page.plot((left, right), (middle, middle), color=FAINT, linewidth=6, solid_capstyle="butt")
        end = place_of(row.similarity)
        page.plot((left, end), (middle, middle), color=colour, linewidth=6, solid_capstyle="butt")
        state = "gate open" if row.is_open else "gate closed"
        page.text(
            left,
            middle + 0.29,
            f"{row.similarity:.2f}, {state}",
            color=colour,
            va="center",
            fontsize=8.5,
        )
    line = place_of(threshold)
    page.plot((line, line), (0.55, height), color=INK, linewidth=1, linestyle=(0, (3, 2)))
    page.text(
        line, 0.33, f"threshold {threshold:.2f}", color=INK, va="center", ha="center", fontsize=9
    )
    page.set(xlim=(0, 10.5), ylim=(height, 0))
    figure.savefig(output, pil_kwargs={"optimize": True})
    pyplot.close(figure)


def main() -> None:
    """Make the edit of a record and draw it."""
    parser = argparse.ArgumentParser(description="Draws one edit of the testbed model.")
    parser.add_argument("--record", type=int, default=15, choices=range(RECORDS), metavar="N")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows, threshold = rows_of(arguments.record, Path(folder))
        draw(rows, threshold, arguments.output)


if __name__ == "__main__":
    main()
