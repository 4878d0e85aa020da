"""Tensors in one file and what they mean in a JSON file beside it, which change as one.

The tensors' file also holds what the JSON file says. It is renamed first, and that is the moment of
the change: a reader that finds the JSON of another moment, since the writer is between its two
files or was killed there, goes by what the tensors' own file says. So a reader sees the old whole
or the new whole at any moment, without a lock.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from easyedit_dualedit.errors import ArchiveError, LockError
from easyedit_dualedit.storage.folder_lock import LOCK_FILE, locked
from easyedit_dualedit.storage.parsing import json_in, parsing
from easyedit_dualedit.storage.tensor_check import digest_of_tensors

_SAVING = ".saving-"
_MODE = 0o644
_LENGTH = 8
"""Bytes at the beginning of a file of tensors, which say how long its header is."""


@dataclass(frozen=True)
class DescribedTensors:
    """One sort of such a pair of files."""

    what: str
    """What is kept, such as "adapters"."""
    how: str
    """How it is kept, such as "saved"."""
    described: str
    """Name of the JSON file."""
    numbers: str
    """Name of the file of tensors."""
    digest: str
    """Key of the tensors' digest in the JSON file."""
    digest_length: int
    missing: str
    """What to do where there are none."""
    remedy: str
    """What to do where they are damaged."""
    may_lack_digest: bool = False
    """Whether earlier versions wrote no digest."""

    def write(
        self, folder: Path, values: Mapping[str, Any], tensors: Mapping[str, Tensor], **style: Any
    ) -> None:
        """Put a new pair in place of the old one, if there is one; both or neither.

        Args:
            folder: made if it is not there.
            values: plain ones, for the JSON file.
            tensors: for the other.
            style: of the JSON, as `json.dumps` takes it.

        Raises:
            ArchiveError: if the folder cannot be written.
            LockError: if another process keeps it locked.
        """
        description = json.dumps(values, **style)
        metadata = {
            "method": "DualEdit",
            "description": description,
            "content": _content(description, tensors),
        }
        try:
            with locked(folder):
                _clear(folder)
                with tempfile.TemporaryDirectory(dir=folder, prefix=_SAVING) as temporary:
                    numbers = Path(temporary, self.numbers)
                    described = Path(temporary, self.described)
                    save_file(dict(tensors), numbers, metadata=metadata)
                    _sort_metadata(numbers)
                    values = {**values, self.digest: self._digest(numbers.read_bytes())}
                    text = json.dumps(values, **style) + "\n"
                    described.write_text(text, encoding="utf-8")
                    for path in (numbers, described):
                        os.chmod(path, _MODE)
                    replace_both(folder, numbers, described, Path(temporary, "old"))
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ArchiveError(f"cannot save {self.what} in {folder}: {reason}") from error

    def read(self, folder: Path) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
        """Return the values and the tensors in a folder, which belong together.

        What a killed writer left behind is put in order, unless somebody else is writing.

        Raises:
            ArchiveError: if a file is missing, or damaged, or belongs to other tensors.
        """
        values, content = self._described(folder), self._numbers(folder)
        path = folder / self.numbers
        is_of_now = self._is_of(values, content)
        if not is_of_now:
            own = _own_description(content)
            if own is None:
                raise ArchiveError(
                    f"{path} is damaged or not the one that {self.described} describes (its digest"
                    f" is not the one in {self.described}); {self.remedy}"
                )
            values = own
        with parsing(path, self.remedy, ArchiveError):
            tensors = load(content)
        if not is_of_now and _content(json.dumps(values), tensors) != _metadata(content)["content"]:
            raise ArchiveError(f"{path} is damaged (its digest is another); {self.remedy}")
        if not is_of_now or any(folder.glob(f"{_SAVING}*")):
            self._put_in_order(folder)
        elif (folder / LOCK_FILE).exists():
            # A writer that was killed when all was saved left it; held and given back, it goes.
            with contextlib.suppress(OSError, LockError), locked(folder, patience=0.0):
                pass
        return values, tensors

    def _described(self, folder: Path) -> dict[str, Any]:
        path = folder / self.described
        for name in (self.described, self.numbers):
            with parsing(folder / name, self.remedy, ArchiveError):
                if not (folder / name).is_file():
                    raise ArchiveError(
                        f"no {self.how} {self.what} in {folder}: {name} is missing{self.missing}"
                    )
        values = json_in(path, self.remedy, ArchiveError)
        if not isinstance(values, dict):
            raise ArchiveError(f"{path} is damaged (it holds no object); {self.remedy}")
        if not isinstance(values.get(self.digest, "" if self.may_lack_digest else None), str):
            raise ArchiveError(f"{path} is damaged (it has no {self.digest}); {self.remedy}")
        return values

    def _numbers(self, folder: Path) -> bytes:
        with parsing(folder / self.numbers, self.remedy, ArchiveError):
            return (folder / self.numbers).read_bytes()

    def _is_of(self, values: Mapping[str, Any], content: bytes) -> bool:
        """Return whether a description is that of these tensors."""
        return bool(values.get(self.digest, self._digest(content)) == self._digest(content))

    def _digest(self, content: bytes) -> str:
        return hashlib.sha256(content).hexdigest()[: self.digest_length]

    def _put_in_order(self, folder: Path) -> None:
        """Remove what killed writers left, and write a description that is not of the tensors."""
        with contextlib.suppress(OSError, LockError), locked(folder, patience=0.0):
            _clear(folder)
            content = self._numbers(folder)
            own = _own_description(content)
            if own is None or self._is_of(self._described(folder), content):
                return
            text = json.dumps({**own, self.digest: self._digest(content)}, indent=1) + "\n"
            with tempfile.TemporaryDirectory(dir=folder, prefix=_SAVING) as temporary:
                described = Path(temporary, self.described)
                described.write_text(text, encoding="utf-8")
                os.chmod(described, _MODE)
                os.replace(described, folder / self.described)


