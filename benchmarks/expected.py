"""What a training takes on a GPU, from the arithmetic of its steps: hours and GiB for each family.

    python -m benchmarks.expected

prints the table of `docs/guide/training.md`. No model is loaded: FLOP and bytes of a step follow
from its shapes, and a test compares them with what was counted for LLaVA-1.5-7B. How fast a GPU
computes is what one H100 was measured at; of an A100 the same share of its peak is assumed. How
many records run together, and whether layers run again, is what the shipped YAML says.
"""

import argparse
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

from easyedit_dualedit.plugin.hparams_files import shipped_hparams
from easyedit_dualedit.train.gate_trainer import GATE_RECORDS
from easyedit_dualedit.train.validation_split import VALIDATION_RECORDS

TEXT_TOKENS = 30
"""Of a question with its template and answer."""

STEPS, BATCH, RECORDS = 5_000, 4, 6_345
"""Of the shipped hyperparameters, accumulated batches included, and of E-VQA."""

EVERY = 500
"""Steps between two validations, as shipped."""

PEAK = {"A100": 312e12, "H100": 989e12}
"""FLOP a second of dense products in bfloat16, as their makers state them."""

SHARE = 161.87e12 / 0.49415 / PEAK["H100"]
"""Share of the peak that a step of LLaVA-1.5-7B with new pictures reached: FLOP, and seconds on one
H100 (docs/performance.md)."""

_ADAM_BYTES = 16
"""Of an adapter's parameter: weight, gradient and two moments, float32."""
_CACHE_BYTES = 2 * 2**30
_CUDA_BYTES = 2**30
"""Context and libraries, about."""


