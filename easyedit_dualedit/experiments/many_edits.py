"""Many edits at once: what each method still answers, and leaves alone, after 1 to 1,000 of them.

Edits are made one after the other in one model and never undone; all of them are asked afterwards,
so reliability is over every edit made. Few edits are measured in several groups of other records,
each in a fresh model, since one edit alone would be one number.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final, Protocol

import torch
from accelerate.utils import set_seed
from tqdm import tqdm

from easyedit_dualedit.data.records import METRICS, Record
from easyedit_dualedit.measure.asking import Asker, Replies, Reply
from easyedit_dualedit.measure.contender import Edited
from easyedit_dualedit.measure.questions import Questions
from easyedit_dualedit.measure.run import Run
from easyedit_dualedit.measure.scores import score
from easyedit_dualedit.measure.target_split import TargetSplit
from easyedit_dualedit.method.edit_memory import EditMemory
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.packing import Precision
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.processes import Processes

FEWEST_ASKED = 100
"""Records that a point is measured on at least, in groups if need be."""

PROTOCOL: Final = "generate"
IN_BATCH = 20
"""Requests that DualEdit reads in one forward."""

logger = logging.getLogger(__name__)


class ManyMethod(Protocol):
    """A method that makes edits one after the other."""

    refused: int
    """Edits of the last `many` that it could not make."""

    def many(
        self, records: Sequence[Record], made: Callable[[], object]
    ) -> AbstractContextManager[Edited]:
        """Return a context within which the edits of all records are in force.

        Args:
            records: oldest first.
            made: called after each edit.
        """


@dataclass(frozen=True)
class Group:
    """Records that are edited together, and asked together."""

    count: int
    place: int
    records: tuple[Record, ...]

    @property
    def name(self) -> str:
        """Folder of its cases."""
        return f"{self.count:05d}-{self.place:03d}"


def asked_among(count: int) -> int:
    """Return how many records are asked in groups of so many edits: at least `FEWEST_ASKED`."""
    return -(-FEWEST_ASKED // count) * count


def groups_of(records: Sequence[Record], counts: Sequence[int]) -> list[Group]:
    """Return for each number of edits the groups that it is measured on, smallest first."""
    groups = []
    for count in sorted(counts):
        for place in range(asked_among(count) // count):
            part = tuple(records[place * count : (place + 1) * count])
            if len(part) == count:
                groups.append(Group(count, place, part))
    return groups


class SharedMemory:
    """DualEdit: edits in a memory, which is all that changes."""

    refused = 0

    def __init__(self, editor: DualEditor, precision: Precision):
        """Make memories of a precision for an editor."""
        self._editor = editor
        self._precision: Precision = precision

    @contextmanager
    def many(self, records: Sequence[Record], made: Callable[[], object]) -> Iterator[Edited]:
        """Make the edits of all records, in batches, and let the model be asked."""
        memory = EditMemory(self._editor, precision=self._precision)
        for start in range(0, len(records), IN_BATCH):
            requests = [record.request for record in records[start : start + IN_BATCH]]
            memory.add(requests)
            for _ in requests:
                made()
        yield Edited.by_dualedit(memory.model, memory.stored_bytes)


class UneditedAnswers:
    """What the unedited model says, asked once for each record."""

    def __init__(self, model: Any, encoder: Encoder, run: Run):
        """Keep the answers of a model in a run's folder."""
        self._edited = Edited(model, 0)
        self._encoder = encoder
        self._run = run

    def before(self, record: Record) -> Replies:
        """Return the answers to a record's five queries."""
        case = self._run.case(record.index)
        if case is None:
            questions = Questions.of(record, (PROTOCOL,))
            (replies,) = Asker(self._encoder, [questions], (PROTOCOL,)).ask(self._edited)
            case = {"index": record.index, "answers": replies.texts}
            self._run.store(record.index, case)
        return Replies({name: Reply(text=text) for name, text in case["answers"].items()})


def steps_of(group: Group) -> int:
    """Return the steps of a group's bar: each record is asked before, edited and asked after."""
    return 3 * len(group.records)


