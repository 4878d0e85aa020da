"""What a training finds in its output folder: what it must not write over, and what goes."""

from pathlib import Path

from easyedit_dualedit.errors import ArchiveError, ConfigError

CURVES_FOLDER = "curves"
"""In the folder of the adapters: what was measured during their training."""
CHECKPOINT_FILE = "training.pt"
"""In the folder of the adapters until they are done: what a stopped training goes on from."""


def require_elsewhere(archive: str | None, output: Path) -> None:
    """Refuse adapters that the training would write over, or remove, before they are trained.

    Raises:
        ConfigError: saying where they lie.
    """
    from easyedit_dualedit.train.watch import BEST_FOLDER, LAST_FOLDER

    begun = None if archive is None else Path(archive).expanduser().resolve()
    for name in (BEST_FOLDER, LAST_FOLDER):
        if begun == (output / name).resolve():
            raise ConfigError(
                f"--archive {archive} lies in --output {output}, which keeps {name} adapters of its"
                " own there; give another output"
            )


def forget(output: Path) -> None:
    """Remove what an earlier training left in its folder beside the adapters."""
    from easyedit_dualedit.method.archive import CONFIG_FILE, WEIGHTS_FILE
    from easyedit_dualedit.train.watch import BEST_FOLDER, LAST_FOLDER

    (output / CHECKPOINT_FILE).unlink(missing_ok=True)
    for name in (BEST_FOLDER, LAST_FOLDER):
        for file in (CONFIG_FILE, WEIGHTS_FILE):
            (output / name / file).unlink(missing_ok=True)
    for path in (output / CURVES_FOLDER).glob("curves.*"):
        path.unlink()


def require_unfinished(output: Path, archive: str | Path | None) -> None:
    """Check that a training into a folder replaces no adapters but those that it trains further.

    Raises:
        ArchiveError: if it would.
    """
    from easyedit_dualedit.method.archive import WEIGHTS_FILE

    is_done = (output / WEIGHTS_FILE).exists() and not (output / CHECKPOINT_FILE).exists()
    is_further = archive is not None and Path(archive).resolve() == output.resolve()
    if is_done and not is_further:
        raise ArchiveError(
            f"{output} holds trained adapters already; choose another --output, give --fresh to"
            f" train anew in their place, or --archive {output} to train them further"
        )
