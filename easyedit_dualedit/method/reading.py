"""Edits are read some at a time: as many as share a forward that fits into memory."""

import logging
from collections.abc import Iterator, Sequence

from easyedit_dualedit.method.active_edits import EditSignal
from easyedit_dualedit.method.editor import DualEditor, require_targets
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.model.row_memory import give_back, is_out_of_memory, rows_that_fit

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 16
"""Requests that share a forward at most: enough to be fast."""


def read_some_at_a_time(
    editor: DualEditor, requests: Sequence[Query]
) -> Iterator[tuple[Sequence[Query], list[EditSignal]]]:
    """Yield the requests in parts, in order, with the edit signals of each part.

    A part has as many rows as the memory has room for, by the length of its rows; where that was
    too many all the same, half of them are tried, down to one.

    Args:
        editor: reads them.
        requests: each with a target.

    Raises:
        DataError: if a request has no target, or a picture cannot be read.
    """
    require_targets(requests)
    backbone = editor.backbone
    start, most, ceiling = 0, MOST_AT_ONCE, MOST_AT_ONCE
    while start < len(requests):
        part = requests[start : start + most]
        try:
            batch = editor.encoder.encode(part)
            fitting = rows_that_fit(backbone.model, backbone.device, batch.inputs, ceiling)
            most = fitting
            if fitting < len(part):
                logger.info("%d of %d requests fit into memory at once", fitting, len(part))
                continue
            signals = editor.read_batch(batch, part)
        except (RuntimeError, MemoryError) as error:
            if len(part) == 1 or not is_out_of_memory(error):
                raise
            most = ceiling = len(part) // 2
            logger.info("the memory is used up by %d requests; trying %d", len(part), ceiling)
        else:
            yield part, signals
            start += len(part)
            continue
        give_back(backbone.device)
