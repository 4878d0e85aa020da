"""How much each decoder layer's answer depends on its image tokens and on its text.

The paper's first finding: noise on the states of one modality at one layer changes the answer by
how much the layers above still read from there.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.experiments.layer_probe import ATTENTION, NOISED, LocateConfig, probe
from easyedit_dualedit.files import write_text
from easyedit_dualedit.measure.intervals import interval
from easyedit_dualedit.measure.run import Run
from easyedit_dualedit.model.encoder import Encoder


def locate(
    records: Sequence[Record],
    encoder: Encoder,
    config: LocateConfig,
    run: Run,
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Return how the answers of the unedited model change with noise at each layer.

    Each sample is stored as soon as it is known; samples that `run` holds are not probed again.

    Returns:
        `layers`: one entry each with the effect of noise on every modality (`kl` in nats a token,
        `flips` and attention in percent, each with a bootstrap 95 % interval over samples);
        `proposal`: the layers to edit; `cost`: decoder layers run.

    Raises:
        ConfigError: if a layer is not in the model.
        DataError: if there are no records, a record shows nothing, or a model's output is NaN.
    """
    count = len(encoder.backbone.layers)
    layers = config.chosen(count)
    if not records:
        raise DataError("no samples to probe the layers with; give at least one record")
    samples = []
    for record in tqdm(records, desc="probing", unit="sample", disable=not progress):
        sample = run.case(record.index)
        if sample is None:
            sample = probe(record, encoder, config)
            run.store(record.index, sample)
        samples.append(sample)
    return summarise(samples, layers, config.share) | {"cost": config.cost(count)}


def summarise(
    samples: Sequence[Mapping[str, Any]], layers: Sequence[int], share: float
) -> dict[str, Any]:
    """Return means with intervals over samples, by layer, and the proposed layers."""
    by_layer = []
    for place, layer in enumerate(layers):
        entry: dict[str, Any] = {"layer": layer}
        for modality in NOISED:
            noise = [sample["noise"][modality] for sample in samples]
            amounts = [values["kl"][place] / 100 for values in noise]
            kl = interval(amounts, are_shares=False)
            entry[modality] = {
                "kl": kl.to_dict(),
                "flips": interval([values["flips"][place] for values in noise]).to_dict(),
            }
        if all(sample["attention"] is not None for sample in samples):
            entry["attention"] = {
                part: interval([sample["attention"][part][place] for sample in samples]).to_dict()
                for part in ATTENTION
            }
        by_layer.append(entry)
    return {"layers": by_layer, "proposal": propose(by_layer, share)}


def propose(by_layer: Sequence[Mapping[str, Any]], share: float) -> dict[str, int]:
    """Return `text_layer` and `vision_layer`: for each, the deepest layer that is still read.

    What an adapter writes deeper than that, no layer above picks up; what it writes earlier has to
    survive more layers.

    Args:
        by_layer: the `layers` of `locate`, in order.
        share: of the largest effect that a layer needs, 0 to 1.
    """
    proposal = {}
    for modality in ("text", "vision"):
        effects = [entry[modality]["kl"]["mean"] for entry in by_layer]
        least = share * max(effects)
        place = max(index for index, effect in enumerate(effects) if effect >= least)
        proposal[f"{modality}_layer"] = int(by_layer[place]["layer"])
    return proposal


def write_hparams(path: Path, values: Mapping[str, Any], proposal: Mapping[str, int]) -> None:
    """Write hyperparameters with the proposed layers in place of their own.

    Args:
        path: YAML file.
        values: hyperparameters as their own YAML file has them.
        proposal: what `propose` returned.
    """
    chosen = {**values, **proposal}
    write_text(
        path,
        "# Layers proposed by `locate`: a starting point.\n"
        + yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True),
    )
