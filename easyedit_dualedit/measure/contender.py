"""What the benchmark asks of an editing method: make an edit, be asked, undo it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.method.edited_model import EditedModel
from easyedit_dualedit.method.gate import Routing
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.families import BackboneConfig, answers_joined
from easyedit_dualedit.model.inputs import Query


def _as_asked(query: Query) -> Query:
    return query


def _any_settings(model: str, settings: Mapping[str, Any]) -> None:
    """Accept them; making the method tells what is wrong with one."""


@dataclass(frozen=True)
class Edited:
    """A model while one edit is in force."""

    model: Any
    """Called with a model's inputs as keywords, it returns logits [b, s, v] or an output that has
    them; its `generate` is that of transformers."""
    stored_bytes: int
    """What has to be kept of the edit beside the unedited model."""
    asked: Callable[[Query], Query] = _as_asked
    """Turns a question into what the method puts to the model; most leave it as it is."""
    watched: Callable[[], tuple[Any, list[Routing]]] | None = None
    """Returns the model and a list to which every decision of its gate is added while it is called;
    None if the method has no gate."""
    reads_layout: bool = False
    """Whether the model takes the `layout` of a batch beside its inputs."""

    @classmethod
    def by_dualedit(cls, model: EditedModel, stored_bytes: int = 0) -> "Edited":
        """Return DualEdit's edited model, which has a gate and reads the layout of a batch."""
        return cls(
            model,
            stored_bytes,
            watched=model.watched,
            reads_layout=True,
        )


class Method(Protocol):
    """An editing method, ready to make edits on the model that it was made for."""

    trained_parameters: int
    """Parameters that are trained before the first edit or, without such a training, by an edit."""

    def edit(self, record: Record) -> AbstractContextManager[Edited]:
        """Return a context within which the edit of a record is in force.

        After it the model is as it was before.
        """


@dataclass(frozen=True)
class Bench:
    """What a method is made from."""

    model: str
    """Folder or hub id of the vision-language model."""
    load: Callable[[], tuple[Any, Any]]
    """Returns a fresh model, in evaluation mode, and its processor; what a method does to them
    reaches no other method."""
    device: str
    folder: Path
    """For what the method trains and writes; what is complete there is used again."""
    training: Sequence[Record] = ()
    """Records to train on; none if there is nothing to train on."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Hyperparameters given for this method, instead of its defaults."""
    seed: int = 0
    progress: bool = True
    backbone: BackboneConfig | None = None
    """What a user said of the model."""
    joined: bool = False
    """Whether nothing stands between a prompt and its answer; see `answers_joined`."""

    def backbone_of(self, model: Any, given: BackboneConfig | None = None) -> Backbone:
        """Return the parts of a model that `load` has returned.

        Args:
            model: the model.
            given: what is known of it from elsewhere, instead of what the user said.
        """
        known = given or self.backbone or BackboneConfig()
        return Backbone.of(model, answers_joined(known, model.config) if self.joined else known)


@dataclass(frozen=True)
class Contender:
    """A row of the benchmark: a name and how to make the method."""

    name: str
    make: Callable[[Bench], Method]
    """May raise anything; the row then says why."""
    check: Callable[[str, Mapping[str, Any]], object] = _any_settings
    """Called with a model's folder or hub id and the settings given for the method, it raises
    `ConfigError` for those that it cannot take; no model is loaded for it."""
    reads_label: bool = False
    """Whether the method looks at the answer of the query that it is measured on."""
    shares: str | None = None
    """Name of what it trains together with other rows, if it does."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """Plain values that decide its results besides the settings given for it."""
    remarks: tuple[str, ...] = ()
    """What was done to run it that its authors did not do; each becomes a line of the report."""
    space: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Hyperparameter -> values that may be tried in search of the best; the first of each is the
    one that the method comes with."""
