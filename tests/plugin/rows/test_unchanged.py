"""A model is put back as it was, whatever was done to it."""

import torch
from tiny_models import tiny_llava
from tiny_rows import assert_same, state_of

from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.plugin.rows.unchanged import unchanged


def test_whatever_is_done_to_a_model_is_undone() -> None:
    tiny = tiny_llava()
    model = tiny.model
    encoder = Encoder(Backbone.of(model), tiny.processor)
    before = state_of(model, encoder)
    with unchanged(model):
        first = Backbone.of(model).layers[0]
        first.mlp = torch.nn.Identity()
        first.register_forward_hook(lambda *_: None)
        model.surplus = torch.nn.Linear(2, 2)
        model.note = 1
        model.train().to(torch.float64).requires_grad_(False)
        model.config.use_cache = False
        model.config.get_text_config().hidden_act = "relu"
        model.generation_config.max_new_tokens = 3
        del model.model.language_model.norm
    assert_same(before, state_of(model, encoder))
