"""A benchmark's records: which queries are drawn again, and what the audit reads."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_data import write_data
from tiny_models import tiny_llava

from easyedit_dualedit.commands.benchmark_data import BenchmarkData
from easyedit_dualedit.data.picture_files import PictureFiles
from easyedit_dualedit.data.records import load_records


def data_in(folder: Path) -> BenchmarkData:
    evaluated, training = write_data(folder / "eval", 4), write_data(folder / "train", 5)
    return BenchmarkData(
        load_records(evaluated, evaluated.parent)[:2],
        load_records(training, training.parent)[:3],
        folder,
        evaluated,
        training,
    )


def test_close_queries_are_drawn_again_for_other_pictures_and_another_model(tmp_path: Path):
    data = data_in(tmp_path / "data")
    loaded: list[str] = []

    def draw(model: Mapping[str, Any]) -> int:
        def load() -> tuple[Any, Any]:
            loaded.append(str(model))
            tiny = tiny_llava(layers=1)
            return tiny.model, tiny.processor

        pictures = PictureFiles.opened([*data.evaluated, *data.training], progress=False)
        run = tmp_path / "run"
        data.close_queries(load, None, run, pictures=pictures, model=model)
        return len(loaded)

    assert [draw({"dtype": "float32"}) for _ in range(2)] == [1, 1]
    assert draw({"dtype": "bfloat16"}) == 2
    for number, record in enumerate((data.evaluated[0], data.training[2])):
        (picture,) = record.request.files
        assert isinstance(picture, Path)
        Image.new("RGB", (32, 32), "black").save(picture)
        assert draw({"dtype": "float32"}) == 3 + number


def test_the_audit_reads_whole_files_and_leaves_out_bad_records_that_are_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    data = data_in(tmp_path)
    for path in (data.evaluated_file, data.training_file):
        assert path is not None
        items = json.loads(path.read_text(encoding="utf-8"))
        del items[3]["alt"]
        path.write_text(json.dumps(items), encoding="utf-8")
    found = data.audit()
    assert found is not None and (found.evaluated, found.trained) == (3, 4)
    assert "leaves out bad records" in caplog.text and "record 3 has no field alt" in caplog.text
    assert replace(data, training=[]).audit() is None
