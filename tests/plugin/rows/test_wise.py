"""What EasyEdit's WISE is given, and what is cleaned up behind it."""

from pathlib import Path
from typing import Any

import pytest
from easyedit_fixtures import needs_master
from tiny_models import tiny_llava
from tiny_rows import bench_of, record_of

from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.rows.wise import wise

pytestmark = needs_master


def test_wise_keeps_no_history(host: Host, tmp_path: Path) -> None:
    tiny = tiny_llava()
    module = host.module("models.wise.WISE")
    method = wise(host).make(bench_of(tiny, tmp_path))
    for _ in range(2):
        with method.edit(record_of()):
            assert module.edit_history == module.merge_group_edit_history == []


def test_wise_is_given_the_locality_question(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    original = host.editors["WISE"]

    def spy(model: Any, processor: Any, requests: Any, hparams: Any, **options: Any) -> Any:
        seen.append((requests, hparams, processor.tokenizer.padding_side))
        return original(model, processor, requests, hparams, **options)

    monkeypatch.setitem(host.editors, "WISE", spy)
    tiny = tiny_llava()
    tiny.processor.tokenizer.padding_side = "right"
    with wise(host).make(bench_of(tiny, tmp_path)).edit(record_of()):
        pass
    ((request,), hparams, side) = seen[0]
    assert (request["locality_prompt"], request["locality_ground_truth"]) == (
        "Where is the star?",
        "top left",
    )
    assert request["file_type"] == "image"
    assert type(hparams).__name__ == "WISEMultimodalHyperParams"
    assert (hparams.n_iter, hparams.alpha, hparams.beta, hparams.gamma) == (10, 5.0, 20.0, 10.0)
    assert side == "left"
    assert tiny.processor.tokenizer.padding_side == "right"
