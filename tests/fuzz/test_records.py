"""Files of records and pictures: understood, or told in one line."""

import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given
from nasty import JSONS, Outcome, mutated, replaced, seeds
from PIL import Image
from tiny_data import write_data

from easyedit_dualedit.data.picture_files import PictureFiles
from easyedit_dualedit.data.records import load_records
from easyedit_dualedit.files import read_json
from easyedit_dualedit.model.inputs import open_image
from easyedit_dualedit.model.pictures import picture_of


def test_records(fuzzing: Any, answered: Callable[[Callable[[], Any]], Outcome], tmp_path: Path):
    write_data(tmp_path)
    items = json.loads((tmp_path / "data.json").read_text(encoding="utf-8"))[:3]
    before = {path.name for path in tmp_path.iterdir()}

    @fuzzing("records")
    @given(seeds)
    def holds(seed: int) -> None:
        source = random.Random(seed)
        if source.random() < 0.15:
            content = source.choice(JSONS)
        else:
            text = json.dumps(replaced(items, seed))
            content = text.encode("utf-8", "surrogatepass")
            if source.random() < 0.3:
                content = mutated(content, seed)
        path = tmp_path / "data.json"
        path.write_bytes(content)
        outcome = answered(lambda: load_records(path, tmp_path))
        if outcome.value is not None:
            for record in outcome.value:
                assert all(query.prompt is not None and query.target for query in record.queries)
                assert all(tmp_path in path.parents for path in pictures_of(record))
            answered(lambda: PictureFiles.opened(outcome.value, progress=False))
        answered(lambda: read_json(path))

    holds()
    assert {path.name for path in tmp_path.iterdir()} == before


def pictures_of(record: Any) -> list[Path]:
    return [path for query in record.queries for path in query.pictures]


def chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def bomb() -> bytes:
    """A PNG whose text takes 100 MB once it is unpacked."""
    packed = zlib.compress(b"a" * 100_000_000, 9)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"zTXt", b"k\0\0" + packed) + chunk(b"IEND", b"")


def pictures() -> list[bytes]:
    contents = []
    image = Image.new("RGB", (20, 16), "red")
    for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO", "PCX"):
        buffer = io.BytesIO()
        image.save(buffer, form)
        contents.append(buffer.getvalue())
    xpm = b'/* XPM */\nstatic char *a[] = {\n"2 2 1 1",\n"a c #FF0000",\n"aa",\n"aa"\n};\n'
    wmf = b"\xd7\xcd\xc6\x9a" + bytes(40)
    huge = b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    )
    others = (
        b"%!PS-Adobe\n",
        b"II*\0",
        b"GIF89a",
        b"RIFF\0\0\0\0WEBP",
        b"\0\0\1\0",
        b"",
        b"\0" * 99,
    )
    return [*contents, xpm, wmf, bomb(), huge, *others]


def test_pictures(fuzzing: Any, answered: Callable[[Callable[[], Any]], Outcome], tmp_path: Path):
    contents = pictures()

    @fuzzing("pictures")
    @given(seeds)
    def holds(seed: int) -> None:
        source = random.Random(seed)
        content = source.choice(contents)
        if source.random() < 0.8:
            content = mutated(content[:5000], seed)
        path = tmp_path / "picture"
        path.write_bytes(content)
        outcome = answered(lambda: open_image(path))
        assert outcome.error is not None or outcome.value.mode == "RGB"
        answered(lambda: open_image(picture_of(content)))

    holds()
    assert [path.name for path in tmp_path.iterdir()] == ["picture"]
