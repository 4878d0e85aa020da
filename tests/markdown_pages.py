"""The pages of README and docs, as their tests read them: links, headings, code."""

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GUIDE = sorted((ROOT / "docs" / "guide").glob("*.md"))
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

_FENCE = re.compile(r"^```(\w*)\s*$")
_MARKER = re.compile(r"^<!--\s*(.*?)\s*-->$")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_INLINE = re.compile(r"`([^`]+)`")
_ASSIGNMENT = re.compile(r"^[A-Z_]+=")


@dataclass(frozen=True)
class Block:
    """A block of code."""

    page: Path
    line: int
    """Of its first line of code, from 1."""
    language: str
    text: str
    marker: str
    """What an HTML comment just above it says; empty without one."""

    @property
    def place(self) -> str:
        """Page and line, for messages and test ids."""
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: Path) -> str:
    """Return a page's path below the root."""
    return page.relative_to(ROOT).as_posix()


@cache
def blocks_of(page: Path) -> tuple[Block, ...]:
    """Return the blocks of code of a page, in order."""
    blocks: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    begun: int | None = None
    language = marker = ""
    for number, line in enumerate(lines, 1):
        fence = _FENCE.match(line)
        if begun is None and fence:
            begun, language = number + 1, fence[1]
            above = _MARKER.match(lines[number - 2]) if number > 1 else None
            marker = above[1] if above else ""
        elif begun is not None and fence:
            text = "\n".join(lines[begun - 1 : number - 1]) + "\n"
            blocks.append(Block(page, begun, language, text, marker))
            begun = None
    assert begun is None, f"{name_of(page)}:{begun}: a block of code that does not end"
    return tuple(blocks)


@cache
def prose_of(page: Path) -> str:
    """Return a page without its blocks of code."""
    kept, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        if _FENCE.match(line):
            inside = not inside
        elif not inside:
            kept.append(line)
    return "\n".join(kept)


def links_of(page: Path) -> list[str]:
    """Return where a page's links and pictures lead."""
    return _LINK.findall(prose_of(page))


@cache
def anchors_of(page: Path) -> frozenset[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    anchors: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.*)$", prose_of(page), re.M):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        count = sum(other == slug or other.startswith(f"{slug}-") for other in anchors)
        anchors.add(f"{slug}-{count}" if slug in anchors else slug)
    return frozenset(anchors)


def inline_code_of(page: Path) -> list[str]:
    """Return what stands in backticks in a page's prose, each on one line."""
    return [" ".join(code.split()) for code in _INLINE.findall(prose_of(page))]


def commands_of(page: Path) -> list[list[str]]:
    """Return the words of every shell command of a page, without variables set for it.

    Those of blocks, and those in backticks that begin with `python` or a variable.
    """
    lines = [code for code in inline_code_of(page) if re.match(r"([A-Z_]+=\S+ )*python ", code)]
    for block in blocks_of(page):
        if block.language == "bash":
            lines += block.text.replace("\\\n", " ").splitlines()
    commands = []
    for line in lines:
        words = shlex.split(line, comments=True)
        while words and _ASSIGNMENT.match(words[0]):
            words.pop(0)
        if words:
            commands.append(words)
    return commands
