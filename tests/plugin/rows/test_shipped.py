"""EasyEdit's shipped hyperparameters, and settings that replace them."""

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from easyedit_fixtures import needs_easyedit, needs_master
from tiny_models import tiny_llava
from tiny_rows import bench_of

from easyedit_dualedit.errors import ConfigError, UpstreamError
from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.rows.grace import GRACE
from easyedit_dualedit.plugin.rows.ike import IKE
from easyedit_dualedit.plugin.rows.lora import LORA
from easyedit_dualedit.plugin.rows.mend import MEND
from easyedit_dualedit.plugin.rows.shipped import edit_hparams, training_hparams
from easyedit_dualedit.plugin.rows.wise import WISE

pytestmark = needs_easyedit

SHIPPED = {shipped.method: shipped for shipped in (LORA, WISE, GRACE, IKE, MEND)}


@pytest.fixture
def alone(host: Host, tmp_path: Path) -> Host:
    """An EasyEdit without the folder hparams beside its package."""
    package = ModuleType("easyeditor")
    vars(package).update(
        {name: value for name, value in vars(host.package).items() if not name.startswith("__")}
    )
    package.__file__ = str(tmp_path / "easyeditor" / "__init__.py")
    return dataclasses.replace(host, package=package)


def test_a_package_without_the_folder_hparams_still_has_ike(alone: Host, tmp_path: Path) -> None:
    config = edit_hparams(alone, IKE, bench_of(tiny_llava(), tmp_path).model, {})
    assert (config.k, config.model_name, config.alg_name) == (0, "llava-onevision", "IKE")


@needs_master
@pytest.mark.parametrize("name", ["LoRA", "MEND"])
def test_a_clone_without_the_folder_hparams_is_refused(
    alone: Host, name: str, tmp_path: Path
) -> None:
    read = training_hparams if name == "MEND" else edit_hparams
    with pytest.raises(UpstreamError, match=f"no hparams/.*{name}.*use a whole clone of master"):
        read(alone, SHIPPED[name], bench_of(tiny_llava(), tmp_path).model, {})


@needs_master
@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("LoRA", {"stepz": 1}, "unknown keys in the settings of LoRA: stepz.*num_steps"),
        ("GRACE", {"device": 0}, "unknown keys in the settings of GRACE: device"),
        ("WISE", {"n_iter": 2.5}, "n_iter = 2.5: a whole number, such as 10"),
        ("GRACE", {"eps": "wide", "n_iter": True}, "eps = 'wide': a number.*n_iter = True"),
    ],
)
def test_bad_settings_are_named(
    host: Host, name: str, settings: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=told):
        edit_hparams(host, SHIPPED[name], bench_of(tiny_llava(), tmp_path).model, settings)


@needs_master
def test_settings_replace_what_is_shipped(host: Host, tmp_path: Path) -> None:
    model = bench_of(tiny_llava(), tmp_path).model
    config = edit_hparams(host, LORA, model, {"lr": "1e-2", "num_steps": 7})
    assert (config.lr, config.num_steps, config.rank) == (0.01, 7, 8)