def measure_group(
    method: ManyMethod,
    group: Group,
    unedited: UneditedAnswers,
    encoder: Encoder,
    run: Run,
    *,
    bar: "tqdm[Any]",
    seed: int = 0,
    processes: Processes | None = None,
) -> None:
    """Make a group's edits and store a case for each record, unless all are stored already.

    Several processes each ask about a share of the records; groups of one are dealt out, too.
    """
    processes = processes or Processes()
    first = (processes.place - group.place) % processes.count
    own = group.records[first :: processes.count]
    missing = [record for record in own if run.case(record.index) is None]
    if not missing:
        bar.update(steps_of(group))
        return
    bar.update(2 * (len(group.records) - len(missing)))
    before = {}
    for record in missing:
        before[record.index] = unedited.before(record)
        bar.update()
    set_seed(seed)
    with method.many(group.records, bar.update) as edited:
        for record in missing:
            questions = Questions.of(record, (PROTOCOL,))
            (after,) = Asker(encoder, [questions], (PROTOCOL,)).ask(edited)
            scores = score(questions, before[record.index], after, encoder, (PROTOCOL,))
            run.store(
                record.index,
                {
                    "index": record.index,
                    "values": scores[PROTOCOL],
                    **after.to_dict(),
                    "stored_bytes": edited.stored_bytes / len(group.records),
                    "refused": method.refused / len(group.records),
                },
            )
            bar.update()


def point_of(
    folder: Path, groups: Sequence[Group], split: TargetSplit | str | None = None
) -> dict[str, Any] | None:
    """Return the means over the cases of groups of one number of edits; None if some lack.

    Args:
        folder: of the method's cases.
        groups: edits.
        split: which targets were seen in training, or why that is not known.

    Returns:
        `edits`, `asked` (records), the five metrics and `average` in percent, `open` (metric ->
        share of queries for which the gate opened, in percent, of methods with a gate),
        `bytes_per_edit`, `refused`, the share of edits that could not be made, in percent, and, if
        there is a split, `by_target` (see `TargetSplit.means`).
    """
    cases = []
    for group in groups:
        run = Run(folder / group.name, {})
        stored = [run.case(record.index) for record in group.records]
        if None in stored:
            return None
        cases += [case for case in stored if case is not None]
    values = {metric: 100 * fmean(case["values"][metric] for case in cases) for metric in METRICS}
    opened: dict[str, float] = {}
    if cases[0]["gate"]:
        opened = {
            metric: 100 * fmean(case["gate"][metric]["open"] for case in cases)
            for metric in METRICS
        }
    parted = {}
    if isinstance(split, TargetSplit):
        by_index = {case["index"]: {PROTOCOL: case["values"]} for case in cases}
        parted["by_target"] = split.means(by_index)
    return {
        **parted,
        "edits": groups[0].count,
        "asked": len(cases),
        **values,
        "average": fmean(values.values()),
        "open": opened,
        "bytes_per_edit": fmean(case["stored_bytes"] for case in cases),
        "refused": 100 * fmean(case["refused"] for case in cases),
    }


def untouched(
    editor: DualEditor, records: Sequence[Record], precision: Precision
) -> Mapping[str, int]:
    """Return how many queries no edit touches after all, and in how many of them a bit differs.

    Returns:
        `closed` and `different` among the locality queries, and `after_removal`, the number of
        queries of any sort whose logits differ once all edits are removed.
    """
    memory = EditMemory(editor, precision=precision)
    for start in range(0, len(records), IN_BATCH):
        memory.add([record.request for record in records[start : start + IN_BATCH]])
    plain = editor.backbone.model
    closed = different = 0
    with torch.no_grad():
        for record in tqdm(records, "closed gates", unit="record"):
            for query in record.queries[3:]:
                batch = editor.encoder.encode([query])
                routing = memory.model.route(layout=batch.layout, **batch.inputs)
                if bool(routing.is_open[0]):
                    continue
                closed += 1
                edited = memory.model(layout=batch.layout, **batch.inputs).logits
                different += not torch.equal(edited, plain(**batch.inputs).logits)
        memory.remove(*(edit.id for edit in memory))
        left = 0
        for record in tqdm(records, "edits removed", unit="record"):
            for query in record.queries[:3]:
                batch = editor.encoder.encode([query])
                edited = memory.model(layout=batch.layout, **batch.inputs).logits
                left += not torch.equal(edited, plain(**batch.inputs).logits)
    return {"closed": closed, "different": different, "after_removal": left}
