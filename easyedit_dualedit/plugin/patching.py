"""Replaces attributes of EasyEdit's modules and classes, and puts every one of them back."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

_ABSENT = object()


class Patches:
    """Attribute replacements that can be undone together, newest first."""

    def __init__(self) -> None:
        """Start with nothing replaced."""
        self._undo = ExitStack()

    def replace(self, owner: Any, name: str, value: Any) -> None:
        """Set `owner.name` to `value` until `undo`; the attribute need not exist yet."""
        old = vars(owner).get(name, _ABSENT)
        setattr(owner, name, value)
        if old is _ABSENT:
            self._undo.callback(delattr, owner, name)
        else:
            self._undo.callback(setattr, owner, name, old)

    def wrap(self, owner: Any, name: str, wrapper: Callable[[Any], Any]) -> None:
        """Set `owner.name` to what `wrapper` makes of the present one."""
        self.replace(owner, name, wrapper(getattr(owner, name)))

    def undo(self) -> None:
        """Put back every attribute that was replaced."""
        self._undo.close()
