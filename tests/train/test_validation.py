"""What validation measures is what the edited model does, and a training does not notice it."""

import pytest
import torch
from tiny_data import fast, write_data
from tiny_editors import tiny_config
from tiny_models import TinyModel

from easyedit_dualedit.data.records import METRICS, Record, load_records
from easyedit_dualedit.data.scope import IN_SCOPE
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.train.drawn_targets import answering
from easyedit_dualedit.train.gate_trainer import calibrate
from easyedit_dualedit.train.losses import StepLosses
from easyedit_dualedit.train.step import TrainingStep
from easyedit_dualedit.train.trainer import train
from easyedit_dualedit.train.validation import Validation

CONFIG = fast(steps=30, gate_steps=0, end_of_answer=False, text_locality_weight=0.0)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder = tmp_path_factory.mktemp("data")
    return load_records(write_data(folder, 14), folder)


@pytest.fixture(scope="module")
def editor(llava: TinyModel, records: list[Record]) -> DualEditor:
    torch.manual_seed(0)
    made = DualEditor(llava.model, llava.processor, tiny_config(gate="cosine"))
    train(made, records[:8], CONFIG, progress=False)
    return made


def plainly(editor: DualEditor, record: Record, gate: bool) -> dict[str, float]:
    """Return for each metric whether the edited model predicts the whole answer."""
    chosen = None if gate else editor.open_gate()
    edited = editor.edited(editor.read([record.request]), gate=chosen)
    values = {}
    for metric, query in zip(METRICS, record.queries, strict=True):
        batch = editor.encoder.encode([query])
        start = int(batch.layout.gate[0])
        with torch.no_grad():
            after = edited(**batch.inputs).logits[0, start:-1].argmax(-1)
            before = editor.backbone.model(**batch.inputs).logits[0, start:-1].argmax(-1)
        answer = batch.inputs["input_ids"][0, start + 1 :]
        values[metric] = float(torch.equal(after, answer if metric in IN_SCOPE else before))
    return values


def test_it_measures_what_the_edited_model_does(editor: DualEditor, records: list[Record]):
    held, trained = records[8:], records[:8]
    validation = Validation(editor, held, trained, CONFIG)
    about = validation.about
    assert (about["gate"], about["records"]) == ("cosine", {"all": 6, "seen": 6, "unseen": 0})
    opened = [
        editor.edited(editor.read([record.request])).route(
            **editor.encoder.encode([record.text_locality]).inputs
        )
        for record in held
    ]
    share = sum(bool(routing.is_open[0]) for routing in opened) / len(held)
    assert about["opens"]["text_locality"] == pytest.approx(share)
    assert about["opens"]["reliability"] == 1.0
    measured = validation.measure()
    for name, gate in (("gated", True), ("adapters", False)):
        expected = [plainly(editor, record, gate) for record in held]
        for metric, share in getattr(measured, name)["all"].items():
            mean = sum(values[metric] for values in expected) / len(held)
            assert share == pytest.approx(mean), (name, metric)
    assert measured.gated != measured.adapters, "the gate stays closed somewhere"
    own = TrainingStep.within(editor, CONFIG).losses(held[:1], CONFIG).by_metric
    one = Validation(editor, held[:1], trained, CONFIG).measure().loss["all"]
    assert {metric: one[metric] for metric in own} == pytest.approx(own, rel=1e-4)
    assert set(one) == set(METRICS), "without a weight, too"


def test_every_record_counts_alike_however_long_its_answer(
    editor: DualEditor, records: list[Record]
):
    short, long = records[8], answering(records[9], "a small blue kite in the sky")
    alone = [
        Validation(editor, [one], records[:8], CONFIG).measure().loss["all"]
        for one in (short, long)
    ]
    both = Validation(editor, [short, long], records[:8], CONFIG).measure().loss["all"]
    for metric in IN_SCOPE:
        mean = (alone[0][metric] + alone[1][metric]) / 2
        assert both[metric] == pytest.approx(mean, rel=1e-4), metric
        assert alone[0][metric] != pytest.approx(alone[1][metric], rel=0.01)


def test_unseen_targets_are_told_apart(editor: DualEditor, records: list[Record]):
    blue = [record for record in records[:8] if record.request.target != "blue"]
    validation = Validation(editor, records[8:], blue, CONFIG)
    count = sum(record.request.target == "blue" for record in records[8:])
    assert validation.about["records"] == {"all": 6, "seen": 6 - count, "unseen": count}
    measured = validation.measure()
    shares = [measured.gated[name]["reliability"] for name in ("all", "seen", "unseen")]
    assert shares[0] * 6 == pytest.approx(shares[1] * (6 - count) + shares[2] * count)


def test_without_a_calibrated_gate_it_is_held_open(llava: TinyModel, records: list[Record]):
    bare = DualEditor(llava.model, llava.processor, tiny_config(gate="cosine"))
    validation = Validation(bare, records[8:], records[:8], CONFIG)
    assert validation.about["gate"] == "open"
    measured = validation.measure()
    assert measured.gated == measured.adapters
    calibrate(bare, records[:8])
    assert Validation(bare, records[8:], records[:8], CONFIG).about["gate"] == "cosine"


def test_no_random_number_is_drawn_and_nothing_changes(editor: DualEditor, records: list[Record]):
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in editor.adapters.state_dict().items()}
    validation = Validation(editor, records[8:], records[:8], CONFIG)
    first = validation.measure()
    assert validation.measure() == first
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in editor.adapters.state_dict().items())


def test_models_that_run_whole_forwards_measure_the_same(
    editor: DualEditor, records: list[Record], monkeypatch: pytest.MonkeyPatch
):
    expected = Validation(editor, records[8:], records[:8], CONFIG).measure()
    real = TrainingStep.__init__

    def plain(self: TrainingStep, *arguments: object, **options: object) -> None:
        real(self, *arguments, **options)  # type: ignore[arg-type]
        self.is_plain = True

    monkeypatch.setattr(TrainingStep, "__init__", plain)
    measured = Validation(editor, records[8:], records[:8], CONFIG).measure()
    assert measured.gated == expected.gated
    assert measured.loss["all"] == pytest.approx(expected.loss["all"], rel=1e-4)
    assert isinstance(TrainingStep.within(editor, CONFIG).losses(records[:2], CONFIG), StepLosses)


def test_locality_that_is_trained_does_not_count(editor: DualEditor, records: list[Record]):
    # All records ask one question about their locality picture: then all count.
    validation = Validation(editor, records[8:], records[:8], CONFIG)
    assert validation._counts.all()
    shared = [*records[:8], records[9]]
    counts = Validation(editor, records[8:], shared, CONFIG)._counts
    place = METRICS.index("text_locality")
    assert counts[:, place].tolist() == [True, False, True, True, True, True]


def test_a_bar_tells_how_far_it_is(
    editor: DualEditor, records: list[Record], capsys: pytest.CaptureFixture[str]
):
    Validation(editor, records[8:], records[:8], CONFIG).measure()
    assert capsys.readouterr().err == ""
    Validation(editor, records[8:], records[:8], CONFIG, progress=True).measure()
    shown = capsys.readouterr().err
    assert "validation, unedited: " in shown and "validation: " in shown
