"""What `locate` measured at each layer, as tables."""

from collections.abc import Mapping
from typing import Any

from easyedit_dualedit.experiments.layer_probe import ATTENTION, NOISED
from easyedit_dualedit.report.table import Table, mean_and_interval, numbers, texts

_MEASURES = [(measure, end) for measure in ("kl", "flips") for end in ("mean", "low", "high")]


def layers_table(effects: Mapping[str, Any]) -> Table:
    """Return the table of what noise does: a row for each layer."""
    titles = ["layer"]
    for modality in NOISED:
        titles += [f"{modality}\nKL, nats", f"{modality}\nchanged, %"]
    titles += [f"attention to\n{part}, %" for part in ATTENTION]
    rows = []
    for entry in effects["layers"]:
        cells = [str(entry["layer"])]
        for modality in NOISED:
            cells.append(mean_and_interval(entry[modality]["kl"], digits=3))
            cells.append(mean_and_interval(entry[modality]["flips"]))
        shares = entry.get("attention")
        cells += [mean_and_interval(shares[part]) if shares else "" for part in ATTENTION]
        rows.append(cells)
    samples = effects["layers"][0]["vision"]["kl"]["n"]
    title = f"Change of the answer with noise at a layer, mean of {samples} samples"
    return Table(numbers(*titles), rows, title)


def layers_csv(effects: Mapping[str, Any]) -> str:
    """Return what noise does as CSV: a line for each layer and modality."""
    rows = []
    for entry in effects["layers"]:
        for modality in NOISED:
            values = entry[modality]
            cells = [values[measure][end] for measure, end in _MEASURES]
            attention = entry.get("attention", {}).get(modality, {}).get("mean", "")
            rows.append([entry["layer"], modality, *cells, attention, values["kl"]["n"]])
    measures = [f"{measure}_{end}" for measure, end in _MEASURES]
    columns = texts("layer", "modality", *measures, "attention_mean", "samples")
    return Table(columns, rows).csv()
