"""How much each decoder layer's answer depends on its image tokens and on its text.

The paper's first finding: noise on the states of one modality at one layer changes the answer by
how much the layers above still read from there. All layers of a sample share one forward: row 0
stays clean, and each layer adds its noised copies of row 0 to the batch, so a copy costs only the
layers above its noise.
"""

import contextlib
import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.errors import ConfigError, DataError
from easyedit_dualedit.files import write_text
from easyedit_dualedit.measure.metrics import interval
from easyedit_dualedit.measure.run import Run
from easyedit_dualedit.model.answers import with_own_answers
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.hooks import LayerEdit, attach
from easyedit_dualedit.model.inputs import IGNORED, Batch

Modality = Literal["vision", "text", "both"]
MODALITIES: tuple[Modality, ...] = ("vision", "text", "both")
"""Positions that get noise: image tokens; prompt text after them; both.

The last prompt token gets none: whatever its state is goes straight into the answer, so that noise
there tells nothing about what the layers above read.
"""

ATTENTION = ("vision", "text")
"""Positions whose share of the answer's attention is measured."""


@dataclass(frozen=True)
class LocateConfig:
    """How the layers are probed.

    Raises:
        ConfigError: if a value is not allowed.
    """

    layers: tuple[int, ...] | None = None
    """Decoder layers to probe; None is all."""
    noise: float = 3.0
    """Standard deviation of the noise, in those of the layer's states at the noised positions."""
    share: float = 0.1
    """A layer still counts as read from above if noise there changes the answer by at least this
    share of what it changes at the worst layer, 0 to 1."""
    draws: int = 4
    """Draws of the noise for each layer and modality."""
    rows: int = 96
    """Rows that a forward may hold: layers that do not fit go into another."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise) and self.noise > 0):
            raise ConfigError(f"noise = {self.noise}: the noise needs a scale above 0")
        if not 0 < self.share <= 1:
            raise ConfigError(f"share = {self.share}: a share above 0, at most 1")
        if self.draws < 1:
            raise ConfigError(f"draws = {self.draws}: at least 1")
        if self.rows <= self.draws * len(MODALITIES):
            raise ConfigError(
                f"rows = {self.rows}: one layer with {self.draws} draws takes"
                f" {1 + self.draws * len(MODALITIES)}; give more rows or fewer draws"
            )

    def chosen(self, count: int) -> tuple[int, ...]:
        """Return the layers to probe of a model with `count`.

        Raises:
            ConfigError: if one of them is not in the model.
        """
        layers = tuple(range(count)) if self.layers is None else tuple(sorted(set(self.layers)))
        outside = [layer for layer in layers if not 0 <= layer < count]
        if outside or not layers:
            raise ConfigError(
                f"layers = {list(layers)}: the model has decoder layers 0-{count - 1}; name at"
                " least one of them"
            )
        return layers

    def passes(self, count: int) -> list[tuple[int, ...]]:
        """Return the layers that each forward of a sample probes."""
        layers = self.chosen(count)
        size = max(1, (self.rows - 1) // (self.draws * len(MODALITIES)))
        return [layers[start : start + size] for start in range(0, len(layers), size)]

    def cost(self, count: int) -> dict[str, int]:
        """Return rows times decoder layers for one sample: as it is done, and without sharing.

        Without sharing, each noised copy would run every layer.
        """
        copies = self.draws * len(MODALITIES)
        passes = self.passes(count)
        shared = sum(
            count + sum(copies * (count - 1 - layer) for layer in layers) for layers in passes
        )
        return {"shared": shared, "unshared": count + copies * count * len(self.chosen(count))}


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
        DataError: if there are no records, a record has no picture, or a model's output is NaN.
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


@torch.no_grad()
def probe(record: Record, encoder: Encoder, config: LocateConfig) -> dict[str, Any]:
    """Return the effect of noise on the answer to one record's request.

    Returns:
        modality -> measure -> one value a layer, in the order of the layers; and the answer.

    Raises:
        DataError: if the record has no picture, or an output is not a number.
    """
    if record.request.image is None:
        raise DataError(f"record {record.index} has no picture; locate needs questions of pictures")
    (query,) = with_own_answers(encoder, [replace(record.request, target=None)])
    batch = encoder.encode([query])
    found: dict[str, dict[str, list[float]]] = {
        modality: {"kl": [], "flips": []} for modality in MODALITIES
    }
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + record.index)
    for layers in config.passes(len(encoder.backbone.layers)):
        logits = _noised_logits(encoder, batch, layers, config, generator)
        if not bool(logits.isfinite().all()):
            raise DataError(
                f"record {record.index}: the model's output holds NaN or infinity; load it in"
                " another dtype, or mend the picture"
            )
        shape = (len(layers), len(MODALITIES), config.draws, *logits.shape[1:])
        plain, noised = logits[0], logits[1:].reshape(shape)
        kl = functional.kl_div(
            noised.log_softmax(-1), plain.log_softmax(-1), reduction="none", log_target=True
        )
        change = kl.sum(-1).mean((2, 3))  # [layers, modalities]
        flips = (noised.argmax(-1) != plain.argmax(-1)).any(-1).float().mean(2)
        for place, modality in enumerate(MODALITIES):
            found[modality]["kl"] += change[:, place].tolist()
            found[modality]["flips"] += flips[:, place].tolist()
    attention = _attention(encoder, batch, config)
    return {"answer": query.target, "prompt": query.prompt, "noise": found, "attention": attention}


def summarise(
    samples: Sequence[Mapping[str, Any]], layers: Sequence[int], share: float
) -> dict[str, Any]:
    """Return means with intervals over samples, by layer, and the proposed layers."""
    by_layer = []
    for place, layer in enumerate(layers):
        entry: dict[str, Any] = {"layer": layer}
        for modality in MODALITIES:
            noise = [sample["noise"][modality] for sample in samples]
            kl = interval([values["kl"][place] / 100 for values in noise])
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
    found = {}
    for modality in ("text", "vision"):
        effects = [entry[modality]["kl"]["mean"] for entry in by_layer]
        least = share * max(effects)
        place = max(index for index, effect in enumerate(effects) if effect >= least)
        found[f"{modality}_layer"] = int(by_layer[place]["layer"])
    return found


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


def to_csv(found: Mapping[str, Any]) -> str:
    """Return a table of what `locate` found, one line for each layer and modality."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [f"{measure}_{end}" for measure in ("kl", "flips") for end in ("mean", "low", "high")]
    writer.writerow(["layer", "modality", *names, "attention_mean", "samples"])
    for entry in found["layers"]:
        for modality in MODALITIES:
            values = entry[modality]
            cells = [values[m][e] for m in ("kl", "flips") for e in ("mean", "low", "high")]
            attention = entry.get("attention", {}).get(modality, {}).get("mean", "")
            writer.writerow([entry["layer"], modality, *cells, attention, values["kl"]["n"]])
    return text.getvalue()


