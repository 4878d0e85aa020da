"""The commands on ADS-Edit's records: videos, sets of pictures, a picture and text alone."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_ads_edit import ads_edit_file
from tiny_editors import picture, shared
from tiny_videos import WATCHING, frames, write_clip
from workplace import Called, Workplace

from easyedit_dualedit.measure.run import METRICS_FILE

Call = Callable[[list[str]], Called]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A workplace with a model that takes videos, and records of every kind."""
    folder = tmp_path_factory.mktemp("videos")
    shared("llava-onevision").save(folder / "model")
    shutil.move(ads_edit_file(folder / "data", 8), folder / "data" / "data.json")
    return Workplace(folder)


def with_model(place: Workplace, *arguments: object) -> list[str]:
    hparams = place.hparams(archive=str(place.adapters), gate={"kind": "cosine", "threshold": 0.99})
    return [str(each) for each in (*arguments, "--hparams", hparams)]


def moving(place: Workplace) -> list[str]:
    """Return what names records of videos alone, which every protocol can ask about."""
    data = place.images / "moving.json"
    if not data.exists():
        items = json.loads(place.data.read_text())
        kinds = ("video", "multi-image")
        data.write_text(json.dumps([item for item in items if item["image_type"] in kinds]))
    return ["--data", str(data), "--images", str(place.images)]


def test_they_train_evaluate_and_compare(place: Workplace, call: Call) -> None:
    assert "llava-onevision" in WATCHING
    trained = call(place.train())
    assert trained.code == 0, trained.err
    assert "shortcut" not in trained.err
    measured = call(place.evaluate())
    assert measured.code == 0, measured.err
    metrics = json.loads((place.folder / "outputs" / "evaluate" / METRICS_FILE).read_text())
    for method in metrics["methods"].values():
        counts = {m["n"] for m in method["protocols"]["generate"].values()}
        assert 8 in counts
    compared = call(
        with_model(place, "benchmark", *moving(place), "--output", place.folder / "compared")
        + ["--protocols", "generate", "easyedit", "specificity", "--methods", "dualedit"]
    )
    assert compared.code == 0, compared.err
    page = next((place.folder / "compared").rglob("results.html")).read_text()
    assert '"images"' in page


def test_their_edits_are_kept_applied_and_asked_about(
    place: Workplace, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not place.adapters.exists():
        assert call(place.train()).code == 0
    edits = place.folder / "edits"
    added = call(with_model(place, "edits", "add", "--edits", edits) + moving(place))
    assert added.code == 0, added.err
    clip = place.folder / "clip"
    clip.mkdir(exist_ok=True)
    for frame in sorted(place.images.glob("image_0_*.png")):
        shutil.copy(frame, clip)
    asked = call(
        with_model(
            place, "edits", "apply", "--edits", edits, "--image", clip, "--ask", "What happens?"
        )
    )
    assert asked.code == 0, asked.err
    monkeypatch.setattr("sys.stdin", io.StringIO("What happens to circle 0?\n\n"))
    chatted = call(with_model(place, "chat", "--edits", edits, "--image", clip))
    assert chatted.code == 0, chatted.err
    missing = call(with_model(place, "chat", "--edits", edits, "--image", "missing.mp4"))
    assert "no video at missing.mp4" in missing.error


def test_layers_are_located_with_what_shows_something(place: Workplace, call: Call) -> None:
    located = call(place.locate("--layers", 0))
    assert located.code == 0, located.err
    assert "2 records of text alone are left out" in located.out
    found = json.loads((place.folder / "outputs" / "locate" / "locate.json").read_text())
    assert found["layers"][0]["vision"]["kl"]["n"] == 6


def _folder(path: Path, *sizes: tuple[int, int]) -> None:
    path.mkdir()
    for place, size in enumerate(sizes):
        picture("red", size).save(path / f"{place}.png")


def _gif(path: Path) -> None:
    first, *others = frames("red", "green", "blue")
    first.save(path, save_all=True, append_images=others, duration=100)


def _clip(path: Path, share: float = 1.0) -> None:
    whole = write_clip(path.with_suffix(".mp4")).read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])


GOOD: dict[str, Callable[[Path], object]] = {
    "clip.mp4": _clip,
    "clip.MOV": _clip,
    "drawn.gif": _gif,
    "one frame": lambda path: _folder(path, (40, 40)),
    "frames": lambda path: _folder(path, (40, 40), (40, 40)),
}

BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated.mp4": (lambda path: _clip(path, 0.5), "cannot be read as a video"),
    "empty.mp4": (lambda path: path.write_bytes(b""), "cannot be read as a video"),
    "text.mp4": (lambda path: path.write_text("hello"), "cannot be read as a video"),
    "clip.png": (_clip, "cannot be read as a picture"),
    "no frames": (_folder, "no pictures in"),
    "two sizes": (lambda path: _folder(path, (40, 40), (50, 40)), "of 2 sizes"),
    "gone.mp4": (lambda _path: None, "no video at"),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_video_in_each_form_is_edited(
    place: Workplace, call: Call, name: str, tmp_path: Path
) -> None:
    GOOD[name](tmp_path / name)
    if not place.adapters.exists():
        assert call(place.train()).code == 0
    edit = with_model(place, "edit", "--prompt", "What happens?", "--target", "blue", "--image")
    edit.insert(edit.index("--image") + 1, str(tmp_path / name))
    made = call(edit)
    assert made.code == 0, made.err


@pytest.mark.parametrize("name", BAD)
def test_a_bad_video_is_one_line(
    place: Workplace, call: Call, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, message = BAD[name]
    make(tmp_path / name)
    if not place.adapters.exists():
        assert call(place.train()).code == 0
    shown = ["--image", str(tmp_path / name)]
    asked = ["--prompt", "What happens?", "--target", "blue"]
    edits = ["--edits", str(place.folder / "edits of bad videos")]
    if not Path(edits[1]).exists():
        assert call(with_model(place, "edits", "add", *asked, *edits)).code == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("What happens?\n\n"))
    for command in (["edit", *asked], ["edits", "add", *asked, *edits], ["chat", *edits]):
        told = call(with_model(place, *command, *shown))
        assert told.code == 2 and message in told.error, (command, told.err)


@pytest.mark.parametrize("name", ["truncated.mp4", "no frames", "two sizes"])
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_bad_video_of_a_record_is_one_line(
    place: Workplace, call: Call, name: str, command: str, tmp_path: Path
) -> None:
    if command == "evaluate" and not place.adapters.exists():
        assert call(place.train()).code == 0
    make, message = BAD[name]
    make(tmp_path / name)
    items = json.loads(place.data.read_text())[:4]
    items[0] |= {"image_type": "video", "image": str(tmp_path / name)}
    data = tmp_path / "data.json"
    data.write_text(json.dumps(items))
    arguments = place.train() if command == "train" else place.evaluate()
    arguments[arguments.index("--data") + 1] = str(data)
    arguments[arguments.index("--output") + 1] = str(tmp_path / "out")
    told = call([*arguments, "--allow-outside"])
    assert told.code == 2 and message in told.error, told.err


def test_videos_of_several_lengths_mix_in_every_command(
    place: Workplace, call: Call, tmp_path: Path
) -> None:
    """LLaVA-OneVision takes videos of one length at a time."""
    items = json.loads(place.data.read_text())
    moving = [item for item in items if item["image_type"] == "video"]
    assert len(moving) >= 2
    moving[0]["image"] = moving[0]["image"][:2]
    moving[1]["image_rephrase"] = moving[1]["image_rephrase"][:3]
    data = tmp_path / "data.json"
    data.write_text(json.dumps(items))
    adapters = tmp_path / "adapters"
    for arguments in (place.train(), place.evaluate(archive=str(adapters))):
        arguments[arguments.index("--data") + 1] = str(data)
        arguments[arguments.index("--output") + 1] = str(adapters)
        done = call(arguments)
        assert done.code == 0 and "whole forward" not in done.err, done.err
    hparams = place.hparams(archive=str(adapters))
    seeing = tmp_path / "seeing.json"
    seeing.write_text(json.dumps(moving))
    compared = call(
        ["benchmark", "--hparams", str(hparams), "--data", str(seeing), "--methods", "dualedit"]
        + ["--images", str(place.images), "--output", str(tmp_path / "compared")]
        + ["--protocols", "specificity"]
    )
    assert compared.code == 0, compared.err
    kept = ["--hparams", str(hparams), "--edits", str(tmp_path / "edits")]
    added = call(["edits", "add", *kept, "--data", str(data), "--images", str(place.images)])
    assert added.code == 0, added.err
