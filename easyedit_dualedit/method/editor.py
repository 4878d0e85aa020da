"""The editor: reads edits from a model and gives back the model with them applied."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from torch import Tensor, nn

from easyedit_dualedit.errors import BackboneError, DataError, no_request
from easyedit_dualedit.files import folder_of, write_text
from easyedit_dualedit.method.active_edits import ActiveEdits, EditSignal
from easyedit_dualedit.method.adapter import DualAdapters
from easyedit_dualedit.method.archive import Archive
from easyedit_dualedit.method.config import DualEditConfig, GateConfig, gate_from
from easyedit_dualedit.method.edited_model import EditedModel
from easyedit_dualedit.method.fingerprint import ModelFingerprint
from easyedit_dualedit.method.gate import Gate
from easyedit_dualedit.method.gate_keys import vision_mean
from easyedit_dualedit.method.model_card import (
    CARD_TEMPLATE,
    LIBRARY,
    TAGS,
    architecture_of,
    card_values,
    with_base_model,
)
from easyedit_dualedit.method.shared_folder import adapters_folder
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.hooks import lasting_tensors, record, undisturbed
from easyedit_dualedit.model.inputs import Batch, Query, ShownLike, input_device
from easyedit_dualedit.model.letters import TokenLetters
from easyedit_dualedit.model.video_frames import by_length


def require_targets(requests: Sequence[Query]) -> None:
    """Check that requests are a list, and say what is to be answered.

    Raises:
        DataError: naming the first that does not.
    """
    if isinstance(requests, Query):
        raise DataError(f"the request {requests.prompt!r} stands alone; give a list of requests")
    for request in requests:
        if not isinstance(request, Query):
            raise no_request(request)
        if request.target is None:
            raise DataError(f"the request {request.prompt!r} has no target; give the answer")


class DualEditor(
    nn.Module,
    ModelHubMixin,
    library_name=LIBRARY,
    model_card_template=CARD_TEMPLATE,
    tags=list(TAGS),
):
    """Adapters and gate for one model; the model itself is neither owned nor changed.

        >>> gate = GateConfig("cosine", threshold=0.8)
        >>> config = DualEditConfig(text_layer=1, vision_layer=2, width=32, gate=gate)
        >>> editor = DualEditor(model, processor, config)  # adapters that are not trained
        >>> edited = editor.edit(image, "What is this?", "a kite")
        >>> batch = editor.encoder.encode([Query("What is this?", image)])
        >>> edited.route(**batch.inputs).is_open  # the question is that of the edit
        tensor([True])
        >>> answer = edited.generate(**batch.inputs, max_new_tokens=3)

    `state_dict`, `parameters` and `train` concern adapters and gate alone. `save_pretrained`,
    `push_to_hub` and `from_pretrained(folder or hub id, model=..., processor=...)` are those of
    huggingface_hub's mixin.
    """

    def __init__(self, model: nn.Module, processor: Any, config: DualEditConfig):
        """Make an editor whose adapters change nothing yet.

        Args:
            model: a transformers image-text-to-text model.
            processor: its processor.
            config: what an edit does.

        Raises:
            BackboneError: if the model or the processor lacks what an editor needs.
            ConfigError: if that is no configuration.
            LayerError: if a layer does not exist in the model.
        """
        super().__init__()
        config = DualEditConfig.of(config)
        if isinstance(model, EditedModel):
            raise BackboneError(
                "the model is an edited one, and an editor edits what nothing has changed; give its"
                " base_model, and keep edits together in an EditMemory"
            )
        backbone = Backbone.of(model, config.backbone)
        backbone.require_layers(
            (config.text_layer, config.vision_layer), names=("text_layer", "vision_layer")
        )
        self.backbone = backbone
        """The parts of the model."""
        self.config = config
        self._layers = config.layers
        self.encoder = Encoder(backbone, processor, last_prompt_token=config.last_prompt_token)
        self.adapters = DualAdapters(backbone.hidden_size, config, self.encoder.word_vectors)
        letters = TokenLetters(self.encoder.tokenizer)
        self.gate = Gate(backbone.hidden_size, config.gate, self.encoder.turn, letters)
        self.training_targets: tuple[str, ...] | None = None
        """Targets of the edits that the adapters were trained on; None if that is not known."""
        self.to(input_device(backbone.model))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if any(weight.dtype == torch.float16 for weight in self.adapters.parameters()):
            # Some tokens' states are in the ten thousands, and float16 ends at 65,504.
            self.adapters.to(torch.float32)
        return self

    def read(self, requests: Sequence[Query]) -> list[EditSignal]:
        """Return the edit signal of each request, in their order.

        One stopped forward reads all, or one for each length of video, which not all models mix.

        Raises:
            DataError: if a request has no target, or a picture or video cannot be read.
        """
        require_targets(requests)
        if sum(request.video is not None for request in requests) < 2:
            return self.read_batch(self.encoder.encode(requests), requests)
        signals: dict[int, EditSignal] = {}
        for places in by_length(requests, self.encoder.clip_of):
            alike = [requests[place] for place in places]
            found = self.read_batch(self.encoder.encode(alike), alike)
            signals.update(zip(places, found, strict=True))
        return [signals[place] for place in range(len(requests))]

    @torch.no_grad()
    def read_batch(self, batch: Batch, requests: Sequence[Query] = ()) -> list[EditSignal]:
        """Return the edit signal of each row of an encoded batch.

        The forward is unedited and ends after the deeper of the two layers: no lm_head runs. It
        runs without dropout, and leaves no trace on the model.

        Raises:
            DataError: if a row has no target.
        """
        if not bool(batch.target.any(1).all()):
            rows = (~batch.target.any(1)).nonzero().flatten().tolist()
            raise DataError(f"rows {rows} have no target; give each request its new answer")
        model, layers = self.backbone.model, self.backbone.layers
        with undisturbed(model), record(layers, self._layers, stop=True) as states:
            model(**batch.inputs, use_cache=False)
        return self.signals_of(states, batch, requests)

    @lasting_tensors()
    def signals_of(
        self, states: Mapping[int, Tensor], batch: Batch, requests: Sequence[Query] = ()
    ) -> list[EditSignal]:
        """Return the edit signals that recorded states hold.

        Args:
            states: layer -> states of an unedited forward, [b, s, d].
            batch: what that forward read.
            requests: what each row asked for, if known.
        """
        layout = batch.layout
        carrying = self.adapters.carrying(batch)
        words = batch.following_words(self.encoder.tokenizer.eos_token_id)
        text_states = states[self.config.text_layer]
        pictures = vision_mean(text_states, layout.vision)
        texts = self.gate.said(text_states, layout)
        signals = []
        for row in range(batch.size):
            signals.append(
                EditSignal(
                    {
                        layer: state[row, carrying[row].to(state.device)]
                        for layer, state in states.items()
                    },
                    # Copies: a view would keep the states of every token.
                    text_states[row, layout.gate[row]].clone(),
                    text_states[row, layout.last[row]].clone(),
                    pictures[row].clone(),
                    texts[row].clone(),
                    words[row, carrying[row]],
                    requests[row] if requests else None,
                )
            )
        return signals

    def edited(
        self,
        edits: Sequence[EditSignal],
        *,
        assignment: Tensor | None = None,
        gate: Gate | GateConfig | None = None,
    ) -> EditedModel:
        """Return the model with edits applied; the model itself stays as it is.

        Args:
            edits: oldest first.
            assignment: the only edit that each row may use, long [b]; None lets the gate choose
                among all.
            gate: decides instead of the editor's own.

        Raises:
            ConfigError: if `gate` describes none.
            DataError: if one signal stands alone.
        """
        if isinstance(edits, EditSignal):
            raise DataError("the edit signal stands alone; give a list of signals")
        chosen = self.gate.with_config(gate)
        active = ActiveEdits.of(edits, self.adapters, chosen, assignment)
        return EditedModel(self.encoder, active)

    def open_gate(self) -> Gate:
        """Return a gate that always opens."""
        return self.gate.with_config(GateConfig(kind="open"))

    def edit(self, image: ShownLike | None, prompt: str, target: str) -> EditedModel:
        """Return the model that answers `prompt` about `image` with `target`.

        Args:
            image: a picture in any form that `Query` takes, several or a `Video` for models that
                take them, or None.
            prompt: the question.
            target: the new answer.

        Raises:
            DataError: if prompt or target is empty, or the picture cannot be read.
            CalibrationError: when it is called, if the gate has no threshold.
        """
        with torch.no_grad():
            return self.edited(self.read([Query(prompt, image, target)]))

    def save(self, folder: Path | str) -> None:
        """Write adapters, gate and configuration to a folder.

        Raises:
            ArchiveError: if the folder cannot be written.
        """
        fingerprint = ModelFingerprint.of(self.backbone)
        targets = self.training_targets
        Archive(self.config, fingerprint, self.state_dict(), targets).save(folder_of(folder))

    @classmethod
    def load(
        cls,
        model: nn.Module,
        processor: Any,
        folder: Path | str,
        *,
        gate: GateConfig | None = None,
    ) -> Self:
        """Return the editor saved in a folder.

        Args:
            model: the model that it was trained on, in any dtype.
            processor: the model's processor.
            folder: written by `save`; where there is none, a repository of the hub of this name.
            gate: to use instead of the saved one, all of it.

        Raises:
            ArchiveError: if the folder is missing or damaged, or belongs to another model.
        """
        folder = adapters_folder(folder)
        archive = Archive.load(folder)
        config = archive.config
        archive.require_model(Backbone.of(model, config.backbone), folder)
        if gate is not None:
            config = dataclasses.replace(config, gate=gate_from(gate))
        editor = cls(model, processor, config)
        editor.training_targets = archive.training_targets
        archive.fill(editor, folder)
        return editor

    def save_pretrained(
        self,
        save_directory: Path | str,
        *,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: Mapping[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write adapters, gate, configuration and, if there is none yet, a model card.

        The mixin's own removes what is there before it writes, so a full disk would lose it.

        Args:
            save_directory: the folder.
            repo_id: of the hub; the folder's name by default.
            push_to_hub: whether to push it there, too.
            model_card_kwargs: of `generate_model_card`.
            push_to_hub_kwargs: of `push_to_hub`.

        Returns:
            The address of the commit if it was pushed, else None.

        Raises:
            ArchiveError: if the adapters cannot be written.
            DataError: if the card cannot be written.
        """
        folder, about = Path(save_directory), dict(model_card_kwargs or {})
        self.save(folder)
        card = folder / "README.md"
        if not card.exists():
            write_text(card, str(self.generate_model_card(**about)))
        if not push_to_hub:
            return None
        options = {"model_card_kwargs": about, **push_to_hub_kwargs}
        return str(self.push_to_hub(repo_id or folder.name, **options))

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: Path | str,
        *,
        model: nn.Module,
        processor: Any,
        gate: GateConfig | None = None,
        **download: Any,
    ) -> Self:
        """Return the editor in a folder, or in a repository of the hub.

        The mixin's own would build a configuration from `config.json` before the archive can check
        the file.

        Args:
            pretrained_model_name_or_path: folder, or hub id.
            model: as in `load`.
            processor: as in `load`.
            gate: as in `load`.
            download: options of `huggingface_hub.snapshot_download`, such as revision and token.

        Raises:
            ArchiveError: if there are no adapters, they are damaged, or belong to another model.
        """
        folder = adapters_folder(pretrained_model_name_or_path, **download)
        return cls.load(model, processor, folder, gate=gate)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the card of these adapters: what they are, of which model, and how to use them."""
        base_model = str(getattr(self.backbone.model, "name_or_path", "") or "")
        values = card_values(self.config, architecture_of(self.backbone), base_model)
        return with_base_model(super().generate_model_card(*args, **values, **kwargs), base_model)
