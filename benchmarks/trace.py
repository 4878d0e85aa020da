"""Prints the files of the package that an edit with `generate`, and a training step, enter.

python -m benchmarks.trace

A file counts if a function of it is called; what runs while modules are imported, or while the
editor is made, does not. The step is one as nearly all are: not the first, which compares itself
with whole forwards. As `train` takes it, its records are split to the memory that there is, and
other processes may have a share in it.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import easyedit_dualedit
from benchmarks.subject import PUBLISHED, editor_of, records_of
from easyedit_dualedit.method.config import GateConfig, GateKind
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.train.batch_gradient import BatchGradient
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.step import TrainingStep

PACKAGE = Path(easyedit_dualedit.__file__).parent

MOST_OF_AN_EDIT = 11
"""Files that an edit and `generate` may enter."""

MOST_OF_A_STEP = 12
"""Files that a training step may enter."""

MOST_OF_A_BATCH = 16
"""Files that it may enter with its gradient, as `train` takes it."""


def files_entered(work: Callable[[], object]) -> list[str]:
    """Return the files of the package whose functions `work` calls, in the order of the first."""
    entered: dict[str, None] = {}

    def note(frame: FrameType, event: str, _argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_name != "<module>":
            entered.setdefault(code.co_filename)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    paths = [Path(name) for name in entered]
    return [str(p.relative_to(PACKAGE)) for p in paths if p.is_relative_to(PACKAGE)]


def edit_and_generate(editor: DualEditor, request: Query) -> None:
    """Make an edit about a photo on disk and have the edited model answer its question."""
    with TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.png"
        request.pictures[0].save(photo)
        edited = editor.edit(str(photo), request.prompt, request.target or "")
    batch = editor.encoder.encode([request], with_target=False)
    edited.generate(**batch.inputs, max_new_tokens=2, do_sample=False)


def tiny_editor(kind: GateKind) -> DualEditor:
    """Return an editor of a tiny LLaVA with a gate that opens."""
    editor = editor_of(PUBLISHED.narrow())
    editor.gate = editor.gate.with_config(GateConfig(kind, threshold=-1.0))
    editor.gate.projection.thresholds.fill_(0.0)  # as one that is trained
    return editor


def training_step() -> Callable[[], object]:
    """Return a training step on records that were not seen before; the first of all is made."""
    records, config = records_of(4), TrainingConfig()
    steps = TrainingStep(tiny_editor("learned"))
    steps.losses(records[:2], config)  # compares itself with whole forwards
    return lambda: steps.losses(records[2:], config).total.backward()  # type: ignore[no-untyped-call]


def batch_gradient() -> Callable[[], object]:
    """Return what `train` does with a batch that was not seen before; the first is done."""
    records, config = records_of(4), TrainingConfig()
    editor = tiny_editor("learned")
    gradient = BatchGradient(editor, TrainingStep.within(editor, config), config)
    gradient.add(records[:2])  # compares itself with whole forwards
    return lambda: gradient.add(records[2:])


def traced() -> dict[str, list[str]]:
    """Return the files that each piece of work enters."""
    request = records_of(1)[0].request
    found = {
        f"edit and generate, {kind} gate": files_entered(
            partial(edit_and_generate, tiny_editor(kind), request)
        )
        for kind in ("learned", "cosine")
    }
    found["training step"] = files_entered(training_step())
    return found | {"training step, as `train` takes it": files_entered(batch_gradient())}


def main() -> None:
    """Run the command."""
    for name, files in traced().items():
        sys.stdout.write(f"{name}: {len(files)} files\n")
        sys.stdout.writelines(f"  {file}\n" for file in files)


if __name__ == "__main__":
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    main()
