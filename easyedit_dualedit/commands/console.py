"""The console that commands print to."""

from rich.console import Console

_WIDTH = 190


def console() -> Console:
    """Return the console that tables are printed to."""
    # Texts come from files and models: a folder may be called "[/b]", which is markup to rich.
    made = Console(markup=False, emoji=False)
    # A pipe has no width of its own, and the table must not be cut to 80 columns.
    return made if made.is_terminal else Console(width=_WIDTH, markup=False, emoji=False)
