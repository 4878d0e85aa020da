"""What a vision-language model must answer before it can be edited.

Three questions: where are its decoder layers, which positions are vision, where does the prompt
end. They are asked once, when an editor is made. The answers are the user's where there are any,
else they come from the model's and the processor's own interfaces, never from a name.
"""

import itertools
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from easyedit_dualedit.errors import BackboneError, LayerError, PromptEndError
from easyedit_dualedit.model.families import BackboneConfig, Family, family_of
from easyedit_dualedit.model.inputs import TokenLayout, input_device

_PROBES = ("a", "B?", "7 .", "two words")
_LONGEST_MARKER = 16


@dataclass(frozen=True)
class Backbone:
    """The parts of a vision-language model that an editor touches or reads."""

    model: nn.Module
    layers: tuple[nn.Module, ...]
    """Decoder layers of the language model, in order."""
    hidden_size: int
    image_token_id: int
    """Id that stands at every vision position of a row of token ids."""
    decoder: nn.Module
    """The module that holds the decoder layers and calls them in turn."""
    family: Family
    """What is known of models of this kind."""
    given: BackboneConfig = BackboneConfig()
    """What the user said in the model's place."""
    video_token_id: int | None = None
    """Id that stands at every position of a video, in models that take videos."""
    path: tuple[nn.Module, ...] = ()
    """The modules around the layers: the model, its part that holds them, down to their list."""

    @classmethod
    def of(cls, model: nn.Module, given: BackboneConfig | None = None) -> Self:
        """Return the parts of `model`.

        Args:
            model: a transformers image-text-to-text model, or one that looks like it.
            given: what a user says of it, which comes before what it says itself.

        Raises:
            BackboneError: naming the question that the model does not answer.
        """
        given = BackboneConfig() if given is None else given
        config: Any = getattr(model, "config", None)
        if getattr(config, "is_encoder_decoder", False) or getattr(
            getattr(config, "text_config", None), "is_encoder_decoder", False
        ):
            raise BackboneError(
                f"{type(model).__name__} reads its prompt in an encoder, so no decoder layer holds"
                " prompt or picture; use a model whose language model is a decoder alone"
            )
        if given.decoder_layers is None:
            decoder, layers = _found_decoder(model)
        else:
            decoder, layers = _named_decoder(model, given.decoder_layers)
        token = given.image_token_id
        for name in ("image_token_id", "image_token_index"):
            token = getattr(config, name, None) if token is None else token
        if token is None:
            raise BackboneError(
                f"{type(model).__name__} does not say which positions are vision: its config has"
                " neither image_token_id nor image_token_index; use a model whose processor puts"
                " one image token id at every vision position, and give that id in YAML:"
                " backbone: {image_token_id: <id>}"
            )
        video = getattr(config, "video_token_id", getattr(config, "video_token_index", None))
        size = int(config.get_text_config().hidden_size)
        path = _path_to(model, layers[0])
        return cls(model, layers, size, int(token), decoder, family_of(config), given, video, path)

    @property
    def vision_token_ids(self) -> list[int]:
        """The ids that stand at the positions of pictures and of videos."""
        ids = (self.image_token_id, self.video_token_id)
        return [token for token in ids if token is not None]

    def require_layers(self, layers: Sequence[int], *, names: Sequence[str] = ()) -> None:
        """Check that every layer exists.

        Raises:
            LayerError: naming the first that does not.
        """
        count = len(self.layers)
        for position, layer in enumerate(layers):
            if not 0 <= layer < count:
                name = names[position] if position < len(names) else "layer"
                raise LayerError(
                    f"{name} = {layer}, but this model has {count} decoder layers"
                    f" (0-{count - 1}); set {name} within them"
                )

    def require_gradients(self) -> None:
        """Check that a loss can reach adapters through the layers above them.

        Raises:
            BackboneError: if the model's weights are such that it cannot.
        """
        if (
            getattr(self.model, "is_loaded_in_4bit", False)
            and input_device(self.model).type == "cpu"
        ):
            raise BackboneError(
                "4-bit weights keep no gradient on a CPU (bitsandbytes packs them for inference);"
                " train on a GPU, with quantization: 8bit, or without"
            )


