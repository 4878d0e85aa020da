"""The benchmark: every method makes the same edits, one at a time, and is asked the same.

A run is a folder. Each method has its own settings and cases in it, one JSON a case, written whole
or not at all: a run can be stopped at any moment, continued, extended by methods, or shared by
several processes, each of which takes a shard of the records.
"""

import contextlib
import fcntl
import gc
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from tqdm import tqdm

from easyedit_dualedit.data.record_lengths import require_fit
from easyedit_dualedit.data.records import Record
from easyedit_dualedit.errors import ArchiveError, ConfigError
from easyedit_dualedit.experiments.benchmark_folder import (
    FAILURE_FILE,
    TRAINED_FOLDER,
    UNEDITED,
    method_folder,
    note_making,
    slug,
)
from easyedit_dualedit.experiments.plan import Plan
from easyedit_dualedit.files import read_json, write_json
from easyedit_dualedit.measure.asking import Asker, Replies
from easyedit_dualedit.measure.contender import Bench, Contender, Edited
from easyedit_dualedit.measure.peak_memory import PeakMemory
from easyedit_dualedit.measure.run import CASES_FOLDER, Run
from easyedit_dualedit.measure.scores import score
from easyedit_dualedit.model.encoder import Encoder

logger = logging.getLogger(__name__)


def run_benchmark(
    plan: Plan, contenders: Sequence[Contender], folder: Path, *, progress: bool = True
) -> None:
    """Make the cases of every method that are not in the folder yet.

    A method that fails leaves a file that says why, and the next one begins; a later run tries it
    again.

    Args:
        plan: what is measured.
        contenders: the methods, in the order of the table; the unedited model is always measured.
        folder: of the run.
        progress: whether to show bars.

    Raises:
        ConfigError: if a method has been measured in the folder with other settings, or two
            methods share a name.
        DataError: if a picture cannot be read.
    """
    names = [slug(contender.name) for contender in contenders]
    if len(set(names)) < len(names) or UNEDITED in names:
        raise ConfigError(f"methods {sorted(names)}: each may be named once, {UNEDITED} not at all")
    # All settings are compared before anything is measured.
    runs = {
        contender.name: Run(
            method_folder(folder, contender.name),
            plan.settings_of(contender),
            fresh=_was_refused(method_folder(folder, contender.name)),
            shown=plan.shown,
        )
        for contender in contenders
    }
    unedited = Run(method_folder(folder, UNEDITED), {"name": UNEDITED}, shown=plan.shown)
    total = len(plan.share) * (len(contenders) + 1)
    with tqdm(total=total, unit="case", disable=not progress) as bar:
        benchmark = _Benchmark(plan, folder, UneditedModel(plan), bar, progress)
        bar.set_description(UNEDITED)
        benchmark.unedited.measure(unedited, bar)
        for contender in contenders:
            bar.set_description(contender.name)
            benchmark.measure(contender, runs[contender.name])


def _was_refused(folder: Path) -> bool:
    """Return whether a method's settings were wrong before it had a case: they may be mended."""
    failed = read_json(folder / FAILURE_FILE) or {}
    refusals = (ConfigError.__name__, ArchiveError.__name__)
    is_settings = str(failed.get("error", "")).startswith(refusals)
    return is_settings and not any((folder / CASES_FOLDER).glob("*.json"))


class UneditedModel:
    """The model without an edit: what it says to every record is what locality compares with."""

    def __init__(self, plan: Plan):
        """Load nothing yet."""
        self._plan = plan
        self._replies: dict[int, Replies] = {}
        self._loaded: tuple[Edited, Encoder] | None = None

    def measure(self, run: Run, bar: "tqdm[Any]") -> None:
        """Store the case of every record that has none."""
        for record in self._plan.share:
            if run.case(record.index) is None:
                replies = self.before(record)
                questions = self._plan.questions(record)
                _, encoder = self._model()
                values = score(questions, replies, replies, encoder, self._plan.protocols)
                run.store(
                    record.index,
                    {
                        "index": record.index,
                        "queries": questions.to_dict(self._plan.images),
                        **_case(values, replies, 0.0, 0),
                    },
                )
            bar.update()
        self.release()

    def before(self, record: Record) -> Replies:
        """Return what the unedited model says about a record."""
        if record.index not in self._replies:
            edited, encoder = self._model()
            asker = Asker(encoder, [self._plan.questions(record)], self._plan.protocols)
            (self._replies[record.index],) = asker.ask(edited)
        return self._replies[record.index]

    def release(self) -> None:
        """Let the model go; it is loaded again if it is asked again."""
        self._loaded = None
        free_memory()

    def _model(self) -> tuple[Edited, Encoder]:
        if self._loaded is None:
            model, processor = self._plan.load()
            self._loaded = Edited(model, 0), self._plan.encoder(model, processor)
        return self._loaded


