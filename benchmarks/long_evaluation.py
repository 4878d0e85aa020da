"""Whether a long evaluation holds its memory and its time a record.

``python -m benchmarks.long_evaluation`` evaluates many records on a small model, as the command
`evaluate` does, and prints what each part of them took: CPU time a record, and the memory of the
process after it.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

from benchmarks.device_subject import TINY
from benchmarks.subject import editor_of, records_of
from easyedit_dualedit.data.records import Record
from easyedit_dualedit.measure.evaluation import evaluate
from easyedit_dualedit.measure.run import Run
from easyedit_dualedit.method.edited_model import EditedModel


class Parts:
    """What each part of an evaluation took."""

    def __init__(self, size: int):
        """Measure parts of so many records."""
        self._size, self._done, self._since = size, 0, time.process_time()
        self.rows: list[tuple[int, float, float]] = []
        """Records so far, CPU milliseconds a record of the part, MiB in use."""

    def count(self) -> None:
        """Take notice that a record begins, or that all are done."""
        if self._done and self._done % self._size == 0:
            spent = 1000 * (time.process_time() - self._since) / self._size
            mib = psutil.Process().memory_info().rss / 2**20
            self.rows.append((self._done, spent, mib))
            sys.stdout.write(f"| {self._done} | {spent:.1f} | {mib:.0f} |\n")
            sys.stdout.flush()
            self._since = time.process_time()
        self._done += 1


def measure(count: int, size: int, folder: Path) -> list[tuple[int, float, float]]:
    """Return and print of each part the records so far, CPU milliseconds a record, and MiB in use.

    Args:
        count: records in all.
        size: of a part, in records.
        folder: of the run.
    """
    editor = editor_of(TINY)
    parts = Parts(size)

    def edited(record: Record) -> EditedModel:
        parts.count()
        return editor.edited(editor.read([record.request]))

    records = records_of(count, TINY.side)
    evaluate(records, editor.encoder, {"edited": edited}, Run(folder, {}), progress=False)
    parts.count()
    return parts.rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--size", type=int, default=400, help="records of a part")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sys.stdout.write("| records | CPU ms a record | MiB |\n|---|---|---|\n")
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments.records, arguments.size, Path(folder))


if __name__ == "__main__":
    main()
