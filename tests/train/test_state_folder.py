"""States on disk: found again by what the model reads, and by nothing else."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import forkserver_method
from tiny_data import fast, write_data
from tiny_editors import picture, shared, tiny_config, trained_editor
from tiny_families import FAMILIES
from tiny_models import TinyModel, tiny_llava
from torch import multiprocessing

from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.errors import ConfigError, DataError
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.train import state_folder
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.losses import StepLosses
from easyedit_dualedit.train.state_folder import ABOUT_FILE, StateFolder
from easyedit_dualedit.train.step import TrainingStep
from easyedit_dualedit.train.trainer import train

QUERIES = 4
"""Of a record; the image rephrase of these records is the request again."""


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder = tmp_path_factory.mktemp("data")
    return load_records(write_data(folder), folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "states"


@pytest.fixture(scope="module")
def llava() -> TinyModel:
    """A model of this module's own: other tests may save the shared one, which marks its config."""
    return tiny_llava()


@pytest.fixture(scope="module")
def earlier(
    llava: TinyModel, records: list[Record], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, StepLosses]:
    folder = tmp_path_factory.mktemp("earlier") / "states"
    losses, work = losses_of(trained_editor(llava), records[:2], with_folder(folder))
    assert work["layers"] and work["vision"]
    return folder, losses


@pytest.fixture
def first(earlier: tuple[Path, StepLosses], folder: Path) -> StepLosses:
    """Return the losses of a run on two records, whose states are in the folder."""
    shutil.copytree(earlier[0], folder)
    return earlier[1]


def with_folder(folder: Path, **changes: object) -> TrainingConfig:
    return fast(state_cache_folder=str(folder), text_locality_weight=0.5, **changes)


@contextmanager
def frozen_work(editor: DualEditor) -> Iterator[dict[str, int]]:
    """Count the calls of frozen layers that compute something, and of the vision tower."""
    found = {"layers": 0, "vision": 0}
    backbone = editor.backbone
    first = min(editor.config.text_layer, editor.config.vision_layer)
    parts: list[tuple[str, torch.nn.Module]] = []
    for layer in backbone.layers[: first + 1]:
        # A layer that is passed over is called, but what it is made of is not.
        parts.append(("layers", next(m for m in layer.modules() if isinstance(m, torch.nn.Linear))))
    decoder = set(backbone.decoder.modules())
    model: Any = backbone.model
    plain = {model.get_output_embeddings(), *model.get_input_embeddings().modules()}
    for part in model.modules():
        is_leaf = not list(part.children())
        if is_leaf and part not in decoder and part not in plain:
            parts.append(("vision", part))
    handles = []
    for name, part in parts:

        def count(_module: Any, _args: Any, name: str = name) -> None:
            found[name] += 1

        handles.append(part.register_forward_pre_hook(count))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def losses_of(
    editor: DualEditor, records: list[Record], config: TrainingConfig
) -> tuple[StepLosses, dict[str, int]]:
    """Return the losses of a run that begins here, and the frozen work that it took."""
    with frozen_work(editor) as work:
        found = TrainingStep.within(editor, config).losses(records, config)
    return found, work


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_later_run_computes_nothing_frozen_and_loses_the_same(
    family: str, records: list[Record], folder: Path
):
    editor = trained_editor(shared(family))
    first, cold = losses_of(editor, records[:2], with_folder(folder))
    assert cold["layers"] and cold["vision"]
    # Without any memory, all is read from the disk in each step.
    config = with_folder(folder, state_cache_bytes=0, feature_cache_bytes=0)
    step = TrainingStep.within(editor, config)
    with frozen_work(editor) as warm:
        again = [step.losses(records[:2], config) for _ in range(2)]
    assert warm == {"layers": 0, "vision": 0}
    for losses in again:
        assert losses.by_metric == pytest.approx(first.by_metric, rel=1e-6, abs=1e-9)
        assert losses.accuracy == first.accuracy


def test_states_from_the_disk_are_kept_in_memory(
    llava: TinyModel, records: list[Record], folder: Path, first: StepLosses
):
    config = with_folder(folder)
    step = TrainingStep.within(trained_editor(llava), config)
    assert step.losses(records[:2], config).by_metric == pytest.approx(first.by_metric, rel=1e-6)
    shutil.rmtree(folder)
    with frozen_work(trained_editor(llava)) as warm:
        assert step.losses(records[:2], config).accuracy == first.accuracy
    assert warm == {"layers": 0, "vision": 0}


