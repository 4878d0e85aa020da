"""Pictures of records: those of the samples nearest to an edit are looked at before a run, too."""

from pathlib import Path

import pytest
from PIL import Image
from tiny_comprehend_edit import comprehend_edit_folder
from tiny_data import write_data

from easyedit_dualedit.data.picture_files import PictureFiles
from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return comprehend_edit_folder(tmp_path / "ComprehendEdit")


def evaluated(folder: Path, count: int) -> list[Record]:
    return load_records(folder / "ComprehendEdit_test.json", folder, limit=count)


def test_a_picture_of_a_nearest_sample_that_is_not_there_is_told_by_record_and_field(folder: Path):
    # Record 0 shows 0 and 2; 1, 2 and 3 are near it.
    (record,) = evaluated(folder, 1)
    gone = folder / "GQA" / "images" / "3.jpg"
    gone.unlink()
    with pytest.raises(DataError) as caught:
        PictureFiles.opened([record])
    told = str(caught.value)
    assert told.startswith(f"record 0, field img_topk or txt_topk: no picture at {gone}")
    assert len(PictureFiles.opened([record], nearest=False).digests) == 2


def test_a_case_depends_on_the_pictures_of_nearest_samples(folder: Path):
    (record,) = evaluated(folder, 1)
    before = [
        PictureFiles.opened([record], nearest=each).shown_by([record]) for each in (True, False)
    ]
    Image.new("RGB", (40, 40), "black").save(folder / "GQA" / "images" / "3.jpg")
    after = [
        PictureFiles.opened([record], nearest=each).shown_by([record]) for each in (True, False)
    ]
    assert before[0] != after[0] and before[1] == after[1]


def test_records_without_nearest_samples_keep_their_digest(tmp_path: Path):
    records = load_records(write_data(tmp_path, 2), tmp_path)
    pictures = [
        PictureFiles.opened(records, nearest=each).shown_by(records) for each in (True, False)
    ]
    assert pictures[0] == pictures[1]
