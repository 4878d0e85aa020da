"""Gradio, which is an extra: imported when the page is shown, and nowhere else."""

import os
from importlib import import_module
from typing import Any

from easyedit_dualedit.errors import ConfigError


def gradio() -> Any:
    """Return the module, which is told to report nothing to anybody.

    Raises:
        ConfigError: if it is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        return import_module("gradio")
    except ImportError as error:
        raise ConfigError(
            f"the page needs Gradio, which cannot be imported ({error}); install the extra:"
            ' pip install "easyedit-dualedit[app]", or in a clone: pip install -e ".[app]"'
        ) from error
