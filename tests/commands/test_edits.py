"""The commands for many edits: a folder of edits grows, shrinks, is asked and is copied."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from workplace import Workplace

from easyedit_dualedit.method.edit_file import EDITS_FILE, NUMBERS_FILE, EditFile

PROMPT = "What colour is circle 0?"


@pytest.fixture
def folder(work: Workplace) -> Path:
    return work.folder / "edits"


def add(work: Workplace, folder: Path, *options: object) -> list[str]:
    hparams = work.hparams(archive=str(work.adapters), gate={"kind": "cosine", "threshold": 0.9999})
    arguments = ["edits", "add", "--edits", folder, "--hparams", hparams, *options]
    return [str(argument) for argument in arguments]


def one(work: Workplace, prompt: str = PROMPT, target: str = "green") -> list[object]:
    return ["--image", work.images / "0.png", "--prompt", prompt, "--target", target]


def ids_in(folder: Path) -> list[str]:
    return [edit.id for edit in EditFile.load(folder).edits]


def with_model(work: Workplace, *arguments: object) -> list[str]:
    hparams = work.hparams(archive=str(work.adapters), gate={"kind": "cosine", "threshold": 0.9999})
    return [str(argument) for argument in (*arguments, "--hparams", hparams)]


def test_edits_are_added_listed_and_removed(work: Workplace, folder: Path, call: Any):
    assert call(add(work, folder, *one(work, target="red"))).code == 0
    file = ["--data", work.data, "--images", work.images, "--limit", 3]
    added = call(add(work, folder, *file))
    assert added.code == 0 and "4 edits in" in added.out
    again = call(add(work, folder, *file))
    assert "3 of 3 edits are there already" in again.out and "4 edits in" in again.out
    ids = ids_in(folder)
    listed = call(["edits", "list", "--edits", str(folder)])
    assert all(identifier in listed.out for identifier in ids)
    assert "green" in listed.out
    removed = call(["edits", "remove", "--edits", str(folder), ids[0], ids[2]])
    assert "2 removed, 2 left" in removed.out
    assert ids_in(folder) == [ids[1], ids[3]]


def test_requests_that_repeat_others_are_told_apart_from_edits_that_are_there(
    work: Workplace, folder: Path, call: Any
):
    work.rewrite(lambda items: items.__setitem__(slice(None), [items[0], items[0], items[1]]))
    added = call(add(work, folder, "--data", work.data, "--images", work.images))
    assert "1 of 3 requests repeat others" in added.out and "already" not in added.out
    assert "2 edits in" in added.out and len(ids_in(folder)) == 2
    assert all(added.out.count(identifier) == 1 for identifier in ids_in(folder))


def test_options_that_do_not_go_together_are_refused(work: Workplace, folder: Path, call: Any):
    for options in (["--images", "x"], ["--limit", 3], ["--allow-outside"]):
        assert "go with --data" in call(add(work, folder, *one(work), *options)).error
    file = ["--data", work.data, "--images", work.images, "--image", "x.png"]
    assert "--image goes with --prompt" in call(add(work, folder, *file)).error
    taken = work.folder / "file"
    taken.write_text("mine")
    error = call(add(work, taken, *one(work))).error
    assert "no folder to write in" in error and taken.read_text() == "mine"


def test_an_edit_that_fires_is_named(work: Workplace, folder: Path, call: Any):
    call(add(work, folder, *one(work)))
    (identifier,) = ids_in(folder)
    asked = with_model(work, "edits", "apply", "--edits", folder, "--image", work.images / "0.png")
    found = call([*asked, "--ask", PROMPT, "--ask", "Who is the king?"])
    assert found.code == 0
    assert f"edit {identifier} fired" in " ".join(found.out.split())
    assert "no edit fired" in " ".join(found.out.split())


def test_chat_without_an_input_says_so(
    work: Workplace, folder: Path, call: Any, monkeypatch: pytest.MonkeyPatch
):
    call(add(work, folder, *one(work)))
    monkeypatch.setattr("sys.stdin", None)
    error = call(with_model(work, "chat", "--edits", folder)).error
    assert "there is no input to read questions from" in error


def test_a_path_of_no_text_is_not_the_current_folder(work: Workplace, folder: Path, call: Any):
    for options in (["--image", ""], ["--edits", " "]):
        called = call([*add(work, folder, *one(work)), *options])
        assert called.code == 2
        assert f"argument {options[0]}: {options[1]!r} is no path" in called.err
    assert not folder.exists()


def test_chat_answers_until_an_empty_line(
    work: Workplace, folder: Path, call: Any, monkeypatch: pytest.MonkeyPatch
):
    call(add(work, folder, *one(work)))
    (identifier,) = ids_in(folder)
    asked = with_model(work, "chat", "--edits", folder, "--image", work.images / "0.png")
    for end in ("\n", "", "quit\n"):
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{PROMPT}\n<image>\nWho is the king?\n{end}"))
        found = call(asked)
        assert found.code == 0
        assert f"edit {identifier} fired, similarity 1.000: {PROMPT} -> green" in found.out
        assert "error: prompt = '<image>'" in found.out
        assert "no edit fired, the nearest has similarity" in found.out


def test_edits_are_copied_to_be_shared(work: Workplace, folder: Path, call: Any):
    call(add(work, folder, "--data", work.data, "--images", work.images, "--limit", 3))
    ids = ids_in(folder)
    target = work.folder / "copy"
    command = ["edits", "export", "--edits", str(folder), "--output", str(target)]
    assert "1 edit written" in call([*command, ids[1]]).out
    assert ids_in(target) == [ids[1]]
    assert "holds edits already" in call(command).error
    assert ids_in(folder) == ids


@pytest.mark.parametrize("action", ["remove", "export"])
def test_unknown_ids_are_named(work: Workplace, folder: Path, call: Any, action: str):
    call(add(work, folder, *one(work)))
    command = ["edits", action, "--edits", str(folder), "nothing"]
    more = ["--output", str(work.folder / "copy")] if action == "export" else []
    assert "['nothing']" in call([*command, *more]).error
    assert len(ids_in(folder)) == 1


def test_what_is_asked_for_must_fit_together(work: Workplace, folder: Path, call: Any):
    for options in (
        ["--prompt", PROMPT],
        ["--data", work.data],
        ["--data", work.data, "--images", work.images, "--prompt", PROMPT],
    ):
        assert "--data" in call(add(work, folder, *options)).error
        assert not folder.exists()


@pytest.mark.parametrize("name", [EDITS_FILE, NUMBERS_FILE])
def test_a_damaged_folder_is_told_and_left_alone(
    work: Workplace, folder: Path, call: Any, name: str
):
    call(add(work, folder, *one(work)))
    path = folder / name
    path.write_bytes(path.read_bytes()[:-7])
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert "damaged" in call(add(work, folder, *one(work, target="red"))).error
    assert "damaged" in call(["edits", "list", "--edits", str(folder)]).error
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_edits_made_with_other_adapters_are_refused(work: Workplace, folder: Path, call: Any):
    call(add(work, folder, *one(work)))
    described = folder / EDITS_FILE
    values = json.loads(described.read_text())
    described.write_text(json.dumps({**values, "adapters": "0123"}))
    asked = with_model(work, "edits", "apply", "--edits", folder, "--ask", PROMPT)
    called = call(asked)
    assert called.code == 2
    assert "other adapters" in called.err


def test_a_folder_without_edits_is_told(work: Workplace, folder: Path, call: Any):
    assert "no stored edits" in call(["edits", "list", "--edits", str(folder)]).error
    asked = with_model(work, "chat", "--edits", folder)
    assert "no stored edits" in call(asked).error


def answering(monkeypatch: pytest.MonkeyPatch, *answers: str) -> None:
    """Let edited models answer the requests of edits so, each time they are checked."""
    monkeypatch.setattr(
        "easyedit_dualedit.method.edit_check.greedy_answers", lambda *_: list(answers)
    )


def test_edits_that_do_not_take_are_told_kept_and_listed(
    work: Workplace, folder: Path, call: Any, monkeypatch: pytest.MonkeyPatch
):
    file = ["--data", work.data, "--images", work.images, "--limit", 2]
    targets = [item["alt"] for item in json.loads(work.data.read_text(encoding="utf-8"))[:2]]
    answering(monkeypatch, f"{targets[0].upper()}.", "a zebra")
    added = call(add(work, folder, *file))
    assert added.code == 0
    first, second = ids_in(folder)
    words = " ".join(added.out.split())
    assert f"{second} the edit does not take: asked" in words
    assert f"the edited model answers 'a zebra', not {targets[1]!r}; the gate is open" in words
    assert f"{first} the edit" not in words
    assert "1 of 2 edits added do not take" in words
    told = json.loads((folder / EDITS_FILE).read_text(encoding="utf-8"))["edits"]
    assert [edit["answer"] for edit in told] == [f"{targets[0].upper()}.", "a zebra"]
    listed = " ".join(call(["edits", "list", "--edits", str(folder)]).out.split())
    assert "yes" in listed and "no: 'a zebra'" in listed
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    chatted = " ".join(call(with_model(work, "chat", "--edits", folder)).out.split())
    assert f"1 of 2 edits do not take: {second} (" in chatted
    assert f"is answered 'a zebra', not {targets[1]!r})" in chatted


def test_edits_that_all_take_are_told_nothing_of(
    work: Workplace, folder: Path, call: Any, monkeypatch: pytest.MonkeyPatch
):
    answering(monkeypatch, "green")
    assert "not take" not in call(add(work, folder, *one(work))).out
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert "not take" not in call(with_model(work, "chat", "--edits", folder)).out


def test_the_own_question_of_an_edit_that_fires_shows_whether_it_takes(
    work: Workplace, folder: Path, call: Any, monkeypatch: pytest.MonkeyPatch
):
    answering(monkeypatch, "green")
    call(add(work, folder, *one(work)))
    asked = with_model(work, "edits", "apply", "--edits", folder, "--image", work.images / "0.png")
    answers = iter(["before", "a zebra"])
    monkeypatch.setattr(
        "easyedit_dualedit.commands.editors.greedy_answers", lambda *_: [next(answers)]
    )
    found = " ".join(call([*asked, "--ask", PROMPT]).out.split())
    assert "the edit does not take: its own question is answered 'a zebra'" in found.replace(
        " │ ", " "
    )


def test_edits_of_which_nobody_knows_whether_they_take_still_load(
    work: Workplace, folder: Path, call: Any
):
    call(add(work, folder, *one(work)))
    path = folder / EDITS_FILE
    values = json.loads(path.read_text(encoding="utf-8"))
    for edit in values["edits"]:
        del edit["answer"]
    path.write_text(json.dumps(values), encoding="utf-8")
    assert "not asked" in call(["edits", "list", "--edits", str(folder)]).out


def test_an_edit_that_is_there_is_not_added_again(work: Workplace, folder: Path, call: Any):
    call(add(work, folder, *one(work)))
    again = call(add(work, folder, *one(work)))
    assert "1 of 1 edits are there already" in again.out and "1 edit in" in again.out
    work.rewrite(lambda items: items.extend(items[:2]))
    file = ["--data", work.data, "--images", work.images]
    call(add(work, folder, *file))
    prompts = [edit.provenance.prompt for edit in EditFile.load(folder).edits]
    assert len(prompts) == len(set(prompts)) > 2


def test_edits_of_one_picture_under_two_names_are_not_added_again(
    work: Workplace, folder: Path, call: Any
):
    copied = work.images / "copy of 0.png"
    copied.write_bytes((work.images / "0.png").read_bytes())

    def ask_twice(items: list[dict[str, Any]]) -> None:
        asked = {**items[0], "src": PROMPT, "image": "0.png", "alt": "red"}
        items[:] = [asked, {**asked, "image": copied.name, "alt": "green"}]

    work.rewrite(ask_twice)
    command = add(work, folder, "--data", work.data, "--images", work.images)
    made = []
    for _ in range(2):
        call(command)
        made.append(ids_in(folder))
    assert made[0] == made[1] and len(made[0]) == 2


def test_an_overruled_edit_is_listed_as_such_until_the_newer_one_goes(
    work: Workplace, folder: Path, call: Any
):
    call(add(work, folder, *one(work, target="red")))
    call(add(work, folder, *one(work, target="green")))
    first, second = ids_in(folder)
    listed = " ".join(call(["edits", "list", "--edits", str(folder)]).out.split())
    assert f"no: {second}" in listed
    call(["edits", "remove", "--edits", str(folder), second])
    assert [edit.provenance.answer for edit in EditFile.load(folder).edits] == [None]
    assert "not asked" in call(["edits", "list", "--edits", str(folder)]).out
    assert ids_in(folder) == [first]
