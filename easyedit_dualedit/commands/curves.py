"""The command `curves`: table and plot of a training are made again, after it or while it runs."""

import argparse
import dataclasses

from easyedit_dualedit.commands.arguments import given_path
from easyedit_dualedit.commands.training_folder import CURVES_FOLDER

HELP = "make the table and the plot of a training's curves again"
DESCRIPTION = (
    "Write the table and the plot of a training's curves anew from its lines, and print what"
    " validation measured; the training may still be running."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("folder", type=given_path, help="of the adapters: --output of `train`")
    parser.add_argument(
        "--log",
        choices=["tensorboard"],
        help="also write them for TensorBoard, into FOLDER/curves/tensorboard",
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the table and the plot, and print the validations."""
    from easyedit_dualedit.commands.console import console
    from easyedit_dualedit.report.tensorboard import TensorBoard
    from easyedit_dualedit.report.training_curves import draw_curves, validation_table

    folder = arguments.folder / CURVES_FOLDER
    lines = draw_curves(folder)
    if arguments.log == "tensorboard":
        log = TensorBoard(folder / "tensorboard")
        for line in lines:
            log(line)
    table = validation_table(lines)
    if table is not None:
        title = table.title.replace("validation", f"validation of {arguments.folder}", 1)
        console().print(dataclasses.replace(table, title=title).for_terminal())
    console().print(f"written: {folder}")
