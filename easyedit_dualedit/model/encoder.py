"""Turns requests and queries into model inputs, and says which position is what.

Prompt and target are tokenised apart and joined as ids, so the prompt of a teacher-forced row is
token for token the prompt that `generate` sees.
"""

import dataclasses
import functools
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from torch.nn import functional

from easyedit_dualedit.errors import BackboneError, ConfigError, DataError, PromptEndError
from easyedit_dualedit.model.backbone import Backbone, PromptMarker, TurnMarker
from easyedit_dualedit.model.inputs import (
    IGNORED,
    Batch,
    Query,
    TokenLayout,
    input_device,
    last_real_index,
    positions_of,
)
from easyedit_dualedit.model.position_limit import PositionLimit
from easyedit_dualedit.model.prompts import OpenedPictures, PromptReader
from easyedit_dualedit.model.video_frames import Clip


class Encoder:
    """Encodes queries for one model with its own processor and chat template.

    >>> encoder = Encoder(Backbone.of(model), processor)
    >>> batch = encoder.encode([Query("What is this?", image, target="a kite")])
    >>> encoder.tokenizer.decode(batch.inputs["input_ids"][batch.target]).strip()
    'a kite'
    """

    def __init__(self, backbone: Backbone, processor: Any, *, last_prompt_token: bool = True):
        """Keep what encoding needs.

        Args:
            backbone: parts of the model.
            processor: the model's processor, with a tokenizer and a chat template.
            last_prompt_token: whether layouts count the last prompt token as prompt text.

        Raises:
            BackboneError: if the processor has no tokenizer or no chat template.
        """
        family, given = backbone.family, backbone.given
        has_own = bool(getattr(processor, "chat_template", None))
        template = given.chat_template or (None if has_own else family.chat_template)
        if not hasattr(processor, "tokenizer") or not (has_own or template):
            raise BackboneError(
                f"{type(processor).__name__} does not say where a prompt ends: it needs a"
                " tokenizer and a chat template; load it with AutoProcessor, set chat_template, or"
                " give its Jinja text in YAML: backbone: {chat_template: ...}"
            )
        self.backbone = backbone
        self._vision_ids = backbone.vision_token_ids
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.template: str | None = template
        """Chat template in use instead of the processor's own; None if it is the processor's."""
        self.opened = OpenedPictures()
        """Pictures that were decoded last."""
        self._reader = PromptReader(backbone, processor, template, self.opened.open)
        prompt_ids = functools.cache(self._prompt_ids)  # both markers ask for the same prompts
        self.marker = PromptMarker.of(prompt_ids)
        """How every prompt ends; None if the template's prompts have no common ending."""
        added = self.tokenizer.added_tokens_decoder
        special = {id_ for id_ in added if added[id_].special}
        # That of unknown words is what some tokenizers make of ordinary ones.
        self._unsaid = special - {self.tokenizer.unk_token_id}
        special |= {self.tokenizer.bos_token_id}
        ending = len(self.marker.ids) if self.marker else 0
        self.turn = TurnMarker.of(prompt_ids, special, ending)
        """How every question begins; None if the template does not say."""
        self.last_prompt_token = last_prompt_token
        self._limit = PositionLimit.of(backbone.model.config)
        self._answer_prefix: str = (
            family.answer_prefix if given.answer_prefix is None else given.answer_prefix
        )

    def prompt_text(self, query: Query) -> str:
        """Return the prompt as the chat template writes it, ready for an answer."""
        return self._reader.text(query)

    def clip_of(self, query: Query) -> Clip:
        """Return the frames that the model is shown of a query's video.

        Raises:
            DataError: if it shows none, it cannot be read, or the model takes none.
        """
        return self._reader.clip_of(query)

    def target_ids(self, target: str) -> list[int]:
        """Return the token ids of a target, without special tokens.

        White space around it is part of it, as it is for EasyEdit's evaluator.

        Raises:
            DataError: if it tokenises to nothing, or holds special tokens.
        """
        prefix = "" if target[:1].isspace() else self._answer_prefix
        ids = list(self.tokenizer(prefix + target, add_special_tokens=False)["input_ids"])
        # A blank target's ids would be those of the prefix alone.
        if not ids or not target.strip():
            raise DataError(f"target = {target!r} tokenises to nothing; give one the model can say")
        if not set(self._vision_ids).isdisjoint(ids):
            raise DataError(f"target = {target!r} holds a token of a picture; leave it out")
        if not self._unsaid.isdisjoint(ids):
            raise DataError(
                f"target = {target!r} holds a special token, which no answer shows; leave it out:"
                " an edit ends its answer by itself"
            )
        return ids

    def encode(
        self,
        queries: Sequence[Query],
        *,
        with_target: bool = True,
        end_of_answer: bool = False,
        padding_side: str = "left",
    ) -> Batch:
        """Return model inputs for queries, one row each.

        Args:
            queries: at least one; with and without pictures or videos may mix.
            with_target: append the target of each query that has one.
            end_of_answer: append the end-of-turn token to each target, as a label only.
            padding_side: "left" (what `generate` needs) or "right".

        Raises:
            ConfigError: if there is no such side.
            DataError: if there is no query, a target tokenises to nothing, a row is longer than the
                model can read, a picture or video is bad, or the processor refuses it.
            BackboneError: if the processor does not put image tokens where a picture is.
        """
        if padding_side not in ("left", "right"):
            raise ConfigError(f"padding_side = {padding_side!r}; give 'left' or 'right'")
        if isinstance(queries, Query):
            raise DataError(f"the query {queries.prompt!r} stands alone; give a list of queries")
        if not queries:
            raise DataError("no queries to encode; give at least one")
        prompts, others = self._reader.read(queries)
        return self.assemble(
            queries,
            prompts,
            others,
            with_target=with_target,
            ends=[end_of_answer] * len(queries),
            padding_side=padding_side,
        )

    def assemble(
        self,
        queries: Sequence[Query],
        prompts: Sequence[dict[str, Tensor]],
        others: dict[str, Tensor],
        *,
        with_target: bool = True,
        ends: Sequence[bool],
        padding_side: str = "left",
    ) -> Batch:
        """Return model inputs made of prompts that are tokenised already, one row each.

        Args:
            queries: what the rows ask; their targets are appended.
            prompts: tokens of each prompt, unpadded, by the name of the input.
            others: inputs that are not one number a token, as they are.
            with_target: append the target of each query that has one.
            ends: for each row, append the end-of-turn token to its target, as a label only.
            padding_side: "left" or "right".

        Raises:
            DataError: if a target tokenises to nothing, or a row is longer than the model can read.
        """
        targets: list[list[int]] = []
        for query, ended in zip(queries, ends, strict=True):
            ids = self.target_ids(query.target) if with_target and query.target else []
            targets.append(ids + [self.tokenizer.eos_token_id] if ids and ended else ids)
        lengths = torch.tensor([len(ids) for ids in targets])
        counts = [
            len(ids) + len(prompt["input_ids"])
            for ids, prompt in zip(targets, prompts, strict=True)
        ]
        if self._limit is not None and max(counts) > self._limit.most:
            seen = [self.vision_positions(prompt["input_ids"]) for prompt in prompts]
            self._limit.require(queries, counts, seen)
        totals, positions = torch.tensor(counts)[:, None], torch.arange(max(counts))
        is_left = padding_side == "left"
        real = positions >= len(positions) - totals if is_left else positions < totals
        inputs = dict(others)
        for name in prompts[0]:
            tokens = self._with_answers(name, [prompt[name] for prompt in prompts], targets)
            filler = self.tokenizer.pad_token_id if name == "input_ids" else 0
            inputs[name] = tokens.new_full(real.shape, filler).masked_scatter(real, tokens)
        answer = answer_mask(inputs["attention_mask"], lengths)
        labels = torch.where(answer, inputs["input_ids"], IGNORED)
        layout = self.layout(
            inputs["input_ids"],
            inputs["attention_mask"],
            gate=last_real_index(inputs["attention_mask"]) - lengths,
        )
        ended_rows = torch.tensor(list(ends)) & (lengths > 0)
        is_end = positions == layout.last[:, None]
        target = answer & ~(is_end & ended_rows[:, None])
        layout = dataclasses.replace(layout, last=layout.last - ended_rows.long())
        device = input_device(self.backbone.model)
        inputs = {name: value.to(device) for name, value in inputs.items()}
        return Batch(inputs, layout.to(device), target.to(device), labels.to(device))

    def tokenised(self, query: Query) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the tokens of one prompt, unpadded, and the inputs that hold its pictures.

        Raises:
            DataError: if a picture is bad, or the processor refuses it.
            BackboneError: if the processor does not put image tokens where a picture is.
        """
        prompts, others = self.read([query])
        return prompts[0], others

    def read(self, queries: Sequence[Query]) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return the tokens of each prompt, unpadded, and the inputs of all that they show."""
        return self._reader.read(queries)

    def _prompt_ids(self, question: str) -> list[int]:
        text = self.prompt_text(Query(question))
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _with_answers(
        self, name: str, prompts: Sequence[Tensor], answers: Sequence[Sequence[int]]
    ) -> Tensor:
        """Return an input's numbers for each prompt and then its answer, all in a row."""
        if name == "input_ids":
            numbers = [token for ids in answers for token in ids]
        else:
            alike = {"attention_mask": 1, "token_type_ids": self.backbone.family.answer_token_type}
            numbers = [alike.get(name, 0)] * sum(map(len, answers))
        flat = torch.tensor(numbers, dtype=prompts[0].dtype)
        parts = torch.split(flat, [len(ids) for ids in answers])
        return torch.cat([piece for pair in zip(prompts, parts, strict=True) for piece in pair])

    def layout(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, gate: Tensor | None = None
    ) -> TokenLayout:
        """Return what each position of tokenised rows is.

        Args:
            input_ids: token ids, long [b, s].
            attention_mask: True (or 1) where a token is real, [b, s]; None means everywhere.
            gate: index of the last prompt token of each row, long [b]; None means that it is
                found by the chat template's generation prompt.

        Raises:
            PromptEndError: if the end of a prompt has to be found and cannot be.
        """
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        real = real.bool()
        if gate is None:
            if self.marker is None:
                raise PromptEndError(
                    "the end of the prompt cannot be found: prompts of this chat template have no"
                    " ending in common; pass labels that are -100 over the prompt, or give a"
                    " template with one in YAML: backbone: {chat_template: ...}"
                )
            gate = self.marker.last_index(input_ids, real)
        bos = self.tokenizer.bos_token_id
        layout = TokenLayout.of(input_ids, real, gate, self.vision_positions(input_ids), bos)
        return layout if self.last_prompt_token else layout.without_prompt_end()

    def vision_positions(self, input_ids: Tensor) -> Tensor:
        """Return where a picture or a video stands in rows of token ids, bool of their shape."""
        return positions_of(self._vision_ids, input_ids)

    def word_vectors(self, ids: Tensor) -> Tensor:
        """Return the direction in which the model says each token, unit vectors [..., d], float32.

        They are rows of the output embeddings; zeros where an id is negative.

        Args:
            ids: token ids, long of any shape.

        Raises:
            BackboneError: if the model has no output embeddings in plain numbers.
        """
        head: Any = output_head(self.backbone)
        known = isinstance(getattr(head, "weight", None), Tensor)
        with torch.no_grad(), align_module_device(head) if known else nullcontext():
            weight = head.weight if known else None
            if weight is None or not weight.is_floating_point() or weight.is_meta:
                raise BackboneError(
                    f"{type(self.backbone.model).__name__} has no output embeddings in plain"
                    " numbers, so an edit cannot write its words; train adapters with word_path:"
                    " false"
                )
            rows = weight[ids.clamp(min=0).to(weight.device)].float().to(ids.device)
        return functional.normalize(rows, dim=-1) * (ids >= 0)[..., None]


def output_head(backbone: Backbone) -> nn.Module | None:
    """Return the module that makes logits of states, if the model names one."""
    # A module of the user's around the model need not pass the method on.
    parts: list[Any] = [backbone.model, *backbone.path]
    having = [part for part in parts if hasattr(part, "get_output_embeddings")]
    head = having[0].get_output_embeddings() if having else None
    return head if isinstance(head, nn.Module) else None


def answer_mask(attention_mask: Tensor, lengths: Tensor) -> Tensor:
    """Return which tokens are among so many real ones at the end of each row, bool [b, s].

    Args:
        attention_mask: True (or 1) where a token is real, [b, s].
        lengths: how many, long [b].
    """
    last = last_real_index(attention_mask)[:, None]
    behind = last - torch.arange(attention_mask.shape[1])
    return (behind >= 0) & (behind < lengths[:, None])
