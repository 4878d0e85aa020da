"""The benchmark: every method makes the same edits, one at a time, and is asked the same.

A run is a folder. Each method has its own settings and cases in it, one JSON a case, written whole
or not at all: a run can be stopped at any moment, continued, extended by methods, or shared by
several processes, each of which takes a shard of the records.
"""

import contextlib
import fcntl
import gc
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
import transformers
from tqdm import tqdm

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.errors import ConfigError, DataError
from easyedit_dualedit.files import read_json, write_json
from easyedit_dualedit.measure.asking import Answers, Asker, Questions, score
from easyedit_dualedit.measure.contender import Bench, Contender, Edited
from easyedit_dualedit.measure.peak_memory import PeakMemory
from easyedit_dualedit.measure.protocols import Protocol
from easyedit_dualedit.measure.run import CASES_FOLDER, SETTINGS_FILE, Run
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.families import BackboneConfig
from easyedit_dualedit.model.inputs import Query

UNEDITED = "unedited"
METHODS_FOLDER = "methods"
_TRAINED_FOLDER = "trained"
_MAKING_FILE = "making.json"
_FAILURE_FILE = "failed.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What is measured, on what."""

    model: str
    load: Callable[[], tuple[Any, Any]]
    """Returns a fresh model and its processor."""
    evaluated: Sequence[Record]
    protocols: Sequence[Protocol]
    training: Sequence[Record] = ()
    close: Mapping[int, Mapping[str, Query]] = field(default_factory=dict)
    """Queries of specificity by the index of their record."""
    images: Path | None = None
    """Folder that the names of pictures in the report are relative to."""
    device: str = "cpu"
    backbone: BackboneConfig | None = None
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Hyperparameters given for a method, by its slug."""
    seed: int = 0
    shard: tuple[int, int] = (0, 1)
    """Which of how many parts of the records this process takes."""

    @property
    def share(self) -> list[Record]:
        """The records of this process's shard."""
        place, count = self.shard
        return [record for record in self.evaluated if record.index % count == place]


def slug(name: str) -> str:
    """Return a method's name as a folder and as an argument."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("'", "")).strip("-")


def method_folder(folder: Path, name: str) -> Path:
    """Return where a run keeps the cases of a method."""
    return folder / METHODS_FOLDER / slug(name)


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
    runs = {
        contender.name: Run(method_folder(folder, contender.name), _settings_of(plan, contender))
        for contender in contenders
    }
    unedited = Run(method_folder(folder, UNEDITED), {"name": UNEDITED})
    yardstick = Yardstick(plan)
    total = len(plan.share) * (len(contenders) + 1)
    with tqdm(total=total, unit="case", disable=not progress) as bar:
        bar.set_description(UNEDITED)
        yardstick.measure(unedited, bar)
        for contender in contenders:
            bar.set_description(contender.name)
            _measure(plan, contender, runs[contender.name], yardstick, folder, bar, progress)


class Yardstick:
    """What the unedited model says to every record: what locality compares with."""

    def __init__(self, plan: Plan):
        """Load nothing yet."""
        self._plan = plan
        self._answers: dict[int, Answers] = {}
        self._loaded: tuple[Edited, Asker, Encoder] | None = None

    def measure(self, run: Run, bar: "tqdm[Any]") -> None:
        """Store the case of every record that has none."""
        for record in self._plan.share:
            if run.case(record.index) is None:
                answers = self.before(record)
                questions = questions_of(self._plan, record)
                _, _, encoder = self._model()
                values = score(questions, answers, answers, encoder, self._plan.protocols)
                run.store(
                    record.index,
                    {
                        "index": record.index,
                        "queries": {
                            name: _shown(query, self._plan.images)
                            for name, query in questions.every.items()
                        },
                        **_case(values, answers, 0.0, 0),
                    },
                )
            bar.update()
        self.release()

    def before(self, record: Record) -> Answers:
        """Return what the unedited model says to a record's questions."""
        found = self._answers.get(record.index)
        if found is None:
            edited, asker, _ = self._model()
            found = asker.ask(edited, questions_of(self._plan, record))
            self._answers[record.index] = found
        return found

    def release(self) -> None:
        """Let the model go; it is loaded again if it is asked again."""
        self._loaded = None
        free_memory()

    def _model(self) -> tuple[Edited, Asker, Encoder]:
        if self._loaded is None:
            model, processor = self._plan.load()
            encoder = Encoder(Backbone.of(model, self._plan.backbone), processor)
            self._loaded = Edited(model, 0), Asker(encoder, self._plan.protocols), encoder
        return self._loaded


