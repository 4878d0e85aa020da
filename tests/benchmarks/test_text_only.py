from pathlib import Path

from benchmarks.text_only import ASKED, OWN, STAYS, TOGETHER, measure, measure_together
from easyedit_dualedit import DualEditor, load_model
from easyedit_dualedit.commands.records import testbed_records as drawn_records
from easyedit_dualedit.testbed import adapters_folder, model_folder


def test_edits_take_and_other_answers_stay(tmp_path: Path):
    model, processor = load_model(str(model_folder()))
    editor = DualEditor.load(model, processor, adapters_folder("default"))
    records = drawn_records(tmp_path, "eval", 4)
    head, _, row = measure(editor, records).splitlines()
    assert head.strip("| ").split(" | ") == [*ASKED, OWN, *STAYS]
    shares = [float(cell.split()[0]) for cell in row.strip("| ").split(" | ")]
    assert shares[0] == shares[3] == shares[-1] == 100.0
    head, _, row = measure(editor, records, is_open=True).splitlines()
    assert head.strip("| ").split(" | ") == [*ASKED, OWN]


def test_edits_that_are_kept_together_are_found_by_their_questions(tmp_path: Path):
    model, processor = load_model(str(model_folder()))
    editor = DualEditor.load(model, processor, adapters_folder("default"))
    records = drawn_records(tmp_path, "eval", 12)
    head, _, row = measure_together(editor, records, 4).splitlines()
    assert head.strip("| ").split(" | ") == list(TOGETHER)
    shares = [float(cell.split()[0]) for cell in row.strip("| ").split(" | ")]
    assert shares[0] == 100.0 and shares[2] == 0.0
