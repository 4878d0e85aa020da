"""Which targets the adapters of a command were trained on, from wherever that is known."""

from collections.abc import Sequence
from pathlib import Path

from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.data.training_targets import TrainingTargets, targets_of
from easyedit_dualedit.measure.target_split import TargetSplit
from easyedit_dualedit.plugin.archives import training_targets_in


def split_of(
    records: Sequence[Record],
    *,
    archive: str | Path | None,
    file: Path | None = None,
    targets: Sequence[str] = (),
) -> TargetSplit | str:
    """Return which targets of records were seen in training, or why that is not known.

    Args:
        records: that are measured.
        archive: trained adapters, which may say what they were trained on.
        file: records of the training; counts before the adapters.
        targets: of what is trained on now; count where the adapters say nothing.

    Raises:
        DataError: if the file cannot be read, or a record in it is not as it must be.
    """
    if file is not None:
        trained = load_records(file, Path(), check_pictures=False, allow_outside=True)
        return _split(records, targets_of(trained), f"known from {file.name}")
    told = None if archive is None else training_targets_in(archive)
    if archive is not None and told is not None:
        return _split(records, told, f"known from the adapters in {_short(archive)}")
    if targets:
        return _split(records, targets, "known from the records trained on")
    if archive is None:
        return "there are no records of a training; give --training-records FILE"
    return (
        f"the adapters in {_short(archive)} do not say what they were trained on, as those of"
        " earlier versions; give --training-records FILE"
    )


def _split(records: Sequence[Record], targets: Sequence[str], source: str) -> TargetSplit:
    return TargetSplit.of(records, TrainingTargets.of(targets), source)


def _short(archive: str | Path) -> Path:
    """Return the end of a path, which is the same on every machine."""
    return Path(*Path(archive).parts[-2:])
