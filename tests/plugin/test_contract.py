"""What a method owes EasyEdit's users, line by line, on the families that they use.

All of it holds on master. The release has no sequences, no ComprehendEdit and no `edit_dataset`
that works; what it has is held to the same lines.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from easyedit_fixtures import (
    HAS_MASTER,
    Workplace,
    needs_easyedit,
    needs_master,
    needs_release,
    shared_workplace,
)
from easyedit_runs import accuracies, dataset_of, editor_of, trained, trainer_of
from markdown_pages import ROOT
from tiny_comprehend_edit import comprehend_edit_folder
from tiny_editors import hooks_of_ours, tiny_config
from tiny_families import FAMILIES
from tiny_trainings import records_of, training_bench

from easyedit_dualedit.errors import DataError, UpstreamError
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.inputs import IGNORED
from easyedit_dualedit.model.loading import load_model
from easyedit_dualedit.plugin import find_host
from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams
from easyedit_dualedit.plugin.rows.ike import ike
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.trainer import train

pytestmark = [needs_easyedit, pytest.mark.usefixtures("host", "elsewhere")]

USED = ("blip2", "llava", "llava-onevision", "qwen2-vl", "qwen3-vl")
TWENTY = tuple(range(4)) * 5


@pytest.fixture(params=[family for family in USED if family in FAMILIES], scope="module")
def family(request: pytest.FixtureRequest) -> str:
    """Each family that EasyEdit's users use."""
    return str(request.param)


@pytest.fixture
def workplace(family: str) -> Workplace:
    return shared_workplace(family)


@cache
def learned(family: str) -> Path:
    """Return adapters that have learned the records, made once."""
    workplace = shared_workplace(family)
    editor = DualEditor(*load_model(str(workplace.model)), tiny_config())
    config = TrainingConfig(
        steps=50, learning_rate=2e-2, end_of_answer=False, augment_targets=0.0, gate_steps=0
    )
    train(editor, records_of(workplace), config, progress=False)
    folder = workplace.model.parent / "learned-for-the-contract"
    editor.save(folder)
    return folder


@cache
def shared_editor(family: str) -> Any:
    """Return the one editor that every line is tried on, one after the other."""
    return editor_of(shared_workplace(family), learned(family))


@pytest.fixture
def editor(family: str) -> Any:
    """EasyEdit's editor; a test that leaves its model otherwise than it was fails."""
    editor = shared_editor(family)
    before = {name: value.clone() for name, value in editor.model.state_dict().items()}
    yield editor
    after = editor.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not hooks_of_ours(editor.model)


def asked(workplace: Workplace, *places: int) -> Any:
    """Return the arguments of an edit of some records; no two have the same prompt."""
    arguments = workplace.edit_arguments(places, full=HAS_MASTER)
    arguments["prompts"] = [
        prompt if place < 4 else f"{prompt} ({place})"
        for place, prompt in enumerate(arguments["prompts"])
    ]
    return arguments


def measured(editor: Any, model: Any, request: Any) -> dict[str, float]:
    """Return what EasyEdit's own evaluator says of a model."""
    place, name = ("multimodal_evaluate", "_hf") if HAS_MASTER else ("evaluate", "")
    module = find_host().module(f"evaluate.{place}")
    evaluate = getattr(module, f"compute_multimodal{name}_edit_results")
    return numbers(evaluate(model, editor.model_name, editor.hparams, editor.tok, request, "cpu"))


def numbers(found: Any) -> dict[str, float]:
    """Return the accuracies of one phase of one case, without those of locality.

    They compare two models, and only EasyEdit's editor has both.
    """
    return {
        name: float(value)
        for name, value in found.items()
        if name.endswith("_acc") and "loc" not in name
    }


def requests_of(editor: Any, arguments: Any) -> list[Any]:
    return list(editor._prepare_requests(**arguments))


def test_one_edit(editor: Any, workplace: Workplace) -> None:
    arguments = asked(workplace, 0)
    (request,) = requests_of(editor, arguments)
    before = measured(editor, editor.model, request)
    (case,), edited, weights = editor.edit(**arguments)
    assert set(before) == {"rewrite_acc", "rephrase_acc", "image_rephrase_acc"}
    assert numbers(case["pre"]) == before
    assert numbers(case["post"]) == measured(editor, edited, request)
    assert {"locality_acc", "multimodal_locality_acc"} <= set(case["post"])
    assert len(edited.edits) == 1
    assert weights == {}
    assert measured(editor, editor.model, request) == before
    assert case["post"]["rewrite_acc"] > case["pre"]["rewrite_acc"]


def test_several_edits_are_each_alone(editor: Any, workplace: Workplace) -> None:
    places = (0, 1, 2, 3)
    together, edited, _ = editor.edit(**asked(workplace, *places))
    assert len(edited.edits) == 1
    for place, case in zip(places, together, strict=True):
        (alone,), _, _ = editor.edit(**asked(workplace, place))
        assert [numbers(case[phase]) for phase in ("pre", "post")] == [
            numbers(alone[phase]) for phase in ("pre", "post")
        ]
    assert sum(accuracies(together, "post")) > sum(accuracies(together, "pre")) + 0.5