@dataclass(frozen=True)
class Family:
    """Shapes of a model, and how its shipped hyperparameters edit it."""

    name: str
    hidden: int
    inner: int
    layers: int
    query_width: int
    """Heads times their size."""
    key_width: int
    vocabulary: int
    image_tokens: int
    """Of a picture of 640x480 in the decoder."""
    tower_hidden: int
    tower_inner: int
    tower_layers: int
    tiles: int
    tile_patches: int
    """Patches that attend to each other."""
    text_layer: int
    vision_layer: int
    products: int = 3
    """Of an MLP: 3 with a gate, else 2."""
    tower_products: int = 2
    word_matrices: int = 2
    """1 where a model's output embeddings are those of its input."""
    width: int = 1024
    """Of the adapters."""

    @cached_property
    def shipped(self) -> dict[str, Any]:
        """The hyperparameters of its training."""
        return shipped_training(self.name)

    @property
    def recomputes(self) -> bool:
        """Whether layers above the first edit run again for the gradient."""
        return bool(self.shipped.get("checkpoint_activations", False))

    @property
    def layer_parameters(self) -> int:
        """Weights of one decoder layer."""
        attention = 2 * self.hidden * (self.query_width + self.key_width)
        return attention + self.products * self.hidden * self.inner

    @property
    def tower_parameters(self) -> int:
        """Weights of the vision tower."""
        layer = (
            4 * self.tower_hidden**2 + self.tower_products * self.tower_hidden * self.tower_inner
        )
        return self.tower_layers * layer

    @property
    def weight_bytes(self) -> int:
        """Of the frozen model in bfloat16."""
        words = self.word_matrices * self.vocabulary * self.hidden
        decoder = self.layers * self.layer_parameters + words
        return 2 * (decoder + self.tower_parameters)

    @property
    def adapter_parameters(self) -> int:
        """Weights of both adapters: queries, keys, values and output, and places for words."""
        return 2 * 5 * self.hidden * self.width

    def layer_flop(self, rows: int, length: int) -> float:
        """Return the FLOP of one decoder layer for rows of a length."""
        products = 2 * self.layer_parameters * rows * length
        return products + 4 * self.query_width * rows * length**2

    def rows_flop(self, pictures: int, texts: int, questions: int) -> float:
        """Return the FLOP of one layer for rows with a picture, rows without, and more questions.

        A further question about a row's picture shares the row.
        """
        extra = 2 * self.layer_parameters * TEXT_TOKENS * questions
        seeing = self.layer_flop(pictures, self.image_tokens + TEXT_TOKENS)
        return seeing + self.layer_flop(texts, TEXT_TOKENS) + extra

    @property
    def picture_flop(self) -> float:
        """FLOP of a picture in the vision tower."""
        patches = self.tiles * self.tile_patches
        attention = 4 * self.tower_hidden * self.tile_patches * patches * self.tower_layers
        return 2 * self.tower_parameters * patches + attention

    @property
    def shipped_flop(self) -> float:
        """FLOP of a record in a training step as shipped, layers that run again included."""
        rows = (3, 1, 1) if self.trains_locality else (2, 0, 1)
        again = self._kept_layers * self.rows_flop(*rows) if self.recomputes else 0.0
        return self.record_flop(locality=self.trains_locality) + again

    @property
    def trains_locality(self) -> bool:
        """Whether the losses on queries out of scope have a weight."""
        return bool(self.shipped["cloc"])

    def record_flop(self, *, locality: bool) -> float:
        """Return the FLOP of a record in a training step, its pictures never seen before.

        Two rows have a picture, one of them with two questions; those of locality are one with
        another picture, and one without, and run unedited, too.

        Args:
            locality: whether those are trained on.
        """
        rows, pictures = ((3, 1, 1), 3) if locality else ((2, 0, 1), 2)
        first, deeper = sorted((self.text_layer, self.vision_layer))
        above = self.layers - 1 - first
        frozen = (first + 1) * self.rows_flop(*rows)
        signal = (deeper - first) * self.rows_flop(1, 0, 0)
        unedited = above * self.rows_flop(1, 1, 0) if locality else 0.0
        # The last layer runs at answers alone; a frozen weight has no gradient of its own.
        edited = 2 * (above - 1) * self.rows_flop(*rows)
        return frozen + signal + unedited + edited + pictures * self.picture_flop

    @property
    def training_flop(self) -> float:
        """FLOP of all steps, of the gate's stage, and of the validations."""
        whole = self.layers * self.rows_flop(3, 1, 1)
        # Two of its eight queries ask for the first answer token, and so run to the end.
        gate = (self.text_layer + 1) * self.rows_flop(3, 1, 4)
        gate += (self.layers - 1 - self.text_layer) * self.rows_flop(2, 0, 1)
        gate += 3 * self.picture_flop
        validations = (STEPS // EVERY + 2) * VALIDATION_RECORDS
        validation = whole + self.layers * self.rows_flop(1, 1, 0) + 3 * self.picture_flop
        taught = min(RECORDS, GATE_RECORDS)
        return STEPS * BATCH * self.shipped_flop + taught * gate + validations * validation

    def kept_bytes(self, *, locality: bool) -> int:
        """Return what a batch of 4 keeps for its gradient; the last layer runs at answers alone."""
        return self._kept_layers * self._layer_bytes(BATCH, locality)

    @property
    def shipped_bytes(self) -> int:
        """Bytes that a batch keeps as shipped: where layers run again their inputs, and one."""
        batch, locality = int(self.shipped["batch_size"]), self.trains_locality
        if not self.recomputes:
            return self._kept_layers * self._layer_bytes(batch, locality)
        inputs = self._kept_layers * self._positions(batch, locality) * 2 * self.hidden
        return inputs + self._layer_bytes(batch, locality)

    @property
    def held_bytes(self) -> int:
        """Bytes of a training besides what a step keeps: weights, adapters, caches."""
        held = self.weight_bytes + _ADAM_BYTES * self.adapter_parameters
        return held + _CACHE_BYTES + _CUDA_BYTES

    def _positions(self, batch: int, locality: bool) -> int:
        pictures, texts = (3, 5) if locality else (2, 3)
        return batch * (pictures * self.image_tokens + texts * TEXT_TOKENS)

    def _layer_bytes(self, batch: int, locality: bool) -> int:
        kept = 5 * self.hidden + 2 * (self.query_width + self.key_width)
        return self._positions(batch, locality) * 2 * (kept + self.products * self.inner)

    @property
    def _kept_layers(self) -> int:
        return self.layers - 2 - min(self.text_layer, self.vision_layer)


def shipped_training(name: str) -> dict[str, Any]:
    """Return the training hyperparameters of a model as they are shipped."""
    path = shipped_hparams(name, "TRAINING/DualEdit")
    values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return values


def hours(family: Family, gpu: str) -> float:
    """Return the hours of a training with the shipped hyperparameters on a GPU."""
    return family.training_flop / (SHARE * PEAK[gpu]) / 3600


def _qwen2(name: str, **rest: int) -> Family:
    return Family(name, 3584, 18944, 28, 3584, 512, 152_064, text_layer=14, vision_layer=17, **rest)


FAMILIES = (
    Family(
        *("llava-1.5-7b", 4096, 11008, 32, 4096, 4096, 32_064),
        *(576, 1024, 4096, 24, 1, 577, 16, 19),
    ),
    _qwen2(
        "llavaov-7b",
        image_tokens=2929,
        tower_hidden=1152,
        tower_inner=4304,
        tower_layers=26,
        tiles=5,
        tile_patches=729,
    ),
    _qwen2(
        "qwen2-vl-7b",
        image_tokens=391,
        tower_hidden=1280,
        tower_inner=5120,
        tower_layers=32,
        tiles=1,
        tile_patches=1564,
    ),
    _qwen2(
        "qwen2.5-vl-7b",
        image_tokens=391,
        tower_hidden=1280,
        tower_inner=3420,
        tower_layers=32,
        tiles=1,
        tile_patches=1564,
        tower_products=3,
    ),
    Family(
        *("qwen3-vl-8b", 4096, 12288, 36, 4096, 1024, 151_936),
        *(300, 1152, 4304, 27, 1, 1200, 18, 21),
    ),
    Family(
        *("gemma-3-4b", 2560, 10240, 34, 2048, 1024, 262_208),
        *(256, 1152, 4304, 27, 1, 4096, 17, 20),
        word_matrices=1,
    ),
    Family(
        *("idefics3-8b", 4096, 14336, 32, 4096, 1024, 128_259),
        *(2197, 1152, 4304, 27, 13, 676, 16, 19),
    ),
    _qwen2(
        "internvl3-8b",
        image_tokens=3328,
        tower_hidden=1024,
        tower_inner=4096,
        tower_layers=24,
        tiles=13,
        tile_patches=1025,
    ),
    Family(
        *("paligemma2-3b", 2304, 9216, 26, 2048, 1024, 257_216),
        *(256, 1152, 4304, 27, 1, 256, 13, 15),
        word_matrices=1,
    ),
    Family(
        *("smolvlm-2.2b", 2048, 8192, 24, 2048, 2048, 49_280),
        *(1053, 1152, 4304, 27, 13, 729, 12, 14),
    ),
    Family(
        *("blip2-opt-2.7b", 2560, 10240, 32, 2560, 2560, 50_304),
        *(32, 1408, 6144, 39, 1, 257, 16, 19),
        products=2,
    ),
)
"""Every family with hyperparameters of its own whose shapes are published with its weights."""


def table() -> str:
    """Return the table as Markdown."""
    columns = (
        "`--hparams`",
        "image tokens",
        "TFLOP a record",
        "A100, h",
        "H100, h",
        "GiB",
        "GiB, nothing run again",
    )
    lines = [" | ".join(columns), "|".join(["---"] * len(columns))]
    for each in FAMILIES:
        cells = [
            f"`{each.name}`",
            str(each.image_tokens),
            f"{each.shipped_flop / 1e12:.1f}",
            *(f"{hours(each, gpu):.1f}" for gpu in PEAK),
            f"{(each.held_bytes + each.shipped_bytes) / 2**30:.0f}",
            f"{(each.held_bytes + each.kept_bytes(locality=each.trains_locality)) / 2**30:.0f}",
        ]
        lines.append(" | ".join(cells))
    return "".join(f"| {line} |\n" if "---|" not in line else f"|{line}|\n" for line in lines)


if __name__ == "__main__":
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    print(table(), end="")  # noqa: T201
