"""The testbed: what its model knows, and the records about its world."""

import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.testbed import Scene, SceneObject, model_folder, render, write_records
from easyedit_dualedit.testbed import records as records_module
from easyedit_dualedit.testbed.evaluation import (
    ALL_VQA,
    answer,
    fact_probes,
    load,
    measure,
    unseen_probes,
)
from easyedit_dualedit.testbed.facts import all_facts, facts_of
from easyedit_dualedit.testbed.make import check_folder
from easyedit_dualedit.testbed.prompts import user_message
from easyedit_dualedit.testbed.questions import (
    REPHRASE_TEMPLATES,
    SOURCE_TEMPLATES,
    VQA_FAMILIES,
    caption_of,
    draw_question,
    questions_about,
    rearrange_for,
)
from easyedit_dualedit.testbed.records import draw_cases
from easyedit_dualedit.testbed.sheet import Exercise, Row, Scribe
from easyedit_dualedit.testbed.world import draw_scene, rearrange

FIELDS = [
    "src",
    "pred",
    "rephrase",
    "alt",
    "image",
    "image_rephrase",
    "loc",
    "loc_ans",
    "m_loc",
    "m_loc_q",
    "m_loc_a",
]


@pytest.fixture(scope="module")
def loaded() -> Iterator[tuple]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load(model_folder())
    torch.set_num_threads(threads)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, easyedit_dualedit.testbed; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_model_loads_through_the_auto_classes(loaded: tuple) -> None:
    from transformers import AutoModelForImageTextToText

    model, processor = loaded
    assert type(processor).__name__ == "LlavaOnevisionProcessor"
    assert "llava-onevision" in model_folder().name
    again = AutoModelForImageTextToText.from_pretrained(model_folder())
    assert type(again) is type(model)
    assert again.dtype == torch.float32
    assert processor.tokenizer.padding_side == "left"
    assert processor.tokenizer.eos_token == "<|im_end|>"
    assert processor.tokenizer.pad_token == "<|endoftext|>"


def test_folder_is_small() -> None:
    size = sum(path.stat().st_size for path in model_folder().rglob("*") if path.is_file())
    assert size <= 12 * 2**20


def test_picture_is_a_moderate_number_of_tokens(loaded: tuple) -> None:
    model, processor = loaded
    chat = processor.apply_chat_template(
        user_message("What color is the circle?", 1), add_generation_prompt=True, tokenize=False
    )
    picture = render(Scene((SceneObject(0, "circle", "red"),)), 0)
    batch = processor(text=[chat], images=[picture], return_tensors="pt")
    tokens = int((batch["input_ids"] == model.config.image_token_id).sum())
    assert 16 <= tokens <= 40


def test_chat_template_takes_strings_and_several_turns(loaded: tuple) -> None:
    processor = loaded[1]
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a photo of"}]},
        {"role": "assistant", "content": "a red circle"},
    ]
    assert processor.apply_chat_template(messages, tokenize=False) == (
        "<|im_start|>user\n<image>\na photo of<|im_end|>\n"
        "<|im_start|>assistant\na red circle<|im_end|>\n"
    )


def test_model_answers_questions_about_unseen_scenes(loaded: tuple) -> None:
    probes = unseen_probes(VQA_FAMILIES, 24, seed=123)
    scores = measure(*loaded, probes)
    assert scores[ALL_VQA].asked >= 100
    assert scores[ALL_VQA].share >= 0.95


def test_model_captions_unseen_scenes(loaded: tuple) -> None:
    scores = measure(*loaded, unseen_probes(("caption",), 40, seed=123))
    assert scores["caption"].share >= 0.8


def test_model_knows_every_fact_in_every_form(loaded: tuple) -> None:
    probes = fact_probes()
    assert len(probes) == 12 * len(all_facts())
    assert measure(*loaded, probes)["facts"].share == 1.0


