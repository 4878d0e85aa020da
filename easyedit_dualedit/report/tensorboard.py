"""The curves of a training as TensorBoard reads them."""

from pathlib import Path
from typing import Any

from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.train.curves import Line, flat


class TensorBoard:
    """Writes every number of a line as a scalar, named by its part and its way."""

    def __init__(self, folder: Path):
        """Write nothing yet.

        Args:
            folder: of TensorBoard's files.

        Raises:
            ConfigError: if tensorboard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "--log tensorboard needs the package tensorboard; pip install tensorboard, or leave"
                " --log out: curves are written as JSON, CSV and PNG all the same"
            ) from error
        self._make: Any = SummaryWriter
        self._folder = folder
        self._writer: Any = None

    def __call__(self, line: Line) -> None:
        """Write the numbers of a line."""
        if self._writer is None:
            # What a killed process wrote after its last checkpoint comes again.
            self._writer = self._make(str(self._folder), purge_step=line["step"])
        for name, value in flat(line).items():
            if isinstance(value, int | float) and name not in ("step", "is_best"):
                self._writer.add_scalar(f"{line['part']}/{name}", value, line["step"])
        self._writer.flush()
