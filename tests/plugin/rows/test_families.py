"""Every method of EasyEdit on the families that it ships hyperparameters for."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from easyedit_fixtures import needs_master, shared_workplace
from tiny_rows import answer_of
from tiny_trainings import encoder_of, records_of, training_bench

from easyedit_dualedit.errors import UpstreamError
from easyedit_dualedit.experiments.benchmark_folder import slug
from easyedit_dualedit.model.loading import load_model
from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.models import load_processor
from easyedit_dualedit.plugin.rows.grace import GRACE
from easyedit_dualedit.plugin.rows.ike import IKE
from easyedit_dualedit.plugin.rows.lora import LORA
from easyedit_dualedit.plugin.rows.mend import MEND
from easyedit_dualedit.plugin.rows.roster import easyedit_contenders
from easyedit_dualedit.plugin.rows.serac import SERAC
from easyedit_dualedit.plugin.rows.shipped import Shipped, edit_hparams, shipped_file
from easyedit_dualedit.plugin.rows.wise import WISE

pytestmark = [needs_master, pytest.mark.usefixtures("host", "elsewhere")]

FAMILIES = ("llava-onevision", "qwen2-vl", "qwen3-vl", "blip2")
SHIPPED = (MEND, SERAC, LORA, WISE, GRACE, IKE)
FILES = {
    "llava-onevision": "llavaov-7b.yaml",
    "qwen2-vl": "qwen2vl-7b.yaml",
    "qwen3-vl": "qwen3vl-4b.yaml",
    "blip2": "blip2.yaml",
}
ABSENT = {("blip2", "LoRA"), ("blip2", "GRACE")}
"""What EasyEdit ships no file for."""

STEPS: dict[str, dict[str, Any]] = {
    "mend": {"max_iters": 2},
    "serac": {"max_iters": 2},
    "lora": {"num_steps": 1},
    "wise": {"n_iter": 1},
    "grace": {"n_iter": 1},
    "ike": {},
}


def bench_of(family: str, folder: Path, **settings: Any) -> Any:
    """Return a bench without the settings of a training."""
    bench = training_bench(shared_workplace(family), folder)
    return dataclasses.replace(bench, load=lambda: loaded(bench.model), settings=settings)


def loaded(model: str) -> tuple[Any, Any]:
    """Return a model and its processor as the benchmark loads them."""
    return load_model(model)[0], load_processor(model)


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda shipped: shipped.method)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_its_own_file(host: Host, family: str, shipped: Shipped) -> None:
    found = shipped_file(host, shipped, str(shared_workplace(family).model))
    expected = FILES[family].replace("-", "_") if shipped is IKE else FILES[family]
    if (family, shipped.method) in ABSENT:
        expected = "llavaov-7b.yaml"
    if shipped is SERAC:
        expected = "blip2.yaml"
    assert found.name == expected
    assert found.is_file()


def test_the_numbers_are_those_of_the_family(host: Host, tmp_path: Path) -> None:
    kinds = {
        family: edit_hparams(host, LORA, bench_of(family, tmp_path).model, {}).lora_type
        for family in ("llava-onevision", "qwen3-vl")
    }
    assert kinds == {"llava-onevision": "adalora", "qwen3-vl": "lora"}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_runs_or_says_why_not(family: str, tmp_path: Path) -> None:
    workplace = shared_workplace(family)
    record, encoder = records_of(workplace)[0], encoder_of(workplace)
    contenders = easyedit_contenders()
    assert {slug(contender.name) for contender in contenders} == set(STEPS)
    refused = {}
    for contender in contenders:
        bench = bench_of(family, tmp_path / contender.name, **STEPS[slug(contender.name)])
        try:
            with contender.make(bench).edit(record) as edited, torch.no_grad():
                for query in (record.request, record.text_locality):
                    assert 0 < len(answer_of(edited, encoder, query)) <= 4, contender.name
        except UpstreamError as error:
            refused[contender.name] = str(error)
    if family != "blip2":
        assert not refused
        return
    assert set(refused) == {"WISE", "GRACE"}
    assert "needs a picture for every question" in refused["WISE"]
    assert "gets all rows in one" in refused["GRACE"]
