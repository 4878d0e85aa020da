import sys
from pathlib import Path

import pytest

from benchmarks.text_only import ASKED, OWN, STAYS, TOGETHER, main, measure, measure_together
from easyedit_dualedit import DualEditor, load_model
from easyedit_dualedit.commands.records import testbed_records as drawn_records
from easyedit_dualedit.testbed import adapters_folder, model_folder


def test_edits_take_and_other_answers_stay(tmp_path: Path):
    model, processor = load_model(str(model_folder()))
    editor = DualEditor.load(model, processor, adapters_folder("default"))
    *records, last = drawn_records(tmp_path, "eval", 5)
    others = [*records[1:], last]
    head, _, row = measure(editor, records, others).splitlines()
    assert head.strip("| ").split(" | ") == [*ASKED, OWN, *STAYS]
    shares = [float(cell.split()[0]) for cell in row.strip("| ").split(" | ")]
    assert shares[0] == shares[3] == shares[-1] == 100.0
    head, _, row = measure(editor, records, others, is_open=True).splitlines()
    assert head.strip("| ").split(" | ") == [*ASKED, OWN]


def test_edits_that_are_kept_together_are_found_by_their_questions(tmp_path: Path):
    model, processor = load_model(str(model_folder()))
    editor = DualEditor.load(model, processor, adapters_folder("default"))
    records = drawn_records(tmp_path, "eval", 12)
    head, _, row = measure_together(editor, records, 4).splitlines()
    assert head.strip("| ").split(" | ") == list(TOGETHER)
    shares = [float(cell.split()[0]) for cell in row.strip("| ").split(" | ")]
    assert shares[0] == 100.0 and shares[2] == 0.0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--together", "--open"], "leave out --open and --untaught"),
        (["--together", "--count", "100000"], "there are other questions up to"),
    ],
)
def test_what_cannot_be_asked_is_told_before_any_edit(
    given: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    command = ["text_only", "--hparams", "testbed", "--data", str(tmp_path), *given]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and told in capsys.readouterr().err