@needs_master
def test_edits_and_trainings_have_the_tokens_that_are_scored(
    workplace: Workplace, tmp_path: Path
) -> None:
    editor = editor_of(workplace)  # with adapters that EasyEdit has not trained
    (request,) = requests_of(editor, asked(workplace, 0))
    prepare = find_host().module("evaluate.multimodal_evaluate").prepare_multimodal_hf_edit
    scored = prepare(
        editor.hparams, editor.tok, request["target"], request["prompt"], request["image"], "image"
    )["labels"]
    scored = scored[scored != IGNORED].tolist()
    _, edited, _ = editor.edit(**asked(workplace, 0))
    assert edited._encoder.target_ids(request["target"]) == scored
    trainer = trainer_of(workplace, tmp_path, "MultimodalTrainer", end_of_answer=False)
    batch = trainer.train_set.collate_fn([trainer.train_set[0]])
    read = trainer.model.samples.read(batch["edit_inner"])
    assert read.labels[read.labels != IGNORED].tolist() == scored


@needs_master
def test_twenty_edits_in_a_sequence_and_another_on_the_same_editor(
    editor: Any, workplace: Workplace
) -> None:
    arguments = asked(workplace, *TWENTY)
    before = [measured(editor, editor.model, request) for request in requests_of(editor, arguments)]
    cases, edited, _ = editor.edit(**arguments, sequential_edit=True)
    assert [edit.request.prompt for edit in edited.edits] == arguments["prompts"]
    assert [numbers(case["pre"]) for case in cases] == before
    # Each is measured when it was made: its own edit is in force, and so are all before it.
    (first,), _, _ = editor.edit(**asked(workplace, 0))
    assert numbers(cases[0]["post"]) == numbers(first["post"])
    again, edited, _ = editor.edit(**asked(workplace, 1, 2, 3), sequential_edit=True)
    assert len(edited.edits) == 3
    assert [numbers(case["pre"]) for case in again] == before[1:4]
    (alone,), _, _ = editor.edit(**asked(workplace, 1), sequential_edit=True)
    assert numbers(again[0]["post"]) == numbers(alone["post"])


@needs_release
def test_edits_of_which_none_stays(editor: Any, workplace: Workplace) -> None:
    arguments = asked(workplace, *TWENTY[:8])
    before = [measured(editor, editor.model, request) for request in requests_of(editor, arguments)]
    cases, edited, _ = editor.edit(**arguments)
    assert [numbers(case["pre"]) for case in cases] == before
    assert len(edited.edits) == 1
    with pytest.raises(UpstreamError, match="sequential_edit is not in EasyEdit 0.0.1.dev0"):
        editor.edit(**arguments, sequential_edit=True)


class Stopped(Exception):
    """Something that has nothing to do with an edit stops it."""


