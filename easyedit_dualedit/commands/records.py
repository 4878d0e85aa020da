"""Records that commands edit, train on and measure: those of --data, or the testbed's."""

import argparse
from pathlib import Path

from easyedit_dualedit import testbed
from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.plugin.values import TESTBED
from easyedit_dualedit.testbed.world import Split


def records_of(
    arguments: argparse.Namespace, model: str, folder: Path, split: Split
) -> list[Record]:
    """Return the records of --data, or those of the testbed for its own model.

    Raises:
        ConfigError: if --data and --images do not go together, or the model is another one.
        DataError: if a record is not as it must be.
    """
    if (arguments.data is None) != (arguments.images is None):
        raise ConfigError("--data and --images go together; give both, or neither for the testbed")
    if arguments.data is None:
        require_testbed(model)
        # Drawn whole and then cut, so that the same folder serves every --limit.
        return testbed_records(folder, split)[: arguments.limit]
    return load_records(
        arguments.data, arguments.images, template=arguments.template, limit=arguments.limit
    )


def testbed_records(folder: Path, split: Split, count: int | None = None) -> list[Record]:
    """Return records of the testbed, writing their file and pictures the first time."""
    path = testbed.write_records(folder, "vqa", split, count)
    return load_records(path, folder / "images")


def is_testbed(model: str) -> bool:
    """Return whether a model is the testbed's, by its name in hyperparameters or its folder."""
    return model in (TESTBED, str(testbed.model_folder()))


def require_testbed(model: str) -> None:
    """Refuse a model that the testbed's records say nothing about.

    Raises:
        ConfigError: if it is not the testbed's.
    """
    if not is_testbed(model):
        raise ConfigError(
            f"the testbed's records say nothing about {model}; give --data and --images"
        )
