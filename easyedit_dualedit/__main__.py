"""`python -m easyedit_dualedit`: runs an EasyEdit script with DualEdit registered, or the CLI.

python -m easyedit_dualedit run multimodal_edit.py ARGS...
python -m easyedit_dualedit COMMAND ...
"""

import importlib
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from easyedit_dualedit.errors import DualEditError

_USAGE = "usage: python -m easyedit_dualedit run SCRIPT [ARGS ...]"


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code of the sub-command that `argv` names."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["run"]:
        return run(arguments[1:])
    cli = importlib.import_module("easyedit_dualedit.commands.parser")
    return int(cli.main(arguments) or 0)


def run(arguments: Sequence[str]) -> int:
    """Register DualEdit, run the script with the arguments after it, and return its exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stderr.write(_USAGE + "\n")
        return 0 if arguments else 2
    script = Path(arguments[0])
    if not script.is_file():
        sys.stderr.write(f"error: no script at {script}; {_USAGE}\n")
        return 2
    # What `python SCRIPT` does, so that the script finds the modules beside it: EasyEdit itself, if
    # the script lies in a clone of it.
    sys.path.insert(0, str(script.resolve().parent))
    try:
        importlib.import_module("easyedit_dualedit.plugin").register()
    except DualEditError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.argv = [str(script), *arguments[1:]]
    # Exits of the script pass through, with their code.
    runpy.run_path(str(script), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
