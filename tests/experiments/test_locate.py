"""Locating: noise goes where it should, and a layer that alone is read is named."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_data import write_data
from tiny_families import FAMILIES
from tiny_models import LAYERS, TinyModel

from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.errors import ConfigError, DataError
from easyedit_dualedit.experiments import locate as module
from easyedit_dualedit.experiments.layer_probe import LocateConfig
from easyedit_dualedit.experiments.locate import locate, propose, write_hparams
from easyedit_dualedit.measure.run import Run
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.settings import read_yaml


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    return load_records(write_data(tmp_path / "data", 4), tmp_path / "data")


def encoder_of(tiny: TinyModel) -> Encoder:
    return Encoder(Backbone.of(tiny.model), tiny.processor)


def located(tiny: TinyModel, records: list[Record], folder: Path, **changes: Any) -> dict[str, Any]:
    config = LocateConfig(**{"draws": 2} | changes)
    return locate(records, encoder_of(tiny), config, Run(folder, {}), progress=False)


def effects(found: dict[str, Any], modality: str) -> list[float]:
    return [entry[modality]["kl"]["mean"] for entry in found["layers"]]


def only_reader(family: str, reader: int) -> TinyModel:
    """Return a tiny model in which tokens see each other in one decoder layer alone."""
    tiny = FAMILIES[family]()
    for place, layer in enumerate(Backbone.of(tiny.model).layers):
        if place != reader:
            with torch.no_grad():
                layer.self_attn.o_proj.weight.zero_()
    return tiny


@pytest.mark.parametrize("carrier", range(LAYERS - 1))
@pytest.mark.parametrize("family", ["llava", "llava-onevision"])
def test_the_only_layer_that_carries_the_image_is_named(
    family: str, carrier: int, records: list[Record], tmp_path: Path
):
    """Layer `carrier + 1` is the only one to read other tokens, so it reads layer `carrier`."""
    tiny = only_reader(family, carrier + 1)
    found = located(tiny, records, tmp_path / "run")
    assert found["proposal"] == {"text_layer": carrier, "vision_layer": carrier}
    for modality in ("vision", "text"):
        changes = effects(found, modality)
        assert min(changes[: carrier + 1]) > 1e-3
        assert max(changes[carrier + 1 :]) < 1e-6


def test_a_stopped_run_continues(
    llava: TinyModel, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = located(llava, records, tmp_path / "whole")
    located(llava, records[:2], tmp_path / "parts")
    probed = []
    real = module.probe
    monkeypatch.setattr(module, "probe", lambda r, *rest: probed.append(r.index) or real(r, *rest))
    assert located(llava, records, tmp_path / "parts") == whole
    assert probed == [2, 3]


def test_some_layers_are_enough(llava: TinyModel, records: list[Record], tmp_path: Path):
    found = located(llava, records, tmp_path / "some", layers=(2, 0))
    assert [entry["layer"] for entry in found["layers"]] == [0, 2]
    assert set(found["proposal"].values()) <= {0, 2}


def test_the_deepest_layer_that_is_read_is_proposed():
    def layer(index: int, text: float, vision: float) -> dict[str, Any]:
        return {"layer": index, "text": {"kl": {"mean": text}}, "vision": {"kl": {"mean": vision}}}

    by_layer = [layer(0, 1.0, 4.0), layer(3, 2.0, 0.5), layer(5, 0.3, 0.3), layer(7, 0.1, 0.0)]
    assert propose(by_layer, 0.1) == {"text_layer": 5, "vision_layer": 3}
    assert propose(by_layer, 0.01) == {"text_layer": 7, "vision_layer": 5}


def test_proposed_layers_are_written_into_hyperparameters(
    llava: TinyModel, records: list[Record], tmp_path: Path
):
    found = located(llava, records, tmp_path / "run")
    path = tmp_path / "proposed.yaml"
    write_hparams(path, {"text_layer": 0, "lr": 0.1}, found["proposal"])
    assert yaml.safe_load(path.read_text()) == read_yaml(path) == {"lr": 0.1} | found["proposal"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"layers": (1, 9)}, "decoder layers 0-3"),
        ({"layers": ()}, "at least one"),
        ({"noise": 0.0}, "noise = 0.0"),
        ({"noise": float("nan")}, "noise = nan"),
        ({"draws": 0}, "draws = 0"),
        ({"rows": 3}, "rows = 3"),
        ({"share": 0.0}, "share = 0.0"),
    ],
)
def test_bad_settings_are_one_clear_line(
    llava: TinyModel, records: list[Record], tmp_path: Path, changes: dict[str, Any], told: str
):
    with pytest.raises(ConfigError) as caught:
        located(llava, records, tmp_path / "run", **changes)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_bad_data_is_one_clear_line(llava: TinyModel, records: list[Record], tmp_path: Path):
    with pytest.raises(DataError, match="at least one record"):
        located(llava, [], tmp_path / "none")
    blind = replace(records[0], request=replace(records[0].request, image=None))
    with pytest.raises(DataError, match="record 0 shows nothing"):
        located(llava, [blind], tmp_path / "blind")


def test_output_that_is_no_number_is_told(records: list[Record], tmp_path: Path):
    tiny = FAMILIES["llava"]()
    with torch.no_grad():
        tiny.model.lm_head.weight[3] = float("nan")
    with pytest.raises(DataError, match="record 0: the model's output holds NaN"):
        located(tiny, records, tmp_path / "run")
    assert Run(tmp_path / "run", {}).case(0) is None
