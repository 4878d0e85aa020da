"""Models that are offloaded, spread over devices, or on a GPU edit as they do on one CPU."""

import accelerate
import pytest
import torch
from tiny_editors import picture, request_of, trained_editor
from tiny_families import FAMILIES
from tiny_models import TinyModel

from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.inputs import Query

QUERIES = [request_of(), Query("How many squares?", picture("green"), "two")]


def answers(editor: DualEditor) -> torch.Tensor:
    """Return the edited logits of `QUERIES` at real tokens after an edit, on the CPU."""
    edited = editor.edited(editor.read([request_of()]))
    batch = editor.encoder.encode(QUERIES)
    with torch.no_grad():
        output: torch.Tensor = edited(layout=batch.layout, **batch.inputs).logits
    prompt = editor.encoder.encode(QUERIES, with_target=False)
    tokens = edited.generate(**prompt.inputs, max_new_tokens=3, do_sample=False)
    assert tokens.shape[0] == len(QUERIES)
    return output[batch.layout.real.to(output.device)].float().cpu()


@pytest.fixture
def expected(tiny: TinyModel) -> torch.Tensor:
    return answers(trained_editor(tiny))


def test_an_offloaded_model_edits_as_a_loaded_one(llava: TinyModel):
    # LLaVA-OneVision cannot be offloaded whole: transformers reads its image_newline outside of
    # the forward of the module that owns it, where accelerate has not brought it back.
    expected = answers(trained_editor(llava))
    other = FAMILIES[llava.family]()
    accelerate.cpu_offload(other.model, execution_device=torch.device("cpu"))
    assert next(other.model.parameters()).is_meta
    editor = trained_editor(other)
    assert all(parameter.device.type == "cpu" for parameter in editor.parameters())
    torch.testing.assert_close(answers(editor), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_on_a_gpu_edits_as_on_the_cpu(
    tiny: TinyModel,
    expected: torch.Tensor,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
):
    other = FAMILIES[tiny.family]()
    other.model.to("cuda", dtype)
    # Convolutions of patches round float32 to fewer bits there, unless they are asked not to.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    found = answers(trained_editor(other))
    share = float((found - expected).abs().amax() / expected.abs().amax())
    assert share <= (1e-4 if dtype == torch.float32 else 0.1)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_model_spread_over_devices_edits_as_on_one(tiny: TinyModel, expected: torch.Tensor):
    other = FAMILIES[tiny.family]()
    device_map = accelerate.infer_auto_device_map(
        other.model, max_memory={0: "200KB", 1: "10MB"}, no_split_module_classes=[]
    )
    accelerate.dispatch_model(other.model, device_map)
    found = answers(trained_editor(other))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
