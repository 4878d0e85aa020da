"""A session on disk: its edits, what they are called, their pictures, and what was asked last."""

import io
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from easyedit_dualedit.app.trial import Trial
from easyedit_dualedit.files import write_bytes, write_json
from easyedit_dualedit.model.inputs import open_image
from easyedit_dualedit.storage.parsing import json_in, parsing

SESSION_FILE = "session.json"
PICTURES = "pictures"
FORMAT = 1

_TRIAL_PICTURES = ("asked", "other")


@dataclass(frozen=True)
class Label:
    """What the page knows of an edit, beyond the edit itself."""

    name: str = ""
    is_on: bool = True
    answer: str | None = None
    """What the edited model answered to the edit's own question when it was made."""


@dataclass(frozen=True)
class SessionFolder:
    """The folder of one session, beside the files of its edits."""

    path: Path

    def write(self, labels: Mapping[str, Label], trial: Trial) -> None:
        """Write what the edits are called, and what was asked last.

        Raises:
            DataError: if that cannot be written.
        """
        for name, picture in zip(
            _TRIAL_PICTURES, (trial.picture, trial.other_picture), strict=True
        ):
            self._write_picture(self.path / f"{name}.png", picture)
        edits = {identifier: asdict(label) for identifier, label in labels.items()}
        values = {"format": FORMAT, "edits": edits, "trial": trial.texts()}
        write_json(self.path / SESSION_FILE, values)

    def read(self) -> tuple[dict[str, Label], Trial]:
        """Return what `write` wrote; nothing where it wrote nothing.

        Raises:
            DataError: if the file is damaged.
        """
        path = self.path / SESSION_FILE
        if not path.is_file():
            return {}, Trial()
        remedy = "remove it; the edits beside it stay"
        values = json_in(path, remedy)
        with parsing(path, remedy):
            if values["format"] != FORMAT:
                raise ValueError(f"format {values['format']!r}; this version reads {FORMAT}")
            labels = {str(key): _label(value) for key, value in dict(values["edits"]).items()}
            texts = dict(values["trial"])
        shown = [self._picture(self.path / f"{name}.png") for name in _TRIAL_PICTURES]
        return labels, Trial.of(texts, *shown)

    def picture_of(self, identifier: str) -> Path | None:
        """Return the file with the picture of an edit, if it has one."""
        return self._picture(self.path / PICTURES / f"{identifier}.png")

    def keep_picture(self, identifier: str, picture: Image.Image | Path | None) -> None:
        """Write the picture of an edit.

        Raises:
            DataError: if it cannot be read or written.
        """
        shown = None if picture is None else open_image(picture)
        self._write_picture(self.path / PICTURES / f"{identifier}.png", shown)

    def drop_pictures(self, identifiers: Iterable[str]) -> None:
        """Remove the pictures of edits."""
        for identifier in identifiers:
            (self.path / PICTURES / f"{identifier}.png").unlink(missing_ok=True)

    @staticmethod
    def _picture(path: Path) -> Path | None:
        return path if path.is_file() else None

    @staticmethod
    def _write_picture(path: Path, picture: Image.Image | None) -> None:
        if picture is None:
            path.unlink(missing_ok=True)
            return
        content = io.BytesIO()
        picture.save(content, "PNG")
        write_bytes(path, content.getvalue())


def _label(values: Mapping[str, object]) -> Label:
    name, is_on, answer = values["name"], values["is_on"], values["answer"]
    if not isinstance(name, str) or not isinstance(is_on, bool):
        raise ValueError("the name of an edit is text, and it is on or off")
    if answer is not None and not isinstance(answer, str):
        raise ValueError("the answer of an edit is text")
    return Label(name, is_on, answer)
