"""The testbed behind sessions, loaded once for all tests of the page."""

from pathlib import Path

import pytest

from easyedit_dualedit.app.session import Session
from easyedit_dualedit.app.shared_editor import SharedEditor
from easyedit_dualedit.app.trial import Trial
from easyedit_dualedit.commands.app_examples import examples_of
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.loading import load_model
from easyedit_dualedit.testbed import adapters_folder, model_folder


@pytest.fixture(scope="session")
def shared_editor() -> SharedEditor:
    """The testbed with its shipped adapters."""
    model, processor = load_model(str(model_folder()))
    editor = DualEditor.load(model, processor, adapters_folder("default"))
    return SharedEditor(editor, "testbed")


@pytest.fixture(scope="session")
def examples() -> list[Trial]:
    """The first examples of the page."""
    return examples_of("testbed", 4)


@pytest.fixture
def session(shared_editor: SharedEditor, tmp_path: Path) -> Session:
    """A new session."""
    return Session(shared_editor, tmp_path / "session")
