"""Lines over layers or steps, with bands and marked places, as an inline SVG with a legend."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from easyedit_dualedit.report.markup import Element, element

_WIDTH, _HEIGHT = 300, 190
_LEFT, _TOP, _BOTTOM = 34, 10, 30
_KINDS = 5
"""Colours and dashes that there are."""


@dataclass(frozen=True)
class Line:
    """Values at places from left to right."""

    name: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float]] = ()
    """Low and high at each point, or nothing."""


def line_chart(
    title: str,
    lines: Sequence[Line],
    across: str,
    *,
    marks: Mapping[str, float] = MappingProxyType({}),
    top: float | None = None,
    is_log: bool = False,
) -> Element:
    """Return a figure with lines; those without points are left out.

    Args:
        title: of the figure.
        lines: in the order of the legend.
        across: what the horizontal axis counts.
        marks: vertical lines by their name.
        top: upper end of the vertical axis; None is the highest value.
        is_log: whether the vertical axis is logarithmic; values that are not positive are then
            left out.
    """
    lines = [kept for line in lines if (kept := _without_gaps(line, is_log)).points]
    drawing = element(
        "svg", viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=_spoken(title, lines)
    )
    figure = element("figure", element("figcaption", title), drawing, class_="chart lines")
    if not lines:
        return figure
    places = [x for line in lines for x, _ in line.points]
    values = [y for line in lines for _, y in (*line.points, *line.band)]
    values += [low for line in lines for low, _ in line.band]
    lower = _power(min(y for y in values if y > 0), math.floor) if is_log else 0.0
    upper = _power(max(values), math.ceil) if is_log else top or max(values) or 1.0
    upper = upper if upper > lower else lower * 10
    first, last = min(places), max(places)

    def across_of(x: float) -> float:
        share = (x - first) / (last - first) if last > first else 0.5
        return _LEFT + share * (_WIDTH - _LEFT - 2)

    def up_of(y: float) -> float:
        share = math.log(y / lower) / math.log(upper / lower) if is_log else y / upper
        return _HEIGHT - _BOTTOM - min(max(share, 0.0), 1.0) * (_HEIGHT - _TOP - _BOTTOM)

    for y in _heights(lower, upper, is_log):
        drawing.append(_line(_LEFT, up_of(y), _WIDTH, up_of(y), "tick"))
        drawing.append(_text(f"{y:.3g}", _LEFT - 4, up_of(y) + 3, "end"))
    ends = [(first, "start"), (last, "end")] if last > first else []
    for x, anchor in ends:
        drawing.append(_text(f"{x:g}", across_of(x), _HEIGHT - _BOTTOM + 13, anchor))
    counted = across if ends else f"{across} {first:g}"
    drawing.append(_text(counted, (_LEFT + _WIDTH) / 2, _HEIGHT - _BOTTOM + 13, "middle"))
    for place, (name, x) in enumerate(marks.items()):
        mark = _line(across_of(x), _TOP, across_of(x), _HEIGHT - _BOTTOM, f"mark mark-{place}")
        mark.append(element("title", f"{name}: {x:g}"))
        drawing.append(mark)
    for place, line in enumerate(lines):
        drawing.append(_drawn(line, f"line-{place % _KINDS}", across_of, up_of))
    figure.append(_legend(lines, marks))
    return figure


def _without_gaps(line: Line, is_log: bool) -> Line:
    kept = [
        place
        for place, (_, y) in enumerate(line.points)
        if math.isfinite(y) and (y > 0 or not is_log)
    ]
    band = [line.band[place] for place in kept] if line.band else ()
    return Line(line.name, [line.points[place] for place in kept], band)


def _drawn(
    line: Line, kind: str, across_of: Callable[[float], float], up_of: Callable[[float], float]
) -> Element:
    xs = [across_of(x) for x, _ in line.points]
    group = element("g", element("title", line.name), class_=kind)
    if line.band:
        there = [(x, up_of(high)) for x, (_, high) in zip(xs, line.band, strict=True)]
        back = [(x, up_of(low)) for x, (low, _) in zip(xs, line.band, strict=True)]
        group.append(element("polygon", points=_path([*there, *reversed(back)])))
    path = [(x, up_of(y)) for x, (_, y) in zip(xs, line.points, strict=True)]
    group.append(element("polyline", points=_path(path)))
    if len(path) == 1:
        group.append(element("circle", cx=f"{path[0][0]:.1f}", cy=f"{path[0][1]:.1f}", r="3"))
    return group


def _legend(lines: Sequence[Line], marks: Mapping[str, float]) -> Element:
    keys = [
        element("li", line.name, class_=f"key line-{place % _KINDS}")
        for place, line in enumerate(lines)
    ]
    keys += [
        element("li", f"{name}: {x:g}", class_=f"key mark-{place}")
        for place, (name, x) in enumerate(marks.items())
    ]
    return element("ul", *keys, class_="legend")


def _heights(lower: float, upper: float, is_log: bool) -> list[float]:
    if not is_log:
        return [0.0, upper / 2, upper]
    count = round(math.log10(upper / lower))
    step = max(1, count // 3)
    return [lower * 10**power for power in range(0, count + 1, step)]


def _power(value: float, rounded: Callable[[float], int]) -> float:
    return float(10.0 ** rounded(math.log10(value)))


def _spoken(title: str, lines: Sequence[Line]) -> str:
    told = [
        f"{line.name} from {line.points[0][1]:.3g} to {line.points[-1][1]:.3g}" for line in lines
    ]
    return f"{title}: {'; '.join(told) or 'nothing'}"


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _text(text: str, x: float, y: float, anchor: str) -> Element:
    shown = element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", class_="scale")
    shown.set("text-anchor", anchor)
    return shown


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Element:
    ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    return element("line", class_=kind, **{name: f"{value:.1f}" for name, value in ends.items()})
