"""The published files of MMEdit through EasyEdit, 50 records each, where MMEDIT_DATA names them.

There are no pictures, so stand-ins are drawn from their names, and the small model of this
package knows nothing of what is asked. What counts is that every record is read, edited and scored,
and that an edit carries a target as the file has it.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from easyedit_fixtures import HAS_MASTER, Workplace, needs_easyedit, shared_workplace
from easyedit_runs import trainer_of

from easyedit_dualedit.data.stand_ins import draw_stand_ins, picture_names
from easyedit_dualedit.plugin import find_host
from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams

FOLDER = os.environ.get("MMEDIT_DATA")
COUNT = 50
ENDING_IN_BLANKS = {"vqa_eval.json": 0, "caption_eval_edit.json": 10}
DATASETS = {"vqa_eval.json": "VQADataset", "caption_eval_edit.json": "CaptionDataset"}

pytestmark = [
    needs_easyedit,
    pytest.mark.skipif(FOLDER is None, reason="MMEDIT_DATA names no folder of MMEdit's files"),
    pytest.mark.usefixtures("host", "elsewhere"),
]


@pytest.fixture(params=sorted(DATASETS))
def file(request: pytest.FixtureRequest) -> Path:
    """A published file of records."""
    path = Path(str(FOLDER), request.param)
    if not path.is_file():
        pytest.skip(f"no {path.name} in the folder that MMEDIT_DATA names")
    return path


@pytest.fixture
def pictures(file: Path, tmp_path: Path) -> Path:
    """A folder with a stand-in for every picture of the first records."""
    draw_stand_ins(picture_names(file, limit=COUNT), tmp_path / "pictures")
    return tmp_path / "pictures"


def arguments_of(items: list[dict[str, Any]], pictures: Path) -> dict[str, Any]:
    """Return records as a user gives them to `MultimodalEditor.edit`."""
    root = f"{pictures}/" if HAS_MASTER else ""
    return {
        "prompts": [item["src"] for item in items],
        "targets": [item["alt"] for item in items],
        "image": [root + item["image"] for item in items],
        "rephrase_prompts": [item["rephrase"] for item in items],
        "rephrase_image": [root + item["image_rephrase"] for item in items],
        "locality_inputs": {
            "text": {
                "prompt": [item["loc"] for item in items],
                "ground_truth": [item["loc_ans"] for item in items],
            },
            "vision": {
                "prompt": [item["m_loc_q"] for item in items],
                "ground_truth": [item["m_loc_a"] for item in items],
                "image": [root + item["m_loc"] for item in items],
            },
        },
    }


def mean_of(cases: list[dict[str, Any]], phase: str, name: str) -> float:
    return sum(float(case[phase][name]) for case in cases) / len(cases)


def test_fifty_records_are_edited_and_scored(
    file: Path, pictures: Path, record_property: Any
) -> None:
    items = json.loads(file.read_text(encoding="utf-8"))[:COUNT]
    ending = sum(item["alt"] != item["alt"].rstrip() for item in items)
    assert ending == ENDING_IN_BLANKS[file.name]
    package = find_host().package
    hparams = DualEditMultimodalHparams.from_hparams("testbed")
    hparams.gate, hparams.check_edits = "open", False
    hparams.coco_image = hparams.rephrase_image = str(pictures)
    editor = package.MultimodalEditor.from_hparams(hparams)
    cases, _, _ = editor.edit(**arguments_of(items, pictures), verbose=False)
    assert len(cases) == COUNT
    for name in ("rewrite_acc", "rephrase_acc", "image_rephrase_acc"):
        before, after = (mean_of(cases, phase, name) for phase in ("pre", "post"))
        record_property(f"{file.name} {name}", f"{100 * before:.1f} -> {100 * after:.1f}")
        assert after > before + 0.2, (name, before, after)
    last = [item for item in items if item["alt"] != item["alt"].rstrip()] or items
    _, edited, _ = editor.edit(**arguments_of(last[-1:], pictures), verbose=False)
    assert edited.edits[0].request.target == last[-1]["alt"]
    if HAS_MASTER:
        records = getattr(package, DATASETS[file.name])(str(file), size=COUNT, config=hparams)
        of_a_dataset, _, _ = editor.edit_dataset(records, verbose=False)
        for name in ("rewrite_acc", "rephrase_acc", "image_rephrase_acc", "locality_acc"):
            found, expected = (
                [float(case["post"][name]) for case in some] for some in (of_a_dataset, cases)
            )
            assert found == expected, name


@pytest.mark.parametrize("trainer", ["MultimodalTrainer", "DualEditTrainer"])
def test_fifty_records_train(file: Path, pictures: Path, tmp_path: Path, trainer: str) -> None:
    tiny = shared_workplace("llava")
    # The release opens the pictures of all records, however few are asked for.
    some = tmp_path / file.name
    items = json.loads(file.read_text(encoding="utf-8"))[:COUNT]
    some.write_text(json.dumps(items), encoding="utf-8")
    workplace = Workplace(tiny.family, tiny.model, some, pictures, tiny.adapters)
    made = trainer_of(
        workplace,
        tmp_path / "results",
        trainer,
        DATASETS[file.name],
        COUNT,
        max_iters=COUNT + 1,
        val_interval=COUNT,
        gate_steps=0,
    )
    assert len(made.train_set) == COUNT
    made.run()
    assert made.global_iter >= COUNT
    assert (tmp_path / "results" / "results.json").is_file()
