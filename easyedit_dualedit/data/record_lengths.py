"""Records that no forward can read are told before the first one runs."""

from collections.abc import Iterable

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.model.position_limit import PositionLimit

_SHOWN = 5


def require_fit(records: Iterable[Record], encoder: Encoder) -> None:
    """Check that the text of each question and its answer fits into the model.

    Pictures are not read for it: a row that only they make too long is told when it is asked.

    Raises:
        DataError: naming those that do not, the first few and the number of the others.
    """
    limit = PositionLimit.of(encoder.backbone.model.config)
    if limit is None:
        return
    problems = []
    for record in records:
        for query in (*record.queries, *record.portability):
            count = _tokens(query, encoder, limit.most)
            if count > limit.most:
                problems.append(
                    f"record {record.index}: {query.prompt[:60]!r} takes {count} tokens"
                )
    if problems:
        more = f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
        raise DataError(
            f"{'; '.join(problems[:_SHOWN])}{more}, but the language model was made for"
            f" {limit.most} positions; shorten them; once mended, the same command goes on"
        )


def _tokens(query: Query, encoder: Encoder, most: int) -> int:
    text = query.prompt + (query.target or "")
    # No token is shorter than a byte.
    if len(text) * 4 <= most or len(text.encode()) <= most:
        return 0
    return len(encoder.tokenizer(text, add_special_tokens=False)["input_ids"])
