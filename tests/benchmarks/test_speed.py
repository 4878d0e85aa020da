"""The work of edits and training steps, counted: it may not grow."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import speed
from benchmarks.clock import Clock, gflop_of
from benchmarks.depth import step_gflop
from benchmarks.measures import Measures
from benchmarks.memory import free_bytes, peak_mib
from benchmarks.page import folder_of, page_of, write_page
from benchmarks.shares import parts_of_an_edit, shares_of
from benchmarks.subject import PUBLISHED, SHAPES, editor_of, records_of
from benchmarks.tasks import STATE_BUDGETS, count_work, forth_and_back, tasks
from benchmarks.work import bytes_written, counted, operations_of, reads_of
from easyedit_dualedit.data.records import Record
from easyedit_dualedit.files import write_json
from easyedit_dualedit.method.edit_memory import EditMemory
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.train.step import TrainingStep

ROOT = Path(__file__).parents[2]

READS = {"edit": 7, "step": 24, "step, frozen states kept": 22}
"""How often an edit or a step waits for numbers in tensors, however many rows and tokens."""

CPU = Clock(torch.device("cpu"))


@pytest.mark.parametrize(("name", "edit_layers"), [("published", 6), ("llava-1.5-7b", 20)])
def test_an_edit_and_a_training_step_do_no_work_twice(name: str, edit_layers: int):
    shapes = SHAPES[name]
    # Counts depend on depth and tokens alone; the full widths would need 14 GB.
    work = count_work(shapes if shapes is PUBLISHED else shapes.narrow())
    nothing = None if bytes_written() is None else 0
    assert work["edit"] == {
        "decoder_layers": edit_layers,
        "frozen_rows": 1,
        "lm_head": 0,
        "lm_head_positions": 0,
        "vision": 1,
        "bytes_written": nothing,
        "reads": READS["edit"],
    }
    step = work["training step, pictures seen before"]
    frozen = shapes.text_layer + 1
    signal = shapes.vision_layer - shapes.text_layer
    above = shapes.layers - frozen
    # Rows that share their beginning run apart from the others, frozen and edited; once more above
    # the frozen layers for the signal, and unedited for locality.
    assert step["decoder_layers"] == 2 * frozen + signal + above + 2 * above
    assert step["frozen_rows"] == 12, "four queries of four records, two of them in one row"
    assert step["vision"] == 0
    assert step["lm_head"] == 3
    assert step["bytes_written"] == nothing
    target_ids = editor_of().encoder.target_ids
    edited = sum(len(target_ids(q.target or "")) for r in records_of(4) for q in _trained(r))
    unedited = sum(len(target_ids(r.image_locality.target or "")) for r in records_of(4))
    assert step["lm_head_positions"] == edited + unedited, "answers alone"
    assert step["reads"] == READS["step"]
    again = work["training step, queries seen before"]
    fewer = {"decoder_layers": signal + above + 2 * above, "frozen_rows": 0}
    assert again == step | fewer | {"reads": READS["step, frozen states kept"]}


@pytest.mark.parametrize("seen", sorted(STATE_BUDGETS))
def test_neither_rows_nor_tokens_make_a_step_wait_more_often(seen: str):
    shapes = PUBLISHED.narrow()
    editor = editor_of(shapes)

    def step(records: list[Record]) -> Callable[[], object]:
        steps = TrainingStep(editor, state_budget=STATE_BUDGETS[seen])
        task = partial(forth_and_back, steps, records)
        task()
        task()
        return task

    two, eight = records_of(2, shapes.side), records_of(8, shapes.side)
    long = [
        replace(record, request=replace(record.request, prompt="What colour is it? " * 9))
        for record in two
    ]
    assert reads_of(step(two)) == reads_of(step(eight)) == reads_of(step(long)) > 0
    few, many, longer = (operations_of(step(records)) for records in (two, eight, long))
    assert longer <= few + 5, "rows of other lengths take masks"
    # What is kept of each query is looked up alone: some views of it, and no arithmetic.
    assert many - few <= 20 * (8 - 2)


def _trained(record: Record) -> tuple[Query, ...]:
    return record.request, record.text_rephrase, record.image_rephrase, record.image_locality


def test_shapes_are_named_as_hyperparameters_are():
    assert speed.arguments(["--hparams", "emoji"]).shapes == "emoji"
    assert speed.arguments([]).shapes == "published"


def test_narrow_shapes_keep_depth_layers_and_tokens():
    wide = SHAPES["llava-1.5-7b"]
    narrow = wide.narrow()
    assert (narrow.layers, narrow.tower_layers, narrow.image_tokens) == (32, 24, 576)
    assert (narrow.text_layer, narrow.vision_layer) == (wide.text_layer, wide.vision_layer)
    assert narrow.weight_bytes < 2**24 < 2**33 < wide.weight_bytes


def test_a_model_may_be_one_that_hyperparameters_name():
    named = replace(
        PUBLISHED, hparams="testbed", text_layer=1, vision_layer=2, width=32, shown=72, side=96
    )
    editor = editor_of(named)
    assert editor.backbone.model.config.model_type == "llava_onevision"
    written = [each for name, each in editor.adapters.named_parameters() if "output" in name]
    assert written and all(bool(each.any()) for each in written), "they change something"
    narrow = named.narrow()
    assert narrow.hparams is None and narrow.image_tokens == 81
    found = Measures(named, Clock(torch.device("cpu")), 1, 1, 2).training("queries")
    assert found["times"], "a step of it can be timed"


def test_weights_take_the_bytes_that_the_shapes_say():
    shapes = replace(PUBLISHED, vocabulary=2048, dtype=torch.bfloat16)
    parameters = list(editor_of(shapes).backbone.model.parameters())
    assert all(bool(parameter.isfinite().all()) for parameter in parameters)
    assert all(bool((parameter != 0).any()) for parameter in parameters if parameter.dim() > 1)
    taken = sum(parameter.nbytes for parameter in parameters)
    assert shapes.weight_bytes == pytest.approx(taken, rel=0.02)


def test_bytes_written_are_those_sent_to_storage(tmp_path: Path):
    table = tmp_path / "io"
    assert bytes_written(table) is None
    table.write_text("rchar: 7\nwchar: 900\nwrite_bytes: 4096\n")
    assert bytes_written(table) == 4096
    table.write_text("rchar: 7\nwchar: 900\n")
    assert bytes_written(table) is None


@pytest.mark.skipif(bytes_written() is None, reason="the system does not tell what is written")
def test_a_file_counts_and_a_pipe_does_not():
    backbone = editor_of().backbone
    ends = os.pipe()
    with counted(backbone) as quiet:
        os.write(ends[1], bytes(10_000))
    for end in ends:
        os.close(end)
    assert quiet.bytes_written == 0
    target = ROOT / ".written"  # the folder for temporary files may lie in memory
    try:
        with counted(backbone) as busy:
            target.write_bytes(bytes(2**20))
    finally:
        target.unlink()
    assert busy.bytes_written >= 2**20


def test_a_batch_of_four_takes_four_times_the_arithmetic_of_one():
    name = "training step, pictures seen before"
    found = []
    for batch in (1, 4):
        task = tasks(editor_of(), batch=batch)[name]
        task()
        found.append(gflop_of(task))
    assert found[1] == pytest.approx(4 * found[0], rel=0.01)


def test_a_model_without_room_is_refused_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(speed, "free_bytes", lambda _device: 2**33)
    monkeypatch.setattr(sys, "argv", ["speed", "--shapes", "llava-1.5-7b"])
    monkeypatch.setattr(speed, "measure", lambda _given: pytest.fail("it was measured"))
    with pytest.raises(SystemExit) as ended:
        speed.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    speed.require_memory(PUBLISHED, 4, 1, CPU.device)


def test_the_arithmetic_of_a_deep_step_follows_from_shallow_ones():
    shapes = replace(PUBLISHED, hidden=32, inner=64, heads=4, layers=9, width=32, vision_layer=6)
    found = step_gflop(shapes, 2, CPU.device)
    for name, task in tasks(editor_of(shapes), shapes, 2).items():
        if name != "edit":
            task()
            assert found[name] == pytest.approx(gflop_of(task), abs=0.02)


def test_what_a_forward_adds_is_counted():
    editor = editor_of()
    factor = torch.randn(3, 3)
    assert operations_of(lambda: (factor @ factor).sum()) == 2
    request = records_of(1)[0].request
    batch = editor.encoder.encode([request])
    memory = EditMemory(editor)
    memory.add([request])
    for edited in (editor.edited(editor.read([request])), memory.model):
        with torch.no_grad():
            plain = operations_of(lambda: editor.backbone.model(**batch.inputs))
            forward = partial(edited, **batch.inputs, layout=batch.layout)
            forward()  # a stored edit is unpacked once
            more = operations_of(forward)
        # One row: two adapters with word paths, four dozen each, views included, and a gate.
        assert plain < more <= plain + 125


def test_memory_is_known_without_the_tables_of_linux(monkeypatch):
    assert free_bytes(CPU.device) > 2**20
    known = peak_mib(CPU.device)
    monkeypatch.setattr(Path, "is_file", lambda _path: False)
    assert peak_mib(CPU.device) == pytest.approx(known, rel=0.1)


def test_figures_relate_times_to_arithmetic():
    found = CPU.figures([(30.0, 70.0), (10.0, 20.0), (20.0, 90.0)], 1.5, 100.0, 4)
    assert (found["cpu_ms"], found["wall_ms"], found["least_cpu_ms"]) == (20.0, 70.0, 10.0)
    assert (found["least_ms"], found["limit_percent"]) == (15.0, 75.0)
    assert found["samples_per_second"] == 200.0


def test_shares_name_what_takes_the_time():
    factor = torch.randn(512, 512)
    found = shares_of(lambda: factor @ factor, CPU, 5)
    assert max(found, key=lambda name: found[name]) == "matrix products"
    assert sum(found.values()) == pytest.approx(100, abs=0.2)
    editor = editor_of()
    edit = tasks(editor)["edit"]
    edit()
    parts = parts_of_an_edit(editor, edit, CPU, 3)
    assert max(parts, key=lambda name: parts[name]) == "decoder"
    assert min(parts.values()) > 0
    assert "forward" not in vars(editor.backbone.decoder)


def test_an_interrupted_measurement_goes_on_where_it_was(tmp_path: Path, monkeypatch):
    page = tmp_path / "performance.md"
    given = speed.arguments(
        ["--repeats", "1", "--steps", "1", "--batch", "1", "--write", str(page)]
    )
    measured: list[str] = []

    def apart(part: str, *_rest: object, **_environment: str) -> dict[str, Any]:
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(part)
        return {"peak_mib": {"all": len(measured)}, "times": {part: {"cpu_ms": 1.0}}, "parts": {}}

    monkeypatch.setattr(speed, "_measured_apart", apart)
    monkeypatch.setattr(speed, "count_work", lambda _shapes: {})
    with pytest.raises(KeyboardInterrupt):
        speed.measure(given)
    assert measured == ["edits and forwards", "pictures"] and not list(tmp_path.glob("*/*.json"))
    measured.clear()
    monkeypatch.setattr(speed.shutil, "which", lambda _name: None)
    found, parts = speed.measure(given)
    assert measured == ["queries", "queries"], "with its heap as it is, and trimmed"
    assert found["peak_mib"]["edits and forwards"] == {"all": 1}
    assert set(found["times"]) >= {"edits and forwards", "pictures", "queries"}
    again, _ = speed.measure(given)
    assert again == found and len(measured) == 2, "nothing is measured again"
    with pytest.raises(KeyboardInterrupt):
        speed.measure(speed.arguments(["--repeats", "2", "--write", str(page)]))
    parts.forget()
    assert not list(page.with_suffix("").iterdir())


PAGE = ROOT / "docs" / "performance.md"


@pytest.mark.skipif(not folder_of(PAGE).is_dir(), reason="no figures are stored beside the page")
def test_the_page_is_what_the_stored_figures_give():
    assert PAGE.read_text() == page_of(PAGE), "python -m benchmarks.speed --write makes it"


def test_a_page_has_a_section_of_each_stored_run_the_published_first(tmp_path: Path):
    page = tmp_path / "performance.md"
    for name in ("llava-1.5-7b", "published"):
        run = {
            "shapes": name,
            "device": "cpu",
            "command": f"the command of {name}",
            "machine": {"cpu": "some"},
            "model": {"batch": 4},
            "counted batch": 4,
            "counted hidden size": 32,
            "counts": {"edit": {"decoder_layers": 6, "bytes_written": None}},
            "gflop_per_second": 100.0,
            "times": {"edit": {"cpu_ms": 12.5}},
            "forwards": {"forward, batch 1, open": {"plain_cpu_ms": 25.0}},
            "shares": {"edit": {"matrix products": 60.0}},
            "parts": {"decoder": 61.0},
            "peak_mib": {"edits and forwards": {"imports": 250.0}},
        }
        if name == "published":
            run["remark"] = "Times are of another run."
        write_json(folder_of(page) / f"{name}.json", run)
    write_page(page)
    text = page.read_text()
    assert text == page_of(page)
    assert text.index("`the command of published`") < text.index("`the command of llava-1.5-7b`")
    assert "| edit | 6 | - | - | - | - | - |" in text, "what the system does not tell is a dash"
    assert "`the command of published`\n\nTimes are of another run.\n\nMachine" in text
    assert text.count("another run.\n\nMachine") == 1, "a remark is of its section"
