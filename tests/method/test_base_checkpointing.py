"""Gradient checkpointing that somebody has turned on in the base model."""

import pytest
import torch
from tiny_editors import request_of, trained_editor
from tiny_families import FAMILIES

from easyedit_dualedit.method.edited_model import EditedModel


@pytest.mark.parametrize("family", ["llava", "qwen2-vl", "blip2"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_of_the_base_model_changes_no_gradient(family: str, reentrant: bool):
    """Up to transformers 5.5 a layer runs again with its hooks, and ours are gone by then."""

    def gradients(is_checkpointed: bool) -> dict[str, torch.Tensor | None]:
        tiny = FAMILIES[family]()
        tiny.model.requires_grad_(False)
        editor = trained_editor(tiny, gate="open")
        batch = editor.encoder.encode([request_of()], end_of_answer=True)
        if is_checkpointed:
            tiny.model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": reentrant}
            )
            tiny.model.train()
            for module in tiny.model.modules():
                for name in [name for name in vars(module) if "drop" in name]:
                    if isinstance(getattr(module, name), float):
                        setattr(module, name, 0.0)
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
        edited: EditedModel = editor.edited(editor.read([request_of()]))
        edited(**batch.inputs, labels=batch.labels).loss.backward()
        layers = editor.backbone.layers
        assert all(layer.gradient_checkpointing is is_checkpointed for layer in layers)
        return {name: each.grad for name, each in editor.adapters.named_parameters()}

    found = gradients(True)
    for name, expected in gradients(False).items():
        assert (expected is None) == (found[name] is None), name
        if expected is not None:
            torch.testing.assert_close(found[name], expected, msg=name)
