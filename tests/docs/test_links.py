"""Links and anchors resolve, and commands, options and files that pages name exist."""

import argparse
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from markdown_pages import (
    PAGES,
    README,
    ROOT,
    anchors_of,
    blocks_of,
    commands_of,
    inline_code_of,
    links_of,
    name_of,
    prose_of,
)

from easyedit_dualedit.commands.parser import build_parser

SCRIPT = "run_multimodal_edit.py"
DEFAULT_COMMAND = "demo"
TRAINING = ("train", "locate", "ablate", "benchmark")
"""Commands whose `--hparams` are those of a training."""

PACKAGE = ROOT / "easyedit_dualedit"
EASYEDITS_CLASSES = ("MultimodalEditor", "MultimodalTrainer")

every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def parsers_in(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command that a parser has."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= action.choices
    return found


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Return the options of a command, those of commands below it included."""
    below = [options_of(each) for each in parsers_in(parser).values()]
    return set(parser._option_string_actions).union(*below)


def arguments_of(words: list[str]) -> list[str] | None:
    """Return the arguments that a shell command gives to the command line; None for others."""
    if SCRIPT in words:
        arguments = words[words.index(SCRIPT) + 1 :]
    elif words[:3] == ["python", "-m", "easyedit_dualedit"] and words[3:4] != ["run"]:
        arguments = words[3:]
    else:
        return None
    is_option = not arguments or arguments[0].startswith("-")
    return [DEFAULT_COMMAND, *arguments] if is_option else arguments


def parsed(arguments: list[str]) -> argparse.Namespace:
    """Return what the real parser makes of arguments."""
    try:
        return build_parser().parse_args(arguments)
    except SystemExit:
        pytest.fail(f"the command line refuses: {' '.join(arguments)}")


@every_page
def test_links_lead_somewhere(page: Path):
    lost = []
    for link in links_of(page):
        if re.match(r"https?://", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        is_lost = not target.is_relative_to(ROOT) or not target.exists()
        if not is_lost and anchor:
            is_lost = target.suffix != ".md" or anchor not in anchors_of(target)
        if is_lost:
            lost.append(link)
    assert not lost, f"{name_of(page)} links to what is not there: {lost}"


@every_page
def test_commands_are_understood(page: Path):
    for words in commands_of(page):
        arguments = arguments_of(words)
        if arguments is None:
            continue
        given = parsed(arguments)
        hparams = getattr(given, "hparams", None)
        if hparams is not None:
            folder = "TRAINING/DualEdit" if given.command in TRAINING else "DualEdit"
            short = ROOT / "hparams" / folder / f"{hparams}.yaml"
            assert short.is_file() or (ROOT / hparams).is_file(), f"no {hparams} for {words}"


@every_page
def test_options_in_the_text_exist(page: Path):
    parser = build_parser()
    commands = parsers_in(parser)
    elsewhere = [*(ROOT / "benchmarks").glob("*.py"), ROOT / "tests" / "conftest.py"]
    sources = "".join(path.read_text(encoding="utf-8") for path in elsewhere)
    every = options_of(parser) | set(re.findall(r'"(--[\w-]+)"', sources))
    for code in inline_code_of(page):
        first, *others = code.split()
        if first not in commands and not first.startswith("--"):
            continue
        options = [word for word in (first, *others) if word.startswith("--")]
        unknown = set(options) - (options_of(commands[first]) if first in commands else every)
        assert not unknown, f"{name_of(page)}: `{code}`: there is no {sorted(unknown)}"


@every_page
def test_modules_and_files_of_commands_exist(page: Path):
    for words in commands_of(page):
        if "-m" in words[:-1]:
            module = words[words.index("-m") + 1]
            if module.startswith(("easyedit_dualedit", "benchmarks", "tests")):
                assert importlib.util.find_spec(module), f"{name_of(page)}: no module {module}"
        for word in words:
            if re.fullmatch(r"(docs|tests|benchmarks)/\S+\.py", word):
                assert (ROOT / word).is_file(), f"{name_of(page)}: no file {word}"


@every_page
def test_hyperparameters_that_are_named_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    names = set(re.findall(r"\bhparams/[\w./-]+\.yaml", text))
    lacking = sorted(name for name in names if not (ROOT / name).is_file())
    assert not lacking, f"{name_of(page)} names {lacking}"


@pytest.mark.parametrize("path", sorted((ROOT / "hparams").rglob("*.yaml")), ids=name_of)
def test_commands_in_hyperparameters_are_understood(path: Path):
    lines = path.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    text = "\n".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("python "):
            arguments = arguments_of(shlex.split(line))
            assert arguments is not None, line
            parsed(arguments)


@every_page
def test_tests_that_are_named_exist(page: Path):
    names = re.findall(r"\btests? `(\w+)`", prose_of(page))
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    lacking = [name for name in names if not any(f"def test_{name}" in text for text in sources)]
    assert not lacking, f"{name_of(page)} names tests {lacking}"


@every_page
def test_methods_that_are_named_exist(page: Path):
    sources = [path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")]
    for code in inline_code_of(page):
        named = re.fullmatch(r"([A-Z]\w+)\.([a-z]\w+)(\(.*\))?", code)
        if named is None or named[1] in EASYEDITS_CLASSES:
            continue
        holding = [text for text in sources if re.search(rf"^class {named[1]}\b", text, re.M)]
        assert any(f"def {named[2]}(" in text for text in holding), f"{name_of(page)}: {code}"


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize(("marker", "count"), [("set-up", 2), ("main", 1), ("tests", 1)])
def test_the_commands_that_a_clean_clone_is_checked_with_are_there(marker: str, count: int):
    marked = [block for block in blocks_of(README) if block.marker == marker]
    assert [block.language for block in marked] == ["bash"]
    assert len(marked[0].text.splitlines()) == count


def test_every_page_can_be_reached_from_the_readme():
    reached, waiting = set(), [README]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        for link in links_of(page):
            target = (page.parent / link.partition("#")[0]).resolve()
            if target in PAGES and target not in reached:
                waiting.append(target)
    assert sorted(map(name_of, set(PAGES) - reached)) == []
