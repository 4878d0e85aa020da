"""Which methods of EasyEdit become rows."""

from pathlib import Path

import pytest
from easyedit_fixtures import HAS_MASTER, needs_easyedit, needs_master
from tiny_models import TinyModel
from tiny_rows import bench_of

from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.rows.grace import GRACE
from easyedit_dualedit.plugin.rows.ike import IKE
from easyedit_dualedit.plugin.rows.lora import LORA
from easyedit_dualedit.plugin.rows.mend import MEND
from easyedit_dualedit.plugin.rows.roster import easyedit_contenders, easyedit_version
from easyedit_dualedit.plugin.rows.serac import SERAC
from easyedit_dualedit.plugin.rows.shipped import edit_hparams, training_hparams
from easyedit_dualedit.plugin.rows.wise import WISE

pytestmark = [needs_easyedit, pytest.mark.usefixtures("host")]


def test_the_rows_are_those_of_the_edition() -> None:
    rows = easyedit_contenders()
    names = ["MEND", "SERAC", *(["LoRA", "WISE", "GRACE", "IKE"] if HAS_MASTER else ["IKE"])]
    assert [row.name for row in rows] == names
    assert all(row.remarks for row in rows)
    assert all(len(values) > 1 for row in rows for values in row.space.values())
    assert all(row.space for row in rows)


@needs_master
def test_what_may_be_chosen_begins_with_what_easyedit_ships(
    host: Host, llava: TinyModel, tmp_path: Path
) -> None:
    bench = bench_of(llava, tmp_path)
    of_edits = {"LoRA": LORA, "WISE": WISE, "GRACE": GRACE, "IKE": IKE}
    shipped = {name: edit_hparams(host, one, bench.model, {}) for name, one in of_edits.items()}
    shipped |= {"MEND": training_hparams(host, MEND, bench.model, {})}
    shipped |= {"SERAC": training_hparams(host, SERAC, bench.model, {})}
    for row in easyedit_contenders():
        first = {name: values[0] for name, values in row.space.items()}
        assert first == {name: getattr(shipped[row.name], name) for name in row.space}, row.name


def test_rows_say_which_of_them_read_the_label() -> None:
    rows = easyedit_contenders()
    assert all(row.identity == {"easyedit": easyedit_version()} for row in rows)
    # WISE trains on the answer to the text locality question, SERAC's classifier reads the answer.
    reading = {"SERAC", "WISE"} if HAS_MASTER else {"SERAC"}
    assert {row.name for row in rows if row.reads_label} == reading
