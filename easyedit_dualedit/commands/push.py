"""The command `push`: adapters or edits become a repository of the hub, with a card."""

import argparse
import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easyedit_dualedit.commands.arguments import given_path
from easyedit_dualedit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from easyedit_dualedit.method.shared_folder import SharedFolder
    from easyedit_dualedit.report.shared_card import About

HELP = "share adapters or edits on the Hugging Face hub"
DESCRIPTION = (
    "Send a folder of adapters, or of edits, to a repository of the Hugging Face hub, with a card"
    " that says what they belong to, how they are used, what was measured and how they were"
    " trained. They are read and checked before anything is sent. Only the two files that they"
    " consist of travel, and the card; a README.md in the folder is sent instead of the card that"
    " would be made, unless --results asks for numbers in it."
)
_MODELS = {
    "testbed": "easyedit_dualedit.testbed",
    "emoji": "easyedit_dualedit.testbed.emoji.places",
}
"""Shipped model -> the module that knows its folder."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("folder", type=given_path, help="of adapters, or of edits")
    parser.add_argument("repository", metavar="USER/NAME", help="made if it is not there")
    parser.add_argument(
        "--base-model",
        metavar="MODEL",
        help="what they were made for: a hub id, testbed or emoji (default: what the training, or"
        " --results, says)",
    )
    parser.add_argument(
        "--results",
        type=given_path,
        metavar="RUN",
        help="folder of a benchmark, an evaluation or a demo, whose numbers the card has",
    )
    parser.add_argument(
        "--adapters",
        metavar="USER/NAME",
        help="of edits: the adapters that they were made with, for the card",
    )
    parser.add_argument("--license", help="of the hub's list, such as mit (default: unknown)")
    parser.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="PATTERN",
        help="further files of the folder, such as 'curves/*'; repeatable",
    )
    parser.add_argument("--message", default=None, help="of the commit")
    parser.add_argument(
        "--private",
        action="store_true",
        default=None,
        help="if the repository is new (default: as your account says)",
    )
    parser.add_argument("--revision", help="branch to send to (default: the main one)")
    parser.add_argument("--token", help="instead of the one you are logged in with, or HF_TOKEN")
    parser.add_argument(
        "--dry-run", action="store_true", help="print card and names of files, and send nothing"
    )


def run(arguments: argparse.Namespace) -> None:
    """Check the folder, write its card, and send both."""
    import shutil
    import tempfile

    from easyedit_dualedit.commands.console import console
    from easyedit_dualedit.files import write_text
    from easyedit_dualedit.method.shared_folder import CARD_FILE, SharedFolder
    from easyedit_dualedit.report.shared_card import card_of
    from easyedit_dualedit.storage.hub import require_name, uploaded

    require_name(arguments.repository)
    shared = SharedFolder.read(arguments.folder)
    files = [*shared.files, *_further(arguments.folder, arguments.include, shared.files)]
    own = arguments.folder / CARD_FILE
    if arguments.adapters is not None:
        require_name(arguments.adapters)
    if own.is_file() and arguments.results is None:
        card = _own_card(own, arguments)
    else:
        card = card_of(shared.content, _about(arguments, shared))
    shown = console()
    if arguments.dry_run:
        shown.print(card, markup=False, highlight=False, soft_wrap=True)
        shown.print(f"to {arguments.repository}: {', '.join([CARD_FILE, *files])}", markup=False)
        return
    with tempfile.TemporaryDirectory() as temporary:
        for name in files:
            target = Path(temporary, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(arguments.folder / name, target)
        write_text(Path(temporary, CARD_FILE), card)
        # What is sent is what was checked, also if a training writes to the folder meanwhile.
        SharedFolder.read(Path(temporary))
        address = uploaded(
            Path(temporary),
            arguments.repository,
            files=[CARD_FILE, *files],
            message=arguments.message or f"DualEdit: {shared.summary}",
            private=arguments.private,
            revision=arguments.revision,
            token=arguments.token,
        )
    shown.print(f"sent: {', '.join([CARD_FILE, *files])} to {address}", markup=False)


def _own_card(path: Path, arguments: argparse.Namespace) -> str:
    """Return the card that a folder has, which is sent as it is.

    Raises:
        ConfigError: if options ask for what another card would say.
        DataError: if it is no UTF-8.
    """
    options = ("base_model", "adapters", "license")
    given = [f"--{name.replace('_', '-')}" for name in options if getattr(arguments, name)]
    if given:
        raise ConfigError(
            f"{path} is sent as it is, without {', '.join(given)}: leave that out, take the file"
            " away, or give --results, with which a card is written"
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 ({error.reason}); save it as UTF-8") from error


def _further(folder: Path, patterns: list[str], known: tuple[str, ...]) -> list[str]:
    """Return the names of files that patterns ask for beside those that travel anyhow.

    Raises:
        DataError: if a pattern fits none.
    """
    names = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    chosen: dict[str, None] = {}
    for pattern in patterns:
        fitting = fnmatch.filter(names, pattern)
        if not fitting:
            raise DataError(f"--include {pattern!r} fits no file in {folder}")
        chosen.update(dict.fromkeys(fitting))
    return [name for name in chosen if name not in known]


def _about(arguments: argparse.Namespace, shared: "SharedFolder") -> "About":
    from easyedit_dualedit.commands.records import name_of
    from easyedit_dualedit.commands.training_folder import CURVES_FOLDER
    from easyedit_dualedit.experiments.stored_run import metrics_in, model_of
    from easyedit_dualedit.files import read_json
    from easyedit_dualedit.measure.run import SETTINGS_FILE
    from easyedit_dualedit.method.archive import Archive
    from easyedit_dualedit.method.model_card import hub_id_of
    from easyedit_dualedit.report.shared_card import About
    from easyedit_dualedit.train.curves import LINES_FILE, read_curves
    from easyedit_dualedit.train.recipe import read_recipe

    metrics: dict[str, Any] | None = None
    settings: dict[str, Any] = {}
    if arguments.results is not None:
        metrics = metrics_in(arguments.results)
        settings = read_json(arguments.results / SETTINGS_FILE) or {}
    curves = arguments.folder / CURVES_FOLDER
    recipe = read_recipe(curves)
    model = str(arguments.base_model or (recipe or {}).get("model") or model_of(settings))
    shipped = _MODELS.get(name_of(model) or "", "")
    if not shipped and (not hub_id_of(model) or Path(model).exists()):
        given = f"{model!r} is no hub id" if model else "nothing says which model they are for"
        raise ConfigError(f"{given}; give --base-model, such as llava-hf/llava-1.5-7b-hf")
    if not (shipped or isinstance(shared.content, Archive) or arguments.adapters):
        raise ConfigError("edits belong to adapters; give --adapters with their USER/NAME")
    return About(
        arguments.repository,
        model,
        shipped,
        arguments.adapters or "",
        arguments.license or "unknown",
        metrics,
        recipe,
        read_curves(curves) if (curves / LINES_FILE).is_file() else (),
    )