def test_training_rows_are_what_the_processor_gives(loaded: tuple) -> None:
    processor = loaded[1]
    exercise = Exercise("Question: Where is the red ring? Short answer:", "top left")
    sheet = Scribe(processor).write([Row(0, (Exercise("a photo of", "a star"), exercise))])
    chat = processor.apply_chat_template(
        user_message(exercise.prompt, 1), add_generation_prompt=True, tokenize=False
    )
    picture = Image.new("RGB", (48, 48))
    text = chat + exercise.answer + "<|im_end|>"
    wanted = processor(text=[text], images=[picture], return_tensors="pt")["input_ids"][0]
    seen = sheet.visible[0, 0, -1]
    assert sheet.ids[0][seen].tolist() == wanted.tolist()
    assert sheet.positions[0][seen].tolist() == list(range(len(wanted)))


def test_rerendering_keeps_the_answer() -> None:
    source = random.Random(0)
    families = (*VQA_FAMILIES, "caption")
    for _ in range(200):
        scene = draw_scene(source)
        question = draw_question(scene, source, families)
        moved = rearrange_for(scene, question, source)
        assert moved.key == scene.key
        assert moved.split == scene.split
        assert question in questions_about(moved)


def test_model_gives_the_same_answer_on_the_rerendered_picture(loaded: tuple) -> None:
    source = random.Random(5)
    prompts, pictures, wanted = [], [], []
    for seed in range(60):
        scene = draw_scene(source, lambda scene: scene.split == "eval")
        question = draw_question(scene, source)
        prompts.append(source.choice(question.source_texts()))
        pictures.append(render(rearrange_for(scene, question, source), seed))
        wanted.append(question.answer)
    given = answer(*loaded, prompts, pictures)
    assert sum(map(str.__eq__, given, wanted)) >= 55


def test_wordings_are_split() -> None:
    for family in VQA_FAMILIES:
        source, rephrase = set(SOURCE_TEMPLATES[family]), set(REPHRASE_TEMPLATES[family])
        assert len(source | rephrase) >= 6
        assert not source & rephrase


def test_render_is_deterministic_and_varies_with_the_seed() -> None:
    scene = draw_scene(random.Random(3))
    assert render(scene, 1).size == (48, 48)
    assert render(scene, 1).tobytes() == render(scene, 1).tobytes()
    assert render(scene, 1).tobytes() != render(scene, 2).tobytes()


def test_rearranging_keeps_reading_order() -> None:
    source = random.Random(4)
    scene = draw_scene(source, lambda scene: len(scene.objects) == 4)
    assert caption_of(rearrange(scene, source)) == caption_of(scene)
    with pytest.raises(DataError, match="not in the scene"):
        rearrange(scene, source, SceneObject(0, "ring", "no colour"))


@pytest.mark.parametrize("task", ["vqa", "caption"])
def test_records_have_mmedits_fields_and_pictures(tmp_path: Path, task: str) -> None:
    path = write_records(tmp_path, task, "eval", count=20, seed=1)
    assert path == tmp_path / f"{task}_eval.json"
    found = json.loads(path.read_text())
    assert len(found) == 20
    knowledge = {fact.prompt: fact.answer for fact in all_facts()}
    for record in found:
        assert list(record) == FIELDS
        assert all(isinstance(value, str) and value for value in record.values())
        assert record["alt"] != record["pred"]
        assert record["src"] != record["rephrase"]
        assert knowledge[record["loc"]] == record["loc_ans"]
        for field in ("image", "image_rephrase", "m_loc"):
            with Image.open(tmp_path / "images" / record[field]) as picture:
                assert picture.size == (48, 48)
    assert {name.name for name in tmp_path.iterdir()} == {
        "images",
        f"{task}_eval.json",
        f"{task}_eval.manifest.json",
    }


def test_default_counts(tmp_path: Path) -> None:
    assert len(json.loads(write_records(tmp_path, "caption", "eval").read_text())) == 100


