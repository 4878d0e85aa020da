"""Loading: a saved model loads as it was, anything else is refused in one line."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_editors import request_of
from tiny_models import TinyModel
from transformers import LlamaConfig, LlamaForCausalLM

from easyedit_dualedit.errors import ModelLoadError
from easyedit_dualedit.model import loading
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.loading import computes_with, load_model

WEIGHTS = "model.safetensors"


@pytest.fixture
def saved(llava: TinyModel, tmp_path: Path) -> Path:
    return llava.save(tmp_path / "model")


def refused(folder: Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model(str(folder))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    assert repr(str(folder)) in message
    return message


def same_answers(tiny: TinyModel, folder: Path) -> None:
    model, processor = load_model(str(folder))
    assert not model.training
    for key, value in tiny.model.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    ours = Encoder(Backbone.of(tiny.model), tiny.processor).encode([request_of()])
    theirs = Encoder(Backbone.of(model), processor).encode([request_of()])
    assert set(ours.inputs) == set(theirs.inputs)
    for name, value in ours.inputs.items():
        assert torch.equal(value, theirs.inputs[name])
    with torch.no_grad():
        assert torch.equal(model(**theirs.inputs).logits, tiny.model(**ours.inputs).logits)


def test_a_saved_model_loads_as_it_was(every: TinyModel, tmp_path: Path):
    same_answers(every, every.save(tmp_path))


def test_a_model_in_several_files_loads_as_it_was(every: TinyModel, tmp_path: Path):
    every.model.save_pretrained(tmp_path, max_shard_size="20KB")
    every.processor.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    same_answers(every, tmp_path)


def test_a_dtype_may_be_named(saved: Path):
    assert load_model(str(saved), dtype="bf16")[0].dtype == torch.bfloat16
    with pytest.raises(ModelLoadError, match="dtype = 'int4': auto, or one of bf16"):
        load_model(str(saved), dtype="int4")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_loads_in_the_dtype_asked_for(saved: Path, dtype: torch.dtype):
    model, _ = load_model(str(saved), dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_a_missing_folder_is_refused(tmp_path: Path):
    refused(tmp_path / "gone")


def test_an_empty_folder_and_a_file_are_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty")
    (tmp_path / "file").write_text("text")
    refused(tmp_path / "file")


def test_a_folder_without_weights_is_refused(saved: Path):
    (saved / WEIGHTS).unlink()
    assert WEIGHTS in refused(saved)


def test_a_folder_without_a_processor_is_refused(saved: Path):
    for path in saved.iterdir():
        if path.name not in ("config.json", "generation_config.json", WEIGHTS):
            path.unlink()
    assert "processor" in refused(saved)


@pytest.mark.parametrize("kept", [0, 4, 1000, -1])
def test_truncated_weights_are_refused(saved: Path, kept: int):
    content = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(content[:kept])
    refused(saved)


def test_a_missing_shard_is_refused(llava: TinyModel, tmp_path: Path):
    llava.model.save_pretrained(tmp_path, max_shard_size="20KB")
    llava.processor.save_pretrained(tmp_path)
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    refused(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "processor_config.json"])
@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_damaged_description_is_refused(saved: Path, name: str, content: str):
    assert (saved / name).is_file()
    (saved / name).write_text(content)
    refused(saved)


def test_a_model_of_text_alone_is_refused(llava: TinyModel, tmp_path: Path):
    config = LlamaConfig(
        vocab_size=len(llava.processor.tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "text")
    llava.processor.tokenizer.save_pretrained(tmp_path / "text")
    assert "no vision-language model" in refused(tmp_path / "text")


def test_a_model_with_missing_weights_is_refused(saved: Path):
    from safetensors.torch import load_file, save_file

    weights = load_file(saved / WEIGHTS)
    missing = next(key for key in weights if "layers.1" in key and "q_proj" in key)
    del weights[missing]
    save_file(weights, saved / WEIGHTS, metadata={"format": "pt"})
    refused(saved)


def test_the_weights_of_another_model_are_refused(saved: Path, tmp_path: Path):
    config = json.loads((saved / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] += 1
    other = tmp_path / "other"
    shutil.copytree(saved, other)
    (other / "config.json").write_text(json.dumps(config))
    refused(other)


def test_nothing_is_printed(saved: Path, capfd: pytest.CaptureFixture[str]):
    load_model(str(saved))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "Warning" not in captured.err


def test_half_precision_that_a_cpu_imitates_is_told(
    saved: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told = "this CPU has no bfloat16 of its own and imitates it, many times slower than float32"
    for native in (True, False):
        caplog.clear()
        monkeypatch.setattr(loading, "computes_with", lambda _device, _dtype, now=native: now)
        load_model(str(saved), dtype=torch.bfloat16)
        assert (told in caplog.text) is not native


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cpu_computes_with_the_half_precision_that_its_library_has(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert computes_with("cpu", torch.float32)
    supported = f"_is_mkldnn_{'bf16' if dtype == torch.bfloat16 else 'fp16'}_supported"
    assert computes_with("cpu", dtype) == getattr(torch.ops.mkldnn, supported)()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not computes_with("cpu", dtype)
    assert computes_with("cpu", torch.float32)


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_is_asked_about_itself(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[str] = []

    @contextmanager
    def device(name: str) -> Iterator[None]:
        entered.append(name)
        yield

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation
    )
    assert computes_with("cuda:1", torch.bfloat16) is native
    assert entered == ["cuda:1"]
    assert computes_with("cuda:1", torch.float16)


@pytest.mark.parametrize("quantization", ["8-bit", "int8", "3bit", 4, True, ""])
def test_another_quantization_is_refused_with_those_there_are(saved: Path, quantization: Any):
    told = f"quantization = {quantization!r}: one of 4bit, 8bit; or None for weights as they are"
    with pytest.raises(ModelLoadError) as caught:
        load_model(str(saved), quantization=quantization)
    assert str(caught.value) == told


def test_a_device_may_be_that_of_torch(saved: Path):
    model, _ = load_model(str(saved), device=torch.device("cpu"), dtype=torch.bfloat16)
    assert {parameter.device for parameter in model.parameters()} == {torch.device("cpu")}


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "cpu:-1", "meta", "", None])
def test_a_device_that_cannot_be_used_is_refused_before_anything_is_read(
    tmp_path: Path, device: Any
):
    with pytest.raises(ModelLoadError) as caught:
        load_model(str(tmp_path / "gone"), device=device)
    message = str(caught.value)
    assert message.startswith(f"device = {str(device)!r} cannot be used (")
    assert "give cpu, cuda, cuda:<index>" in message
    assert "\n" not in message and len(message) < 400 and "used ()" not in message
