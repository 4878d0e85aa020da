"""DualEdit: knowledge editing of vision-language models, as a method for EasyEdit."""

__version__ = "0.1.0"
