"""Which methods of EasyEdit become rows."""

import pytest
from easyedit_fixtures import HAS_MASTER, needs_easyedit

from easyedit_dualedit.plugin.rows.roster import easyedit_contenders, easyedit_version

pytestmark = [needs_easyedit, pytest.mark.usefixtures("host")]


def test_the_rows_are_those_of_the_edition() -> None:
    rows = easyedit_contenders()
    names = ["MEND", "SERAC", *(["LoRA", "WISE", "GRACE", "IKE"] if HAS_MASTER else ["IKE"])]
    assert [row.name for row in rows] == names
    assert all(row.remarks for row in rows)
    assert all(row.identity == {"easyedit": easyedit_version()} for row in rows)
    # WISE trains on the answer to the text locality question, SERAC's classifier reads the answer.
    reading = {"SERAC", "WISE"} if HAS_MASTER else {"SERAC"}
    assert {row.name for row in rows if row.reads_label} == reading