@dataclass(frozen=True)
class PromptMarker:
    """The token ids with which a chat template ends every prompt."""

    ids: tuple[int, ...]

    @classmethod
    def of(cls, prompt_ids: Callable[[str], Sequence[int]]) -> Self | None:
        """Return the marker of a chat template, or None if its prompts have no common ending.

        Args:
            prompt_ids: gives the token ids of a question as the template writes it.
        """
        rows = [prompt_ids(probe) for probe in _PROBES]
        ids: list[int] = []
        for column in zip(*(reversed(row) for row in rows), strict=False):
            if len(set(column)) > 1 or len(ids) == _LONGEST_MARKER:
                break
            ids.append(column[0])
        return cls(tuple(reversed(ids))) if ids else None

    def last_index(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the index of the last prompt token of each row, shape [b].

        The last occurrence counts, since an earlier turn ends with the same ids.

        Args:
            input_ids: token ids, shape [b, s].
            attention_mask: True (or 1) where a token is real, shape [b, s].

        Raises:
            PromptEndError: naming the rows in which the marker does not occur.
        """
        found = _end_of_last(self.ids, input_ids, attention_mask.bool())
        if bool((found < 0).any()):
            raise PromptEndError(self._missing((found < 0).nonzero().flatten().tolist()))
        return found

    def before_begun_answer(
        self, input_ids: Tensor, attention_mask: Tensor, special: Tensor
    ) -> Tensor:
        """Return the index of the last prompt token of rows that go on behind it, shape [b].

        It is -1 in rows that end with their prompt, or of which it cannot be told: they lack the
        marker, it is a single token, or another turn begins behind it.

        Args:
            input_ids: token ids, shape [b, s].
            attention_mask: True (or 1) where a token is real, shape [b, s].
            special: ids of the special tokens, which no answer has.
        """
        found = _end_of_last(self.ids, input_ids, attention_mask.bool())
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        behind = attention_mask.bool() & (positions > found[:, None])
        is_other = (behind & torch.isin(input_ids, special)).any(1) | ~behind.any(1)
        return torch.where(is_other | (len(self.ids) == 1), -1, found)

    def _missing(self, rows: Sequence[int]) -> str:
        return (
            f"the end of the prompt cannot be found in rows {list(rows)}: they lack the chat"
            f" template's generation prompt (token ids {list(self.ids)}); build inputs with the"
            " processor's chat template and add_generation_prompt=True, or pass labels that are"
            " -100 over the prompt"
        )


@dataclass(frozen=True)
class TurnMarker:
    """The token ids with which a chat template begins a question."""

    ids: tuple[int, ...]
    ending: int
    """Tokens with which a prompt ends behind the question."""

    @classmethod
    def of(
        cls,
        prompt_ids: Callable[[str], Sequence[int]],
        special: Container[int | None],
        ending: int,
    ) -> Self | None:
        """Return the marker of a chat template, or None if it cannot be told from a question.

        Args:
            prompt_ids: gives the token ids of a question as the template writes it.
            special: ids of special tokens, which no question has.
            ending: tokens with which a prompt ends behind the question.
        """
        columns = zip(*(prompt_ids(probe) for probe in _PROBES), strict=False)
        common = [column[0] for column in itertools.takewhile(lambda c: len({*c}) == 1, columns)]
        # A system prompt of the template's own stands before the first question alone, and in some
        # templates a special token, too.
        places = [place for place, token in enumerate(common) if token in special]
        behind = common[places[-1] + 1 :] if places else common
        marker = common[places[-1] :] if len(behind) == 1 else behind
        return cls(tuple(marker), ending) if len(marker) > 1 else None

    def last_turn(self, layout: TokenLayout) -> Tensor:
        """Return True from the question of each row's last turn on, bool [b, s]."""
        positions = torch.arange(layout.ids.shape[1], device=layout.ids.device)
        before_end = positions <= (layout.gate - self.ending)[:, None]
        begin = _end_of_last(self.ids, layout.ids, layout.real & before_end)
        return positions > begin[:, None]


def _end_of_last(ids: Sequence[int], input_ids: Tensor, allowed: Tensor) -> Tensor:
    """Return the index of the last token of the last of some ids in each row, -1 without them.

    Args:
        ids: at least one.
        input_ids: token ids, long [b, s].
        allowed: True where they may end, bool [b, s].
    """
    length = len(ids)
    if input_ids.shape[1] < length:
        return torch.full_like(input_ids[:, 0], -1)
    windows = input_ids.unfold(1, length, 1)  # [b, s - length + 1, length]
    found = (windows == torch.tensor(ids, device=input_ids.device)).all(-1)
    positions = torch.arange(length - 1, input_ids.shape[1], device=input_ids.device)
    return torch.where(found & allowed[:, length - 1 :], positions, -1).amax(1)


def _found_decoder(model: nn.Module) -> tuple[nn.Module, tuple[nn.Module, ...]]:
    part: Any = model
    for _ in range(6):
        layers = getattr(part, "layers", None)
        if isinstance(layers, nn.ModuleList) and len(layers):
            return part, tuple(layers)
        decoder = part.get_decoder() if hasattr(part, "get_decoder") else None
        if decoder is None or decoder is part:
            # OPT's model names its decoder, and names itself as what it is the decoder of.
            decoder = getattr(part, "decoder", None)
        if decoder is None or decoder is part:
            break
        part = decoder
    raise BackboneError(
        f"{type(model).__name__} does not say where its decoder layers are: following"
        " get_decoder() leads to no list named layers; give the path of that list in YAML:"
        " backbone: {decoder_layers: language_model.model.layers}, or use a transformers"
        " image-text-to-text model"
    )


def _path_to(model: nn.Module, layer: nn.Module) -> tuple[nn.Module, ...]:
    name = next((name for name, part in model.named_modules() if part is layer), "")
    path = [model]
    for step in name.split(".")[:-1]:
        path.append(path[-1].get_submodule(step))
    return tuple(path)


def _named_decoder(model: nn.Module, path: str) -> tuple[nn.Module, tuple[nn.Module, ...]]:
    parent, _, _ = path.rpartition(".")
    try:
        layers = model.get_submodule(path)
    except AttributeError as error:
        known = [name for name, part in model.named_modules() if isinstance(part, nn.ModuleList)]
        raise BackboneError(
            f"backbone decoder_layers = {path!r}: {type(model).__name__} has no such part; its"
            f" lists of modules: {', '.join(known) or 'none'}"
        ) from error
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise BackboneError(
            f"backbone decoder_layers = {path!r} is a {type(layers).__name__}, not a list of layers"
            " (torch.nn.ModuleList); give the path of the list itself"
        )
    return model.get_submodule(parent), tuple(layers)
