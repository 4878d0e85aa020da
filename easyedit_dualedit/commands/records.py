"""Records that commands edit, train on and measure: those of --data, or a model's own."""

import argparse
from pathlib import Path

from easyedit_dualedit import testbed
from easyedit_dualedit.commands.arguments import PLAIN_TEMPLATE
from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.plugin.values import EMOJI, TESTBED
from easyedit_dualedit.testbed.emoji import places
from easyedit_dualedit.testbed.world import Split


def records_of(
    arguments: argparse.Namespace, model: str, folder: Path, split: Split
) -> list[Record]:
    """Return the records of --data, or a model's own.

    Raises:
        ConfigError: if --data and --images do not go together, or the model has none of its own.
        DataError: if a record is not as it must be.
    """
    if (arguments.data is None) != (arguments.images is None):
        raise ConfigError("--data and --images go together; give both, or neither for the testbed")
    if arguments.data is None:
        require_no_template(arguments)
        if arguments.allow_outside:
            raise ConfigError("--allow-outside goes with --data; leave it out")
        # Drawn whole and then cut, so that the same folder serves every --limit.
        return own_records(model, folder, split)[: arguments.limit]
    return load_records(
        arguments.data,
        arguments.images,
        template=arguments.template,
        allow_outside=arguments.allow_outside,
        limit=arguments.limit,
    )


def require_no_template(arguments: argparse.Namespace) -> None:
    """Refuse --template without --data.

    Raises:
        ConfigError: if it is given.
    """
    if arguments.template != PLAIN_TEMPLATE:
        raise ConfigError(
            f"--template {arguments.template!r} goes with --data: the model's own records are"
            " asked as they were taught; leave it out"
        )


def own_records(model: str, folder: Path, split: Split, count: int | None = None) -> list[Record]:
    """Return records about what a model of ours knows, drawing them the first time.

    Args:
        model: as hyperparameters name it.
        folder: that the testbed's are written to; those of the emoji model lie in the user's cache.
        split: to train on, or to evaluate.
        count: of the records; None is the default of their model.

    Raises:
        ConfigError: if it is another model.
        DataError: if they cannot be drawn.
    """
    if name_of(model) == EMOJI:
        return _emoji_records(split, count)
    require_own(model)
    return testbed_records(folder, split, count)


def testbed_records(folder: Path, split: Split, count: int | None = None) -> list[Record]:
    """Return records of the testbed, writing their file and pictures the first time."""
    path = testbed.write_records(folder, "vqa", split, count)
    return load_records(path, folder / "images")


def is_testbed(model: str) -> bool:
    """Return whether a model is the testbed's, by its name in hyperparameters or its folder."""
    return model in (TESTBED, str(testbed.model_folder()))


def name_of(model: str) -> str | None:
    """Return the name of a model that has records of its own, or None."""
    if is_testbed(model):
        return TESTBED
    # Wherever it lies: `make` writes it to any folder.
    return EMOJI if Path(model).name in (EMOJI, places.model_folder().name) else None


def require_own(model: str) -> None:
    """Refuse a model that has no records of its own.

    Raises:
        ConfigError: if it has none.
    """
    if name_of(model) is None:
        raise ConfigError(
            f"the testbed's records say nothing about {model}; give --data and --images"
        )


def _emoji_records(split: Split, count: int | None) -> list[Record]:
    from easyedit_dualedit.testbed.emoji.records import DEFAULT_COUNTS, write_records

    count = count or DEFAULT_COUNTS[split]
    folder = places.records_folder()
    path = write_records(folder, split, count, name=f"{split}-{count}")
    return load_records(path, folder / "images")
