"""A row that is longer than the model can read is refused before a forward."""

import copy
from typing import Any

import pytest
import torch
import transformers
from tiny_editors import picture
from tiny_models import TinyModel

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.model.position_limit import PositionLimit

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100}
AXES = {"type": "default", "mrope_section": [2, 3, 3]}


@pytest.mark.parametrize(
    ("config", "most"),
    [
        (transformers.LlamaConfig(max_position_embeddings=300), 300),
        (transformers.OPTConfig(max_position_embeddings=300), 300),
        (transformers.Qwen2Config(max_position_embeddings=300, rope_scaling=YARN), 400),
        (
            transformers.LlamaConfig(
                max_position_embeddings=300, rope_scaling={"rope_type": "linear", "factor": 2.0}
            ),
            600,
        ),
        (
            transformers.LlamaConfig(
                max_position_embeddings=300, rope_scaling={"rope_type": "dynamic", "factor": 2.0}
            ),
            None,
        ),
        (transformers.MistralConfig(max_position_embeddings=300, sliding_window=50), None),
        (transformers.MistralConfig(max_position_embeddings=300, sliding_window=None), 300),
        # Every sixth of its layers looks at everything.
        (transformers.Gemma3TextConfig(max_position_embeddings=300), 300),
        (transformers.BloomConfig(), None),
    ],
)
def test_a_configuration_names_its_limit(config: Any, most: int | None) -> None:
    limit = PositionLimit.of(config)
    assert (limit and limit.most) == most


def encoder_of(tiny: TinyModel, most: int) -> Encoder:
    model = copy.deepcopy(tiny.model)
    model.config.get_text_config().max_position_embeddings = most
    return Encoder(Backbone.of(model), tiny.processor)


def test_prompt_and_target_are_counted_together(tiny: TinyModel) -> None:
    query = Query("What is this?", picture(), "a kite")
    width = Encoder(Backbone.of(tiny.model), tiny.processor).encode([query]).labels.shape[1]
    assert encoder_of(tiny, width).encode([query]).labels.shape[1] == width
    short = Query("What?", None, "x")
    with pytest.raises(DataError, match=f"take {width} tokens .* made for {width - 1} positions"):
        encoder_of(tiny, width - 1).encode([short, query])
    encoder_of(tiny, width - 1).encode([query], with_target=False)


def test_a_picture_takes_few_positions_of_several_axes() -> None:
    config = transformers.Qwen2VLTextConfig(max_position_embeddings=300, rope_scaling=AXES)
    limit = PositionLimit.of(config)
    assert limit is not None
    seen = torch.arange(400) < 150
    limit.require([Query("What?")], [400], [seen])
    with pytest.raises(DataError, match="451 tokens .150 of them vision."):
        limit.require([Query("What?")], [451], [seen])