def questions_of(plan: Plan, record: Record) -> Questions:
    """Return the questions that a plan asks about a record."""
    return Questions.of(record, plan.protocols, plan.close.get(record.index))


def free_memory() -> None:
    """Give back the memory of models that are no longer used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def merge(folders: Sequence[Path], output: Path) -> None:
    """Put the cases of several folders of one run into one folder.

    Args:
        folders: shards of one run, or parts of its methods.
        output: where to; may be one of them.

    Raises:
        ConfigError: if a folder holds no run, or they were made with different settings.
        DataError: if two of them have different cases of one record.
    """
    for folder in folders:
        if not (folder / SETTINGS_FILE).is_file():
            raise ConfigError(
                f"{folder} holds no run of the benchmark: there is no {SETTINGS_FILE}"
            )
    for folder in folders:
        Run(output, read_json(folder / SETTINGS_FILE) or {})
        for source in sorted((folder / METHODS_FOLDER).iterdir()):
            target = output / METHODS_FOLDER / source.name
            if source.resolve() == target.resolve():
                continue
            run = Run(target, read_json(source / SETTINGS_FILE) or {})
            for path in sorted((source / CASES_FOLDER).glob("*.json")):
                case, index = read_json(path) or {}, int(path.stem)
                present = run.case(index)
                if present is not None and _timeless(present) != _timeless(case):
                    raise DataError(
                        f"{path} differs from the case of the same record in {target}; the two were"
                        " made on different machines or data: merge only one of them"
                    )
                if present is None:
                    run.store(index, case)
            for name in (_MAKING_FILE, _FAILURE_FILE):
                if (source / name).is_file() and not (target / name).is_file():
                    shutil.copyfile(source / name, target / name)


def failure(folder: Path, name: str) -> str | None:
    """Return why a method failed in a run, or None."""
    found = read_json(method_folder(folder, name) / _FAILURE_FILE)
    return None if found is None else str(found["error"])


def cases_of(folder: Path, name: str, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Return the cases of a method that a run holds, in the order of `indices`."""
    found = []
    for index in indices:
        case = read_json(method_folder(folder, name) / CASES_FOLDER / f"{index:05d}.json")
        if case is not None:
            found.append(case)
    return found


def costs_of(folder: Path, name: str, indices: Sequence[int]) -> dict[str, float | int | None]:
    """Return what a method costs, beside what the unedited model does.

    Returns:
        `seconds_per_edit` (mean), `forward_overhead` (ratio of the median forwards),
        `bytes_per_edit` (mean), `trained_parameters`, `making_seconds` (loading, and training if
        there was any) and `peak_memory_bytes` while it edits and is asked; None where unknown.
    """
    cases = cases_of(folder, name, indices)
    plain = [case["seconds"]["forward"] for case in cases_of(folder, UNEDITED, indices)]
    making = read_json(method_folder(folder, name) / _MAKING_FILE) or {}
    forward = [case["seconds"]["forward"] for case in cases]
    return {
        "seconds_per_edit": fmean(case["seconds"]["edit"] for case in cases) if cases else None,
        "forward_overhead": median(forward) / median(plain) if forward and plain else None,
        "bytes_per_edit": round(fmean(case["stored_bytes"] for case in cases)) if cases else None,
        **{
            key: making.get(key)
            for key in ("trained_parameters", "making_seconds", "peak_memory_bytes")
        },
    }


