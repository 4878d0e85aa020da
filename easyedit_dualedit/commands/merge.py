"""The command `merge`: the shards of a benchmark become one run."""

import argparse

from easyedit_dualedit.commands.arguments import given_path

HELP = "put the shards of a benchmark together"
DESCRIPTION = "Put the folders of one benchmark's shards together and write its reports."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("folders", nargs="+", type=given_path, metavar="FOLDER", help="of a shard")
    parser.add_argument("--output", type=given_path, required=True, help="folder of the whole")
    parser.add_argument("--images", type=given_path, help="pictures for the page")


def run(arguments: argparse.Namespace) -> None:
    """Put the shards of a run together and write every report."""
    from easyedit_dualedit.commands.benchmark_background import (
        BACKGROUND_FOLDER,
        keep_background,
    )
    from easyedit_dualedit.commands.benchmark_report import (
        PLAN_FILE,
        keep_plan,
        require_pictures,
        write_reports,
    )
    from easyedit_dualedit.commands.console import console
    from easyedit_dualedit.commands.runs import alone_in
    from easyedit_dualedit.experiments.shards import merge
    from easyedit_dualedit.files import read_json

    require_pictures(arguments.images)
    with alone_in(arguments.output):
        merge(arguments.folders, arguments.output)
        for source in arguments.folders:
            plan = read_json(source / PLAN_FILE)
            if plan is not None:
                keep_plan(arguments.output, plan)
            if (source / BACKGROUND_FOLDER).is_dir():
                keep_background(arguments.output, None, [source / BACKGROUND_FOLDER])
        write_reports(arguments.output, console(), arguments.images)
