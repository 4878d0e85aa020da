"""The command `curves`: table and plot of a training are made again, after it or while it runs."""

import argparse
from pathlib import Path

from easyedit_dualedit.commands.train import CURVES_FOLDER

HELP = "make the table and the plot of a training's curves again"
DESCRIPTION = (
    "Write the table and the plot of a training's curves anew from its lines, and print what"
    " validation measured; the training may still be running."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("folder", type=Path, help="of the adapters: --output of `train`")
    parser.add_argument(
        "--log",
        choices=["tensorboard"],
        help="also write them for TensorBoard, into FOLDER/curves/tensorboard",
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the table and the plot, and print the validations."""
    from easyedit_dualedit.commands.console import console
    from easyedit_dualedit.data.records import METRICS
    from easyedit_dualedit.report.table import Table, numbers
    from easyedit_dualedit.report.tensorboard import TensorBoard
    from easyedit_dualedit.report.training_curves import draw_curves

    folder = arguments.folder / CURVES_FOLDER
    lines = draw_curves(folder)
    if arguments.log == "tensorboard":
        log = TensorBoard(folder / "tensorboard")
        for line in lines:
            log(line)
    rows, gate, opens = [], "", ""
    for line in lines:
        if line["part"] == "validation":
            gate = line["gate"]
            opens = ", ".join(
                f"{metric.replace('_', ' ')} {share:.1%}"
                for metric, share in line.get("opens", {}).items()
            )
            shares = [line["gated"]["all"].get(metric) for metric in METRICS]
            cells = ["" if share is None else f"{share:.1%}" for share in shares]
            best = "best" if line["is_best"] else ""
            rows.append([str(line["step"]), f"{line['loss']['total']:.3f}", *cells, best])
    if rows:
        columns = numbers("step", "loss", *(metric.replace("_", " ") for metric in METRICS), "")
        title = f"validation of {arguments.folder}, gate: {gate}"
        caption = f"the gate opens for: {opens}" if opens else ""
        console().print(Table(columns, rows, title, caption).for_terminal())
    console().print(f"written: {folder}")
