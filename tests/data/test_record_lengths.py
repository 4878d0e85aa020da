"""Records whose text is longer than the model can read are named before anything runs."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_data import write_data
from tiny_models import TinyModel

from easyedit_dualedit.data.record_lengths import require_fit
from easyedit_dualedit.data.records import load_records
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.measure.evaluation import evaluate
from easyedit_dualedit.measure.run import Run
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Query


def test_long_records_are_named_before_anything_runs(llava: TinyModel, tmp_path: Path) -> None:
    records = load_records(write_data(tmp_path / "data", 3), tmp_path / "data")
    model = copy.deepcopy(llava.model)
    model.config.get_text_config().max_position_embeddings = 200
    encoder = Encoder(Backbone.of(model), llava.processor)
    require_fit(records, encoder)
    long = replace(records[2], text_locality=Query("why " * 200, None, "so"))
    model.forward = None  # no forward may run
    with pytest.raises(DataError, match="^record 2: 'why why .* made for 200 positions"):
        evaluate([*records[:2], long], encoder, {"unedited": lambda _: None}, Run(tmp_path, {}))
