"""Runs of commands: what decides their results, and one that measures edits and prints them."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from easyedit_dualedit import __version__
from easyedit_dualedit.commands.console import console
from easyedit_dualedit.data.records import Record
from easyedit_dualedit.errors import DataError, shortened
from easyedit_dualedit.files import digest_of
from easyedit_dualedit.measure.evaluation import EditMaker, evaluate
from easyedit_dualedit.measure.panel import Panel
from easyedit_dualedit.measure.protocols import ProtocolName
from easyedit_dualedit.measure.run import METRICS_FILE, Run
from easyedit_dualedit.measure.target_split import TargetSplit
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams
from easyedit_dualedit.processes import Processes
from easyedit_dualedit.report.evaluation import print_report
from easyedit_dualedit.storage.folder_lock import (
    LOCK_FILE,
    locked,
    locked_part,
    locked_whole,
)
from easyedit_dualedit.train.checkpoint import records_digest

_PATIENCE = 120.0
"""Seconds; another run may take hours."""


@contextlib.contextmanager
def alone_in(folder: Path, *, part: str | None = None) -> Iterator[None]:
    """Hold a run's folder: no other process measures into it meanwhile.

    Args:
        folder: made if it is not there, and removed again if nothing was written to it.
        part: of the run, where several processes take one each; the whole waits for all of them,
            and each of them for the whole.

    Raises:
        DataError: if the folder cannot be written.
        LockError: if another process is at work in it and does not end soon.
    """
    is_new = not folder.exists()
    try:
        with contextlib.ExitStack() as held:
            try:
                if part is None:
                    held.enter_context(locked_whole(folder, patience=_PATIENCE))
                else:
                    held.enter_context(locked_part(folder, part, patience=_PATIENCE))
            except (OSError, ValueError) as error:  # a zero in a name is a ValueError
                reason = getattr(error, "strerror", None) or error
                raise DataError(f"cannot write to {shortened(folder)}: {reason}") from error
            yield
    finally:
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Change what the parts of a run share, one process at a time.

    Raises:
        LockError: if another process is at it and does not end soon.
    """
    with locked(folder, name=f"{LOCK_FILE}-shared", patience=_PATIENCE):
        yield


def part_of(processes: Processes) -> str | None:
    """Return which part of a run a process makes, as `alone_in` takes it."""
    if processes.count == 1:
        return None
    return f"{processes.place}-of-{processes.count}"


def settings_of(
    records: Sequence[Record],
    methods: Mapping[str, EditMaker],
    archives: Mapping[str, Path],
    **more: Any,
) -> dict[str, Any]:
    """Return the plain values that decide a run's results.

    Raises:
        DataError: if an archive cannot be read.
    """
    digests = {name: digest_of(path) for name, path in archives.items()}
    return {
        "version": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "records": len(records),
        "data": records_digest(records),
        "methods": list(methods),
        "archives": digests,
        **more,
    }


def loaded_as(hparams: DualEditMultimodalHparams) -> dict[str, Any]:
    """Return, as plain values, how a model was loaded, as far as that decides its numbers.

    The device is none of it: a run may go on on another one.
    """
    dtype = str(hparams.dtype).removeprefix("torch.")
    return {"dtype": dtype, "quantization": hparams.quantization}


def measure_and_print(
    run: Run,
    records: Sequence[Record],
    encoder: Encoder,
    methods: Mapping[str, EditMaker],
    shown: str,
    further: Mapping[int, Mapping[str, Query]] | None = None,
    *,
    protocols: Sequence[ProtocolName] = (),
    split: TargetSplit | str | None = None,
    processes: Processes | None = None,
    panel: Panel | None = None,
) -> None:
    """Edit every record alone with each method, measure, and print table and examples.

    Args:
        run: holds what is measured already.
        records: to edit.
        encoder: of the model.
        methods: by name, the unedited model first.
        shown: name of the method that the examples are of.
        further: more queries by the index of their record.
        protocols: measured besides.
        split: which targets were seen in training, or why that is not known.
        processes: that share the records; the first prints.
        panel: asks, within a budget of memory; None finds it from the device.
    """
    processes = processes or Processes()
    cases = evaluate(
        records,
        encoder,
        methods,
        run,
        further=further,
        protocols=protocols,
        progress=processes.is_first,
        processes=processes,
        panel=panel,
    )
    if not processes.is_first:
        return
    metrics = run.finish(cases, split)
    terminal = console()
    print_report(terminal, metrics, cases, method=shown)
    terminal.print(f"written: {run.folder / METRICS_FILE}, one JSON per case beside it")
