"""What EasyEdit's dataset makes of records, beside what an edit is made with."""

from pathlib import Path

import pytest
import torch
from easyedit_fixtures import needs_master, shared_workplace
from tiny_trainings import encoder_of, records_of, training_bench

from easyedit_dualedit.measure.easyedit_rows import joined_row
from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.rows.mend import MEND, mend
from easyedit_dualedit.plugin.rows.shipped import training_hparams
from easyedit_dualedit.plugin.rows.training import copy_of
from easyedit_dualedit.plugin.rows.training_records import TrainingRecords

pytestmark = [needs_master, pytest.mark.usefixtures("nothing_written")]


def test_what_mend_edits_with_is_what_easyedits_dataset_makes(host: Host, tmp_path: Path) -> None:
    workplace = shared_workplace("llava-onevision")
    bench = training_bench(workplace, tmp_path / "bench")
    mend(host).make(bench)
    config = training_hparams(host, MEND, bench)
    config = copy_of(config, dtype=torch.float32, name=str(workplace.model))
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
