"""DualEdit as a method of EasyEdit. Importing this has no effect and does not import EasyEdit."""

from easyedit_dualedit.plugin.host import Host, find_host, is_available
from easyedit_dualedit.plugin.registry import is_registered, register, unregister

__all__ = ["Host", "find_host", "is_available", "is_registered", "register", "unregister"]
