"""Reads the batches that EasyEdit's datasets make, and says where the answer is in each row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from easyedit_dualedit.data.records import METRICS, Record, metric_queries
from easyedit_dualedit.data.scope import IN_SCOPE
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import IGNORED, Batch, Query
from easyedit_dualedit.plugin.requests import shown_from

METRIC_OF = {
    "edit_inner": "reliability",
    "edit_outer": "text_generality",
    "edit_outer_image": "image_generality",
    "loc": "text_locality",
    "loc_image": "image_locality",
}
"""EasyEdit's name of each part of a training batch -> ours."""

ITEM_KEYS = {
    "edit_inner": ("prompt", "target", "image"),
    "edit_outer": ("rephrase_prompt", "target", "image"),
    "edit_outer_image": ("prompt", "target", "image_rephrase"),
    "loc": ("locality_prompt", "locality_ground_truth", None),
    "loc_image": (
        "multimodal_locality_prompt",
        "multimodal_locality_ground_truth",
        "multimodal_locality_image",
    ),
}
"""Part of a training batch -> keys of prompt, answer and picture in an item of the dataset."""


RECORD = "dualedit_record"
"""Key of an item that holds its record, where our own reading of a dataset made it."""


@dataclass(frozen=True)
class QuestionBatch:
    """One part of a training batch that is not tokenised yet."""

    queries: tuple[Query, ...]
    ends: bool
    """Whether the model should learn to stop after the answer."""


Samples = Mapping[str, Any] | QuestionBatch


class SampleReader(Protocol):
    """Reads one part of a batch of EasyEdit's, such as `edit_inner` or `loc`."""

    def read(self, samples: Any, *, with_end: bool = False) -> Batch:
        """Return model inputs with their layout and the right labels.

        Args:
            samples: what the dataset made.
            with_end: label the end-of-turn token too, where the samples ask for it.
        """


class TransformersSamples:
    """Reads batches for transformers models, tokenised by EasyEdit or not yet."""

    def __init__(self, encoder: Encoder):
        """Keep the encoder, which tokenises and finds the end of the prompt in a row."""
        self.encoder = encoder

    def read(self, samples: Samples, *, with_end: bool = False) -> Batch:
        """Return the batch with labels at every token after the prompt, whatever the padding.

        Labels of tokenised batches are made anew, since master's are wrong for batches above one:
        it writes padded targets into the last columns of every row, so pads become labels of
        prompt tokens, and right-padded rows get labels at padding.

        Raises:
            PromptEndError: if a tokenised row has no end of a prompt.
        """
        if isinstance(samples, QuestionBatch):
            ends = with_end and samples.ends
            return self.encoder.encode(samples.queries, end_of_answer=ends)
        inputs = {key: value for key, value in samples.items() if key != "labels"}
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        layout = self.encoder.layout(ids, mask)
        real = torch.ones_like(ids) if mask is None else mask
        positions = torch.arange(ids.shape[1], device=ids.device)
        answer = real.bool() & (positions > layout.gate[:, None])
        return Batch(inputs, layout, answer, torch.where(answer, ids, IGNORED))


def records_of(
    items: Sequence[Mapping[str, Any]], to_picture: Callable[[Tensor], Image.Image] | None = None
) -> list[Record]:
    """Return items of EasyEdit's datasets as records of this package.

    Args:
        items: what `VQADataset` or `CaptionDataset` hold.
        to_picture: makes a picture of an image tensor; None where images are never tensors.
    """
    records = []
    for index, item in enumerate(items):
        if RECORD in item:
            records.append(replace(item[RECORD], index=index))
            continue
        queries = {}
        for part, (prompt, answer, image) in ITEM_KEYS.items():
            kind = item.get("file_type") if part != "loc_image" else None
            shown = None if image is None else shown_from(item[image], kind, to_picture)
            queries[METRIC_OF[part]] = Query(item[prompt], shown, item[answer])
        records.append(_record(index, queries, _prediction(item)))
    return records


def _prediction(item: Mapping[str, Any]) -> str:
    """Return what a record says that the model answers; it may say nothing, or a number."""
    said = item.get("pred")
    return "" if said is None else str(said)


def questions_of(items: Sequence[Mapping[str, Any]]) -> dict[str, QuestionBatch | None]:
    """Return a training batch of EasyEdit's datasets as questions, under EasyEdit's own names.

    EasyEdit's collation trains on other tokens than its editor then measures: it puts a space
    before every answer, and "Question: ... Short answer:" around the image-locality prompt. Here
    questions and answers are those that the editor measures.
    """
    records = records_of(items)
    parts: dict[str, QuestionBatch | None] = {
        name: QuestionBatch(tuple(metric_queries(records, metric)), ends=metric in IN_SCOPE)
        for name, metric in METRIC_OF.items()
    }
    return {**parts, "cond": None}


def records_in(parts: Mapping[str, Any]) -> list[Record] | None:
    """Return the records of a training batch of questions, or None if it is tokenised already."""
    questions = {metric: parts.get(name) for name, metric in METRIC_OF.items()}
    queries = {
        metric: part.queries
        for metric, part in questions.items()
        if isinstance(part, QuestionBatch)
    }
    if len(queries) < len(questions):
        return None
    rows = zip(*queries.values(), strict=True)
    return [_record(index, dict(zip(queries, row, strict=True))) for index, row in enumerate(rows)]


def _record(index: int, queries: Mapping[str, Query], prediction: str = "") -> Record:
    request, text_rephrase, image_rephrase, text_locality, image_locality = (
        queries[metric] for metric in METRICS
    )
    return Record(
        index, request, text_rephrase, image_rephrase, text_locality, image_locality, prediction
    )


def answered(output: Any, batch: Batch) -> Any:
    """Return a model's output with what EasyEdit's trainers look for in it.

    `labels` are the right ones for the loss. `attention_mask` is what the locality losses are
    averaged over: the positions that predict the answer, float [b, s].
    """
    output.labels = batch.labels
    output.attention_mask = answer_positions(batch.labels).to(output.logits.device)
    return output


def answer_positions(labels: Tensor) -> Tensor:
    """Return 1 at positions whose next token has a label, else 0; float [b, s]."""
    mask = torch.zeros(labels.shape, device=labels.device)
    mask[:, :-1] = (labels[:, 1:] != IGNORED).float()
    return mask
