"""Plots of what `locate`, `ablate` and `many` measured, as PNG files."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.experiments.layer_probe import NOISED

_COLOURS = {"vision": "tab:orange", "text": "tab:blue", "both": "tab:gray"}
_MARKS = {"open": "o", "cosine": "s", "centred": "D", "learned": "^", "last-token": "x"}

logger = logging.getLogger(__name__)


def is_available() -> bool:
    """Return whether matplotlib, which is an extra, is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def plot_where_possible(draw: Callable[[Any, Path], None], measured: Any, path: Path) -> None:
    """Write a plot with one of the functions below; without matplotlib, only log that."""
    if is_available():
        draw(measured, path)
    else:
        logger.warning("no %s: plots need matplotlib, of the extra `plots`", path.name)


def plot_layers(found: Mapping[str, Any], path: Path) -> None:
    """Write the effect of noise on each modality by layer, the proposed layers marked.

    Args:
        found: what `locate` returned.
        path: PNG file.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    figure, axes = new_figure(1, 2)
    layers = [entry["layer"] for entry in found["layers"]]
    for axis, measure, title in zip(
        axes, ("kl", "flips"), ("KL of the answer, nats a token", "answers changed, %"), strict=True
    ):
        for modality in NOISED:
            values = [entry[modality][measure] for entry in found["layers"]]
            colour = _COLOURS[modality]
            means = [value["mean"] for value in values]
            axis.plot(layers, means, marker="o", color=colour, label=modality)
            lows, highs = ([value[end] for value in values] for end in ("low", "high"))
            axis.fill_between(layers, lows, highs, color=colour, alpha=0.2)
        for modality in ("text", "vision"):
            axis.axvline(
                found["proposal"][f"{modality}_layer"],
                color=_COLOURS[modality],
                linestyle="--" if modality == "text" else ":",
                label=f"{modality}_layer",
            )
        axis.set_xlabel("decoder layer with noise")
        axis.set_title(title)
        axis.set_ylim(bottom=0)
    axes[0].legend()
    save_figure(figure, path)


def plot_ablation(
    rows: Sequence[Mapping[str, Any]], path: Path, protocol: str = "generate"
) -> None:
    """Write reliability and generality against locality, a point for each variant and gate.

    Args:
        rows: what `ablate` returned.
        path: PNG file.
        protocol: whose numbers to show.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    figure, (axis,) = new_figure(1, 1)
    from matplotlib import colormaps

    colours = colormaps["tab20"]
    names = list(dict.fromkeys(row["variant"] for row in rows))
    for row in rows:
        values = {name: value["mean"] for name, value in row["protocols"][protocol].items()}
        locality = (values["text_locality"] + values["image_locality"]) / 2
        scope = ("reliability", "text_generality", "image_generality")
        axis.scatter(
            locality,
            sum(values[name] for name in scope) / len(scope),
            marker=_MARKS[row["gate"]],
            color=colours(names.index(row["variant"]) % colours.N),
            label=f"{row['variant']}, {row['gate']}",
        )
    axis.set_xlabel("mean of text and image locality, %")
    axis.set_ylabel("mean of reliability and both generalities, %")
    axis.set_xlim(-3, 103)
    axis.set_ylim(-3, 103)
    axis.legend(fontsize="x-small", bbox_to_anchor=(1.02, 1), loc="upper left")
    save_figure(figure, path)


def plot_many(points: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Write each method's average against the number of edits.

    Args:
        points: method -> what `many` measured at each number of edits.
        path: PNG file.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    figure, (axis,) = new_figure(1, 1)
    for name, found in points.items():
        edits = [point["edits"] for point in found]
        axis.plot(edits, [point["average"] for point in found], marker="o", label=name)
    axis.set_xscale("log")
    axis.set_xlabel("edits in the model")
    axis.set_ylabel("average of the five metrics, %")
    axis.set_ylim(-3, 103)
    axis.legend()
    save_figure(figure, path)


def plot_sizes(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the average against the bytes that an edit takes.

    Args:
        rows: `precision`, `average` in percent and `bytes_per_edit`.
        path: PNG file.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    figure, (axis,) = new_figure(1, 1)
    for row in rows:
        size = row["bytes_per_edit"] / 1000
        axis.scatter(size, row["average"], label=row["precision"])
    axis.set_xlabel("kB an edit")
    axis.set_ylabel("average of the five metrics, %")
    axis.set_xlim(left=0)
    axis.set_ylim(-3, 103)
    axis.legend()
    save_figure(figure, path)


def new_figure(rows: int, columns: int) -> tuple[Any, list[Any]]:
    """Return a figure and its axes, row by row.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    if not is_available():
        raise ConfigError('plots need matplotlib; pip install "easyedit-dualedit[plots]"')
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * columns, 4.0 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as a PNG file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    figure.savefig(temporary, format="png", dpi=150)
    temporary.replace(path)
