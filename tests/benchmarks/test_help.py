"""Every benchmark tells what it does before it does anything."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(
    path.stem
    for path in (ROOT / "benchmarks").glob("*.py")
    if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_benchmark_has_help(name: str):
    """Parsers are read, not run: to import each benchmark takes seconds."""
    text = (ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8")
    assert ("ArgumentParser(" in text or "parser_of(" in text) and "parse_args(" in text


def test_help_comes_before_any_work():
    command = [sys.executable, "-m", "benchmarks.trace", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert "usage:" in done.stdout and "files" not in done.stdout.splitlines()[0]
