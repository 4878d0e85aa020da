"""Registration with the EasyEdit of this process, whichever edition it is."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from easyedit_fixtures import needs_easyedit

from easyedit_dualedit.errors import RegistrationError
from easyedit_dualedit.plugin import find_host, is_registered, register, unregister

pytestmark = needs_easyedit


@pytest.fixture(autouse=True)
def _unregistered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    unregister()
    yield
    unregister()


def everything() -> dict[str, Any]:
    """Return every attribute of every module of EasyEdit and of every class in them."""
    found: dict[str, Any] = {}
    for name, module in list(sys.modules.items()):
        if not name.startswith("easyeditor"):
            continue
        for key, value in vars(module).items():
            found[f"{name}.{key}"] = value
            if isinstance(value, type) and value.__module__.startswith("easyeditor"):
                found |= {f"{name}.{key}.{k}": v for k, v in vars(value).items()}
    return found


def test_registering_makes_the_method_known() -> None:
    host = register()
    assert is_registered()
    apply = host.editors["DualEdit"]
    assert apply.__module__ == "easyedit_dualedit.plugin.apply"
    trained = host.trainers["DUALEDIT"]
    assert issubclass(trained, host.module("trainer.algs.editable_model").EditableModel)
    # EasyEdit's modules share the very dictionaries.
    assert host.package.ALG_MULTIMODAL_DICT["DualEdit"] is apply
    assert host.module("trainer.BaseTrainer").ALG_TRAIN_DICT["DUALEDIT"] is trained
    assert host.module("editors.multimodal_editor").ALG_MULTIMODAL_DICT["DualEdit"] is apply
    if host.edition == "master":
        assert "DualEdit" in host.editor_names
        assert "DUALEDIT" in host.trainer_names


def test_scripts_can_import_what_they_need_from_easyeditor() -> None:
    host = register()
    for name in (
        "DualEditMultimodalHparams",
        "DualEditMultimodalTrainingHparams",
        "DualEditTrainer",
    ):
        assert getattr(host.package, name).__name__ == name


def test_registering_again_changes_nothing() -> None:
    register()
    before = everything()
    register()
    after = everything()
    assert before.keys() == after.keys()
    assert all(before[key] is after[key] for key in before)


def test_unregistering_restores_easyedit_completely() -> None:
    register()
    unregister()
    assert not is_registered()
    before = everything()
    register()
    unregister()
    after = everything()
    assert before.keys() == after.keys()
    assert [key for key in before if before[key] is not after[key]] == []
    host = find_host()
    assert "DualEdit" not in host.editors
    assert "DUALEDIT" not in host.trainers
    assert "DualEdit" not in host.editor_names
    assert "DUALEDIT" not in host.trainer_names
    assert not hasattr(host.package, "DualEditTrainer")
    editor = host.module("editors.multimodal_editor").MultimodalEditor
    for function in (editor.__init__, host.module("trainer.models").get_model):
        assert function.__module__.startswith("easyeditor")
        assert not hasattr(function, "__wrapped__")


@pytest.mark.parametrize(("registry", "key"), [("editors", "DualEdit"), ("trainers", "DUALEDIT")])
def test_another_method_of_the_name_is_not_overwritten(registry: str, key: str) -> None:
    host = find_host()
    entries = getattr(host, registry)

    def other() -> None: ...

    entries[key] = other
    try:
        with pytest.raises(RegistrationError, match=f"already has a method '{key}'.*other"):
            register()
        assert entries[key] is other
        assert not is_registered()
        assert not hasattr(host.package, "DualEditTrainer")
    finally:
        del entries[key]
    register()


def test_a_method_that_took_the_name_meanwhile_is_left_where_it_is() -> None:
    host = register()

    def other() -> None: ...

    host.editors["DualEdit"] = other
    try:
        unregister()
        assert host.editors["DualEdit"] is other
    finally:
        del host.editors["DualEdit"]
