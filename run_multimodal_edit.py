"""Edits vision-language models with DualEdit: `python run_multimodal_edit.py --help`."""

import sys

from easyedit_dualedit.commands.parser import main

if __name__ == "__main__":
    sys.exit(main())
