"""Calls of EasyEdit's `MultimodalEditor.edit`: what a sequence holds, and what is refused."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from easyedit_dualedit.errors import ConfigError, UpstreamError
from easyedit_dualedit.plugin.apply import sequence_of_call
from easyedit_dualedit.plugin.models import is_ours

CONTINUE = "continue_sequence"
"""Argument of `edit` that adds to the sequence of the call before."""


def with_own_sequence(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return `MultimodalEditor.edit` of master, each call of which is a sequence of its own.

    Upstream's editor keeps what a method has made of the model, so that the edits of one call are
    in the next, while "pre" is always of the unedited model.
    """
    signature = inspect.signature(original)

    @functools.wraps(original)
    def edit(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_ours(self.hparams):
            return original(self, *args, **kwargs)
        goes_on = kwargs.pop(CONTINUE, False)
        if not _is_sequential(signature, self, args, kwargs):
            if goes_on:
                raise ConfigError(
                    f"{CONTINUE} = {goes_on!r} without sequential_edit; set sequential_edit=True,"
                    " since only a sequence can go on"
                )
            return original(self, *args, **kwargs)
        with sequence_of_call(self.model, goes_on=bool(goes_on)):
            return original(self, *args, **kwargs)

    return edit


def without_sequences(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return `MultimodalEditor.edit` of the release, which knows no sequences and says so."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def edit(self: Any, *args: Any, **kwargs: Any) -> Any:
        sequential = _is_sequential(signature, self, args, kwargs) or kwargs.get(CONTINUE)
        if is_ours(self.hparams) and sequential:
            # Upstream takes any argument and makes each edit alone.
            raise UpstreamError(
                "sequential_edit is not in EasyEdit 0.0.1.dev0, which would make each edit alone;"
                " use EasyEdit's master, or this package's own EditMemory"
            )
        return original(self, *args, **kwargs)

    return edit


def _is_sequential(
    signature: inspect.Signature, editor: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    given = signature.bind_partial(editor, *args, **kwargs).arguments
    return bool(given.get("sequential_edit", given.get("kwargs", {}).get("sequential_edit")))
