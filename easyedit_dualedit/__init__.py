"""DualEdit: knowledge editing of vision-language models, as a method for EasyEdit.

    from easyedit_dualedit import DualEditor, load_model

    model, processor = load_model("llava-hf/llava-1.5-7b-hf", device="cuda:0")
    editor = DualEditor.load(model, processor, "adapters/llava-1.5-7b")
    edited = editor.edit(Path("photo.jpg"), "What is this?", "a kite")
    edited.generate(**inputs)

Names are loaded when they are first used: importing the package itself takes no time, has no
effect, and imports neither torch nor EasyEdit.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from easyedit_dualedit.method.config import DualEditConfig, GateConfig
    from easyedit_dualedit.method.edit_memory import EditMemory
    from easyedit_dualedit.method.edited_model import EditedModel
    from easyedit_dualedit.method.editor import DualEditor
    from easyedit_dualedit.model.inputs import Query
    from easyedit_dualedit.model.loading import load_model
    from easyedit_dualedit.model.videos import Video
    from easyedit_dualedit.plugin.registry import register

__version__ = "0.1.0"

__all__ = [
    "DualEditConfig",
    "DualEditor",
    "EditMemory",
    "EditedModel",
    "GateConfig",
    "Query",
    "Video",
    "load_model",
    "register",
]

_MODULES = {
    "DualEditConfig": "method.config",
    "DualEditor": "method.editor",
    "EditMemory": "method.edit_memory",
    "EditedModel": "method.edited_model",
    "GateConfig": "method.config",
    "Query": "model.inputs",
    "Video": "model.videos",
    "load_model": "model.loading",
    "register": "plugin.registry",
}
"""Public name -> the module that defines it."""


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # the next use finds it without a call
    return value


def __dir__() -> list[str]:
    """Return the public names and what is loaded."""
    return sorted({*globals(), *__all__})
