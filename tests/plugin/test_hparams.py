"""Hyperparameters as EasyEdit reads them."""

import copy
from pathlib import Path

import pytest
import torch

from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.method.config import DualEditConfig
from easyedit_dualedit.model import loading
from easyedit_dualedit.model.loading import dtype_from
from easyedit_dualedit.plugin.hparams import (
    DualEditMultimodalHparams,
    DualEditMultimodalTrainingHparams,
)
from easyedit_dualedit.plugin.values import device_from, model_path

BOTH = (DualEditMultimodalHparams, DualEditMultimodalTrainingHparams)


def settings(**changes: object) -> dict[str, object]:
    """Return settings that are allowed."""
    return {
        "model_name": "some/model",
        "text_layer": 1,
        "vision_layer": 2,
        "device": "cpu",
    } | changes


@pytest.mark.parametrize("hparams", BOTH)
@pytest.mark.parametrize("suffix", ["", ".yaml"])
def test_a_yaml_file_is_read_with_and_without_its_suffix(
    tmp_path: Path, hparams: type[DualEditMultimodalHparams], suffix: str
) -> None:
    (tmp_path / "llava-1.5.yaml").write_text(
        "alg_name: DualEdit\nmodel_name: some/model\ntext_layer: 1\nvision_layer: 2\ndevice: cpu\n"
        "dtype: bfloat16\ngate: {kind: centred, threshold: 1e-1}\n"
    )
    read = hparams.from_hparams(str(tmp_path / f"llava-1.5{suffix}"))
    assert (read.alg, read.alg_name) == ("DualEdit", "DualEdit")
    assert read.dtype is torch.bfloat16
    assert read.name == read.tokenizer_name == "some/model"
    assert read.dualedit_config().gate.threshold == 0.1


def test_a_number_that_yaml_reads_as_a_string_is_a_number() -> None:
    read = DualEditMultimodalTrainingHparams.from_dict(settings(lr="1e-4", cloc="5e-1"))
    assert (read.lr, read.cloc) == (1e-4, 0.5)


def test_they_give_the_configuration_of_the_method() -> None:
    read = DualEditMultimodalHparams.from_dict(settings(width=16, heads=2, preset="published"))
    expected = DualEditConfig.preset("published", text_layer=1, vision_layer=2, width=16, heads=2)
    assert read.dualedit_config() == expected


def test_they_give_the_configuration_of_the_training() -> None:
    read = DualEditMultimodalTrainingHparams.from_dict(
        settings(cinner=2, cedit=3, iedit=4, cloc=5, image_locality_weight=6, end_of_answer=False)
    )
    found = read.training_config()
    assert found.reliability_weight == 2
    assert found.text_generality_weight == 3
    assert found.image_generality_weight == 4
    assert found.text_locality_weight == 5
    assert found.image_locality_weight == 6
    assert not found.end_of_answer


def test_they_give_what_a_training_keeps() -> None:
    assert (
        DualEditMultimodalTrainingHparams.from_dict(settings()).training_config().state_cache_folder
        is None
    )
    read = DualEditMultimodalTrainingHparams.from_dict(
        settings(feature_cache_bytes=1, state_cache_bytes=2, state_cache_folder="states")
    )
    found = read.training_config()
    assert (found.feature_cache_bytes, found.state_cache_bytes) == (1, 2)
    assert found.state_cache_folder == "states"


def test_the_published_preset_trains_no_text_locality_unless_asked() -> None:
    read = DualEditMultimodalTrainingHparams.from_dict(settings(preset="published"))
    assert read.training_config().text_locality_weight == 0
    read = DualEditMultimodalTrainingHparams.from_dict(
        settings(preset="published", text_locality_weight=0.5)
    )
    assert read.training_config().text_locality_weight == 0.5


@pytest.mark.parametrize("hparams", BOTH)
def test_a_dictionary_of_them_gives_equal_ones(hparams: type[DualEditMultimodalHparams]) -> None:
    read = hparams.from_dict(settings(dtype="fp16", gate="open"))
    assert hparams.from_dict(read.to_dict()) == read
    assert copy.deepcopy(read) == read


