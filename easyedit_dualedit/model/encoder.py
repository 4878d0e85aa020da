"""Turns requests and queries into model inputs, and says which position is what.

Prompt and target are tokenised apart and joined as ids, so the prompt of a teacher-forced row is
token for token the prompt that `generate` sees.
"""

import dataclasses
import functools
import operator
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from easyedit_dualedit.errors import BackboneError, DataError, PromptEndError
from easyedit_dualedit.model.backbone import Backbone, PromptMarker
from easyedit_dualedit.model.inputs import (
    IGNORED,
    Batch,
    Query,
    TokenLayout,
    answer_mask,
    input_device,
    last_real_index,
    written_prompt,
)
from easyedit_dualedit.model.pictures import open_image

PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
"""Model inputs that are one number a token."""


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
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.template: str | None = template
        """Chat template in use instead of the processor's own; None if it is the processor's."""
        self.marker = PromptMarker.of(self._prompt_ids)
        """How every prompt ends; None if the template's prompts have no common ending."""
        self.last_prompt_token = last_prompt_token
        self._answer_prefix: str = (
            family.answer_prefix if given.answer_prefix is None else given.answer_prefix
        )
        self._vision_ids = backbone.vision_token_ids
        self._vision_tokens: list[str] = self.tokenizer.convert_ids_to_tokens(self._vision_ids)

    def prompt_text(self, query: Query) -> str:
        """Return the prompt as the chat template writes it, ready for an answer."""
        content: list[dict[str, str]] = [{"type": "image"} for _ in query.pictures]
        content.append({"type": "text", "text": query.prompt})
        return written_prompt(self.processor, content, self.template)

    def target_ids(self, target: str) -> list[int]:
        """Return the token ids of a target, without special tokens.

        White space around it is part of it, as it is for EasyEdit's evaluator.

        Raises:
            DataError: if it tokenises to nothing.
        """
        prefix = "" if target[:1].isspace() else self._answer_prefix
        ids = list(self.tokenizer(prefix + target, add_special_tokens=False)["input_ids"])
        # A blank target's ids would be those of the prefix alone.
        if not ids or not target.strip():
            raise DataError(f"target = {target!r} tokenises to nothing; give one the model can say")
        if not set(self._vision_ids).isdisjoint(ids):
            raise DataError(f"target = {target!r} holds a token of a picture; leave it out")
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
            queries: at least one; with and without pictures may mix.
            with_target: append the target of each query that has one.
            end_of_answer: append the end-of-turn token to each target, as a label only.
            padding_side: "left" (what `generate` needs) or "right".

        Raises:
            DataError: if there is no query, a target tokenises to nothing, a picture is bad, or
                the processor refuses the pictures.
            BackboneError: if the processor does not put image tokens where a picture is.
        """
        if not queries:
            raise DataError("no queries to encode; give at least one")
        self._require_readable(queries)
        prompts, others = self._encoded_prompts(queries)
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
            DataError: if a target tokenises to nothing.
        """
        targets: list[list[int]] = []
        for query, ended in zip(queries, ends, strict=True):
            ids = self.target_ids(query.target) if with_target and query.target else []
            targets.append(ids + [self.tokenizer.eos_token_id] if ids and ended else ids)
        lengths = torch.tensor([len(ids) for ids in targets])
        totals = lengths + torch.tensor([len(prompt["input_ids"]) for prompt in prompts])
        width = int(totals.max())
        positions = torch.arange(width)
        is_left = padding_side == "left"
        real = positions >= width - totals[:, None] if is_left else positions < totals[:, None]
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
        self._require_readable([query])
        prompts, others = self._encoded_prompts([query])
        return prompts[0], others

    def _prompt_ids(self, question: str) -> list[int]:
        text = self.prompt_text(Query(question))
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _require_readable(self, queries: Sequence[Query]) -> None:
        most = self.backbone.family.most_pictures
        for query in queries:
            if most is not None and len(query.pictures) > most:
                raise DataError(
                    f"{len(query.pictures)} pictures in one query, but"
                    f" {type(self.backbone.model).__name__} takes {most}; give {most}"
                )
            for token in self._vision_tokens:
                if token in query.prompt:
                    raise DataError(
                        f"prompt = {query.prompt!r} holds {token!r}, which stands for a picture;"
                        " leave it out, the chat template puts it where it belongs"
                    )

    def _encoded_prompts(
        self, queries: Sequence[Query]
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return the tokens of each prompt, unpadded, and the inputs that hold the pictures."""
        # Apart, since some processors refuse text alone, and some give every row a picture.
        seeing = [place for place, query in enumerate(queries) if query.pictures]
        blind = [place for place, query in enumerate(queries) if not query.pictures]
        rows: dict[int, dict[str, Tensor]] = {}
        others: dict[str, Tensor] = {}
        if seeing:
            shown = [queries[place] for place in seeing]
            images = [[open_image(picture) for picture in query.pictures] for query in shown]
            encoded = self._processed([self.prompt_text(query) for query in shown], images)
            rows |= dict(zip(seeing, _unpadded(encoded), strict=True))
            others = {n: v for n, v in encoded.items() if n not in (*PER_TOKEN, "labels")}
            self._require_vision([rows[place] for place in seeing], shown)
        if blind:
            texts = [self.prompt_text(queries[place]) for place in blind]
            encoded = self.tokenizer(
                texts, padding=True, return_tensors="pt", **self._special_tokens(texts)
            )
            rows |= dict(zip(blind, _unpadded(encoded), strict=True))
        if self.backbone.family.needs_picture and not others:
            blank = [[Image.new("RGB", (32, 32))]]
            encoded = self._processed([self.prompt_text(Query(".", blank[0][0]))], blank)
            others = {n: v for n, v in encoded.items() if n not in (*PER_TOKEN, "labels")}
        names = {name for row in rows.values() for name in row}
        if self.backbone.family.answer_token_type:
            names.add("token_type_ids")
        for row in rows.values():
            for name in names - set(row):
                row[name] = torch.zeros_like(row["input_ids"])
        return [
            {name: rows[place][name] for name in PER_TOKEN if name in names}
            for place in range(len(queries))
        ], others

    def _processed(self, texts: list[str], images: list[list[Image.Image]]) -> dict[str, Tensor]:
        try:
            encoded: dict[str, Tensor] = self.processor(
                text=texts,
                images=images,
                padding=True,
                return_tensors="pt",
                **self._special_tokens(texts),
            )
        except (ValueError, TypeError, IndexError) as error:
            counts = sorted({len(group) for group in images})
            raise DataError(
                f"{type(self.processor).__name__} cannot read {counts} pictures a query:"
                f" {' '.join(str(error).split())}"
            ) from error
        return encoded

    def _special_tokens(self, texts: Sequence[str]) -> dict[str, bool]:
        # A template that writes BOS itself would get another from the tokenizer.
        bos = self.tokenizer.bos_token
        return {"add_special_tokens": not (bos and all(text.startswith(bos) for text in texts))}

    def _require_vision(self, rows: Sequence[dict[str, Tensor]], queries: Sequence[Query]) -> None:
        for row, query in zip(rows, queries, strict=True):
            count = int(self.vision_positions(row["input_ids"]).sum())
            # One token a picture may be all that a small one takes.
            if count < len(query.pictures) or (
                count == len(query.pictures) and not self._expands_pictures
            ):
                raise BackboneError(
                    f"{type(self.processor).__name__} puts {count} image tokens (id"
                    f" {self.backbone.image_token_id}) into a prompt with {len(query.pictures)}"
                    " pictures, so it does not say which positions are vision; use a model whose"
                    " processor expands the image token, or give the right id in YAML: backbone:"
                    " {image_token_id: <id>}"
                )

    @cached_property
    def _expands_pictures(self) -> bool:
        """Whether a large picture takes more than one position."""
        large = Image.new("RGB", (448, 448))
        text = self.prompt_text(Query(".", large))
        ids = self._processed([text], [[large]])["input_ids"]
        return int(self.vision_positions(ids).sum()) > 1

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
        return functools.reduce(operator.or_, (input_ids == token for token in self._vision_ids))


def _unpadded(encoded: Any) -> list[dict[str, Tensor]]:
    real = encoded["attention_mask"].bool()
    names = [name for name in PER_TOKEN if name in encoded]
    return [{name: encoded[name][row][mask] for name in names} for row, mask in enumerate(real)]
