"""Saved adapters: the same numbers come back, and nothing else is taken for them."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny_editors import backbone_of, request_of, tiny_config, trained_editor
from tiny_families import FAMILIES
from tiny_models import LAYERS, TinyModel, tiny_llava, tiny_llava_onevision

from easyedit_dualedit.errors import ArchiveError, ConfigError
from easyedit_dualedit.method.archive import CONFIG_FILE, WEIGHTS_FILE, Archive
from easyedit_dualedit.method.config import DualEditConfig, GateConfig
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.storage import described_tensors


def logits_of(editor: DualEditor) -> torch.Tensor:
    edited = editor.edited(editor.read([request_of()]))
    with torch.no_grad():
        result: torch.Tensor = edited(**editor.encoder.encode([request_of()]).inputs).logits
    return result


def saved(tiny: TinyModel, folder: Path, **changes: Any) -> DualEditor:
    editor = trained_editor(tiny, **changes)
    editor.save(folder)
    return editor


def change_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / CONFIG_FILE
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("modalities", [["text", "vision"], ["vision"]])
def test_a_loaded_editor_gives_the_same_bits(
    every: TinyModel, tmp_path: Path, modalities: list[str]
):
    editor = saved(every, tmp_path / "new" / "deep", modalities=modalities)
    loaded = DualEditor.load(every.model, every.processor, str(tmp_path / "new" / "deep"))
    assert loaded.config == editor.config
    assert torch.equal(logits_of(loaded), logits_of(editor))
    with torch.no_grad():
        plain = every.model(**editor.encoder.encode([request_of()]).inputs).logits
    assert not torch.equal(logits_of(loaded), plain)


def test_calibration_comes_back(llava: TinyModel, tmp_path: Path):
    editor = trained_editor(llava, gate="centred")
    editor.gate.mean.normal_()
    editor.gate.thresholds.copy_(torch.tensor([0.25, 0.5, 0.75]))
    editor.save(tmp_path)
    loaded = DualEditor.load(llava.model, llava.processor, tmp_path)
    assert loaded.gate.threshold == 0.5
    assert torch.equal(loaded.gate.mean, editor.gate.mean)
    other = DualEditor.load(llava.model, llava.processor, tmp_path, gate=GateConfig("cosine"))
    assert other.gate.threshold == 0.25
    assert other.config == editor.config.with_gate("cosine")
    fixed = DualEditor.load(llava.model, llava.processor, tmp_path, gate=GateConfig("cosine", 0.1))
    assert fixed.gate.threshold == 0.1
    chosen = GateConfig("cosine", 0.1, false_open_rate=0.02)
    given = DualEditor.load(llava.model, llava.processor, tmp_path, gate=chosen)
    assert given.config.gate == chosen


def test_the_files_hold_tensors_and_plain_values(llava: TinyModel, tmp_path: Path):
    editor = saved(llava, tmp_path)
    assert sorted(contents(tmp_path)) == [WEIGHTS_FILE, CONFIG_FILE]
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    assert set(tensors) == set(editor.state_dict())
    values = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert DualEditConfig.from_dict(values["config"]) == editor.config
    assert values["model"]["architecture"]["decoder_layers"] == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llava", "llava-onevision"])
def test_adapters_belong_to_their_model_in_any_dtype(
    tmp_path: Path, family: str, dtype: torch.dtype
):
    editor = saved(FAMILIES[family](), tmp_path / "full")
    half = FAMILIES[family]()
    half.model.to(dtype)
    loaded = DualEditor.load(half.model, half.processor, tmp_path / "full")
    assert logits_of(loaded).dtype == dtype
    assert loaded.adapters["text"].query.weight.dtype == torch.float32
    for name, value in editor.state_dict().items():
        assert torch.equal(loaded.state_dict()[name].nan_to_num(), value.nan_to_num()), name
    loaded.save(tmp_path / "half")
    full = FAMILIES[family]()
    back = DualEditor.load(full.model, full.processor, tmp_path / "half")
    assert torch.equal(logits_of(back), logits_of(editor))


def test_half_precision_adapters_are_saved_as_they_are(llava: TinyModel, tmp_path: Path):
    editor = trained_editor(llava)
    editor.adapters.to(torch.bfloat16)
    editor.save(tmp_path)
    assert load_file(tmp_path / WEIGHTS_FILE)["adapters.by_modality.text.query.weight"].dtype == (
        torch.bfloat16
    )
    loaded = DualEditor.load(llava.model, llava.processor, tmp_path)
    assert torch.equal(
        loaded.adapters["text"].query.weight, editor.adapters["text"].query.weight.float()
    )


def reseeded() -> TinyModel:
    """Return a LLaVA of the same architecture with other weights."""
    other = tiny_llava(seed=1)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in other.model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.25, generator=generator)
    return other


def test_a_model_of_other_weights_is_refused(llava: TinyModel, tmp_path: Path):
    saved(llava, tmp_path)
    other = reseeded()
    with pytest.raises(ArchiveError, match="trained on another model: this one has other weights"):
        DualEditor.load(other.model, other.processor, tmp_path)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_a_model_that_differs_in_one_layer_is_refused(llava: TinyModel, tmp_path: Path, layer: int):
    saved(llava, tmp_path)
    other = tiny_llava()
    with torch.no_grad():
        backbone_of(other).layers[layer].self_attn.q_proj.weight.mul_(1.1)
    with pytest.raises(ArchiveError, match="other weights"):
        DualEditor.load(other.model, other.processor, tmp_path)


def test_a_model_of_another_architecture_is_refused(llava: TinyModel, tmp_path: Path):
    saved(llava, tmp_path)
    other = tiny_llava_onevision()
    with pytest.raises(ArchiveError, match="model_type 'llava_onevision' instead of 'llava'"):
        DualEditor.load(other.model, other.processor, tmp_path)


@pytest.mark.parametrize("key", ["model_type", "hidden_size", "decoder_layers", "vocabulary"])
def test_every_part_of_the_architecture_counts(llava: TinyModel, tmp_path: Path, key: str):
    saved(llava, tmp_path)
    change_config(tmp_path, lambda values: values["model"]["architecture"].update({key: 7}))
    with pytest.raises(ArchiveError, match=f"{key} .* instead of 7; load the model"):
        DualEditor.load(llava.model, llava.processor, tmp_path)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_named(llava: TinyModel, tmp_path: Path, name: str):
    saved(llava, tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ArchiveError, match=f"no saved adapters in .*: {name} is missing; train"):
        Archive.load(tmp_path)


def test_a_missing_folder_is_named(llava: TinyModel, tmp_path: Path):
    with pytest.raises(ArchiveError, match="no saved adapters in .*absent: config.json"):
        DualEditor.load(llava.model, llava.processor, tmp_path / "absent")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_weights_are_refused(llava: TinyModel, tmp_path: Path, share: float):
    saved(llava, tmp_path)
    path = tmp_path / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ArchiveError, match="adapters.safetensors is damaged .*; save it again"):
        Archive.load(tmp_path)


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_is_neither_taken_nor_run(llava: TinyModel, tmp_path: Path):
    saved(llava, tmp_path)
    sprung = tmp_path / "sprung"
    for data in (pickle.dumps(Trap(sprung)), None):
        if data is None:
            torch.save({"trap": Trap(sprung)}, tmp_path / WEIGHTS_FILE)
        else:
            (tmp_path / WEIGHTS_FILE).write_bytes(data)
        with pytest.raises(ArchiveError, match="adapters.safetensors is damaged"):
            Archive.load(tmp_path)
    assert not sprung.exists()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", '{"format": 1}', '{"format": 1, "config": null, "model": {}}'],
)
def test_a_damaged_configuration_is_refused(llava: TinyModel, tmp_path: Path, text: str):
    saved(llava, tmp_path)
    (tmp_path / CONFIG_FILE).write_text(text)
    with pytest.raises(ArchiveError, match="config.json is damaged .*; save it again"):
        Archive.load(tmp_path)


def test_a_configuration_that_is_no_text_is_refused(llava: TinyModel, tmp_path: Path):
    saved(llava, tmp_path)
    (tmp_path / CONFIG_FILE).write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ArchiveError, match="config.json is damaged"):
        Archive.load(tmp_path)


def test_a_configuration_without_fingerprint_is_refused(llava: TinyModel, tmp_path: Path):
    saved(llava, tmp_path)
    change_config(tmp_path, lambda values: values.pop("model"))
    with pytest.raises(ArchiveError, match="config.json is damaged .*model"):
        Archive.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"architecture": None}, {"parts": {"embeddings": {"dtype": "float32", "values": "a"}}}],
    ids=["architecture", "weights"],
)
def test_a_damaged_fingerprint_is_refused(llava: TinyModel, tmp_path: Path, change: dict[str, Any]):
    saved(llava, tmp_path)
    change_config(tmp_path, lambda values: values["model"].update(change))
    with pytest.raises(ArchiveError, match="config.json is damaged"):
        DualEditor.load(llava.model, llava.processor, tmp_path)


@pytest.mark.parametrize("value", [2, "1", None])
def test_an_unknown_format_is_refused(llava: TinyModel, tmp_path: Path, value: Any):
    saved(llava, tmp_path)
    change_config(tmp_path, lambda values: values.update(format=value))
    with pytest.raises(ArchiveError, match=f"has format {value!r}, this version reads 1; save"):
        Archive.load(tmp_path)


def test_a_setting_that_is_not_known_is_named_with_its_file(llava: TinyModel, tmp_path: Path):
    saved(llava, tmp_path)
    change_config(tmp_path, lambda values: values["config"].update(widht=3))
    with pytest.raises(ConfigError, match="unknown keys in .*config.json: widht; did you mean"):
        Archive.load(tmp_path)


@pytest.mark.parametrize(
    "change", [{"width": 32}, {"modalities": ["text"]}], ids=["shape", "unexpected"]
)
def test_weights_that_do_not_fit_the_configuration_are_refused(
    llava: TinyModel, tmp_path: Path, change: dict[str, Any]
):
    saved(llava, tmp_path)
    change_config(tmp_path, lambda values: values["config"].update(change))
    with pytest.raises(ArchiveError, match="do not fit its configuration") as caught:
        DualEditor.load(llava.model, llava.processor, tmp_path)
    assert "\n" not in str(caught.value)


def test_weights_that_are_missing_are_refused(llava: TinyModel, tmp_path: Path):
    saved(llava, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    tensors.pop("gate.mean")
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    with pytest.raises(ArchiveError, match="its digest is not the one in config.json"):
        DualEditor.load(llava.model, llava.processor, tmp_path)
    change_config(tmp_path, lambda values: values.pop("weights_sha256"))
    with pytest.raises(ArchiveError, match="do not fit its configuration.*gate.mean"):
        DualEditor.load(llava.model, llava.processor, tmp_path)


def fail_at_weights(patch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_options: Any) -> None:
        raise OSError(28, "No space left on device")

    patch.setattr(described_tensors, "save_file", fail)


def fail_at_weights_in_rust(patch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_options: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    patch.setattr(described_tensors, "save_file", fail)


def fail_at_config(patch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_options: Any) -> None:
        raise OSError(28, "No space left on device")

    patch.setattr(Path, "write_text", fail)


def fail_at_move(patch: pytest.MonkeyPatch, place: int) -> None:
    moved: list[str] = []
    replace = os.replace

    def fail(source: Any, target: Any, **options: Any) -> None:
        moved.append(str(source))
        if len(moved) > place:
            raise OSError(28, "No space left on device")
        replace(source, target, **options)

    patch.setattr(os, "replace", fail)


@pytest.mark.parametrize(
    "fail",
    [
        fail_at_weights,
        fail_at_config,
        lambda patch: fail_at_move(patch, 0),
        lambda patch: fail_at_move(patch, 1),
        fail_at_weights_in_rust,
    ],
    ids=["weights", "config", "first-move", "second-move", "weights-in-rust"],
)
def test_a_failed_save_leaves_the_old_archive_whole(
    llava: TinyModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fail: Callable[[pytest.MonkeyPatch], None],
):
    old = saved(llava, tmp_path)
    before = contents(tmp_path)
    new = trained_editor(llava, gate={"kind": "cosine", "threshold": 0.1})
    with torch.no_grad():
        new.adapters["text"].output.weight.normal_()
    with monkeypatch.context() as patch:
        fail(patch)
        with pytest.raises(ArchiveError, match="cannot save adapters in .*No space left"):
            new.save(tmp_path)
    assert contents(tmp_path) == before
    loaded = DualEditor.load(llava.model, llava.processor, tmp_path)
    assert torch.equal(logits_of(loaded), logits_of(old))


def test_saving_over_an_archive_replaces_it(llava: TinyModel, tmp_path: Path):
    saved(llava, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    new = saved(llava, tmp_path, width=32, heads=4)
    loaded = DualEditor.load(llava.model, llava.processor, tmp_path)
    assert loaded.config == new.config == tiny_config(width=32, heads=4)
    assert set(contents(tmp_path)) == {CONFIG_FILE, WEIGHTS_FILE, "notes.txt"}


def test_a_folder_that_cannot_be_made_is_named(llava: TinyModel, tmp_path: Path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ArchiveError, match=f"cannot save adapters in {folder}: "):
            trained_editor(llava).save(folder)


@pytest.mark.parametrize("saving", ["save", "save_pretrained"])
def test_a_full_disk_leaves_the_old_adapters(
    llava: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saving: str
):
    editor = trained_editor(llava)
    editor.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(described_tensors, "save_file", full)
    with pytest.raises(ArchiveError, match="No space left"):
        getattr(editor, saving)(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    DualEditor.from_pretrained(tmp_path, model=llava.model, processor=llava.processor)


def test_adapters_say_what_they_were_trained_on(llava: TinyModel, tmp_path: Path):
    editor = trained_editor(llava)
    editor.training_targets = ("a kite", "rot \N{LATIN SMALL LETTER U WITH DIAERESIS}ber")
    editor.save(tmp_path)
    loaded = DualEditor.load(llava.model, llava.processor, tmp_path)
    assert loaded.training_targets == editor.training_targets
    loaded.save(tmp_path / "again")
    assert Archive.load(tmp_path / "again").training_targets == editor.training_targets


def test_adapters_that_do_not_say_what_they_were_trained_on_load(llava: TinyModel, tmp_path: Path):
    saved(llava, tmp_path)
    assert "training_targets" not in json.loads((tmp_path / CONFIG_FILE).read_text())
    assert DualEditor.load(llava.model, llava.processor, tmp_path).training_targets is None


def test_training_targets_that_are_no_list_are_refused(llava: TinyModel, tmp_path: Path):
    saved(llava, tmp_path)
    change_config(tmp_path, lambda values: values.update(training_targets=7))
    with pytest.raises(ArchiveError, match="is damaged"):
        Archive.load(tmp_path)


def test_a_checkpoint_of_a_trainer_is_loaded_as_a_folder_is(llava: TinyModel, tmp_path: Path):
    from easyedit_dualedit.plugin.archives import described_state

    editor = trained_editor(llava)
    path = tmp_path / "checkpoint.pt"
    torch.save({"model": described_state(editor), "step": 3}, path)
    loaded = DualEditor.load(llava.model, llava.processor, path)
    assert torch.equal(logits_of(loaded), logits_of(editor))
    torch.save({"model": {}}, path)
    with pytest.raises(ArchiveError, match="no checkpoint of DualEdit"):
        DualEditor.load(llava.model, llava.processor, path)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_refused(llava: TinyModel, tmp_path: Path, value: float):
    saved(llava, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    name = next(name for name in tensors if name.endswith("query.weight"))
    tensors[name][0, 0] = value
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    change_config(tmp_path, lambda values: values.pop("weights_sha256"))
    with pytest.raises(ArchiveError, match=f"{name} holds 1 values that are no numbers"):
        DualEditor.load(llava.model, llava.processor, tmp_path)
