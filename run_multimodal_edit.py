"""Edits vision-language models with DualEdit: `python run_multimodal_edit.py --help`."""

import sys

from easyedit_dualedit.cli import main

if __name__ == "__main__":
    sys.exit(main())
