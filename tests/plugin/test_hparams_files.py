"""Short names and paths of hyperparameters."""

from pathlib import Path

import pytest

from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.plugin.hparams import (
    DualEditMultimodalHparams,
    DualEditMultimodalTrainingHparams,
)
from easyedit_dualedit.plugin.hparams_files import find_hparams, shipped_hparams

ROOT = Path(__file__).parents[2] / "hparams"
KINDS = (DualEditMultimodalHparams, DualEditMultimodalTrainingHparams)


@pytest.mark.parametrize("kind", KINDS)
def test_every_shipped_file_has_a_short_name(kind: type[DualEditMultimodalHparams]):
    paths = sorted((ROOT / kind.folder).glob("*.yaml"))
    assert len(paths) > 10
    for path in paths:
        assert find_hparams(path.stem, kind.folder) == path
    read = kind.from_hparams("testbed")
    assert type(read) is kind
    assert read == kind.from_hparams(ROOT / kind.folder / "testbed.yaml")


def test_a_file_comes_before_a_short_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert find_hparams("testbed", "DualEdit") == ROOT / "DualEdit" / "testbed.yaml"
    (tmp_path / "testbed.yaml").write_text("model_name: mine\n")
    assert find_hparams("testbed", "DualEdit") == Path("testbed.yaml")
    assert shipped_hparams("testbed", "DualEdit") == ROOT / "DualEdit" / "testbed.yaml"
    (tmp_path / "plain").write_text("model_name: mine\n")
    assert find_hparams(Path("plain"), "DualEdit") == Path("plain")


def test_an_unknown_name_is_told_those_that_there_are_the_nearest_first():
    with pytest.raises(ConfigError, match=r"called 'LLaVA-1.5'; there are llava-1\.5-7b, ") as told:
        find_hparams("LLaVA-1.5", "DualEdit")
    for path in (ROOT / "DualEdit").glob("*.yaml"):
        assert path.stem in str(told.value)
    with pytest.raises(ConfigError, match="there are testbed-published, testbed,"):
        find_hparams("testbed-publish", "TRAINING/DualEdit")


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("nowhere/llava-1.5-7b", "nowhere/llava-1.5-7b.yaml"),
        ("./llava-1.5-7b", "llava-1.5-7b.yaml"),
        ("llava-1.5-7b.yml", "llava-1.5-7b.yml"),
    ],
)
def test_a_path_is_never_taken_for_a_short_name(given: str, path: str):
    assert find_hparams(given, "DualEdit") == Path(path)
    with pytest.raises(ConfigError, match="cannot read"):
        DualEditMultimodalHparams.from_hparams(given)
