"""What a run of the benchmark measures, and on what."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.experiments.benchmark_folder import slug
from easyedit_dualedit.measure.contender import Contender
from easyedit_dualedit.measure.protocols import ProtocolName
from easyedit_dualedit.measure.questions import Questions
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.families import BackboneConfig, answers_joined
from easyedit_dualedit.model.inputs import Query


@dataclass(frozen=True)
class Plan:
    """What is measured, on what."""

    model: str
    load: Callable[[], tuple[Any, Any]]
    """Returns a fresh model and its processor."""
    evaluated: Sequence[Record]
    protocols: Sequence[ProtocolName]
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
    shown: Mapping[int, str] | None = None
    """Digest of the pictures that a record's case shows, by its index; see `Run`."""
    shard: tuple[int, int] = (0, 1)
    """Which of how many parts of the records this process takes."""

    @property
    def share(self) -> list[Record]:
        """The records of this process's shard."""
        place, count = self.shard
        return [record for record in self.evaluated if record.index % count == place]

    @property
    def joined(self) -> bool:
        """Whether nothing stands between a prompt and its answer, as EasyEdit scores it.

        Of a run with this protocol it holds for all: an edit is made once, and says one of the two.
        """
        return "easyedit" in self.protocols

    def encoder(self, model: Any, processor: Any) -> Encoder:
        """Return what encodes the questions for a model that `load` has returned."""
        given = self.backbone or BackboneConfig()
        known = answers_joined(given, model.config) if self.joined else given
        return Encoder(Backbone.of(model, known), processor)

    def questions(self, record: Record) -> Questions:
        """Return what is asked about a record."""
        return Questions.of(record, self.protocols, self.close.get(record.index))

    def settings_of(self, contender: Contender) -> dict[str, Any]:
        """Return what decides the results of a method, as plain values."""
        return {
            "name": contender.name,
            "identity": dict(contender.identity),
            "settings": dict(self.settings.get(slug(contender.name), {})),
        }
