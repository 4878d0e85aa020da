"""The records that a benchmark measures and trains on, and what is told about them."""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easyedit_dualedit.commands.records import name_of, own_records, require_no_template
from easyedit_dualedit.data.leak_audit import Audit, audit
from easyedit_dualedit.data.picture_files import PictureFiles
from easyedit_dualedit.data.records import Record, load_records, problems_of
from easyedit_dualedit.data.stand_ins import draw_stand_ins, picture_names
from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.measure.close_queries import CloseQueries, close_queries
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.families import BackboneConfig
from easyedit_dualedit.train.checkpoint import records_digest

logger = logging.getLogger(__name__)

_OWN_COUNT = 200


@dataclass(frozen=True)
class BenchmarkData:
    """Records with the files that they are of."""

    evaluated: Sequence[Record]
    training: Sequence[Record]
    images: Path
    """Folder of their pictures."""
    evaluated_file: Path | None = None
    """None is a model's own."""
    training_file: Path | None = None
    own: str = "testbed"
    """Model that records without a file belong to."""

    @property
    def name(self) -> str:
        """What the measured records are called."""
        return f"{self.own}, eval" if self.evaluated_file is None else self.evaluated_file.name

    def described(self) -> dict[str, Any]:
        """Return name, number and digest of the records measured and of those trained on."""
        trained = f"{self.own}, train" if self.training_file is None else self.training_file.name
        return {
            "evaluated": _described(self.evaluated, self.name),
            "trained_on": _described(self.training, trained) if self.training else None,
        }

    def audit(self) -> Audit | None:
        """Return the leak audit of the whole files, however few of their records are used.

        Bad records, which are among those that are not used, are left out.

        None if nothing is trained on.
        """
        if not self.training:
            return None
        if self.evaluated_file is None or self.training_file is None:
            return audit(self.evaluated, self.training)
        return audit(*map(self._whole, (self.evaluated_file, self.training_file)))

    def _whole(self, path: Path) -> list[Record]:
        problems = problems_of(path, self.images, check_pictures=False)
        if problems:
            logger.warning("the leak audit leaves out bad records of %s: %s", path, problems[0])
        return load_records(
            path, self.images, check_pictures=False, allow_outside=True, leave_out_bad=True
        )

    def close_queries(
        self,
        load: Any,
        backbone: BackboneConfig | None,
        folder: Path,
        *,
        pictures: PictureFiles,
        model: Mapping[str, Any],
    ) -> CloseQueries:
        """Return the queries of specificity by the index of their record.

        They are kept in the run's folder: its shards draw them together, and a run that goes on
        draws none again and needs no model for them.

        Args:
            load: returns a fresh model and its processor.
            backbone: what a user said of the model.
            folder: of the run.
            pictures: of the records, opened.
            model: plain values that tell the model from others.
        """
        others = self.training or self.evaluated
        drawn_from = [
            *(records_digest(part) for part in (self.evaluated, others)),
            *(pictures.digest_of(part) for part in (self.evaluated, others)),
            json.dumps(model, sort_keys=True),
        ]

        def encoder() -> Encoder:
            model, processor = load()
            return Encoder(Backbone.of(model, backbone), processor)

        return close_queries(self.evaluated, others, folder, encoder, drawn_from=drawn_from)


def read_data(arguments: argparse.Namespace, model: str, folder: Path) -> BenchmarkData:
    """Return the records of --data and --train, or a model's own.

    Raises:
        ConfigError: if the arguments do not go together.
        DataError: if a record is not as it must be.
    """
    if arguments.data is None:
        if arguments.images is not None or arguments.train is not None or arguments.stand_ins:
            raise ConfigError("--images, --train and --stand-ins need --data")
        require_no_template(arguments)
        training = own_records(model, folder, "train")[: arguments.train_limit]
        evaluated = own_records(model, folder, "eval")[: arguments.limit or _OWN_COUNT]
        images = evaluated[0].folder or folder / "images"
        return BenchmarkData(evaluated, training, images, own=name_of(model) or "")
    if arguments.train is None and arguments.train_limit is not None:
        raise ConfigError("--train-limit goes with --train; give both, or leave it out")
    files = [path for path in (arguments.data, arguments.train) if path is not None]
    images = arguments.images
    if images is not None and arguments.stand_ins:
        raise ConfigError("--images gives the pictures that --stand-ins draws; give one of them")
    if arguments.stand_ins:
        images = folder / "stand-ins"
        limits = (arguments.limit, arguments.train_limit)
        for path, limit in zip(files, limits, strict=False):
            draw_stand_ins(picture_names(path, limit=limit), images)
    if images is None:
        raise ConfigError("--data needs --images, or --stand-ins to try it without the pictures")
    template, outside = arguments.template, arguments.allow_outside
    evaluated = load_records(
        arguments.data, images, template=template, limit=arguments.limit, allow_outside=outside
    )
    training = []
    if arguments.train is not None:
        training = load_records(
            arguments.train,
            images,
            template=template,
            limit=arguments.train_limit,
            allow_outside=outside,
        )
    return BenchmarkData(evaluated, training, images, arguments.data, arguments.train)


def _described(records: Sequence[Record], name: str) -> dict[str, Any]:
    return {"name": name, "records": len(records), "digest": records_digest(records)}