@pytest.mark.parametrize("task", ["vqa", "caption"])
def test_splits_share_no_scene_no_locality_pair_and_no_fact(task: str) -> None:
    scenes, pairs, facts = {}, {}, {}
    for split, count in (("train", 400), ("eval", 200)):
        cases = list(draw_cases(task, split, count, seed=0))
        keys = [scene.key for case in cases for _, scene, _ in case.pictures]
        assert all(scene.split == split for case in cases for _, scene, _ in case.pictures)
        scenes[split] = set(keys)
        assert len(scenes[split]) == 2 * count
        pairs[split] = {(case.pictures[2][1].key, case.record.m_loc_q) for case in cases}
        facts[split] = {case.record.loc for case in cases}
        for case in cases:
            assert case.locality.meaning != case.question.meaning
    assert not scenes["train"] & scenes["eval"]
    assert not pairs["train"] & pairs["eval"]
    assert not facts["train"] & facts["eval"]
    assert not set(facts_of("train")) & set(facts_of("eval"))


def test_a_thousand_distinct_edits_are_possible() -> None:
    cases = list(draw_cases("vqa", "eval", 1000, seed=0))
    assert len({(case.record.src, case.pictures[0][1].key) for case in cases}) == 1000


def test_same_seed_gives_same_bytes(tmp_path: Path) -> None:
    def content(folder: Path, seed: int) -> dict[str, bytes]:
        write_records(folder, "vqa", "eval", count=5, seed=seed)
        files = (path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    first = content(tmp_path / "a", 7)
    assert first == content(tmp_path / "b", 7)
    assert first != content(tmp_path / "c", 8)


def test_complete_records_are_left_alone(tmp_path: Path) -> None:
    path = write_records(tmp_path, "vqa", "eval", count=3)
    before = path.stat().st_mtime_ns
    write_records(tmp_path, "vqa", "eval", count=3)
    assert path.stat().st_mtime_ns == before
    write_records(tmp_path, "vqa", "eval", count=4)
    assert len(json.loads(path.read_text())) == 4


def test_missing_picture_is_made_again(tmp_path: Path) -> None:
    path = write_records(tmp_path, "vqa", "eval", count=3)
    picture = tmp_path / "images" / json.loads(path.read_text())[1]["m_loc"]
    picture.unlink()
    write_records(tmp_path, "vqa", "eval", count=3)
    assert picture.is_file()


def test_interruption_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def interrupted(scene: Scene, seed: int) -> Image.Image:
        drawn.append(seed)
        if len(drawn) == 5:
            raise KeyboardInterrupt
        return render(scene, seed)

    monkeypatch.setattr(records_module, "render", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_records(tmp_path, "vqa", "eval", count=10)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    monkeypatch.undo()
    assert len(json.loads(write_records(tmp_path, "vqa", "eval", count=10).read_text())) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "quiz"}, "'quiz'.*'vqa', 'caption'"),
        ({"split": "test"}, "'test'.*'train', 'eval'"),
        ({"count": 0}, "count 0 .*1 to"),
        ({"count": 10**6}, "count 1000000 .*1 to"),
        ({"count": 2.5}, "count 2.5 "),
        ({"count": True}, "count True "),
        ({"seed": "x"}, "seed 'x' "),
    ],
)
def test_bad_arguments_are_named(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(DataError, match=re.compile(message)):
        write_records(tmp_path, **{"task": "vqa", "split": "eval"} | arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "objects",
    [
        (),
        tuple(SceneObject(cell, "ring", "red") for cell in range(5)),
        (SceneObject(0, "ring", "red"), SceneObject(0, "star", "red")),
        (SceneObject(0, "blob", "red"),),
        (SceneObject(9, "ring", "red"),),
    ],
)
def test_impossible_scenes_are_refused(objects: tuple) -> None:
    with pytest.raises(DataError):
        Scene(objects)


def test_maker_refuses_a_folder_that_easyedit_cannot_use(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lacks 'llava-onevision'"):
        check_folder(tmp_path / "model", overwrite=False)
    (tmp_path / "llava-onevision-x").mkdir()
    with pytest.raises(DataError, match="--overwrite"):
        check_folder(tmp_path / "llava-onevision-x", overwrite=False)
    check_folder(tmp_path / "llava-onevision-x", overwrite=True)


def test_answers_need_a_picture_each(loaded: tuple) -> None:
    with pytest.raises(DataError, match="2 prompts came with 1 pictures"):
        answer(*loaded, ["a", "b"], [Image.new("RGB", (48, 48))])
