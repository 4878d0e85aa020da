"""DualEdit measured on records: each is edited, asked before and after, and stored as a case.

Records share batches but nothing else: each is answered by its own edited model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from easyedit_dualedit.data.record_lengths import require_fit
from easyedit_dualedit.data.records import METRICS, Record
from easyedit_dualedit.measure.panel import Panel
from easyedit_dualedit.measure.protocols import EVALUATION_PROTOCOLS, ProtocolName
from easyedit_dualedit.measure.questions import Questions
from easyedit_dualedit.measure.run import CASES_FOLDER, Run
from easyedit_dualedit.measure.scores import score
from easyedit_dualedit.method.edited_model import EditedModel
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.processes import Processes

EditMaker = Callable[[Record], EditedModel | None]
"""Makes the edit of a record and returns the edited model; None stands for the unedited one."""


def evaluate(
    records: Sequence[Record],
    encoder: Encoder,
    makers: Mapping[str, EditMaker],
    run: Run,
    *,
    further: Mapping[int, Mapping[str, Query]] | None = None,
    protocols: Sequence[ProtocolName] = (),
    batch_size: int = 10,
    panel: Panel | None = None,
    progress: bool = True,
    processes: Processes | None = None,
) -> list[dict[str, Any]]:
    """Return the case of every record under every method, each stored as soon as it is known.

    Cases that `run` already holds are not made again.

    Args:
        records: what to edit and to ask.
        encoder: encodes for the model that is edited.
        makers: what makes each method's edits, by its name, in the order of the table.
        run: where cases are stored.
        further: more queries of each record, by its index, and by what they measure. All are
            compared with the unedited model, as locality is.
        protocols: measured beside `EVALUATION_PROTOCOLS`, of `OF_SOME_RECORDS`.
        batch_size: records that are asked about together; each still sees its own edit alone.
        panel: asks, within a budget of tokens; None lets the device's memory choose the budget.
        progress: whether to show a bar.
        processes: of which this one makes its share of the batches, and the first returns the
            cases of all, the others none; None means that it makes all.

    Raises:
        DataError: if a picture cannot be read, a target tokenises to nothing, or a text is longer
            than the model can read, which is told before anything runs.
    """
    processes = processes or Processes()
    require_fit(records, encoder)
    cases = {record.index: run.case(record.index) for record in records}
    panel = Panel(encoder) if panel is None else panel
    starts = processes.share(range(0, len(records), batch_size))
    stored: list[str] = []
    total = sum(len(records[start : start + batch_size]) for start in starts)
    with tqdm(total=total, desc="editing", unit="edit", disable=not progress) as bar:
        for start in starts:
            # The same batches however often a run was stopped: rounding depends on them.
            chosen = records[start : start + batch_size]
            if any(cases[record.index] is None for record in chosen):
                made = evaluate_together(
                    chosen, encoder, makers, further=further, protocols=protocols, panel=panel
                )
                bar.set_postfix(tokens=panel.budget.tokens, refresh=False)
                for record, case in zip(chosen, made, strict=True):
                    if cases[record.index] is None:
                        path = run.store(record.index, case)
                        stored.append(path.relative_to(run.folder).as_posix())
                        cases[record.index] = case
            bar.update(len(chosen))
    processes.bring_together(run.folder, f"{CASES_FOLDER}/*.json", stored)
    if not processes.is_first:
        return []
    every = {index: case or run.case(index) for index, case in cases.items()}
    return [case for case in every.values() if case is not None]


def evaluate_together(
    records: Sequence[Record],
    encoder: Encoder,
    makers: Mapping[str, EditMaker],
    *,
    further: Mapping[int, Mapping[str, Query]] | None = None,
    protocols: Sequence[ProtocolName] = (),
    panel: Panel | None = None,
) -> list[dict[str, Any]]:
    """Return the cases of records whose queries share a batch; see `evaluate`.

    Locality compares with the unedited model as it is asked in the same batch, so a closed gate
    gives agreement bit for bit.
    """
    own = [
        Questions(
            {
                **dict(zip(METRICS, record.queries, strict=True)),
                **({} if further is None else further[record.index]),
            }
        )
        for record in records
    ]
    panel = Panel(encoder) if panel is None else panel
    # Record by record: methods that share the reading of an edit keep that of one record.
    made = [{name: make(record) for name, make in makers.items()} for record in records]
    edits = {name: [models[name] for models in made] for name in makers}
    cases: list[dict[str, Any]] = [{"index": record.index} for record in records]
    for place, case in _cases(own, encoder, edits, EVALUATION_PROTOCOLS, panel):
        cases[place].update(case)
    for protocol in protocols:
        _add_protocol(cases, records, encoder, edits, protocol, panel)
    return cases


def _cases(
    questions: Sequence[Questions],
    encoder: Encoder,
    edits: Mapping[str, Sequence[EditedModel | None]],
    protocols: Sequence[ProtocolName],
    panel: Panel,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each record that has questions, by its place, with what its models say to them.

    Rows are dealt out evenly, so records share a batch with those that are asked as much.
    """
    for count in sorted({len(asked.every) for asked in questions} - {0}):
        places = [place for place, asked in enumerate(questions) if len(asked.every) == count]
        chosen = {name: [models[place] for place in places] for name, models in edits.items()}
        made = _even_cases([questions[p] for p in places], encoder, chosen, protocols, panel)
        yield from zip(places, made, strict=True)


def _even_cases(
    questions: Sequence[Questions],
    encoder: Encoder,
    edits: Mapping[str, Sequence[EditedModel | None]],
    protocols: Sequence[ProtocolName],
    panel: Panel,
) -> list[dict[str, Any]]:
    """Return what each record's models say to its questions, equally many for each record.

    Args:
        questions: about each record.
        encoder: of the model.
        edits: of each method the edited model of each record; None is the unedited one.
        protocols: which are measured.
        panel: asks.
    """
    before, replies = panel.ask(questions, edits, protocols)
    cases: list[dict[str, Any]] = [
        {"queries": asked.to_dict(), "before": plain.texts, "methods": {}}
        for asked, plain in zip(questions, before, strict=True)
    ]
    for name, after in replies.items():
        for case, asked, plain, edited in zip(cases, questions, before, after, strict=True):
            values = score(asked, plain, edited, encoder, protocols)
            case["methods"][name] = {"values": values, **edited.to_dict()}
    return cases


def _add_protocol(
    cases: Sequence[dict[str, Any]],
    records: Sequence[Record],
    encoder: Encoder,
    edits: Mapping[str, Sequence[EditedModel | None]],
    protocol: ProtocolName,
    panel: Panel,
) -> None:
    """Add to the cases of records what those of them say that have a protocol's questions."""
    every = [Questions.of_some(record, (protocol,)) for record in records]
    for place, more in _cases(every, encoder, edits, (protocol,), panel):
        for part in ("queries", "before"):
            cases[place][part].update(more[part])
        for name, outcome in more["methods"].items():
            for part, values in outcome.items():
                cases[place]["methods"][name][part].update(values)