@pytest.mark.parametrize("family", ["llava", "qwen3-vl", "blip2"])
def test_a_step_of_known_and_new_queries_is_as_one_of_new_ones(
    family: str, records: list[Record], folder: Path, tmp_path: Path
):
    editor = trained_editor(shared(family))
    losses_of(editor, records[:1], with_folder(folder))
    # The pictures of the first record are known, one of its questions about them is not.
    other = replace(records[0].text_rephrase, prompt="Is the circle of any colour?")
    mixed = [replace(records[0], text_rephrase=other), records[5]]
    got, work = losses_of(editor, mixed, with_folder(folder))
    assert work["layers"]
    expected, _ = losses_of(editor, mixed, with_folder(tmp_path / "elsewhere"))
    assert got.by_metric == pytest.approx(expected.by_metric, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_half_precision_changes_the_losses_by_less_than_a_thousandth(
    family: str, records: list[Record], folder: Path
):
    editor = trained_editor(shared(family))
    exact = TrainingStep(editor).losses(records[:2], with_folder(folder)).by_metric
    got, _ = losses_of(editor, records[:2], with_folder(folder))
    assert got.by_metric == pytest.approx(exact, rel=1e-3)
    assert got.by_metric != exact, "otherwise nothing is rounded"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_states_of_a_model_in_half_precision_are_exact(
    dtype: torch.dtype, records: list[Record], folder: Path
):
    tiny = tiny_llava()
    editor = trained_editor(replace(tiny, model=tiny.model.to(dtype)))
    exact = TrainingStep(editor).losses(records[:1], with_folder(folder)).by_metric
    for _ in range(2):
        got, _ = losses_of(editor, records[:1], with_folder(folder))
        assert got.by_metric == exact
    place = StateFolder.of(folder, editor.backbone, 1)
    assert {place.get(path.stem)[0].dtype for path in files_in(folder)} == {dtype}


def test_states_too_large_for_half_precision_are_kept_as_they_are(folder: Path):
    place = StateFolder(folder, {}, torch.device("cpu"))
    states = torch.randn(3, 4)
    rounded = place.put("small", states, None)
    assert torch.equal(rounded, states.half().float()) and not torch.equal(rounded, states)
    states[0, 0] = 1e6
    assert torch.equal(place.put("large", states, None), states)
    found = place.get("large")
    assert found is not None and torch.equal(found[0], states) and found[0].dtype == states.dtype


def test_without_a_folder_nothing_is_written(
    llava: TinyModel, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(state_folder, "write_bytes", lambda *_: pytest.fail("written"))
    before = sorted(tmp_path.rglob("*"))
    assert TrainingConfig().state_cache_folder is None
    losses_of(trained_editor(llava), records[:1], fast())
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("first")
def test_the_folder_says_what_it_holds(folder: Path):
    (place,) = folder.iterdir()
    about = json.loads((place / ABOUT_FILE).read_text(encoding="utf-8"))
    assert about["made_of"]["layer"] == 1
    assert about["made_of"]["architecture"]["model_type"] == "llava"
    assert about["shortcuts"] == {"shares": True, "trims": True}
    assert len(files_in(folder)) == 2 * QUERIES, "one file a query"
    assert all(path.name.endswith((".safetensors", ".json")) for path in place.iterdir())


def fresh_editor(text_layer: int = 1) -> DualEditor:
    """Return an editor on a model of its own, the same as the shared one."""
    tiny = tiny_llava()
    return DualEditor(tiny.model, tiny.processor, tiny_config(text_layer=text_layer))


def place_of(folder: Path, editor: DualEditor, layer: int = 1) -> Path:
    """Return where the states of an editor's model lie; those of another place are not found."""
    return StateFolder.of(folder, editor.backbone, layer).folder


@pytest.mark.parametrize(
    "part",
    ["model.vision_tower", "model.multi_modal_projector", "embeddings", "layers.0", "layers.1"],
)
def test_other_weights_below_the_edit_find_nothing(part: str, folder: Path):
    editor = fresh_editor()
    before = place_of(folder, editor)
    model: Any = editor.backbone.model
    if part == "embeddings":
        weight = model.get_input_embeddings().weight
    elif part.startswith("layers"):
        weight = editor.backbone.layers[int(part[-1])].mlp.down_proj.weight
    else:
        weight = list(model.get_submodule(part).parameters())[-1]
    with torch.no_grad():
        weight.view(-1)[-1] += 0.5
    assert place_of(folder, editor) != before


@pytest.mark.usefixtures("first")
def test_what_other_weights_gave_is_computed(records: list[Record], folder: Path):
    editor = fresh_editor()
    with torch.no_grad():
        editor.backbone.layers[0].mlp.down_proj.weight.mul_(1.5)  # type: ignore[union-attr]
    assert losses_of(editor, records[:2], with_folder(folder))[1]["layers"]
    assert len(list(folder.iterdir())) == 2


@pytest.mark.usefixtures("first")
def test_other_weights_above_the_edit_find_the_same(records: list[Record], folder: Path):
    editor = fresh_editor()
    with torch.no_grad():
        next(editor.backbone.layers[2].parameters()).mul_(1.5)
    assert not losses_of(editor, records[:2], with_folder(folder))[1]["layers"]


def other_version(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(state_folder, "__version__", "9.9.9")


def other_code(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(state_folder, "digest_of", lambda _path: "other")


def other_transformers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(state_folder.transformers, "__version__", "1.0")


@pytest.mark.parametrize("change", [other_version, other_code, other_transformers])
def test_another_version_finds_nothing(
    change: Callable[[pytest.MonkeyPatch], None],
    llava: TinyModel,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    editor = trained_editor(llava)
    before = place_of(folder, editor)
    change(monkeypatch)
    assert place_of(folder, editor) != before


@pytest.mark.usefixtures("first")
def test_another_layer_finds_nothing(llava: TinyModel, records: list[Record], folder: Path):
    other = trained_editor(llava, text_layer=0)
    assert losses_of(other, records[:2], with_folder(folder))[1]["layers"]
    assert not losses_of(fresh_editor(), records[:2], with_folder(folder))[1]["layers"]


def test_autocast_finds_its_own(
    llava: TinyModel, records: list[Record], folder: Path, first: StepLosses
):
    editor = trained_editor(llava)
    full, work = losses_of(editor, records[:2], with_folder(folder))
    assert not work["layers"] and full.by_metric == pytest.approx(first.by_metric, rel=1e-6)
    half, work = losses_of(editor, records[:2], with_folder(folder, autocast="bfloat16"))
    assert work["layers"]
    for config, expected in (
        (with_folder(folder), full),
        (with_folder(folder, autocast="bfloat16"), half),
    ):
        again, work = losses_of(editor, records[:2], config)
        assert not work["layers"] and again.by_metric == expected.by_metric
    # The same steps may be asked for both.
    steps = TrainingStep.within(editor, with_folder(folder))
    steps.losses(records[:2], with_folder(folder))
    mixed = steps.losses(records[:2], with_folder(folder, autocast="bfloat16"))
    assert mixed.by_metric == pytest.approx(half.by_metric, rel=1e-5)


def test_another_picture_of_the_same_name_finds_nothing(
    llava: TinyModel, folder: Path, tmp_path: Path
):
    editor = trained_editor(llava)
    records = load_records(write_data(tmp_path / "own", 1), tmp_path / "own")
    losses_of(editor, records[:1], with_folder(folder))
    path = records[0].request.image
    assert isinstance(path, Path)
    was = path.stat()
    picture("purple", (30, 40)).save(path)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    count = len(files_in(folder))
    assert losses_of(editor, records[:1], with_folder(folder))[1]["layers"]
    assert len(files_in(folder)) == count + 2, "request and text rephrase"


@pytest.mark.usefixtures("first")
def test_another_name_of_the_same_picture_finds_it(llava: TinyModel, folder: Path, tmp_path: Path):
    editor = trained_editor(llava)
    moved = load_records(write_data(tmp_path / "moved", 2), tmp_path / "moved")
    assert losses_of(editor, moved[:2], with_folder(folder))[1] == {"layers": 0, "vision": 0}


@pytest.mark.usefixtures("first")
def test_another_template_finds_nothing(records: list[Record], folder: Path):
    tiny = tiny_llava()
    template = tiny.processor.chat_template
    tiny.processor.chat_template = "now " + template
    editor = DualEditor(tiny.model, tiny.processor, tiny_config())
    losses_of(editor, records[:2], with_folder(folder))
    assert len(files_in(folder)) == 2 * 2 * QUERIES


@pytest.mark.parametrize("field", ["prompt", "target"])
def test_another_question_or_answer_finds_nothing(
    field: str, llava: TinyModel, records: list[Record], folder: Path
):
    editor = trained_editor(llava)
    losses_of(editor, records[:1], with_folder(folder))
    count = len(files_in(folder))
    query = replace(records[0].request, **{field: "a large circle"})
    losses_of(editor, [replace(records[0], request=query)], with_folder(folder))
    assert len(files_in(folder)) == count + 1
    losses_of(editor, records[:1], with_folder(folder, end_of_answer=False))
    assert len(files_in(folder)) == count + 1 + 2, "the end of an answer is part of it"


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


def emptied(_content: bytes) -> bytes:
    return b""


def replaced(_content: bytes) -> bytes:
    return b"\x80\x04no states" * 20


@pytest.mark.parametrize("damage", [cut, flipped, emptied, replaced])
def test_a_damaged_file_is_one_warning_and_computed_again(
    damage: Callable[[bytes], bytes],
    llava: TinyModel,
    records: list[Record],
    folder: Path,
    first: StepLosses,
    caplog: pytest.LogCaptureFixture,
):
    editor = trained_editor(llava)
    path = files_in(folder)[0]
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING):
        again, work = losses_of(editor, records[:2], with_folder(folder))
    assert again.by_metric == pytest.approx(first.by_metric, rel=1e-6, abs=1e-9)
    assert work["layers"]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert str(path) in warning and "computed again" in warning
    assert path.stat().st_size == len(whole)
    assert losses_of(editor, records[:2], with_folder(folder))[1]["layers"] == 0


@pytest.mark.parametrize("content", ["", "{", "[]", '{"shortcuts": 3}', '{"made_of": {}}'])
def test_a_damaged_description_is_written_anew(
    content: str,
    llava: TinyModel,
    records: list[Record],
    folder: Path,
    first: StepLosses,
    caplog: pytest.LogCaptureFixture,
):
    editor = trained_editor(llava)
    (about,) = folder.rglob(ABOUT_FILE)
    whole = about.read_text(encoding="utf-8")
    about.write_text(content, encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        again, _ = losses_of(editor, records[:2], with_folder(folder))
    assert len(caplog.records) == 1
    assert again.by_metric == pytest.approx(first.by_metric, rel=1e-6, abs=1e-9)
    assert about.read_text(encoding="utf-8") == whole


def test_a_full_disk_is_one_warning(
    llava: TinyModel,
    records: list[Record],
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    def full(path: Path, _content: bytes) -> None:
        raise DataError(f"cannot write {path}: No space left on device")

    editor = trained_editor(llava)
    expected, _ = losses_of(editor, records[:2], with_folder(folder / "other"))
    monkeypatch.setattr(state_folder, "write_bytes", full)
    with caplog.at_level(logging.WARNING):
        got, _ = losses_of(editor, records[:2], with_folder(folder))
    assert got.by_metric == expected.by_metric
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "No space left" in warning


def test_a_folder_that_cannot_be_written_is_told_at_once(
    llava: TinyModel, records: list[Record], tmp_path: Path
):
    (tmp_path / "file").write_text("text", encoding="utf-8")
    with pytest.raises(DataError, match="cannot write .*file"):
        losses_of(trained_editor(llava), records[:2], with_folder(tmp_path / "file"))


def test_offloaded_weights_are_refused(folder: Path):
    tiny = tiny_llava()
    backbone = Backbone.of(tiny.model)
    backbone.layers[0].mlp.to("meta")  # type: ignore[operator,union-attr]
    with pytest.raises(ConfigError, match="state_cache_folder = .*offloaded.*load the whole model"):
        StateFolder.of(folder, backbone, 1)


def test_a_training_continues_on_states_of_an_earlier_one(
    llava: TinyModel, records: list[Record], folder: Path
):
    config = with_folder(folder, steps=3, gate_steps=0)
    weights = []
    for _ in range(2):
        editor = DualEditor(llava.model, llava.processor, tiny_config(gate="cosine"))
        with torch.no_grad():
            for parameter in editor.adapters.parameters():
                parameter.copy_(torch.full_like(parameter, 0.01))
        train(editor, records, config, progress=False)
        weights.append({k: v.clone() for k, v in editor.adapters.state_dict().items()})
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())


def work_in_another_process(_place: int, folder: str, names: list[str]) -> None:
    """Put the same states as other processes do, many times over."""
    torch.set_num_threads(1)
    place = StateFolder(Path(folder), {}, torch.device("cpu"))
    for _ in range(6):
        for number, name in enumerate(names):
            place.put(name, torch.full((50, 64), float(number)), {"n": number})
            found = place.get(name)
            assert found is not None and found[1] == {"n": number}
        place.confirm({"shares": True})


def test_several_processes_write_one_folder(folder: Path):
    names = [f"{number:032x}" for number in range(5)]
    started = {"nprocs": 2, "start_method": forkserver_method()}
    multiprocessing.start_processes(work_in_another_process, (str(folder), names), **started)
    place = StateFolder(folder, {}, torch.device("cpu"))
    assert place.shortcuts == {"shares": True}
    for number, name in enumerate(names):
        found = place.get(name)
        assert found is not None and torch.equal(found[0], torch.full((50, 64), float(number)))
    assert not list(folder.rglob("*.part"))