@dataclass(frozen=True)
class _Benchmark:
    """One run while it is being made."""

    plan: Plan
    folder: Path
    unedited: UneditedModel
    bar: "tqdm[Any]"
    progress: bool

    def measure(self, contender: Contender, run: Run) -> None:
        """Make the cases of a method that are missing, or note why that failed."""
        failed = run.folder / FAILURE_FILE
        missing = [record for record in self.plan.share if run.case(record.index) is None]
        self.bar.update(len(self.plan.share) - len(missing))
        if not missing:
            return
        failed.unlink(missing_ok=True)
        for record in missing:
            self.unedited.before(record)
        self.unedited.release()
        try:
            self._measure(contender, run, missing)
        except Exception as error:  # whatever a method raises is its row
            line = " ".join(f"{type(error).__name__}: {error}".split())
            write_json(failed, {"error": line[:500]})
            logger.warning("%s failed: %s", contender.name, line)
            logger.debug("where %s failed", contender.name, exc_info=True)
        finally:
            free_memory()

    def _measure(self, contender: Contender, run: Run, missing: Sequence[Record]) -> None:
        plan = self.plan
        encoders: list[Encoder] = []
        peak = PeakMemory(plan.device)

        def load() -> tuple[Any, Any]:
            model, processor = plan.load()
            # Before the method lays hands on the model.
            encoders.append(plan.encoder(model, processor))
            return model, processor

        bench = Bench(
            plan.model,
            load,
            plan.device,
            self.folder / TRAINED_FOLDER,
            plan.training,
            plan.settings.get(slug(contender.name), {}),
            plan.seed,
            self.progress,
            plan.backbone,
            plan.joined,
        )
        with alone(bench.folder / f".{contender.shares or slug(contender.name)}.lock"):
            start = time.perf_counter()
            _seed(plan.seed)
            method = contender.make(bench)
            seconds = time.perf_counter() - start
        making = {"trained_parameters": method.trained_parameters, "making_seconds": seconds}
        encoder = encoders[-1]
        require_fit(missing, encoder)
        plain = Edited(encoder.backbone.model, 0)
        peak.restart()
        for record in missing:
            questions = plan.questions(record)
            asker = Asker(encoder, [questions], plan.protocols)
            pair = [asker.request_seconds(plain)]
            # An edit's draws must not depend on the edits before it, or a continued run would
            # differ.
            _seed(plan.seed + 1 + record.index)
            start = time.perf_counter()
            with method.edit(record) as edited:
                seconds = time.perf_counter() - start
                (after,) = asker.ask(edited)
                pair.append(asker.request_seconds(edited))
            before = self.unedited.before(record)
            values = score(questions, before, after, encoder, plan.protocols)
            run.store(
                record.index,
                {
                    "index": record.index,
                    **_case(values, after, seconds, edited.stored_bytes, pair),
                },
            )
            self.bar.update()
        note_making(run.folder, {**making, "peak_memory_bytes": peak.read()})


def _case(
    values: Mapping[str, Mapping[str, float]],
    replies: Replies,
    seconds: float,
    stored_bytes: int,
    pair: Sequence[float] = (),
) -> dict[str, Any]:
    return {
        "values": values,
        **replies.to_dict(),
        "stored_bytes": stored_bytes,
        # The request's forward unedited and edited, one right after the other.
        "seconds": {"edit": seconds, "forward": replies.forward_seconds, "pair": list(pair)},
    }


def free_memory() -> None:
    """Give back the memory of models that are no longer used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _seed(seed: int) -> None:
    # Python's, NumPy's and PyTorch's generators: methods draw from all three.
    set_seed(seed)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Let one process at a time train a method; the next one finds it trained."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # given back by the system, even if the process is killed
        yield
