"""The work of edits and training steps, counted: it may not grow."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.speed import count_work  # noqa: E402
from benchmarks.subject import editor_of, records_of  # noqa: E402
from easyedit_dualedit.batch import Query  # noqa: E402
from easyedit_dualedit.records import Record  # noqa: E402


def test_an_edit_and_a_training_step_do_no_work_twice():
    work = count_work()
    assert work["edit"] == {
        "decoder_layers": 6,
        "frozen_rows": 1,
        "lm_head": 0,
        "lm_head_positions": 0,
        "vision": 1,
    }
    step = work["training step, pictures seen before"]
    # Five frozen layers, one for the edit signal, three unedited for locality, three edited.
    assert step["decoder_layers"] == 5 + 1 + 3 + 3
    assert step["frozen_rows"] == 12, "four queries of four records, two of them in one row"
    assert step["vision"] == 0
    assert step["lm_head"] == 2
    target_ids = editor_of().encoder.target_ids
    edited = sum(len(target_ids(q.target or "")) for r in records_of(4) for q in _trained(r))
    unedited = sum(len(target_ids(r.image_locality.target or "")) for r in records_of(4))
    assert step["lm_head_positions"] == edited + unedited, "answers alone"
    again = work["training step, queries seen before"]
    assert again == step | {"decoder_layers": 1 + 3 + 3, "frozen_rows": 0}


def _trained(record: Record) -> tuple[Query, ...]:
    return record.request, record.text_rephrase, record.image_rephrase, record.image_locality