def test_easyedit_may_write_into_them() -> None:
    read = DualEditMultimodalTrainingHparams.from_dict(settings())
    read.batch_size = 1
    read.max_iters = 0  # its way of evaluating only
    assert read.training_config().batch_size == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edit_lr": 1, "n_hidden": 1}, "keys of MEND.*DualEdit; leave out edit_lr, n_hidden$"),
        ({"text_lair": 3}, "unknown keys.*text_lair.*did you mean.*text_layer"),
        ({"text_layer": None, "vision_layer": None}, "text_layer and vision_layer are not set"),
        ({"text_layer": None}, "^text_layer is not set; give the decoder layers of both"),
        ({"vision_layer": None}, "^vision_layer is not set"),
        ({"modalities": "text"}, "modalities = 'text': a list of text and vision, or of one"),
        ({"seed": -1}, r"^seed = -1: a whole number from 0 to \d+$"),
        ({"text_layer": -1}, "text_layer = -1"),
        ({"width": 10, "heads": 4}, "divisible by heads"),
        ({"gate": {"kind": "shut"}}, "gate kind = 'shut'"),
        ({"preset": "best"}, "preset = 'best'"),
        ({"alg_name": "MEND"}, "alg_name = 'MEND'.*DualEdit"),
        ({"dtype": "int8"}, "dtype = 'int8'"),
        ({"device": "gpu7"}, "device = 'gpu7'"),
        ({"device": "cuda:99"}, "cuda:99.*CUDA devices; set device: cpu"),
        ({"model_name": " "}, "model_name = ' '"),
    ],
)
@pytest.mark.parametrize("hparams", BOTH)
def test_what_is_not_allowed_is_named(
    hparams: type[DualEditMultimodalHparams], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        hparams.from_dict(settings(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0}, "lr = 0"),
        ({"opt": "Atom"}, "opt = 'Atom'"),
        ({"opt": "Optimizer"}, "opt = 'Optimizer'"),
        ({"opt": "LBFGS"}, "opt = 'LBFGS': .* but not LBFGS or SparseAdam"),
        ({"opt": "lr_scheduler"}, "opt = 'lr_scheduler'"),
        ({"val_steps": 0}, "val_steps = 0"),
        (dict.fromkeys(("cinner", "cedit", "iedit", "cloc"), 0), "cinner = 0, and so are all"),
        ({"max_iters": None}, "max_iters and max_epochs are both null"),
        ({"max_iters": 10, "val_interval": 10}, "save nothing; set val_interval to at most 9"),
        ({"max_iters": 1, "val_interval": 1}, "save nothing; set max_iters to 2 or more"),
        ({"cloc": -1}, "cloc = -1"),
        ({"text_locality_weight": -1}, "text_locality_weight = -1"),
        ({"accumulate_bs": 0}, "accumulate_bs = 0"),
        ({"max_iters": 0}, "max_iters = 0"),
        ({"max_iters": "10"}, "max_iters = '10'"),
        ({"max_epochs": 0.5}, "max_epochs = 0.5"),
        ({"log_interval": 0.5}, "log_interval = 0.5"),
        ({"cinner": -1}, "cinner = -1"),
    ],
)
def test_what_is_not_allowed_in_training_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DualEditMultimodalTrainingHparams.from_dict(settings(**changes))


def test_only_what_is_close_is_suggested() -> None:
    with pytest.raises(ConfigError) as raised:
        DualEditMultimodalHparams.from_dict(settings(text_lair=3, mlp_depth=2))
    assert "did you mean text_layer?" in str(raised.value)


def test_all_problems_are_reported_together() -> None:
    with pytest.raises(ConfigError) as raised:
        DualEditMultimodalTrainingHparams.from_dict(
            {"text_layer": -1, "vision_layer": 2, "device": "gpu7", "lr": -1, "gatte": "open"}
        )
    for part in (
        "gatte",
        "did you mean gate",
        "no model_name",
        "text_layer = -1",
        "gpu7",
        "lr = -1",
    ):
        assert part in str(raised.value)


def test_layers_may_be_left_to_a_folder_of_adapters() -> None:
    read = DualEditMultimodalHparams(model_name="some/model", device="cpu", archive="adapters")
    with pytest.raises(ConfigError, match="text_layer and vision_layer are not set"):
        read.dualedit_config()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nothing\.yaml"):
        DualEditMultimodalHparams.from_hparams(tmp_path / "nothing")


@pytest.mark.parametrize("value", ["cpu", "CPU", torch.device("cpu")])
def test_the_cpu_by_any_name(value: object) -> None:
    assert device_from(value) == "cpu"


@pytest.mark.parametrize("value", [0, "0", "0.0", 0.0, "cuda", "cuda:0"])
def test_an_index_is_a_cuda_device(monkeypatch: pytest.MonkeyPatch, value: object) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device_from(value) == "cuda:0"
    assert device_from(None) == "cuda:0"


@pytest.mark.parametrize("value", [1, "cuda:1"])
def test_a_device_that_is_not_there_is_an_error(
    monkeypatch: pytest.MonkeyPatch, value: object
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="sees 1 CUDA devices.*or an index below 1"):
        device_from(value)


@pytest.mark.parametrize("value", [True, "mps", "meta"])
def test_other_devices_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="cpu, cuda, cuda:<index> or an index"):
        device_from(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("fp32", torch.float32), ("torch.float16", torch.float16), (torch.bfloat16, torch.bfloat16)],
)
def test_dtypes_by_name(value: object, expected: torch.dtype) -> None:
    assert dtype_from(value) is expected


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_an_automatic_dtype_is_one_that_the_device_computes_with(
    native: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def computes(device: str, dtype: torch.dtype) -> bool:
        asked.append((device, dtype))
        return native

    monkeypatch.setattr(loading, "computes_with", computes)
    read = DualEditMultimodalHparams.from_dict(settings(dtype="auto", device="cpu"))
    assert (read.dtype, asked) == (expected, [("cpu", torch.bfloat16)])
    assert read.to_dict()["dtype"] == str(expected).removeprefix("torch.")


def test_a_trailing_slash_of_a_model_is_dropped() -> None:
    # EasyEdit names its checkpoint by what follows the last slash.
    assert model_path("models/llava/") == "models/llava"
