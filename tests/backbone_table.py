"""Writes `docs/backbones.md`: what works where, by the outcomes of the tests of each family.

    python -m pytest --backbones docs [test files]

adds what was run to its environment (EasyEdit's edition, transformers' version) in
`docs/backbones.json`, and writes the table in `docs/backbones.md` anew. Further environments are
further runs.
"""

import importlib.util
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

_CHECKS = {
    "method/test_contract": "edit, route, generate",
    "model/test_encoder": "batches",
    "train/test_trainer": "train",
    "method/test_editor": "many edits",
    "method/test_archive": "save and load adapters",
    "model/test_loading": "load a saved model",
    "model/test_families": "own checks",
    "test_editor_edit": "EasyEdit `edit`",
    "test_editor_edit_dataset": "EasyEdit `edit_dataset`",
    "test_trainer": "EasyEdit trainers",
    "plugin/ports": "EasyEdit's own port",
}
_NAMES = ("family", "every", "tiny", "port")
"""Parameters of tests that name a family."""
_BEGIN, _END = "<!-- table: begin -->", "<!-- table: end -->"


class BackboneTable:
    """A pytest plug-in that counts outcomes by family and check."""

    def __init__(self, folder: Path):
        """Write to `backbones.json` and `backbones.md` in `folder`."""
        self.folder = folder
        self.counts: dict[str, dict[str, Counter[str]]] = {}
        self.places: dict[str, tuple[str, str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Remember which family each test is about."""
        for item in items:
            values = getattr(getattr(item, "callspec", None), "params", {})
            family = next((values[name] for name in _NAMES if values.get(name)), None)
            module = item.path.relative_to(Path(__file__).parent).with_suffix("")
            names = (getattr(item, "originalname", ""), module.as_posix(), module.parent.as_posix())
            check = next((_CHECKS[name] for name in names if name in _CHECKS), None)
            if isinstance(family, str) and check:
                self.places[item.nodeid] = (family, check)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count an outcome; a set-up that fails or skips is one, too."""
        place = self.places.get(report.nodeid)
        if place is None or (report.when != "call" and report.passed):
            return
        family, check = place
        counts = self.counts.setdefault(family, {}).setdefault(check, Counter())
        counts[report.outcome] += 1

    def pytest_sessionfinish(self) -> None:
        """Write the files."""
        source = self.folder / "backbones.json"
        known: dict[str, Any] = json.loads(source.read_text()) if source.exists() else {}
        environment = f"EasyEdit {_edition()}, transformers {transformers.__version__}"
        entry = known.setdefault(environment, {"outcomes": {}})
        entry["torch"] = torch.__version__
        for family, checks in self.counts.items():
            found = {check: dict(sorted(counts.items())) for check, counts in checks.items()}
            entry["outcomes"].setdefault(family, {}).update(found)
        source.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
        page = self.folder / "backbones.md"
        text = page.read_text() if page.exists() else ""
        before, _, rest = text.partition(_BEGIN)
        _, _, after = rest.partition(_END)
        page.write_text(f"{before}{_BEGIN}\n{rendered(known)}{_END}{after}")


def rendered(known: dict[str, Any]) -> str:
    """Return one Markdown table for each environment: families down, checks across."""
    parts = []
    for environment, content in sorted(known.items()):
        outcomes: dict[str, dict[str, dict[str, int]]] = content["outcomes"]
        seen = {check for checks in outcomes.values() for check in checks}
        checks = [check for check in dict.fromkeys(_CHECKS.values()) if check in seen]
        rows = [f"| family | {' | '.join(checks)} |", "|---" * (len(checks) + 1) + "|"]
        for family, found in sorted(outcomes.items()):
            cells = [_cell(found.get(check, {})) for check in checks]
            rows.append(f"| {family} | {' | '.join(cells)} |")
        parts.append(f"### {environment}\n\ntorch {content['torch']}\n\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _cell(counts: dict[str, int]) -> str:
    failed, passed = counts.get("failed", 0), counts.get("passed", 0)
    if failed:
        return f"**{failed} of {failed + passed} fail**"
    return f"yes ({passed})" if passed else "-"


def _edition() -> str:
    if os.environ.get("EASYEDIT_HOME"):
        return "master"
    return "0.0.1.dev0" if importlib.util.find_spec("easyeditor") else "not installed"
