"""EasyEdit's LoRA, WISE and GRACE, run for real on tiny models, and the model after them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from easyedit_fixtures import needs_master
from tiny_families import FAMILIES
from tiny_models import LAYERS, TinyModel, tiny_llava
from tiny_rows import answer_of, assert_same, bench_of, loss_of, record_of, state_of
from tiny_videos import video_of

from easyedit_dualedit.errors import ConfigError, DataError
from easyedit_dualedit.measure.contender import Edited
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.rows.grace import grace
from easyedit_dualedit.plugin.rows.lora import lora
from easyedit_dualedit.plugin.rows.wise import wise

pytestmark = needs_master

ROWS = {"LoRA": lora, "WISE": wise, "GRACE": grace}
# As shipped, five steps of EasyEdit's LoRA hardly move a tiny model.
FASTER = {"LoRA": {"num_steps": 20, "lr": 2.0}}


def method_of(host: Host, name: str, tiny: TinyModel, folder: Path, **settings: Any) -> Any:
    given = {**FASTER.get(name, {}), **settings}
    return ROWS[name](host).make(bench_of(tiny, folder, **given))


@pytest.mark.parametrize("name", ROWS)
def test_an_edit_lowers_the_loss_and_leaves_no_trace(
    host: Host, fresh: TinyModel, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = record_of()
    encoder = Encoder(Backbone.of(fresh.model), fresh.processor)
    answers = [answer_of(Edited(fresh.model, 0), encoder, q).tolist() for q in record.queries]
    before = state_of(fresh.model, encoder)
    plain = loss_of(fresh.model, encoder, record.request)
    method = method_of(host, name, fresh, tmp_path)
    assert_same(before, state_of(fresh.model, encoder))
    side = fresh.processor.tokenizer.padding_side
    with method.edit(record) as edited:
        assert loss_of(edited.model, encoder, record.request) < plain - 0.05
        assert edited.stored_bytes > 0
        for query in record.queries:
            assert 0 < len(answer_of(edited, encoder, query)) <= 4
    assert_same(before, state_of(fresh.model, encoder))
    assert fresh.processor.tokenizer.padding_side == side
    after = [answer_of(Edited(fresh.model, 0), encoder, q).tolist() for q in record.queries]
    assert after == answers
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ROWS)
def test_an_edit_is_undone_if_what_asks_fails(host: Host, name: str, tmp_path: Path) -> None:
    tiny = tiny_llava()
    encoder = Encoder(Backbone.of(tiny.model), tiny.processor)
    before = state_of(tiny.model, encoder)
    method = method_of(host, name, tiny, tmp_path)
    with pytest.raises(ZeroDivisionError), method.edit(record_of()):
        raise ZeroDivisionError
    assert_same(before, state_of(tiny.model, encoder))


@pytest.mark.parametrize("name", ROWS)
def test_the_same_draws_make_the_same_edit_again(host: Host, name: str, tmp_path: Path) -> None:
    import transformers

    tiny = tiny_llava()
    encoder = Encoder(Backbone.of(tiny.model), tiny.processor)
    method, found = method_of(host, name, tiny, tmp_path), []
    for _ in range(2):
        transformers.set_seed(3)
        with method.edit(record_of()) as edited:
            # Dropout left on would tell two questions apart.
            found.append([loss_of(edited.model, encoder, record_of().request) for _ in range(2)])
    assert found[0] == found[1]
    assert found[0][0] == found[0][1]


@pytest.mark.parametrize("name", ROWS)
def test_bfloat16_comes_back(host: Host, name: str, tmp_path: Path) -> None:
    tiny = tiny_llava()
    tiny.model.to(torch.bfloat16)
    encoder = Encoder(Backbone.of(tiny.model), tiny.processor)
    before = state_of(tiny.model, encoder)
    with method_of(host, name, tiny, tmp_path).edit(record_of()) as edited:
        assert loss_of(edited.model, encoder, record_of().request) > 0
        # EasyEdit's LoRA computes in float32 whatever the model does.
        assert tiny.model.dtype == (torch.float32 if name == "LoRA" else torch.bfloat16)
    assert_same(before, state_of(tiny.model, encoder))


def test_what_is_trained_and_stored(host: Host, tmp_path: Path) -> None:
    tiny = tiny_llava()
    lora = method_of(host, "LoRA", tiny, tmp_path, num_steps=1)
    with lora.edit(record_of()) as edited:
        adapter = {n: v for n, v in edited.model.named_parameters() if v.requires_grad}
        assert len(adapter) == LAYERS * 2 * 3  # AdaLoRA's A, B and E of queries and values
        assert all("language_model" in name for name in adapter)
        assert lora.trained_parameters == sum(value.numel() for value in adapter.values())
        assert edited.stored_bytes == 4 * lora.trained_parameters
    wise = method_of(host, "WISE", tiny, tmp_path)
    assert wise.trained_parameters == round(0.2 * 32 * 64)
    with wise.edit(record_of()) as edited:
        assert edited.stored_bytes == 32 * 64 * 4 + 32 * 64 // 8
    grace = method_of(host, "GRACE", tiny, tmp_path)
    assert grace.trained_parameters == 32
    with grace.edit(record_of()) as edited:
        assert edited.stored_bytes == 4 * (64 + 32 + 1)


@pytest.mark.parametrize(("name", "layer"), [("WISE", 3), ("GRACE", 2)])
def test_layers_are_in_proportion(host: Host, name: str, layer: int, tmp_path: Path) -> None:
    tiny = tiny_llava()
    with method_of(host, name, tiny, tmp_path).edit(record_of()):
        changed = [
            place
            for place, part in enumerate(Backbone.of(tiny.model).layers)
            if not isinstance(part.mlp.down_proj, torch.nn.Linear)
        ]
    assert changed == [layer]


def test_another_weight_can_be_named(host: Host, tmp_path: Path) -> None:
    tiny = tiny_llava()
    name = "model.language_model.layers[0].mlp.down_proj.weight"
    with method_of(host, "GRACE", tiny, tmp_path, inner_params=[name]).edit(record_of()):
        first = Backbone.of(tiny.model).layers[0]
        assert not isinstance(first.mlp.down_proj, torch.nn.Linear)
    with pytest.raises(ConfigError, match="inner_params has 'language_model.down'"):
        method_of(host, "WISE", tiny, tmp_path, inner_params=["language_model.down"])


@pytest.mark.parametrize("name", ROWS)
def test_a_request_without_a_picture_is_refused(host: Host, name: str, tmp_path: Path) -> None:
    record = record_of(request=Query("What?", None, "blue"))
    method = method_of(host, name, tiny_llava(), tmp_path)
    with pytest.raises(DataError, match=f"without a picture.*{name}"), method.edit(record):
        pass


@pytest.mark.parametrize("family", ["llava-onevision", "qwen2-vl"])
@pytest.mark.parametrize("name", ROWS)
def test_a_video_is_edited(host: Host, name: str, family: str, tmp_path: Path) -> None:
    tiny = FAMILIES[family]()
    encoder = Encoder(Backbone.of(tiny.model), tiny.processor)
    record = record_of()
    video = replace(record.request, image=video_of("red", "green", "blue", "blue"))
    record = replace(record, request=video)
    before = state_of(tiny.model, encoder)
    plain = loss_of(tiny.model, encoder, video)
    with method_of(host, name, tiny, tmp_path).edit(record) as edited:
        assert loss_of(edited.model, encoder, video) < plain - 0.05
    assert_same(before, state_of(tiny.model, encoder))