def _noised_logits(
    encoder: Encoder,
    batch: Batch,
    layers: Sequence[int],
    config: LocateConfig,
    generator: torch.Generator,
) -> Tensor:
    """Return logits before each answer token, [1 + copies, t, v]: the clean row first."""
    layout = batch.layout
    vision, text = layout.vision[0], layout.text[0].clone()
    text[int(layout.gate[0])] = False

    def noise_at(hidden: Tensor) -> Tensor:
        clean = hidden[:1]  # [1, s, d]
        changes = []
        for mask in (vision, text):
            where = mask.to(hidden.device)
            scale = clean[0, where].float().std() * config.noise
            shape = (config.draws, *clean.shape[1:])
            # Drawn on the CPU, so that a seed means the same on every device.
            drawn = torch.randn(shape, generator=generator).to(hidden.device)
            changes.append((drawn * scale * where[:, None]).to(hidden.dtype))
        changes.append(changes[0] + changes[1])
        return torch.cat([hidden, *(clean + change for change in changes)])

    edits: dict[int, LayerEdit] = dict.fromkeys(layers, noise_at)
    with attach(encoder.backbone.layers, edits):
        logits = encoder.backbone.model(**batch.inputs, use_cache=False).logits
    before = (batch.labels[0] != IGNORED).nonzero().flatten() - 1
    answer: Tensor = logits[:, before].float()
    return answer


def _attention(
    encoder: Encoder, batch: Batch, config: LocateConfig
) -> dict[str, list[float]] | None:
    """Return the share of attention that the answer pays to each modality, by layer, 0 to 1.

    None if the model does not tell its attention.
    """
    model: Any = encoder.backbone.model
    with _eager(model):
        output = model(**batch.inputs, use_cache=False, output_attentions=True)
    weights = getattr(output, "attentions", None)
    if not weights or any(weight is None for weight in weights):
        return None
    before = (batch.labels[0] != IGNORED).nonzero().flatten() - 1
    found: dict[str, list[float]] = {}
    for part in ATTENTION:
        mask = getattr(batch.layout, part)[0]
        found[part] = [
            float(weights[layer][0][:, before][..., mask].float().sum(-1).mean())
            for layer in config.chosen(len(encoder.backbone.layers))
        ]
    return found


@contextlib.contextmanager
def _eager(model: Any) -> Iterator[None]:
    # Only the plain implementation keeps the weights of its attention.
    parts = [model.config, *(getattr(model.config, name) for name in model.config.sub_configs)]
    before = [part._attn_implementation for part in parts]
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before[0])
        for part, implementation in zip(parts, before, strict=True):
            part._attn_implementation = implementation
