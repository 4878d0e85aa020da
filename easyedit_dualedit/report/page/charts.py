"""Bars of one metric, with whiskers, as an inline SVG: a small picture for each metric."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from easyedit_dualedit.report.markup import Element, element
from easyedit_dualedit.report.page.wording import FAVOURITE, MISSING, UNEDITED, decimal, number

_WIDTH = 300
_ROW = 31
_TOP = 12
_BAR = 8
_AXIS = 20
_MARGIN = 4
_LONGEST = 34
"""Letters of a name that fit beside its number."""


@dataclass(frozen=True)
class Bar:
    """A method's value, or why there is none."""

    name: str
    value: Mapping[str, Any] | None
    """Mean, low and high in percent."""
    missing: str = ""
    is_best: bool = False


def chart(title: str, bars: Sequence[Bar]) -> Element:
    """Return a figure with a horizontal bar for each method, from 0 to 100 percent."""
    height = _TOP + _ROW * len(bars) + _AXIS
    bottom = height - _AXIS
    drawing = element(
        "svg",
        viewBox=f"0 0 {_WIDTH} {height}",
        role="img",
        aria_label=f"{title}: " + "; ".join(_spoken(bar) for bar in bars),
    )
    for percent in (0, 25, 50, 75, 100):
        place = _place(percent)
        drawing.append(
            _line(place, _TOP - 6, place, bottom, "tick" if percent % 100 else "tick end")
        )
        label = element("text", str(percent), x=place, y=str(height - 5), class_="scale")
        label.set("text-anchor", {0: "start", 100: "end"}.get(percent, "middle"))
        drawing.append(label)
    for row, bar in enumerate(bars):
        drawing.append(_row(bar, _TOP + _ROW * row))
    return element("figure", element("figcaption", title), drawing, class_="chart")


def _row(bar: Bar, top: int) -> Element:
    name = bar.name if len(bar.name) <= _LONGEST else bar.name[: _LONGEST - 1] + "…"
    kind = {FAVOURITE: "bar favourite", UNEDITED: "bar unedited"}.get(bar.name, "bar")
    kind += " best" if bar.is_best else ""
    group = element("g", element("title", _spoken(bar)), class_=kind)
    base = str(top + 11)
    group.append(element("text", name, x=str(_MARGIN), y=base, class_="name"))
    mean = number(bar.value["mean"]) if bar.value else None
    shown = bar.missing or MISSING if mean is None else decimal(mean)
    end = {"x": str(_WIDTH - _MARGIN), "y": base, "text-anchor": "end"}
    group.append(element("text", shown, class_="value", **end))
    if bar.value is None or mean is None:
        return group
    where = top + 15
    width = max(0.0, min(100.0, mean)) / 100 * _WIDTH
    fill = element("rect", x="0", y=str(where), width=f"{width:.1f}", height=str(_BAR), rx="2")
    fill.set("class", "fill")
    group.append(fill)
    low, high = number(bar.value.get("low")), number(bar.value.get("high"))
    if low is not None and high is not None:
        left, right, middle = _place(low), _place(high), str(where + _BAR / 2)
        group.append(_line(left, middle, right, middle, "whisker"))
        for side in (left, right):
            group.append(_line(side, where, side, where + _BAR, "whisker"))
    return group


def _spoken(bar: Bar) -> str:
    if bar.value is None:
        return f"{bar.name} {bar.missing}"
    low, high = decimal(bar.value.get("low")), decimal(bar.value.get("high"))
    return f"{bar.name} {decimal(bar.value['mean'])} ({low} to {high})"


def _place(percent: float) -> str:
    # Half a unit inside, so that lines at 0 and 100 are whole.
    return f"{0.5 + max(0.0, min(100.0, percent)) / 100 * (_WIDTH - 1):.1f}"


def _line(x1: Any, y1: Any, x2: Any, y2: Any, kind: str) -> Element:
    return element("line", x1=str(x1), y1=str(y1), x2=str(x2), y2=str(y2), class_=kind)
