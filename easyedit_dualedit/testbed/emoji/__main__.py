"""``python -m easyedit_dualedit.testbed.emoji make``: the emoji model from its packages."""

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path

import torch

from easyedit_dualedit.errors import DualEditError
from easyedit_dualedit.testbed.emoji.assembling import weights_folder
from easyedit_dualedit.testbed.emoji.decoder import DecoderPlan
from easyedit_dualedit.testbed.emoji.general_questions import questions_in, shipped_questions
from easyedit_dualedit.testbed.emoji.make import Plan, make
from easyedit_dualedit.testbed.emoji.parts import default_folder, fetch_parts
from easyedit_dualedit.testbed.emoji.tower import TowerPlan


def main() -> None:
    """Make the emoji model, measure it and write its card."""
    arguments = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    plan = Plan(
        tower=TowerPlan(arguments.tower_steps, arguments.whole_steps),
        decoder=DecoderPlan(arguments.oracle_steps, arguments.decoder_steps),
        pictures=arguments.pictures,
        seed=arguments.seed,
    )
    if arguments.keep_tower:
        plan = replace(plan, tower=None)
    try:
        questions = [
            each.question
            for split in ("train", "eval")
            for each in (
                questions_in(arguments.loc, split) if arguments.loc else shipped_questions(split)
            )
        ][-arguments.questions :]
        make(
            fetch_parts(arguments.packages or default_folder()),
            arguments.out,
            arguments.scratch,
            questions,
            plan,
            begin=weights_folder() if arguments.from_shipped else None,
        )
    except DualEditError as error:
        sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m easyedit_dualedit.testbed.emoji",
        description=main.__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("action", choices=["make"], help="what to do")
    parser.add_argument("--out", type=Path, default=Path("llava-onevision-emoji"))
    parser.add_argument(
        "--scratch", type=Path, default=Path("emoji-stages"), help="of the stages, to go on from"
    )
    parser.add_argument("--packages", type=Path, help="folder of the packages")
    parser.add_argument("--loc", type=Path, help="records in MMEdit's format, for their questions")
    parser.add_argument("--questions", type=int, default=600, help="to rehearse and measure with")
    parser.add_argument(
        "--from-shipped", action="store_true", help="begin with the weights of this package"
    )
    parser.add_argument(
        "--keep-tower", action="store_true", help="teach the decoder alone; with --from-shipped"
    )
    parser.add_argument("--tower-steps", type=int, default=3000, help="with few patches")
    parser.add_argument("--whole-steps", type=int, default=800, help="with all patches")
    parser.add_argument("--oracle-steps", type=int, default=120, help="on exact words")
    parser.add_argument("--decoder-steps", type=int, default=300, help="on the tower's words")
    parser.add_argument("--pictures", type=int, default=200, help="to measure with")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads for torch")
    return parser


if __name__ == "__main__":
    main()
