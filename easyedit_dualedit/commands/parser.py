"""The command line: which commands there are, and what becomes of a user's mistake."""

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NoReturn

from easyedit_dualedit import __version__
from easyedit_dualedit.commands import (
    ablate,
    app,
    benchmark,
    chat,
    compare,
    curves,
    demo,
    edit,
    edits,
    emoji,
    evaluate,
    locate,
    many,
    merge,
    pull,
    push,
    train,
)
from easyedit_dualedit.errors import DualEditError, shortened

logger = logging.getLogger(__name__)

_COMMANDS = {
    "demo": demo,
    "train": train,
    "curves": curves,
    "edit": edit,
    "evaluate": evaluate,
    "locate": locate,
    "ablate": ablate,
    "benchmark": benchmark,
    "merge": merge,
    "compare": compare,
    "many": many,
    "edits": edits,
    "chat": chat,
    "app": app,
    "push": push,
    "pull": pull,
    "emoji": emoji,
}
"""Command -> its module, in the order of the help; the first is the default."""

_CONTINUES = "the same command continues where it stopped"
_INTERRUPTED = {
    "train": "the same command continues from the last checkpoint, at most half a minute ago",
    "edits": "the edits saved so far stay; the same command adds those that are missing",
    "edit": "nothing was to be kept",
    "chat": "nothing was to be kept",
    "app": "the edits made on the page are kept",
    "curves": "the lines of the training stay; give the same command again",
    "push": "what is sent is one commit, which is there or is not",
    "pull": "nothing was put in place",
    "compare": "nothing was changed in the runs; give the same command again",
    "merge": "nothing was changed in what is merged; give the same command again",
}
"""What an interrupted command leaves, where it is not `_CONTINUES`."""

_QUOTED = 400
"""Characters of an error about arguments."""

_EPILOG = """\
examples:
  run_multimodal_edit.py
      edit the bundled testbed model 300 times through EasyEdit and print one table
  run_multimodal_edit.py edit --image photo.jpg --prompt "What is this?" --target "a kite" \\
      --hparams llavaov-7b
  run_multimodal_edit.py train --hparams llavaov-7b --data vqa_train.json --images images/ \\
      --output adapters/llavaov-7b
  run_multimodal_edit.py evaluate --hparams llavaov-7b --data vqa_eval.json --images images/
"""


class _Parser(argparse.ArgumentParser):
    """Quotes no more of a wrong argument than fits into a few lines."""

    def error(self, message: str) -> NoReturn:
        """Write usage and what is wrong, and end the process with 2."""
        super().error(shortened(" ".join(message.split()), _QUOTED))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command."""
    parser = _Parser(
        prog="run_multimodal_edit.py",
        description="DualEdit: knowledge editing of vision-language models, inside EasyEdit."
        " Without a command it runs the demo.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--verbose", action="store_true", help="log what is being done")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, module in _COMMANDS.items():
        module.add_arguments(
            commands.add_parser(name, help=module.HELP, description=module.DESCRIPTION)
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, 2 if it failed (told in one line), 130 if interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    if any("\0" in item for item in arguments):  # no system takes one in a name
        sys.stderr.write("error: an argument holds a zero byte; leave it out\n")
        return 2
    verbose = [item for item in arguments if item == "--verbose"]
    arguments = [item for item in arguments if item != "--verbose"]
    if not arguments or arguments[0] not in (*_COMMANDS, "-h", "--help", "--version"):
        is_option = not arguments or arguments[0].startswith("-")
        arguments = [next(iter(_COMMANDS)), *arguments] if is_option else arguments
    parsed = parser.parse_args(verbose[:1] + arguments)
    logging.basicConfig(level=logging.INFO if parsed.verbose else logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name that is not UTF-8 must not end a command when its work is done.
            stream.reconfigure(errors="backslashreplace")
    try:
        with _allowed(getattr(parsed, "memory", None)):
            _COMMANDS[parsed.command].run(parsed)
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted; {_INTERRUPTED.get(parsed.command, _CONTINUES)}\n")
        return 130
    except BrokenPipeError:  # whoever read the output has read enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (what is left goes nowhere)
        return 0
    except Exception as error:
        logger.info("where the command ended", exc_info=True)
        sys.stderr.write(f"error: {_told(error)}\n")
        return 2
    return 0


def _allowed(memory: int | None) -> AbstractContextManager[None]:
    """Return the context in which the process may take so many bytes on its device."""
    if memory is None:
        return nullcontext()
    from easyedit_dualedit.model.row_memory import allowed_memory

    return allowed_memory(memory)


def _is_out_of_memory(error: Exception) -> bool:
    if "torch" not in sys.modules:  # which may be what could not be imported
        return isinstance(error, MemoryError)
    from easyedit_dualedit.model.row_memory import is_out_of_memory

    return is_out_of_memory(error)


def _told(error: Exception) -> str:
    """Return in one line what went wrong, and what to do."""
    line = " ".join(str(error).split())
    if isinstance(error, DualEditError):
        return line
    if isinstance(error, OSError) and error.strerror:
        about = f"{error.filename}: " if error.filename is not None else ""
        return shortened(f"{about}{error.strerror}", 400)
    if _is_out_of_memory(error):
        return f"the memory is used up ({shortened(line)}); give fewer or smaller inputs"
    return (
        f"{type(error).__name__}: {shortened(line)}; this input is not known to fail so: --verbose"
        " shows where, please report it"
    )
