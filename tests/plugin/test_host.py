"""Finding and importing EasyEdit, and what importing this package does not do."""

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from easyedit_fixtures import HAS_MASTER, needs_easyedit

from easyedit_dualedit.errors import DualEditError, EasyEditNotFoundError, UpstreamError
from easyedit_dualedit.plugin import host as host_module
from easyedit_dualedit.plugin import is_available, register, transformers_names, unregister
from easyedit_dualedit.plugin.patching import Patches


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in another process, with PATH and the given environment only."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env={"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        timeout=300,
        check=False,
    )


def test_importing_this_package_imports_no_easyedit_and_changes_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, os, logging\n"
        "before = list(sys.path), list(logging.getLogger().handlers), os.listdir('.')\n"
        "import easyedit_dualedit, easyedit_dualedit.plugin\n"
        "assert before == (list(sys.path), list(logging.getLogger().handlers), os.listdir('.'))\n"
        "assert not [n for n in sys.modules if n.startswith('easyeditor')]\n"
    )
    found = python(f"import os; os.chdir({str(tmp_path)!r})\n{code}")
    assert found.returncode == 0, found.stderr


def fake_edition(folder: Path, name: str, *, broken: bool = False) -> Path:
    """Write a package that looks like EasyEdit for as long as it is being found."""
    package = folder / name / "easyeditor"
    (package / "util").mkdir(parents=True)
    (package / "__init__.py").write_text("import nothing_of_this_name" if broken else "")
    (package / "util" / "__init__.py").write_text("")
    lines = ["ALG_MULTIMODAL_DICT = {}", "ALG_DICT = {}"]
    if name == "master":
        lines += ["MULTIMODAL_DS_DICT = {}", "MULTIMODAL_EDIT_ALGS = set()"]
    (package / "util" / "alg_dict.py").write_text("\n".join(lines))
    (package / "util" / "alg_train_dict.py").write_text("ALG_TRAIN_DICT = {}")
    return folder / name


FIND = (
    "from easyedit_dualedit.plugin import find_host\n"
    "host = find_host()\n"
    "print(host.edition, host.folder)\n"
)


def test_a_clone_named_by_the_environment_comes_before_the_path(tmp_path: Path) -> None:
    master, release = fake_edition(tmp_path, "master"), fake_edition(tmp_path, "pypi")
    found = python(FIND, EASYEDIT_HOME=str(master), PYTHONPATH=str(release))
    assert found.stdout.split() == ["master", str(master / "easyeditor")], found.stderr
    found = python(FIND, PYTHONPATH=str(release))
    assert found.stdout.split() == ["pypi", str(release / "easyeditor")], found.stderr


def test_a_home_without_easyedit_is_named(tmp_path: Path) -> None:
    found = python(FIND, EASYEDIT_HOME=str(tmp_path))
    assert "EasyEditNotFoundError" in found.stderr
    assert "there is no easyeditor/__init__.py" in found.stderr


def test_a_missing_requirement_of_easyedit_is_named(tmp_path: Path) -> None:
    broken = fake_edition(tmp_path, "master", broken=True)
    found = python(FIND, EASYEDIT_HOME=str(broken))
    assert "EasyEditNotFoundError" in found.stderr
    assert "nothing_of_this_name" in found.stderr
    assert "easyedit-dualedit[easyedit]" in found.stderr


def test_the_error_names_both_ways_to_get_easyedit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EASYEDIT_HOME", raising=False)
    monkeypatch.delitem(sys.modules, "easyeditor", raising=False)
    monkeypatch.setattr(host_module.importlib.util, "find_spec", lambda _: None)
    assert not is_available()
    with pytest.raises(EasyEditNotFoundError) as raised:
        register()
    for part in ("EASYEDIT_HOME", "PYTHONPATH", "pip install", "easyeditor==0.0.1.dev0"):
        assert part in str(raised.value)
    assert isinstance(raised.value, ImportError)
    assert isinstance(raised.value, DualEditError)


@needs_easyedit
def test_the_edition_of_this_process_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_available()
    host = host_module.find_host()
    assert host.edition == ("master" if HAS_MASTER else "pypi")
    assert host.editors is host.module("util.alg_dict").ALG_MULTIMODAL_DICT
    assert host.package.ALG_MULTIMODAL_DICT is host.editors
    unregister()


def test_names_that_transformers_has_are_left_alone() -> None:
    import transformers.modeling_utils as module

    transformers_names.supply_missing_names()
    assert transformers_names.supply_missing_names() == []
    for name in (
        "apply_chunking_to_forward",
        "find_pruneable_heads_and_indices",
        "prune_linear_layer",
    ):
        assert callable(getattr(module, name))


def test_names_are_transformers_own_where_they_have_moved_and_else_refuse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import transformers.modeling_utils as old_home
    import transformers.pytorch_utils as new_home

    names = ("prune_linear_layer", "find_pruneable_heads_and_indices")
    for name in names:
        monkeypatch.delattr(old_home, name, raising=False)
    monkeypatch.delattr(new_home, names[1], raising=False)
    assert set(transformers_names.supply_missing_names()) == set(names)
    assert vars(old_home)[names[0]] is new_home.prune_linear_layer
    with pytest.raises(UpstreamError, match="transformers has dropped"):
        vars(old_home)[names[1]]([0], 4, 2, set())


def test_a_module_that_transformers_has_dropped_is_there_for_easyedit_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "transformers.modeling_attn_mask_utils"
    find = importlib.util.find_spec
    with transformers_names.dropped_modules():
        assert importlib.import_module(name).AttentionMaskConverter is not None
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda wanted: None if wanted == name else find(wanted)
    )
    monkeypatch.delitem(sys.modules, name, raising=False)
    with transformers_names.dropped_modules():
        masks = importlib.import_module(name)
        with pytest.raises(UpstreamError, match="UnKE needs .* has dropped; use transformers 5.23"):
            masks._prepare_4d_causal_attention_mask(None, (1, 1), None, 0)
    assert name not in sys.modules


def test_patches_are_undone_newest_first() -> None:
    class Owner:
        name = "old"

    patches = Patches()
    patches.replace(Owner, "name", "new")
    patches.wrap(Owner, "name", lambda present: f"{present}er")
    patches.replace(Owner, "other", 1)
    assert (Owner.name, Owner.other) == ("newer", 1)  # type: ignore[attr-defined]
    patches.undo()
    assert vars(Owner)["name"] == "old"
    assert not hasattr(Owner, "other")
