"""Calls of EasyEdit's `MultimodalEditor`: what a sequence holds, and what is refused."""

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

from torch.utils.data import Dataset

from easyedit_dualedit.errors import ConfigError, DataError, UpstreamError
from easyedit_dualedit.plugin.apply import sequence_of_call
from easyedit_dualedit.plugin.archives import require_archive
from easyedit_dualedit.plugin.edit_arguments import checked_arguments
from easyedit_dualedit.plugin.models import is_ours
from easyedit_dualedit.plugin.picture_items import require_texts_in
from easyedit_dualedit.settings import unknown_keys

CONTINUE = "continue_sequence"
"""Argument of `edit` that adds to the sequence of the call before."""

_FURTHER = (CONTINUE, "sequential_edit", "train_ds", "template", "test_generation", "loc_prompts")
"""What `edit` of either edition, or what it calls, looks for beside its own arguments."""

logger = logging.getLogger(__name__)


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
        given = _given(signature, self, args, kwargs, "master")
        goes_on = given.pop(CONTINUE, False)
        if not given.get("sequential_edit"):
            if goes_on:
                raise ConfigError(
                    f"{CONTINUE} = {goes_on!r} without sequential_edit; set sequential_edit=True,"
                    " since only a sequence can go on"
                )
            return original(self, **given)
        with sequence_of_call(self.model, goes_on=bool(goes_on)):
            return original(self, **given)

    return edit


def without_sequences(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return `MultimodalEditor.edit` of the release, which knows no sequences and says so."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def edit(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_ours(self.hparams):
            return original(self, *args, **kwargs)
        given = _given(signature, self, args, kwargs, "pypi")
        if given.get("sequential_edit") or given.get(CONTINUE):
            # Upstream takes any argument and makes each edit alone.
            raise UpstreamError(
                "sequential_edit is not in EasyEdit 0.0.1.dev0, which would make each edit alone;"
                " use EasyEdit's master, or this package's own EditMemory"
            )
        return original(self, **given)

    return edit


def with_checked_dataset(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return `MultimodalEditor.edit_dataset` of master, which says what it cannot do."""

    @functools.wraps(original)
    def edit_dataset(self: Any, ds: Any, *args: Any, **kwargs: Any) -> Any:
        if is_ours(self.hparams):
            require_archive(self.hparams.archive)
            if kwargs.get("sequential_edit"):
                # Upstream takes any argument and makes each edit alone.
                raise ConfigError(
                    "sequential_edit is of `edit`; edit_dataset makes each edit alone, leave it out"
                )
            if not isinstance(ds, Dataset) or not len(ds):  # type: ignore[arg-type]
                has = "without records" if isinstance(ds, Dataset) else "that is no data set"
                raise DataError(
                    f"edit_dataset was given a {type(ds).__name__} {has}; give a data set of"
                    " EasyEdit's for pictures, such as VQADataset(path, config=hparams)"
                )
            # What is only measured may be blank.
            require_texts_in("edit_dataset", ds, ("edit_inner",))
        return original(self, ds, *args, **kwargs)

    return edit_dataset


def _given(
    signature: inspect.Signature,
    editor: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    edition: str,
) -> dict[str, Any]:
    """Return the arguments of a call by name, checked, without the editor.

    The archive must be there, too: upstream measures all of a sequence before its first edit.
    """
    given = dict(signature.bind(editor, *args, **kwargs).arguments)
    further = given.pop("kwargs", {})
    # Upstream takes any argument, and has no use for most.
    known = {*signature.parameters, *_FURTHER} - {"self", "kwargs"}
    for line in unknown_keys(further, known, "the arguments of edit, which change nothing"):
        logger.warning("%s", line)
    given |= further
    del given["self"]
    require_archive(editor.hparams.archive)
    return checked_arguments(given, edition)
