"""What came of asking, as HTML: the answer, where it looks, and each question before and after."""

import base64
import io
from collections.abc import Mapping
from xml.etree.ElementTree import tostring

from PIL import Image

from easyedit_dualedit.app.attention_map import AttentionMap
from easyedit_dualedit.app.session import KeptEdit, Shown
from easyedit_dualedit.app.shared_editor import Outcome
from easyedit_dualedit.model.inputs import open_image
from easyedit_dualedit.report.markup import Element, element

_THUMBNAIL = 56
_LOOKS = (
    "Where the answer looks: attention of its tokens over the picture, averaged over all layers and"
    " heads: red for the most, clear for the least. It tells what was read, not what the answer"
    " rests on."
)
_NOTHING_YET = "Choose a picture, write a question and ask."


def results_html(shown: Shown | None, names: Mapping[str, str]) -> str:
    """Return all that came of asking; None says what to do first.

    Args:
        shown: the outcomes.
        names: id of each edit -> what the list calls it.
    """
    if shown is None:
        return text_of(element("p", _NOTHING_YET, class_="nothing"))
    _, first = shown.outcomes[0]
    rows = [_row(what, outcome, names) for what, outcome in shown.outcomes]
    heads = ("Asked", "Without edits", "With edits", "Gate")
    head = element("tr", *(element("th", each, scope="col") for each in heads))
    table = element(
        "table",
        element("caption", "Before and after"),
        element("thead", head),
        element("tbody", *rows),
    )
    return text_of(element("div", _answer(first, shown.attention), table, class_="results"))


def message_html(text: str, *, is_wrong: bool = False) -> str:
    """Return a line that screen readers read out when it changes."""
    kind, role = ("wrong", "alert") if is_wrong else ("done", "status")
    return text_of(element("p", text, class_=f"message {kind}", role=role))


def edit_html(edit: KeptEdit) -> str:
    """Return an edit of the list: picture, what it says, when it was made, whether it takes."""
    about = edit.about
    said = element(
        "p",
        element("span", about.prompt, class_="question"),
        " → ",
        element("b", about.target),
        class_="says",
    )
    taking = {None: "not asked yet", True: "takes", False: f"does not take: {edit.label.answer!r}"}
    small = element("p", element("time", _time(about.time), datetime=about.time), class_="small")
    small.append(element("span", f" · {taking[edit.takes]}", class_=f"takes-{edit.takes}".lower()))
    shown = (
        element("div", "no picture", class_="thumbnail empty")
        if edit.picture is None
        else _img(open_image(edit.picture), f"picture of the edit: {about.prompt}", _THUMBNAIL)
    )
    return text_of(element("div", shown, element("div", said, small), class_="edit-text"))


def text_of(root: Element) -> str:
    """Return an element as HTML that UTF-8 can hold."""
    text = tostring(root, encoding="unicode", method="html")
    return text.encode("utf-8", "replace").decode("utf-8")


def _answer(first: Outcome, attention: AttentionMap | str) -> Element:
    words = element(
        "div",
        element("h2", "Answer"),
        element("p", first.query.prompt, class_="question"),
        element("p", first.after or "(nothing)", class_="says"),
        _was(first),
        class_="words",
    )
    if isinstance(attention, str):
        looks = element("figure", element("figcaption", f"Where the answer looks: {attention}"))
    else:
        picture = open_image(first.query.pictures[0])
        told = f"the picture with the answer's attention over it; {attention.told()}"
        caption = element("figcaption", f"{_LOOKS} {attention.told().capitalize()}.")
        looks = element("figure", _img(attention.over(picture), told), caption)
    return element("section", words, looks, class_="answer", aria_label="Answer")


def _was(first: Outcome) -> Element:
    if first.is_changed:
        return element("p", "Without edits: ", element("s", first.before or "(nothing)"))
    return element("p", "The same as without edits.", class_="small")


def _row(what: str, outcome: Outcome, names: Mapping[str, str]) -> Element:
    asked = element(
        "td", element("span", what, class_="what"), element("span", outcome.query.prompt)
    )
    if outcome.query.pictures:
        picture = open_image(outcome.query.pictures[0])
        asked.insert(0, _img(picture, f"picture of {what}", _THUMBNAIL))
    changed = "changed" if outcome.is_changed else "unchanged"
    after = element("td", outcome.after, data_label="With edits", class_=changed)
    after.append(element("span", changed, class_="tag"))
    before = element("td", outcome.before, data_label="Without edits")
    gate = element("td", *_gate(outcome, names), data_label="Gate")
    return element("tr", asked, before, after, gate)


def _gate(outcome: Outcome, names: Mapping[str, str]) -> list[Element]:
    """Return a bar of the similarity with a mark at the threshold, and both in words."""
    if outcome.similarity is None or outcome.threshold is None:
        return [element("span", "no edits yet", class_="small")]
    is_open = outcome.fired is not None
    sign = "≥" if is_open else "<"
    told = f"similarity {outcome.similarity:.3f} {sign} threshold {outcome.threshold:.3f}"
    fill = element("div", class_="fill", style=f"width:{_percent(outcome.similarity)}%")
    mark = element("div", class_="mark", style=f"left:{_percent(outcome.threshold)}%")
    state = "open" if is_open else "closed"
    bar = element(
        "div", fill, mark, class_=f"bar {state}", role="img", aria_label=f"gate {state}: {told}"
    )
    numbers = element("span", told, class_="small")
    fired = names.get(outcome.fired or "", "an edit") if is_open else "no edit"
    return [bar, numbers, element("span", fired, class_=f"fired {state}")]


def _percent(similarity: float) -> str:
    return f"{100 * min(1.0, max(0.0, similarity)):.1f}"


def _img(picture: Image.Image, alt: str, side: int | None = None) -> Element:
    small = picture
    if side is not None:
        small = picture.copy()
        small.thumbnail((2 * side, 2 * side))
    content = io.BytesIO()
    small.save(content, "PNG")
    source = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
    kind = "looks" if side is None else "thumbnail"
    return element("img", src=source, alt=alt, class_=kind)


def _time(iso: str) -> str:
    return f"{iso[:10]} {iso[11:16]} UTC"
