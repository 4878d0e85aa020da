"""What EasyEdit's dataset makes of records, beside what an edit is made with."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from easyedit_fixtures import needs_master, shared_workplace
from tiny_editors import picture
from tiny_rows import record_of
from tiny_trainings import encoder_of, records_of, training_bench
from tiny_videos import frames, video_of

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.measure.easyedit_rows import joined_row
from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.rows.mend import MEND, mend
from easyedit_dualedit.plugin.rows.serac import serac
from easyedit_dualedit.plugin.rows.shipped import training_hparams
from easyedit_dualedit.plugin.rows.training import copy_of
from easyedit_dualedit.plugin.rows.training_records import TrainingRecords, item_of

pytestmark = [needs_master, pytest.mark.usefixtures("nothing_written")]


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        (
            video_of("red", "blue"),
            "a query about a video; .* records of single pictures",
        ),
        (frames("red", "blue"), "a query with 2 pictures"),
        (None, "a query with 0 pictures"),
    ],
    ids=["video", "pictures", "text"],
)
def test_what_the_trainers_do_not_take_is_named(shown: Any, message: str, tmp_path: Path) -> None:
    record = record_of(7)
    picture("red").save(tmp_path / "red.png")
    for change in ("image_rephrase", "request"):
        query = replace(record.request, image=shown)
        still = replace(record.request, image=tmp_path / "red.png")
        with pytest.raises(DataError, match=f"record 7 has {message}"):
            item_of(replace(record, **({"request": still} | {change: query})))


@pytest.mark.parametrize("row", [mend, serac])
def test_a_trainer_on_videos_says_what_to_give(host: Host, row: Any, tmp_path: Path) -> None:
    bench = training_bench(shared_workplace("llava-onevision"), tmp_path / "bench")
    record = bench.training[0]
    video = replace(record.request, image=video_of("red", "blue"))
    bench = replace(bench, training=[replace(record, request=video), *bench.training[1:]])
    with pytest.raises(DataError, match="about a video.*records of single pictures"):
        row(host).make(bench)


def test_what_mend_edits_with_is_what_easyedits_dataset_makes(host: Host, tmp_path: Path) -> None:
    workplace = shared_workplace("llava-onevision")
    bench = training_bench(workplace, tmp_path / "bench")
    mend(host).make(bench)
    config = training_hparams(host, MEND, bench.model, bench.settings)
    config = copy_of(config, dtype=torch.float32, name=str(workplace.model), device=bench.device)
    data = tmp_path / "bench" / "easyedit-mend" / "train.json"
    processor = bench.load()[1]
    records = TrainingRecords(host, config, data, processor, 4)
    encoder = encoder_of(workplace)
    for index, record in enumerate(records_of(workplace)):
        parts = records.collate_fn([records[index]])
        for name, query in (
            ("edit_inner", record.request),
            ("edit_outer", record.text_rephrase),
            ("edit_outer_image", record.image_rephrase),
            ("loc", record.text_locality),
        ):
            row = joined_row(encoder, query)
            assert torch.equal(parts[name]["labels"], row.labels)
            for key, value in row.inputs.items():
                assert torch.equal(parts[name][key], value)
