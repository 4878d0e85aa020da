"""YAML of hyperparameters: understood, or told in one line."""

import random
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from hypothesis import given
from nasty import Outcome, mutated, seeds, yaml_value

from easyedit_dualedit.plugin.hparams import (
    DualEditMultimodalHparams,
    DualEditMultimodalTrainingHparams,
)
from easyedit_dualedit.settings import parse_value

KINDS = (DualEditMultimodalHparams, DualEditMultimodalTrainingHparams)
PLAIN = "model_name: a\ntext_layer: 1\nvision_layer: 2\nwidth: 16\nheads: 2\n"


def written(source: random.Random, kind: type[DualEditMultimodalHparams]) -> bytes:
    names = [field.name for field in fields(kind)]
    lines = [PLAIN]
    for _ in range(source.choice((1, 1, 1, 2, 4))):
        name = source.choice(names)
        value = yaml_value(source)
        if source.random() < 0.3:
            inner = source.choice(("kind", "threshold", "image_token_id", "chat_template", "a"))
            value = f"{{{inner}: {value}}}"
        lines.append(f"{name}: {value}\n")
    content = "".join(lines).encode("utf-8", "surrogatepass")
    if source.random() < 0.2:
        return mutated(content, source.randrange(2**32))
    return source.choice((b"", b"\xef\xbb\xbf", b"")) + content


def test_hyperparameters(
    fuzzing: Any, answered: Callable[[Callable[[], Any]], Outcome], tmp_path: Path
):
    @fuzzing("yaml")
    @given(seeds)
    def holds(seed: int) -> None:
        source = random.Random(seed)
        kind = source.choice(KINDS)
        path = tmp_path / "hparams.yaml"
        path.write_bytes(written(source, kind))
        outcome = answered(lambda: kind.from_hparams(path))
        if outcome.value is not None and isinstance(
            outcome.value, DualEditMultimodalTrainingHparams
        ):
            training = outcome.value.training_config()
            assert 0 < training.learning_rate <= 1000 and 0 <= training.seed < 2**32
        answered(lambda: parse_value(yaml_value(source), source="--set a.b"))

    holds()
    assert [path.name for path in tmp_path.iterdir()] == ["hparams.yaml"]
