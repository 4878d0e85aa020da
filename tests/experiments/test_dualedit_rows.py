"""DualEdit's rows: the right gate, adapters trained once, nothing left on the model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_data import write_data
from tiny_editors import shared, tiny_config
from tiny_models import TinyModel, tiny_llava

from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.experiments.dualedit_rows import (
    DUALEDIT,
    GATES,
    PUBLISHED,
    VISION_ONLY,
    Recipe,
    dualedit_contenders,
)
from easyedit_dualedit.experiments.finetuning_rows import finetuning_contenders
from easyedit_dualedit.measure.contender import Bench, Contender
from easyedit_dualedit.measure.easyedit_rows import joined_row
from easyedit_dualedit.method.config import DualEditConfig
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import IGNORED
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.trainer import train

TRAINING = TrainingConfig(steps=2, batch_size=2, gate_steps=2)


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    return load_records(write_data(tmp_path / "data", 8), tmp_path / "data")


def bench_of(folder: Path, records: list[Record], **changes: Any) -> Bench:
    def load() -> tuple[Any, Any]:
        tiny = tiny_llava(seed=4)
        return tiny.model, tiny.processor

    bench = Bench("tiny", load, "cpu", folder, records, progress=False)
    return replace(bench, **changes)


def rows(archive: Path | None = None) -> dict[str, Contender]:
    config = tiny_config(gate="learned")
    published = DualEditConfig.preset("published", text_layer=1, vision_layer=2, width=16, heads=2)
    made = dualedit_contenders(
        Recipe(config, TRAINING, archive), Recipe(published, replace(TRAINING, gate_steps=0))
    )
    return {contender.name: contender for contender in made}


def test_there_is_a_row_for_each_gate_the_published_preset_and_vision_alone():
    made = rows()
    assert list(made) == [DUALEDIT, *GATES, PUBLISHED, VISION_ONLY]
    labelled = [name for name, contender in made.items() if contender.reads_label]
    assert labelled == ["DualEdit, last-token gate", PUBLISHED]


def test_gates_share_adapters_that_are_trained_once(records: list[Record], tmp_path: Path):
    bench = bench_of(tmp_path / "trained", records)
    made = rows()
    first = made[DUALEDIT].make(bench)
    archive = tmp_path / "trained" / "dualedit" / "adapters"
    written = {path.name: path.read_bytes() for path in archive.iterdir()}
    assert not (tmp_path / "trained" / "dualedit" / "training.pt").exists()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            "easyedit_dualedit.experiments.dualedit_rows.train",
            lambda *_, **__: pytest.fail("trained again"),
        )
        others = {name: made[name].make(bench) for name in GATES}
    assert {path.name: path.read_bytes() for path in archive.iterdir()} == written
    record = records[0]
    with others["DualEdit, no gate"].edit(record) as edited:
        encoder = Encoder(edited.model._encoder.backbone, edited.model._encoder.processor)
        assert edited.watched is not None
        model, decisions = edited.watched()
        batch = encoder.encode(list(record.queries), with_target=False)
        model(**batch.inputs, layout=batch.layout)
        assert decisions and all(bool(routing.is_open.all()) for routing in decisions)
    assert first.trained_parameters > others["DualEdit, no gate"].trained_parameters > 0


def test_what_was_trained_on_other_records_pictures_or_in_other_steps_is_trained_anew(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trained: list[tuple[int, int]] = []

    def training(editor: Any, records: Any, config: TrainingConfig, **more: Any) -> None:
        trained.append((records[0].index, config.steps))
        train(editor, records, config, **more)

    monkeypatch.setattr("easyedit_dualedit.experiments.dualedit_rows.train", training)
    bench = bench_of(tmp_path / "trained", records[:4])
    others = replace(bench, training=records[4:])  # as many
    for each in (bench, bench, others, replace(others, settings={"steps": 1})):
        rows()[VISION_ONLY].make(each)
    assert trained == [(0, 2), (4, 2), (4, 1)]
    picture = records[4].request.files[0]
    assert isinstance(picture, Path)
    Image.new("RGB", (32, 32), "red").save(picture)
    rows()[VISION_ONLY].make(replace(others, settings={"steps": 1}))
    assert trained[3:] == [(4, 1)], "the picture of the same name is another"


def test_an_interrupted_training_continues(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("easyedit_dualedit.train.trainer.CHECKPOINT_EVERY", 1)
    original = DualEditor.save
    monkeypatch.setattr(DualEditor, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    bench = bench_of(tmp_path, records)
    with pytest.raises(KeyboardInterrupt):
        rows()[DUALEDIT].make(bench)
    assert (tmp_path / "dualedit" / "training.pt").is_file()
    monkeypatch.setattr(DualEditor, "save", original)
    rows()[DUALEDIT].make(bench)
    assert not (tmp_path / "dualedit" / "training.pt").exists()


def test_vision_alone_has_one_adapter_and_no_gate(records: list[Record], tmp_path: Path):
    method = rows()[VISION_ONLY].make(bench_of(tmp_path, records))
    with method.edit(records[0]) as edited:
        adapters = edited.model._active.adapters
        assert list(adapters.modalities) == ["vision"]
        assert edited.model._active.gate.kind == "open"


def test_the_published_preset_leaves_out_the_last_prompt_token(
    records: list[Record], tmp_path: Path
):
    method = rows()[PUBLISHED].make(bench_of(tmp_path, records))
    record = records[0]
    with torch.no_grad(), method.edit(record) as edited:
        editor = edited.model
        other = Encoder(editor._encoder.backbone, editor._encoder.processor)
        batch = other.encode([record.request])
        own = editor._encoder.encode([record.request])
        assert not torch.equal(batch.layout.text, own.layout.text)
        for adapter in editor._active.adapters.by_modality.values():
            torch.nn.init.normal_(adapter.output.weight)
        given = editor(layout=batch.layout, **batch.inputs).logits
        expected = editor(layout=own.layout, **own.inputs).logits
    assert torch.equal(given, expected)


def test_an_edit_leaves_the_model_as_it_was(records: list[Record], tmp_path: Path):
    made: list[TinyModel] = []

    def load() -> tuple[Any, Any]:
        made.append(tiny_llava(seed=4))
        return made[-1].model, made[-1].processor

    method = rows()[DUALEDIT].make(bench_of(tmp_path, records, load=load))
    before = {name: value.clone() for name, value in made[0].model.state_dict().items()}
    with method.edit(records[0]) as edited:
        stored = edited.stored_bytes
    assert stored > 0
    after = made[0].model.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_an_archive_may_be_given(records: list[Record], tmp_path: Path):
    rows()[DUALEDIT].make(bench_of(tmp_path / "one", records))
    archive = tmp_path / "one" / "dualedit" / "adapters"
    given = rows(archive)[DUALEDIT]
    given.make(bench_of(tmp_path / "two", []))
    assert not (tmp_path / "two").exists()
    assert given.identity["archive"]
    named = bench_of(tmp_path / "three", [], settings={"archive": str(archive)})
    rows()[VISION_ONLY].make(named)


def test_without_adapters_or_records_there_is_nothing_to_do(tmp_path: Path):
    with pytest.raises(ConfigError, match="no records to train on"):
        rows()[DUALEDIT].make(bench_of(tmp_path, []))


def test_unknown_settings_are_refused(records: list[Record], tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no settings \['rate'\]"):
        rows()[DUALEDIT].make(bench_of(tmp_path, records, settings={"rate": 1}))


def test_steps_may_be_given(records: list[Record], tmp_path: Path):
    seen = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            "easyedit_dualedit.experiments.dualedit_rows.train",
            lambda _editor, _records, config, **_: seen.append(config.steps),
        )
        with pytest.raises(Exception, match="gate"):  # it was not trained, so it is not calibrated
            rows()[DUALEDIT].make(bench_of(tmp_path, records, settings={"steps": 5}))
    assert seen == [5]


@pytest.mark.parametrize("joined", [True, False])
def test_on_blip2_an_edit_says_what_easyedits_rows_score(
    joined: bool, records: list[Record], tmp_path: Path
):
    tiny = shared("blip2")
    bench = bench_of(
        tmp_path, records[:4], load=lambda: (tiny.model, tiny.processor), joined=joined
    )
    recipe = Recipe(tiny_config(gate="open"), TRAINING)
    made = {row.name: row for row in dualedit_contenders(recipe, recipe)}
    encoder = Encoder(bench.backbone_of(tiny.model), tiny.processor)
    row = joined_row(encoder, records[0].request)
    scored = row.labels[row.labels != IGNORED].tolist()
    answer = str(records[0].request.target)
    with made[DUALEDIT].make(bench).edit(records[0]) as edited:
        assert (edited.model._encoder.target_ids(answer) == scored) is joined
    fine_tuned = finetuning_contenders()[0].make(bench)
    assert (fine_tuned._encoder.target_ids(answer) == scored) is joined  # type: ignore[attr-defined]
