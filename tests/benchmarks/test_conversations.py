from pathlib import Path

from benchmarks.conversations import SETTINGS, measure, with_pictures, without_pictures
from easyedit_dualedit import DualEditor, Query, load_model
from easyedit_dualedit.commands.records import testbed_records as drawn_records
from easyedit_dualedit.testbed import adapters_folder, model_folder


def test_each_setting_is_asked_and_alone_the_edit_shows(tmp_path: Path):
    model, processor = load_model(str(model_folder()))
    editor = DualEditor.load(model, processor, adapters_folder("default"))
    records = drawn_records(tmp_path, "eval", 3)
    head, line, *rows = measure(editor, with_pictures(records)).splitlines()
    assert {each.count("|") for each in (head, line, *rows)} == {5}
    assert [row.split(" | ")[0].lstrip("| ") for row in rows] == [each.name for each in SETTINGS]
    assert rows[0] == "| alone | 100.0 | 100.0 | 100.0 |"


def test_edits_without_a_picture_are_asked_without_one(tmp_path: Path):
    model, processor = load_model(str(model_folder()))
    editor = DualEditor.load(model, processor, adapters_folder("default"))
    asked = without_pictures(drawn_records(tmp_path, "eval", 2))
    assert not any(query.files for pair in asked for query in pair)
    assert asked[0][0].prompt == asked[1][1].prompt and asked[0][0].target
    assert not asked[0][0].prompt.startswith("nq question")
    for setting in SETTINGS:
        chat = setting.messages(asked[0][0])
        assert {part["type"] for message in chat for part in message["content"]} == {"text"}
    rows = measure(editor, asked).splitlines()[2:]
    assert rows[0] == "| alone | 100.0 | 100.0 | 100.0 |"


def test_a_chat_shows_its_picture_once_and_ends_with_the_question(tmp_path: Path):
    query = drawn_records(tmp_path, "eval", 1)[0].request
    for setting in SETTINGS:
        chat = setting.messages(Query(query.prompt, query.image))
        parts = [part for message in chat for part in message["content"]]
        assert [part["type"] for part in parts].count("image") == 1
        assert parts[-1] == {"type": "text", "text": query.prompt}
        assert (chat[0]["role"] == "system") == bool(setting.system)