@pytest.mark.parametrize("sequential", [False, pytest.param(True, marks=needs_master)])
def test_what_is_raised_half_way_leaves_nothing(
    editor: Any, workplace: Workplace, sequential: bool
) -> None:
    options = {"sequential_edit": True} if sequential else {}
    (fresh,), _, _ = editor.edit(**asked(workplace, 3), **options)
    bad = asked(workplace, 0, 1, 2)
    bad["prompts"][2] = ""
    with pytest.raises(DataError, match="no prompt"):
        editor.edit(**bad, **options)
    calls = 0

    def stop(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise Stopped

    base = getattr(editor.model, "base", editor.model)
    handle = base.get_output_embeddings().register_forward_hook(stop)
    try:
        with pytest.raises(Stopped):
            editor.edit(**asked(workplace, 0, 1, 2), **options)
    finally:
        handle.remove()
    assert not hooks_of_ours(editor.model)
    (case,), edited, _ = editor.edit(**asked(workplace, 3), **options)
    assert len(edited.edits) == 1
    assert [numbers(case[phase]) for phase in ("pre", "post")] == [
        numbers(fresh[phase]) for phase in ("pre", "post")
    ]


@needs_master
@pytest.mark.parametrize("data", ["VQADataset", "CaptionDataset"])
def test_a_dataset_says_what_edits_one_by_one_say(
    editor: Any, workplace: Workplace, data: str
) -> None:
    cases, edited, _ = editor.edit_dataset(
        dataset_of(workplace, editor.hparams, data), verbose=False
    )
    assert len(edited.edits) == 1
    alone, _, _ = editor.edit(**asked(workplace, 0, 1, 2, 3))
    for phase in ("pre", "post"):
        assert [numbers(case[phase]) for case in cases] == [numbers(case[phase]) for case in alone]


@needs_master
def test_comprehend_edit(editor: Any, tmp_path: Path) -> None:
    folder = comprehend_edit_folder(tmp_path)
    kind = find_host().package.ComprehendEditDataset
    records = kind(str(folder), config=editor.hparams, mode="test", topk=1)
    before = [measured(editor, editor.model, records[place]) for place in range(len(records))]
    cases, edited, _ = editor.edit_dataset(records, verbose=False)
    assert len(cases) == 3, "a record without an answer is left out"
    assert [numbers(case["pre"]) for case in cases] == before
    assert numbers(cases[-1]["post"]) == measured(editor, edited, records[len(records) - 1])
    assert all({"locality_acc", "multimodal_locality_acc"} <= set(case["post"]) for case in cases)
    assert len(edited.edits) == 1


@needs_release
def test_the_release_refuses_its_edit_dataset(editor: Any, workplace: Workplace) -> None:
    with pytest.raises(UpstreamError, match="edit_dataset.*fails for every method"):
        editor.edit_dataset(dataset_of(workplace, editor.hparams))


@pytest.mark.parametrize(
    ("trainer", "data"),
    [("MultimodalTrainer", "CaptionDataset"), ("DualEditTrainer", "VQADataset")],
)
def test_a_training_an_archive_an_editor_and_an_evaluation(
    workplace: Workplace, tmp_path: Path, trainer: str, data: str
) -> None:
    made = trained(workplace, tmp_path / "first", trainer, data)
    archive = Path(made.save_path)
    _, edited, _ = editor_of(workplace, archive).edit(**asked(workplace, 0))
    assert len(edited.edits) == 1
    written = archive.read_bytes()
    hparams = DualEditMultimodalHparams.from_dict(
        workplace.settings(archive=str(archive), results_dir=str(tmp_path / "second"))
    )
    (tmp_path / "second").mkdir()
    records = dataset_of(workplace, hparams, data)
    getattr(find_host().package, trainer)(hparams, records, records).run()
    assert archive.read_bytes() == written
    first, second = (
        json.loads((tmp_path / name / "results.json").read_text())["results"]
        for name in ("first", "second")
    )
    for name in ("inner/acc_val", "edit/acc_val", "image_rephrase/acc_val", "loss/loc_val"):
        assert second[name] == pytest.approx(first[name], abs=1e-6), name


@needs_master
def test_another_method_on_the_same_model_before_and_after(
    family: str, workplace: Workplace
) -> None:
    host = find_host()
    hparams = host.package.LoRAMultimodalHyperParams.from_hparams(
        str(ROOT / "examples" / "hparams" / "LoRA" / "testbed.yaml")
    )
    hparams.model_name = hparams.name = str(workplace.model)
    hparams.device, hparams.dtype, hparams.num_steps = "cpu", torch.float32, 15
    hparams.lr, hparams.target_modules = 0.1, ["q_proj", "v_proj", "lm_head"]
    theirs = host.package.MultimodalEditor.from_hparams(hparams)
    ours = editor_of(workplace, learned(family))
    theirs.model = ours.model
    arguments = asked(workplace, 0, 1)
    # Without a picture, BLIP-2 itself cannot be asked.
    without_text = {
        **arguments,
        "locality_inputs": {"vision": arguments["locality_inputs"]["vision"]},
    }
    unedited = [measured(ours, ours.model, request) for request in requests_of(ours, without_text)]
    found: dict[Any, list[Any]] = {theirs: [], ours: []}
    for editor in (theirs, ours, theirs, ours):
        torch.manual_seed(0)
        cases, _, _ = editor.edit(**without_text)
        found[editor].append([(numbers(case["pre"]), numbers(case["post"])) for case in cases])
    for first, second in found.values():
        assert first == second
    alone, _, _ = shared_editor(family).edit(**without_text)
    assert found[ours][0] == [(numbers(case["pre"]), numbers(case["post"])) for case in alone]
    # EasyEdit's "pre" of a method that changes the model is of the changed one.
    assert [after for _, after in found[theirs][0]] != unedited
    assert [before for before, _ in found[ours][1]] == unedited


@needs_release
def test_ike_on_the_same_model_before_and_after(
    editor: Any, workplace: Workplace, tmp_path: Path
) -> None:
    base, processor = editor.model.base, editor.model.processor
    bench = training_bench(workplace, tmp_path)
    bench = type(bench)(bench.model, lambda: (base, processor), "cpu", tmp_path, settings={"k": 0})
    method, record = ike(find_host()).make(bench), records_of(workplace)[0]
    asked_before = []
    cases = []
    for _ in range(2):
        with method.edit(record) as edited:
            asked_before.append(edited.asked(record.request).prompt)
            assert edited.model is base
        found, _, _ = editor.edit(**asked(workplace, 0, 1))
        cases.append([numbers(case[phase]) for case in found for phase in ("pre", "post")])
    assert asked_before[0] == asked_before[1]
    assert cases[0] == cases[1]
