"""The wings of the package: who may import whom, read from the imports, and drawn.

    python tests/house.py docs/pictures/wings.svg

writes the picture of `docs/architecture.md`.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from html import escape
from pathlib import Path

PACKAGE = "easyedit_dualedit"
ROOT = Path(__file__).parents[1] / PACKAGE

GROUND = ("errors", "storage", "settings", "files", "processes")
"""What every wing may import: a wing, and modules at the top of the package."""

_MEASURED = {"model", "method", "data", "train", "measure"}
MAY_IMPORT: Mapping[str, set[str]] = {
    "errors": set(),
    "storage": {"errors"},
    "settings": {"errors", "storage"},
    "files": {"errors", "storage"},
    "processes": {"errors", "storage", "files"},
    "model": set(),
    "method": {"model"},
    "data": {"model"},
    "testbed": {"model", "data"},
    "train": {"data", "method", "model"},
    "measure": {"data", "method", "model"},
    "experiments": _MEASURED,
    "report": _MEASURED | {"experiments"},
    # Hyperparameters name the bundled model, as they name any other.
    "plugin": _MEASURED | {"experiments", "testbed"},
    "app": {"method", "model", "report"},
    "commands": _MEASURED | {"experiments", "report", "plugin", "testbed", "app"},
}
"""Wing -> the wings that it may import, beside itself and `GROUND`."""


def wing_of(module: str) -> str:
    """Return the wing that a module lies in, or the module itself at the top."""
    return module.split(".")[0]


@cache
def modules() -> dict[str, Path]:
    """Return every module's file by its dotted name, without the package's own."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_package = len(parts) > 1 and parts[-1] == "__init__"
        found[".".join(parts[:-1] if is_package else parts)] = path
    return found


def imported(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports, anywhere in it, also by a name given as text.

    Raises:
        ValueError: if an import is relative.
    """
    known = modules()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{path}: imports are absolute here")
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner.removeprefix(f"{PACKAGE}.") in known else node.module or ""
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith("import_module")
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value)


def own_imports(path: Path) -> set[str]:
    """Return the modules of this package that a file imports, the package itself left out."""
    own = {name for name in imported(path) if name.split(".")[0] == PACKAGE}
    return {name.removeprefix(PACKAGE).removeprefix(".") for name in own} - {""}


def wings() -> dict[str, set[str]]:
    """Return each wing and the wings that it does import."""
    found: dict[str, set[str]] = {wing: set() for wing in MAY_IMPORT if wing not in GROUND}
    for module, path in modules().items():
        wing = wing_of(module)
        if wing in found:
            found[wing] |= {wing_of(name) for name in own_imports(path)} & (set(found) - {wing})
    return found


_WIDTH, _HEIGHT, _ACROSS, _DOWN, _EDGE = 150, 46, 190, 92, 24
_PLACES = {
    "commands": (1.3, 0),
    "app": (0.0, 1),
    "report": (0.0, 2),
    "plugin": (1.3, 2),
    "testbed": (2.7, 3),
    "experiments": (0.0, 3),
    "train": (0.35, 4),
    "measure": (1.6, 4),
    "method": (0.35, 5),
    "data": (1.6, 5),
    "model": (0.975, 6),
}
"""Wing -> its column and its floor from the top."""

_STYLE = (
    "text{font:14px system-ui,sans-serif;fill:#1f2937;text-anchor:middle}"
    ".small{font-size:12px;fill:#6b7280}"
    "rect{fill:#eef2ff;stroke:#6366f1;rx:8}.ground{fill:#f3f4f6;stroke:#9ca3af}"
    "path{stroke:#6b7280;fill:none;marker-end:url(#tip)}"
    "@media(prefers-color-scheme:dark){text{fill:#e5e7eb}.small{fill:#9ca3af}"
    "rect{fill:#1e1b4b}.ground{fill:#1f2937}}"
)


def picture(graph: Mapping[str, set[str]]) -> str:
    """Return the wings as SVG, each above all that it imports.

    An arrow that follows from others is left out: `commands` imports nearly everything.
    """
    centres = {
        wing: (_EDGE + _WIDTH / 2 + column * _ACROSS, _EDGE + _HEIGHT / 2 + floor * _DOWN)
        for wing, (column, floor) in _PLACES.items()
    }
    width = round(max(x for x, _ in centres.values()) + _WIDTH / 2 + _EDGE)
    ground = round(max(y for _, y in centres.values()) + _DOWN - _HEIGHT / 2)
    parts = [
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8"'
        ' markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z" style="fill:#6b7280;stroke:none"'
        "/></marker></defs>"
    ]
    for wing, others in graph.items():
        for other in sorted(others - _further(wing, graph)):
            (x, y), (to_x, to_y) = centres[wing], centres[other]
            # Leave the lower edge and enter the upper one, a little towards the other end; past
            # the floors between, straight down.
            x, to_x = x + _drift(to_x - x), to_x + _drift(x - to_x)
            y, to_y = y + _HEIGHT / 2, to_y - _HEIGHT / 2 - 2
            last = to_y - (_DOWN - _HEIGHT)
            middle = (last + to_y) / 2
            parts.append(
                f'<path d="M{x:.0f} {y:.0f}V{last:.0f}C{x:.0f} {middle:.0f} {to_x:.0f}'
                f' {middle:.0f} {to_x:.0f} {to_y:.0f}"/>'
            )
    for wing, (x, y) in centres.items():
        parts.append(
            f'<rect x="{x - _WIDTH / 2:.0f}" y="{y - _HEIGHT / 2:.0f}" width="{_WIDTH}"'
            f' height="{_HEIGHT}"/><text x="{x:.0f}" y="{y + 5:.0f}">{escape(wing)}/</text>'
        )
    shown = ", ".join(f"{name}/" if (ROOT / name).is_dir() else f"{name}.py" for name in GROUND)
    parts.append(
        f'<rect class="ground" x="{_EDGE}" y="{ground}" width="{width - 2 * _EDGE}" height="34"/>'
        f'<text class="small" x="{width / 2:.0f}" y="{ground + 22}">{shown}: all may import'
        " them</text>"
    )
    height = ground + 34 + _EDGE
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
        f' aria-label="The wings of {PACKAGE}: an arrow points to what is imported">'
        f"<style>{_STYLE}</style>{''.join(parts)}</svg>\n"
    )


def _drift(distance: float) -> float:
    return max(-_WIDTH / 3, min(_WIDTH / 3, distance / 6))


def _further(wing: str, graph: Mapping[str, set[str]]) -> set[str]:
    """Return what a wing reaches through another."""
    reached: set[str] = set()
    waiting = [inner for other in graph[wing] for inner in graph[other]]
    while waiting:
        other = waiting.pop()
        if other not in reached:
            reached.add(other)
            waiting += graph[other]
    return reached


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(picture(wings()), encoding="utf-8")
