"""The leak audit as a table."""

import io

from rich.console import Console

from easyedit_dualedit.data.leak_audit import Audit, Finding
from easyedit_dualedit.report.leak_audit import audit_table


def test_the_table_shows_every_finding_as_it_is():
    findings = (Finding("pairs [red]x[/red]", 1380, 2093, ("a",)), Finding("other", 0, 0, ()))
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(audit_table(Audit(2093, 6345, findings)).for_terminal())
    text = console.export_text()
    lines = [" ".join(line.replace("│", " ").split()) for line in text.splitlines()]
    assert "What 2,093 evaluated records share with 6,345 trained on" in " ".join(lines)
    assert "pairs [red]x[/red] 1,380 2,093 65.9" in lines
    assert "other 0 0 0.0" in lines
