"""Pictures are decoded once a batch, by whom ever: a training learns the same to the bit."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_data import editor_of, fast, step_losses, write_data
from tiny_models import TinyModel

from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.model.prompts import OpenedPictures
from easyedit_dualedit.train.pictures_ahead import PicturesAhead
from easyedit_dualedit.train.trainer import train


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    return load_records(write_data(tmp_path / "data", 8), tmp_path / "data")


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count how often this process opens each file."""
    count: Counter[str] = Counter()
    real = Image.open

    def opening(path: Any, *rest: Any, **more: Any) -> Any:
        count[str(path)] += 1
        return real(path, *rest, **more)

    monkeypatch.setattr(Image, "open", opening)
    return count


def test_each_picture_of_a_batch_is_opened_once(
    llava: TinyModel, records: list[Record], opens: Counter[str]
):
    step_losses(editor_of(llava), records[:4], fast())
    # The first step compares with whole forwards, which read the same pictures.
    assert len(opens) == 8 and set(opens.values()) == {1}


def test_workers_change_nothing_and_this_process_opens_nothing(
    llava: TinyModel, records: list[Record], opens: Counter[str], tmp_path: Path
):
    def trained(workers: int, steps: int, path: Path | None = None) -> torch.Tensor:
        torch.manual_seed(0)
        editor = editor_of(llava)
        config = fast(
            steps=steps, batch_size=2, gate_steps=0, gate_records=4, picture_workers=workers
        )
        train(editor, records, config, checkpoint=path, progress=False)
        return torch.cat([each.detach().flatten() for each in editor.adapters.parameters()])

    alone = trained(0, 6)
    assert opens
    assert torch.equal(trained(2, 6), alone)
    # A training that is continued with workers is what it was without.
    assert torch.equal(trained(2, 6, tmp_path / "training.pt"), alone)
    assert torch.equal(trained(1, 6, tmp_path / "training.pt"), alone)


def test_batches_come_in_order_with_their_pictures(records: list[Record], opens: Counter[str]):
    opened = OpenedPictures()
    ahead = PicturesAhead(lambda number: records[number : number + 2], range(1, 5), opened, 2)
    for number in range(1, 5):
        batch = ahead.batch(number)
        assert batch == records[number : number + 2]
        for record in batch:
            for query in record.queries:
                for path in query.pictures:
                    assert opened.open(path).size == (28, 28) or opened.open(path).size
    ahead.close()
    assert not opens, "all were decoded by others"


def test_a_bad_picture_is_told_by_who_needs_it(records: list[Record], tmp_path: Path):
    bad = tmp_path / "data" / "0.png"
    bad.write_bytes(b"no picture")
    opened = OpenedPictures()
    ahead = PicturesAhead(lambda _number: records[:1], range(1), opened, 1)
    assert ahead.batch(0) == records[:1]
    with pytest.raises(Exception, match="cannot be read as a picture"):
        opened.open(bad)
    ahead.close()


def test_decoded_pictures_stay_within_their_budget(tmp_path: Path, opens: Counter[str]):
    paths = [tmp_path / f"{place}.png" for place in range(3)]
    for path in paths:
        Image.new("RGB", (10, 10)).save(path)
    opened = OpenedPictures(budget=2 * 300)
    for path in (paths[0], paths[1], paths[0], paths[2], paths[0], paths[1]):
        opened.open(path)
    assert [opens[str(path)] for path in paths] == [1, 2, 1]
    # A file that has changed is another picture.
    Image.new("RGB", (9, 9)).save(paths[0])
    assert opened.open(paths[0]).size == (9, 9)