def _measure(
    plan: Plan,
    contender: Contender,
    run: Run,
    yardstick: Yardstick,
    folder: Path,
    bar: "tqdm[Any]",
    progress: bool,
) -> None:
    failed = run.folder / _FAILURE_FILE
    missing = [record for record in plan.share if run.case(record.index) is None]
    bar.update(len(plan.share) - len(missing))
    if not missing:
        return
    failed.unlink(missing_ok=True)
    for record in missing:
        yardstick.before(record)
    yardstick.release()
    try:
        _measure_missing(plan, contender, run, yardstick, folder, bar, progress, missing)
    except Exception as error:  # whatever a method raises is its row
        line = " ".join(f"{type(error).__name__}: {error}".split())
        write_json(failed, {"error": line[:500]})
        logger.warning("%s failed: %s", contender.name, line)
        logger.debug("where %s failed", contender.name, exc_info=True)
    finally:
        free_memory()


def _measure_missing(
    plan: Plan,
    contender: Contender,
    run: Run,
    yardstick: Yardstick,
    folder: Path,
    bar: "tqdm[Any]",
    progress: bool,
    missing: Sequence[Record],
) -> None:
    encoders: list[Encoder] = []

    def load() -> tuple[Any, Any]:
        model, processor = plan.load()
        # Before the method lays hands on the model.
        encoders.append(Encoder(Backbone.of(model, plan.backbone), processor))
        return model, processor

    bench = Bench(
        plan.model,
        load,
        plan.device,
        folder / _TRAINED_FOLDER,
        plan.training,
        plan.settings.get(slug(contender.name), {}),
        plan.seed,
        progress,
    )
    with _alone(bench.folder / f".{contender.shares or slug(contender.name)}.lock"):
        start = time.perf_counter()
        _seed(plan.seed)
        method = contender.make(bench)
        seconds = time.perf_counter() - start
    making = {"trained_parameters": method.trained_parameters, "making_seconds": seconds}
    encoder = encoders[-1]
    asker = Asker(encoder, plan.protocols)
    peak = PeakMemory(plan.device)
    for record in missing:
        questions = questions_of(plan, record)
        # An edit's draws must not depend on the edits before it, or a continued run would differ.
        _seed(plan.seed + 1 + record.index)
        start = time.perf_counter()
        with method.edit(record) as edited:
            seconds = time.perf_counter() - start
            after = asker.ask(edited, questions)
        values = score(questions, yardstick.before(record), after, encoder, plan.protocols)
        run.store(
            record.index,
            {"index": record.index, **_case(values, after, seconds, edited.stored_bytes)},
        )
        bar.update()
    _note_making(run.folder / _MAKING_FILE, {**making, "peak_memory_bytes": peak.read()})


def _settings_of(plan: Plan, contender: Contender) -> dict[str, Any]:
    return {
        "name": contender.name,
        "identity": dict(contender.identity),
        "settings": dict(plan.settings.get(slug(contender.name), {})),
    }


def _case(
    values: Mapping[str, Mapping[str, float]], answers: Answers, seconds: float, stored_bytes: int
) -> dict[str, Any]:
    return {
        "values": values,
        "answers": {name: said.text for name, said in answers.said.items()},
        "gate": {
            name: {"similarity": said.similarity, "open": said.is_open}
            for name, said in answers.said.items()
            if said.is_open is not None
        },
        "stored_bytes": stored_bytes,
        "seconds": {"edit": seconds, "forward": answers.forward_seconds},
    }


def _shown(query: Query, images: Path | None) -> dict[str, Any]:
    pictures = [picture for picture in query.pictures if isinstance(picture, Path)]
    names = [
        str(path.relative_to(images)) if images and path.is_relative_to(images) else path.name
        for path in pictures
    ]
    return {
        "prompt": query.prompt,
        "image": names[0] if names else None,
        "target": query.target,
    }


def _timeless(case: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in case.items() if key != "seconds"}


def _note_making(path: Path, found: Mapping[str, Any]) -> None:
    # Of a run in several parts, the part that trained took longest; it is the one to tell.
    earlier = read_json(path) or {}
    write_json(
        path,
        {
            key: max(value, earlier[key]) if value and earlier.get(key) else value
            for key, value in found.items()
        },
    )


def _seed(seed: int) -> None:
    # Python's, NumPy's and PyTorch's generators: methods draw from all three.
    transformers.set_seed(seed)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time train a method; the next one finds it trained."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # given back by the system, even if the process is killed
        yield
