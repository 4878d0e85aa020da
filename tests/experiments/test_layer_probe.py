"""Probing: noise goes where it should, rows share a forward, and the cost is what runs."""

from pathlib import Path

import pytest
import torch
from tiny_ads_edit import ads_edit_records
from tiny_data import write_data
from tiny_editors import shared
from tiny_models import LAYERS, TinyModel
from tiny_videos import WATCHING

from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.experiments import layer_probe as module
from easyedit_dualedit.experiments.layer_probe import ATTENTION, NOISED, LocateConfig, probe
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import IGNORED


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    return load_records(write_data(tmp_path / "data", 4), tmp_path / "data")


def encoder_of(tiny: TinyModel) -> Encoder:
    return Encoder(Backbone.of(tiny.model), tiny.processor)


def test_rows_share_a_forward_and_the_first_stays_clean(tiny: TinyModel, records: list[Record]):
    encoder = encoder_of(tiny)
    config = LocateConfig(draws=2)
    batch = encoder.encode([records[0].request])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        plain = tiny.model(**batch.inputs).logits
        logits = module._noised_logits(encoder, batch, range(LAYERS), config, generator)
    before = (batch.labels[0] != IGNORED).nonzero().flatten() - 1
    assert logits.shape[0] == 1 + LAYERS * len(NOISED) * config.draws
    assert torch.allclose(logits[0], plain[0, before], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits[1], plain[0, before], atol=1e-2)


def test_noise_changes_its_own_positions_and_never_the_last_prompt_token(
    tiny: TinyModel, records: list[Record]
):
    encoder = encoder_of(tiny)
    batch = encoder.encode([records[0].request])
    layout, seen = batch.layout, []
    hook = encoder.backbone.layers[2].register_forward_pre_hook(
        lambda _layer, args: seen.append(args[0])
    )
    try:
        with torch.no_grad():
            module._noised_logits(
                encoder, batch, [1], LocateConfig(draws=1), torch.Generator().manual_seed(0)
            )
    finally:
        hook.remove()
    changed = (seen[0][1:] != seen[0][:1]).any(-1)  # [vision, text, both; s]
    text = layout.text[0].clone()
    text[layout.gate[0]] = False
    for row, expected in zip(
        changed, (layout.vision[0], text, layout.vision[0] | text), strict=True
    ):
        assert torch.equal(row, expected)
    assert not bool(changed[:, layout.gate[0]].any())


@pytest.mark.parametrize("rows", [7, 13, 96])
def test_the_cost_is_what_runs(llava: TinyModel, records: list[Record], rows: int):
    config = LocateConfig(draws=2, rows=rows)
    encoder = encoder_of(llava)
    batch = encoder.encode([records[0].request])
    ran = []
    hooks = [
        layer.register_forward_pre_hook(lambda _layer, args: ran.append(len(args[0])))
        for layer in encoder.backbone.layers
    ]
    try:
        with torch.no_grad():
            for layers in config.passes(LAYERS):
                generator = torch.Generator().manual_seed(0)
                module._noised_logits(encoder, batch, layers, config, generator)
    finally:
        for hook in hooks:
            hook.remove()
    assert sum(ran) == config.cost(LAYERS)["shared"] < config.cost(LAYERS)["unshared"]
    assert max(ran) <= rows


def test_a_sample_does_not_depend_on_how_layers_are_split(llava: TinyModel, records: list[Record]):
    encoder = encoder_of(llava)
    whole = probe(records[0], encoder, LocateConfig(draws=1, rows=96))
    split = probe(records[0], encoder, LocateConfig(draws=1, rows=4))
    for modality in NOISED:
        assert split["noise"][modality]["kl"] == pytest.approx(
            whole["noise"][modality]["kl"], rel=1e-3, abs=1e-5
        )


def test_attention_is_a_share_and_the_implementation_comes_back(
    tiny: TinyModel, records: list[Record]
):
    before = tiny.model.config._attn_implementation
    text = tiny.model.config.get_text_config()._attn_implementation
    attention = probe(records[0], encoder_of(tiny), LocateConfig(draws=1))["attention"]
    shares = torch.tensor([attention[part] for part in ATTENTION])
    assert shares.shape == (2, LAYERS)
    assert bool((shares > 0).all()) and bool((shares.sum(0) <= 1 + 1e-5).all())
    assert tiny.model.config._attn_implementation == before
    assert tiny.model.config.get_text_config()._attn_implementation == text


@pytest.mark.parametrize("family", WATCHING)
def test_a_video_and_pictures_are_probed_as_a_picture_is(family: str, tmp_path: Path):
    """Every copy sees what is shown, also where picture features are added between layers."""
    encoder = encoder_of(shared(family))
    video, pictures, *_ = ads_edit_records(tmp_path)
    assert video.request.video is not None and len(pictures.request.pictures) == 2
    for record in (video, pictures):
        effects = probe(record, encoder, LocateConfig(draws=1))["noise"]["vision"]["kl"]
        assert len(effects) == LAYERS and effects[0] > 1e-4
        still = probe(record, encoder, LocateConfig(draws=1, noise=1e-7))["noise"]["both"]
        assert max(still["kl"]) < 1e-6 and not any(still["flips"])


def test_attention_over_a_long_video_is_left_out(
    llava: TinyModel, records: list[Record], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_WIDEST_ATTENTION", 3)
    assert probe(records[0], encoder_of(llava), LocateConfig(draws=1))["attention"] is None


def test_layers_that_are_not_there_are_named():
    with pytest.raises(ConfigError, match=r"decoder layers 0-3; not -1, 99$"):
        LocateConfig(layers=(0, 99, -1)).chosen(4)
    with pytest.raises(ConfigError, match="name at least one"):
        LocateConfig(layers=()).chosen(4)
