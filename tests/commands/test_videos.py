"""The commands on ADS-Edit's records: videos, sets of pictures, a picture and text alone."""

import io
import json
import shutil
from collections.abc import Callable

import pytest
from tiny_ads_edit import ads_edit_file
from tiny_editors import shared
from tiny_videos import WATCHING
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