def _content(description: str, tensors: Mapping[str, Tensor]) -> str:
    # The same for the same values, however their JSON is written.
    return digest_of_tensors(tensors, json.dumps(json.loads(description)))


def _own_description(content: bytes) -> dict[str, Any] | None:
    """Return what a file of tensors says about itself; None if it says nothing."""
    try:
        values = json.loads(_metadata(content)["description"])
    except (LookupError, ValueError, TypeError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _metadata(content: bytes) -> dict[str, str]:
    length = int.from_bytes(content[:_LENGTH], "little")
    return dict(json.loads(content[_LENGTH : _LENGTH + length])["__metadata__"])


def _sort_metadata(path: Path) -> None:
    """Sort what a file of tensors says: safetensors writes it in any order, so that the same
    tensors made other bytes each time."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:
            file.seek(_LENGTH)
            file.write(text.ljust(length))  # spaces at the end, as safetensors has them


def _clear(folder: Path) -> None:
    for left in folder.glob(f"{_SAVING}*"):
        shutil.rmtree(left, ignore_errors=True)


def replace_both(folder: Path, first: Path, second: Path, old: Path) -> None:
    """Put two new files in place in a folder, under their own names.

    Args:
        folder: where to.
        first: new file, replaced first; if the second fails, the old one comes back.
        second: new file that tells a reader whether it belongs to the first.
        old: where the old first file is kept meanwhile.

    Raises:
        OSError: if a file cannot be replaced.
    """
    target = folder / first.name
    had_first = target.is_file()
    if had_first:
        _link(target, old)
    os.replace(first, target)
    try:
        os.replace(second, folder / second.name)
    except OSError:
        if had_first:
            old.rename(target)
        else:
            target.unlink()
        raise


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # file systems without hard links
        shutil.copy2(source, target)
