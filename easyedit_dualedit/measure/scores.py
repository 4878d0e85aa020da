"""What an edited model's replies are worth under each protocol: one function a protocol."""

from collections.abc import Callable, Mapping, Sequence

from easyedit_dualedit.data.scope import IN_SCOPE
from easyedit_dualedit.measure.asking import Replies
from easyedit_dualedit.measure.binding import (
    BESIDE,
    BESIDE_UNTOUCHED,
    PICTURE,
    PICTURE_NEITHER,
    PICTURE_NEW,
    PICTURE_OLD,
    TEXT,
    TEXT_UNTOUCHED,
)
from easyedit_dualedit.measure.metrics import agreement, likeliest_agreement
from easyedit_dualedit.measure.nearest import (
    GENERALISATION,
    PRESERVATION,
    RIGHT,
    WRONG,
    of_kind,
)
from easyedit_dualedit.measure.protocols import ProtocolName
from easyedit_dualedit.measure.questions import Questions
from easyedit_dualedit.measure.specificity import FAMILIES
from easyedit_dualedit.model.answers import exact_match
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Query


def score(
    questions: Questions,
    before: Replies,
    after: Replies,
    encoder: Encoder,
    protocols: Sequence[ProtocolName],
) -> dict[str, dict[str, float]]:
    """Return protocol -> metric -> value of one record, 0 to 1.

    A record without questions of a protocol has no entry for it.

    Args:
        questions: about the record.
        before: what the unedited model says.
        after: what the edited model says.
        encoder: knows the tokens of a target.
        protocols: which are measured.
    """
    scores = {
        protocol: _SCORE_OF[protocol](questions, before, after, encoder) for protocol in protocols
    }
    return {protocol: values for protocol, values in scores.items() if values}


def _generate(
    questions: Questions, before: Replies, after: Replies, _encoder: Encoder
) -> dict[str, float]:
    return {
        name: _exact(after, name, query) if name in IN_SCOPE else _same_text(before, after, name)
        for name, query in questions.own.items()
    }


def _visedit(
    questions: Questions, before: Replies, after: Replies, encoder: Encoder
) -> dict[str, float]:
    return {
        name: _accuracy(after, name, query, encoder)
        if name in IN_SCOPE
        else agreement(_predicted(after, name), _predicted(before, name))
        for name, query in questions.own.items()
    }


def _easyedit(
    questions: Questions, before: Replies, after: Replies, _encoder: Encoder
) -> dict[str, float]:
    values = {}
    for name in questions.own:
        was, now = before.to[name], after.to[name]
        if now.accuracy is not None:
            values[name] = now.accuracy
        elif was.likeliest is not None and now.likeliest is not None:
            values[name] = likeliest_agreement(was.likeliest, now.likeliest)
    return values


def _specificity(
    questions: Questions, before: Replies, after: Replies, _encoder: Encoder
) -> dict[str, float]:
    values = {}
    for family, kinds in FAMILIES.items():
        same = [_same_text(before, after, kind) for kind in kinds if kind in questions.close]
        if same:
            values[family] = sum(same) / len(same)
    return values


def _portability(
    questions: Questions, _before: Replies, after: Replies, encoder: Encoder
) -> dict[str, float]:
    ported = questions.ported
    if not ported:
        return {}
    exact = [_exact(after, name, query) for name, query in ported.items()]
    forced = [_accuracy(after, name, query, encoder) for name, query in ported.items()]
    return {"exact_match": sum(exact) / len(exact), "token_accuracy": sum(forced) / len(forced)}


def _binding(
    questions: Questions, before: Replies, after: Replies, _encoder: Encoder
) -> dict[str, float]:
    values = {}
    if TEXT in questions.bound:
        values[TEXT_UNTOUCHED] = _same_text(before, after, TEXT)
    if PICTURE in questions.bound:
        said = after.to[PICTURE].text or ""
        is_old = exact_match(said, questions.old[PICTURE])
        is_new = _exact(after, PICTURE, questions.bound[PICTURE])
        values |= {PICTURE_OLD: is_old, PICTURE_NEW: is_new}
        values[PICTURE_NEITHER] = 1.0 - is_old - is_new
    if BESIDE in questions.bound:
        values[BESIDE_UNTOUCHED] = _same_text(before, after, BESIDE)
    return values


def _comprehendedit(
    questions: Questions, before: Replies, after: Replies, _encoder: Encoder
) -> dict[str, float]:
    wrong, right = of_kind(questions.near, WRONG), of_kind(questions.near, RIGHT)
    values = {}
    if wrong:
        values[GENERALISATION] = sum(_exact(after, *one) for one in wrong.items()) / len(wrong)
    if right:
        values[PRESERVATION] = sum(_same_text(before, after, one) for one in right) / len(right)
    return values


_SCORE_OF: Mapping[
    ProtocolName, Callable[[Questions, Replies, Replies, Encoder], dict[str, float]]
] = {
    "generate": _generate,
    "visedit": _visedit,
    "easyedit": _easyedit,
    "specificity": _specificity,
    "portability": _portability,
    "binding": _binding,
    "comprehendedit": _comprehendedit,
}


def _exact(replies: Replies, name: str, query: Query) -> float:
    return exact_match(replies.to[name].text or "", query.target or "")


def _same_text(before: Replies, after: Replies, name: str) -> float:
    return float(before.to[name].text == after.to[name].text)


def _accuracy(replies: Replies, name: str, query: Query, encoder: Encoder) -> float:
    return agreement(_predicted(replies, name), encoder.target_ids(query.target or ""))


def _predicted(replies: Replies, name: str) -> tuple[int, ...]:
    return replies.to[name].predicted or ()
