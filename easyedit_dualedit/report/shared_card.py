"""The card of a repository of the hub: what was measured, how it was trained, how it is used."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from easyedit_dualedit.experiments.dualedit_rows import DUALEDIT
from easyedit_dualedit.measure.metrics import AVERAGE
from easyedit_dualedit.method.archive import Archive
from easyedit_dualedit.method.edit_file import EditFile
from easyedit_dualedit.method.model_card import (
    CARD_TEMPLATE,
    EDITS_TEMPLATE,
    LIBRARY,
    TAGS,
    card_values,
    hub_id_of,
)
from easyedit_dualedit.report.benchmark import measured_protocols, protocol_table
from easyedit_dualedit.report.page.wording import counted
from easyedit_dualedit.report.table import Table, numbers, texts
from easyedit_dualedit.report.target_split import split_line
from easyedit_dualedit.report.training_curves import validation_table
from easyedit_dualedit.train.curves import Line, flat

_TASK = "visual-question-answering"
_PIPELINE = "image-text-to-text"
_EDITS_SHOWN = 50


@dataclass(frozen=True)
class About:
    """What a card tells beside the files themselves."""

    repository: str
    base_model: str
    """Hub id, or the name of a model that is shipped with the package."""
    shipped_model: str = ""
    """Module that a shipped model's folder comes from; empty for any other."""
    adapters: str = ""
    """Of edits: what they were made with, hub id or the name of shipped adapters."""
    license: str = "unknown"
    metrics: Mapping[str, Any] | None = None
    """Of a benchmark or an evaluation."""
    recipe: Mapping[str, Any] | None = None
    """As `train.recipe` keeps it."""
    curves: Sequence[Line] = field(default=())


def card_of(content: Archive | EditFile, about: About) -> str:
    """Return the card of adapters or edits as a text: metadata in YAML, and Markdown."""
    model = content.fingerprint if isinstance(content, Archive) else content.owner.model
    results = _results(about.metrics)
    data = ModelCardData(
        license=about.license,
        library_name=LIBRARY,
        pipeline_tag=_PIPELINE,
        tags=list(TAGS),
        base_model=hub_id_of(about.base_model) or None,
        model_name=about.repository.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )
    told = {"repo_id": about.repository, "shipped_model": about.shipped_model}
    if isinstance(content, Archive):
        values = card_values(content.config, model.architecture, about.base_model)
        sections = {"Layers and settings": _settings(content), **_measured(about)}
        card = ModelCard.from_template(
            data, template_str=CARD_TEMPLATE, **told, **values, sections=sections
        )
    else:
        card = ModelCard.from_template(
            data,
            template_str=EDITS_TEMPLATE,
            **told,
            model_type=model.architecture["model_type"],
            base_model=hub_id_of(about.base_model),
            adapters=about.adapters,
            count=counted(len(content.edits), "edit"),
            gate=content.owner.gate,
            sections={"Edits": _edits(content), **_measured(about)},
        )
    return str(card)


def _settings(archive: Archive) -> str:
    config = flat(archive.config.to_dict())
    return _pairs({name: value for name, value in config.items() if value is not None})


def _edits(content: EditFile) -> str:
    shown = content.edits[:_EDITS_SHOWN]
    rows = [[edit.id, edit.provenance.prompt, edit.provenance.target] for edit in shown]
    table = Table(texts("id", "question", "new answer"), rows).markdown()
    left = len(content.edits) - len(shown)
    return f"{table}\n{left} more are in `edits.json`.\n" if left else table


def _measured(about: About) -> dict[str, str]:
    sections = {}
    metrics = about.metrics
    if metrics is not None:
        sections["Numbers"] = _numbers(metrics)
    validation = validation_table(about.curves)
    if validation is not None:
        text = f"{validation.title.capitalize()}; percent.\n\n{validation.markdown()}"
        sections["Validation while training"] = text
    data = _data(about)
    if data:
        sections["Data"] = data
    if about.recipe is not None:
        training = flat(about.recipe["training"]) | flat(about.recipe["versions"], "version of ")
        # Folders of one machine mean nothing to anyone else.
        told = {name: value for name, value in training.items() if not name.endswith("_folder")}
        sections["Recipe"] = _pairs(told)
    return sections


def _numbers(metrics: Mapping[str, Any]) -> str:
    parts = []
    for protocol in measured_protocols(metrics):
        table = protocol_table(metrics, protocol)
        parts.append(f"### {protocol}\n\n{table.caption}\n\n{table.markdown()}")
    title = metrics.get("title")
    head = f"Percent, mean and 95 % interval{f', on {title}' if title else ''}.\n\n"
    return head + "\n".join(parts)


def _steps(recipe: Mapping[str, Any]) -> str:
    """Return how many steps were taken; recipes of earlier versions do not tell."""
    taken, kept = recipe.get("steps_taken"), recipe.get("step_kept")
    if taken is None:
        return ""
    return f" {taken:,} steps were taken" + (f", that of step {kept:,} kept." if kept else ".")


def _data(about: About) -> str:
    parts = []
    metrics = about.metrics or {}
    if about.recipe is not None:
        parts.append(
            f"Trained on {about.recipe['records']:,} records (digest `{about.recipe['data']}`),"
            f" {about.recipe['validation_records']:,} more were held out to choose among states."
            f"{_steps(about.recipe)}\n"
        )
    if split_line(metrics):
        parts.append(f"{split_line(metrics)}\n")
    audit = metrics.get("audit")
    if audit:
        rows = [
            [finding["what"], f"{finding['found']:,}", f"{finding['of']:,}"]
            + [f"{finding['percent']:.1f}"]
            for finding in audit["findings"]
        ]
        columns = [*texts("shared"), *numbers("found", "of", "%")]
        title = (
            f"Audit: what {audit['evaluated']:,} evaluated records share with"
            f" {audit['trained']:,} trained on.\n"
        )
        parts += [title, Table(columns, rows).markdown()]
    elif metrics:
        parts.append("The data were not audited for leaks.\n")
    return "\n".join(parts)


def _results(metrics: Mapping[str, Any] | None) -> list[EvalResult]:
    """Return the averages of DualEdit's own row, or all of a protocol without one."""
    own = _own(metrics or {})
    name = str((metrics or {}).get("title") or "records of the user")
    return [
        EvalResult(
            task_type=_TASK,
            dataset_type="knowledge-editing",
            dataset_name=name,
            metric_type="accuracy",
            metric_name=f"{metric.replace('_', ' ')}, {protocol}",
            metric_value=round(value["mean"], 1),
        )
        for protocol, values in own.items()
        for metric, value in values.items()
        if AVERAGE not in values or metric == AVERAGE
    ]


def _own(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the numbers of DualEdit as it is, by protocol; of the first of its gates otherwise."""
    methods = metrics.get("methods") or {}
    names = [name for name in methods if name == DUALEDIT] or [
        name for name in methods if name.startswith(DUALEDIT)
    ]
    return methods[names[0]]["protocols"] if names else {}


def _pairs(values: Mapping[str, Any]) -> str:
    rows = [
        [f"`{name}`", value if isinstance(value, str) else json.dumps(value, default=str)]
        for name, value in values.items()
    ]
    return Table(texts("setting", "value"), rows).markdown()
