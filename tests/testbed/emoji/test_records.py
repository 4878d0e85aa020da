"""Records on disk: whole or not at all, the same bytes again, and nothing shared between splits."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_emoji import tiny_world

from easyedit_dualedit.data.leak_audit import audit
from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.model.inputs import content_digest, open_image
from easyedit_dualedit.testbed.emoji.drawing import Drawings
from easyedit_dualedit.testbed.emoji.one_hop import capital_of
from easyedit_dualedit.testbed.emoji.parts import PACKAGES, default_folder, open_parts
from easyedit_dualedit.testbed.emoji.places import GET_COMMAND
from easyedit_dualedit.testbed.emoji.records import write_records
from easyedit_dualedit.testbed.emoji.things import Split
from easyedit_dualedit.testbed.emoji.wordings import FAMILIES

COUNTS: dict[Split, int] = {"train": 100, "eval": 30}

CLOSED = ("background", "kind")
"""Questions whose answers are a closed list, which both splits share."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    for split, count in COUNTS.items():
        write_records(folder, split, count, world=tiny_world())
    return folder


@pytest.mark.skipif(
    not all((default_folder() / package.file).is_file() for package in PACKAGES),
    reason=f"needs the packages of the emoji model: {GET_COMMAND}, or DUALEDIT_EMOJI_PARTS",
)
def test_records_of_the_real_packages_show_what_they_name(tmp_path: Path):
    parts = open_parts(default_folder())
    things = parts.things()
    world = (things, parts.drawings(things))
    for split, count in (("train", 40), ("eval", 40)):
        write_records(tmp_path, split, count, world=world)
    found = audit(records_in(tmp_path, "eval"), records_in(tmp_path, "train"))
    assert all("target" in finding.what for finding in found.findings if finding.found)
    flags = [thing for thing in things if thing.country]
    assert len(things) > 900 and len(flags) > 200
    assert sum(capital_of(thing) is not None for thing in flags) > 0.8 * len(flags)
    assert {item["family"] for item in items_in(tmp_path, "eval")} == set(FAMILIES)


def records_in(folder: Path, split: Split) -> list[Record]:
    return load_records(folder / f"{split}.json", folder / "images")


def items_in(folder: Path, split: Split) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))
    return items


def pictures_of(records: list[Record]) -> set[Path]:
    return {p for record in records for q in record.queries for p in q.pictures}  # type: ignore[misc]


def bytes_in(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_records_have_mmedits_fields_and_a_file_for_each_picture(folder: Path):
    for split, count in COUNTS.items():
        records = records_in(folder, split)
        assert len(records) == count
        assert any(record.portability for record in records)
        assert len(list((folder / "images" / split).iterdir())) == 3 * count
        for record in records:
            assert record.request.target != record.prediction
            assert record.text_locality.image is None
    image = open_image(sorted(pictures_of(records_in(folder, "eval")))[0])
    assert image.size == (96, 96)


def test_the_leak_audit_finds_nothing_shared_but_colors_and_kinds(folder: Path):
    evaluated = records_in(folder, "eval")
    found = audit(evaluated, records_in(folder, "train"))
    shared = {finding.what: finding.found for finding in found.findings if finding.found}
    assert all("target" in what for what in shared), shared
    assert found.findings[0].of == len(evaluated)
    closed = [item for item in items_in(folder, "eval") if item["family"] in CLOSED]
    assert 0 < max(shared.values(), default=0) <= len(closed)


def test_no_two_splits_have_a_picture_of_the_same_content(folder: Path):
    one, other = (
        {content_digest(open_image(path)) for path in pictures_of(records_in(folder, split))}
        for split in COUNTS
    )
    assert not one & other


def test_names_and_countries_of_evaluation_are_no_target_of_training(folder: Path):
    items = {split: items_in(folder, split) for split in COUNTS}
    taught = {item["alt"] for item in items["train"]}
    unseen = {True: 0, False: 0}
    for item in items["eval"]:
        is_unseen = item["alt"] not in taught
        unseen[is_unseen] += 1
        assert is_unseen or item["family"] in CLOSED, item
    assert unseen[True] > len(items["eval"]) / 2


def test_the_same_arguments_give_the_same_bytes(folder: Path, tmp_path: Path):
    write_records(tmp_path, "eval", COUNTS["eval"], world=tiny_world())
    again = bytes_in(tmp_path)
    known = bytes_in(folder)
    assert again == {name: known[name] for name in again}
    write_records(tmp_path, "eval", COUNTS["eval"], seed=1, world=tiny_world())
    assert bytes_in(tmp_path) != again


def test_complete_records_are_left_alone_and_need_no_drawings(folder: Path):
    path = folder / "eval.json"
    before = path.stat().st_mtime_ns
    assert write_records(folder, "eval", COUNTS["eval"], world=((), Drawings({}))) == path
    assert path.stat().st_mtime_ns == before


def test_what_is_missing_or_changed_is_made_again(tmp_path: Path):
    path = write_records(tmp_path, "eval", 6, world=tiny_world(), name="six")
    whole = bytes_in(tmp_path)
    assert path.name == "six.json"
    next((tmp_path / "images" / "six").iterdir()).unlink()
    write_records(tmp_path, "eval", 6, world=tiny_world(), name="six")
    assert bytes_in(tmp_path) == whole
    path.write_text(path.read_text(encoding="utf-8")[:-5], encoding="utf-8")
    write_records(tmp_path, "eval", 6, world=tiny_world(), name="six")
    assert bytes_in(tmp_path) == whole


def test_an_interruption_leaves_no_half_of_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_records(tmp_path, "eval", 4, world=tiny_world())
    whole = bytes_in(tmp_path)
    real, calls = Drawings.draw, []

    def stopping(self: Drawings, picture: Any) -> Any:
        calls.append(picture)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return real(self, picture)

    monkeypatch.setattr(Drawings, "draw", stopping)
    with pytest.raises(KeyboardInterrupt):
        write_records(tmp_path, "eval", 8, world=tiny_world())
    assert bytes_in(tmp_path) == whole


def test_text_locality_can_be_that_of_a_file(tmp_path: Path):
    questions = tmp_path / "mine.json"
    items = [{"loc": f"nq question: what is {n}", "loc_ans": f"it is {n}"} for n in range(40)]
    questions.write_text(json.dumps(items), encoding="utf-8")
    write_records(tmp_path, "eval", 5, questions=questions, world=tiny_world())
    for record in records_in(tmp_path, "eval"):
        assert record.text_locality.prompt.startswith("nq question: what is ")
    assert {record.text_locality.target for record in records_in(tmp_path, "eval")} < {
        item["loc_ans"] for item in items
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "split 'test' is unknown"),
        ({"split": "eval", "count": 0}, "count 0 is not an integer from 1"),
        ({"split": "eval", "count": 10**6}, "count 1000000 is not"),
    ],
)
def test_bad_arguments_are_named(tmp_path: Path, arguments: dict[str, Any], message: str):
    with pytest.raises(DataError, match=message):
        write_records(tmp_path, **arguments, world=tiny_world())
    assert not list(tmp_path.iterdir())
