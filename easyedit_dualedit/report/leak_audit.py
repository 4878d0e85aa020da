"""The leak audit as a table."""

from easyedit_dualedit.data.leak_audit import Audit
from easyedit_dualedit.report.table import Table, numbers, texts


def audit_table(audit: Audit) -> Table:
    """Return the table of an audit: a row for each finding, bold where something is shared."""
    rows = [
        [finding.what, f"{finding.found:,}", f"{finding.of:,}", f"{finding.percent:.1f}"]
        for finding in audit.findings
    ]
    return Table(
        [*texts("shared"), *numbers("found", "of", "%")],
        rows,
        f"What {audit.evaluated:,} evaluated records share with {audit.trained:,} trained on",
        bold=[place for place, finding in enumerate(audit.findings) if finding.found],
    )
