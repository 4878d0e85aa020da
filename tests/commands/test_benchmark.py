"""The benchmark's command: one table whatever stops it, shards that merge, EasyEdit's numbers."""

import contextlib
import csv
import io
import json
import os
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from easyedit_fixtures import needs_master
from forked import started
from tiny_data import BOUND, write_data
from tiny_models import tiny_llava_onevision
from workplace import Workplace

from easyedit_dualedit.commands import parser as cli
from easyedit_dualedit.data.records import METRICS
from easyedit_dualedit.experiments.benchmark_folder import UNEDITED, method_folder, slug
from easyedit_dualedit.experiments.dualedit_rows import DUALEDIT
from easyedit_dualedit.measure import specificity
from easyedit_dualedit.measure.run import METRICS_FILE

METHODS = ("dualedit", "dualedit-no-gate", "ft-last-layer")
REAL = os.environ.get("MMEDIT_DATA")


def benchmark(work: Workplace, *options: object, methods: tuple[str, ...] = METHODS) -> list[str]:
    """Return a short benchmark of four records; its hyperparameters are always the same file."""
    path = work.folder / "benchmark.yaml"
    if not path.is_file():
        work.rewrite(lambda items: items.__delitem__(slice(4, None)))
        made = work.hparams(
            archive=str(work.adapters), gate={"kind": "cosine", "threshold": 0.9999}, max_iters=4
        )
        values = yaml.safe_load(made.read_text()) | {"val_interval": 2, "batch_size": 2}
        path.write_text(yaml.safe_dump(values))
    arguments = ["benchmark", "--hparams", path, "--data", work.data, "--images", work.images]
    arguments += ["--train", work.data, "--output", work.folder / "outputs"]
    arguments += ["--methods", *methods, "--set", "ft-last-layer.steps=2", *options]
    return [str(argument) for argument in arguments]


def run_of(work: Workplace, name: str = "benchmark") -> Path:
    return work.folder / "outputs" / name


def metrics_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / METRICS_FILE).read_text())
    return found


@pytest.fixture(scope="module")
def whole(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workplace, str]:
    """A workplace whose benchmark has run to its end, and what that printed."""
    work = Workplace.beside(trained, tmp_path_factory.mktemp("whole"))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli.main(benchmark(work)) == 0
    return work, out.getvalue()


def test_every_report_says_the_same(whole: tuple[Workplace, str]):
    work, out = whole
    folder = run_of(work)
    metrics = metrics_of(folder)
    assert list(metrics["methods"]) == [UNEDITED, DUALEDIT, "DualEdit, no gate", "FT, last layer"]
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    markdown, page = (folder / "results.md").read_text(), (folder / "results.html").read_text()
    for name, method in metrics["methods"].items():
        assert method["status"] == "done", method
        assert set(method["protocols"]) == {"generate", "visedit", "easyedit", "specificity"}
        mean = method["protocols"]["visedit"]["reliability"]["mean"]
        found = [row for row in rows if (row["method"], row["protocol"]) == (name, "visedit")]
        assert float(found[0]["mean"]) == mean
        assert f"{mean:.1f} (" in markdown
        assert name in markdown and name in page and name in out
    assert metrics["targets"]["seen"] == metrics["settings"]["records"]
    told = "were seen as a whole in training (known from the adapters in"
    assert all(told in " ".join(text.split()) for text in (markdown, page, out))
    assert {row["targets"] for row in rows if row["metric"] == "reliability"} == {"all", "seen"}
    assert {row["targets"] for row in rows if row["metric"] == "text_locality"} == {"all"}
    assert metrics["audit"]["findings"]
    assert "image locality" in out.lower() or "image-locality" in out.lower()


def test_every_method_is_split_by_the_same_targets(work: Workplace, call: Any, tmp_path: Path):
    items = json.loads(work.data.read_text(encoding="utf-8"))
    some = [item for item in items if item["alt"] == items[0]["alt"]]
    (tmp_path / "some.json").write_text(json.dumps(some), encoding="utf-8")
    protocols = ("--protocols", "generate", "visedit", "easyedit")
    call(benchmark(work, *protocols, methods=METHODS[:2]))
    # The split decides no result, so the run goes on, and nothing is measured anew.
    known = ("--training-records", tmp_path / "some.json")
    called = call(benchmark(work, *protocols, *known, methods=METHODS[:2]))
    assert called.code == 0, called.err
    metrics = metrics_of(run_of(work))
    counts = metrics["targets"]
    asked = items[:4]  # of which the benchmark is
    assert 0 < counts["seen"] == sum(item["alt"] == items[0]["alt"] for item in asked)
    for method in metrics["methods"].values():
        for protocol in ("generate", "visedit", "easyedit"):
            groups = method["by_target"][protocol]
            assert {name: group["reliability"]["n"] for name, group in groups.items()} == {
                name: counts[name] for name in ("seen", "unseen", "new_word") if counts[name]
            }
    assert "never seen as a whole" in called.out
    for name in ("results.md", "results.html"):
        assert "never seen as a whole" in (run_of(work) / name).read_text()


def test_a_second_call_makes_nothing_anew_and_more_methods_can_follow(
    work: Workplace, call: Any, monkeypatch: pytest.MonkeyPatch
):
    protocols = ("--protocols", "visedit", "specificity")
    call(benchmark(work, *protocols, methods=METHODS[:1]))
    monkeypatch.setattr(specificity, "first_answer_tokens", lambda *_: pytest.fail("drawn anew"))
    before = {path: path.stat().st_mtime_ns for path in run_of(work).glob("methods/*/cases/*")}
    assert before
    call(benchmark(work, *protocols, methods=(METHODS[0], METHODS[2])))
    for path, written in before.items():
        assert path.stat().st_mtime_ns == written
    assert list(metrics_of(run_of(work))["methods"])[-1] == "FT, last layer"


def test_other_settings_do_not_continue_a_run(work: Workplace, call: Any):
    protocols = ("--protocols", "visedit")  # which generates nothing
    call(benchmark(work, *protocols, methods=METHODS[:1]))
    for options in ([*protocols, "--limit", "3"], ["--protocols", "generate"]):
        called = call(benchmark(work, *options, methods=METHODS[:1]))
        assert called.code == 2
        assert "other settings" in called.err
    called = call(benchmark(work, *protocols, "--set", "dualedit.steps=3", methods=METHODS[:1]))
    assert called.code == 2 and "steps" in called.err
    stale = method_folder(run_of(work), DUALEDIT) / "cases" / "00003.json"
    assert stale.is_file()
    command = benchmark(work, *protocols, "--limit", "3", "--fresh", methods=METHODS[:1])
    assert call(command).code == 0
    # Records of another file may have the numbers of these: no case of them is kept.
    assert not stale.exists() and (stale.parent / "00002.json").is_file()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--methods", "nothing"], "no methods ['nothing']"),
        (["--set", "dualedit"], "METHOD.KEY=VALUE"),
        (["--set", "nothing.rate=1"], "no methods ['nothing']"),
        (["--set", "dualedit.rate=["], "is not YAML"),
        (["--set", "dualedit.rate=1"], "DualEdit has no settings ['rate']"),
        (["--set", "dualedit.steps=0"], "steps = 0"),
        (["--set", "dualedit.steps=9"], "steps = 9 of DualEdit: its adapters are there"),
        (["--set", "dualedit.archive=nowhere"], "'nowhere' of DualEdit is not there"),
        (["--set", "ft-last-layer.nothing=1"], "unknown keys in the settings of FT, last layer"),
        (["--set", "ft-vision-side.learning_rate=fast"], "learning_rate = 'fast'"),
        (["--set", "unedited.steps=1"], "unedited.steps: it has no settings"),
        (["--validation", "5"], "--validation is of --tune"),
        (["--stand-ins"], "give one of them"),
    ],
)
def test_mistakes_are_told_in_one_line(work: Workplace, call: Any, options: list[str], told: str):
    assert told in call(benchmark(work, *options, methods=METHODS[:1])).error
    assert not run_of(work).exists(), "it is told before anything is measured"


def test_an_archive_of_dualedit_is_that_of_all_rows_with_its_adapters(
    work: Workplace, call: Any
) -> None:
    other = work.folder / "other"
    shutil.copytree(work.adapters, other)
    config = json.loads((other / "config.json").read_text())
    config["training_targets"] = ["something else"]
    (other / "config.json").write_text(json.dumps(config))
    methods = (METHODS[0], "DualEdit, cosine gate")
    options = ["--set", f"dualedit.archive={other}", "--protocols", "visedit", "--limit", "2"]
    called = call(benchmark(work, *options, methods=methods))
    assert called.code == 0, called.err
    told = metrics_of(run_of(work))["targets"]
    assert not told["seen"] and told["source"].endswith("/other")
    for method in methods:
        assert str(other) in (method_folder(run_of(work), method) / "run.json").read_text()


def test_data_options_that_do_not_fit_are_told(work: Workplace, call: Any):
    hparams = str(work.hparams())
    bare = ["benchmark", "--hparams", hparams, "--output", str(work.folder / "outputs")]
    assert "give --data" in call(bare).error
    assert "need --data" in call([*bare, "--train", str(work.data)]).error
    assert "--stand-ins" in call([*bare, "--data", str(work.data)]).error
    given = [*bare, "--data", str(work.data), "--images", str(work.images)]
    assert "--train-limit goes with --train" in call([*given, "--train-limit", "3"]).error


def test_a_method_that_fails_is_a_row(work: Workplace, call: Any):
    empty = work.folder / "empty"
    empty.mkdir()
    called = call(benchmark(work, "--set", f"dualedit.archive={empty}", methods=METHODS[:1]))
    assert called.code == 2, "it was asked for by name"
    assert "error: dualedit failed (ArchiveError: " in called.err
    failed = metrics_of(run_of(work))["methods"][DUALEDIT]
    assert failed["status"] == "failed" and str(empty) in failed["error"]
    assert "DualEdit; failed" in " ".join(called.out.split())
    mended = call(benchmark(work, methods=METHODS[:1]))
    assert mended.code == 0, mended.err
    assert metrics_of(run_of(work))["methods"][DUALEDIT]["status"] != "failed"


def test_shards_merge_to_the_unsharded_run(whole: tuple[Workplace, str], call: Any):
    work, _ = whole
    for place in range(2):
        called = call(benchmark(work, "--shard", f"{place}/2", "--name", f"part{place}"))
        assert called.code == 0
        assert "not complete" in called.out
    parts = [str(run_of(work, f"part{place}")) for place in range(2)]
    merged = run_of(work, "merged")
    refused = call(["merge", *parts, "--output", str(merged), "--images", str(merged / "no")])
    assert refused.code == 2 and "there is no such folder" in refused.error
    assert not merged.exists()
    called = call(["merge", *parts, "--output", str(merged), "--images", str(work.images)])
    assert called.code == 0, called.err
    assert (merged / METRICS_FILE).read_bytes() == (run_of(work) / METRICS_FILE).read_bytes()
    assert (merged / "results.html").is_file()


def run_unseen(arguments: list[str]) -> None:
    """Run a command without its output."""
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere.fileno(), stream.fileno())
    sys.exit(cli.main(arguments))


def test_a_run_that_is_killed_again_and_again_ends_as_an_unbroken_one(
    whole: tuple[Workplace, str], call: Any
):
    work, _ = whole
    source = random.Random(7)
    cases = run_of(work, "killed") / "methods"
    killed = 0
    for _ in range(3):
        process = started(run_unseen, benchmark(work, "--name", "killed"))
        # A moment while cases are being written, not while the model is still being loaded.
        count, deadline = len(list(cases.glob("*/cases/*.json"))), time.monotonic() + 60
        while process.is_alive() and time.monotonic() < deadline:
            if len(list(cases.glob("*/cases/*.json"))) > count:
                time.sleep(source.random() * 0.2)
                break
            time.sleep(0.01)
        killed += process.is_alive()
        process.kill()
        process.join()
    assert killed >= 2
    assert call(benchmark(work, "--name", "killed")).code == 0
    whole = (run_of(work) / METRICS_FILE).read_bytes()
    assert (run_of(work, "killed") / METRICS_FILE).read_bytes() == whole


@needs_master
def test_numbers_under_easyedit_are_those_of_its_own_editor(tmp_path: Path, call: Any):
    from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams
    from easyedit_dualedit.plugin.registry import register

    work = onevision_workplace(tmp_path)
    assert call(work.train("--steps", 30)).code == 0
    assert call(benchmark(work, "--protocols", "easyedit", methods=METHODS[:2])).code == 0
    host = register()
    hparams = DualEditMultimodalHparams.from_dict(
        {
            "model_name": str(work.model),
            "name": str(work.model),
            "archive": str(work.adapters),
            "gate": "open",
            "device": "cpu",
            "coco_image": str(work.images),
            "rephrase_image": str(work.images),
        }
    )
    editor = host.package.MultimodalEditor.from_hparams(hparams)
    dataset = host.package.VQADataset(str(work.data), config=hparams)
    measured, _, _ = editor.edit_dataset(dataset, verbose=False)
    names = dict(
        zip(
            METRICS,
            (
                "rewrite_acc",
                "rephrase_acc",
                "image_rephrase_acc",
                "locality_acc",
                "multimodal_locality_acc",
            ),
            strict=True,
        )
    )
    assert len(measured) == len(dataset) > 3
    distinct = set()
    for index, found in enumerate(measured):
        folder = method_folder(run_of(work), "DualEdit, no gate")
        case = json.loads((folder / "cases" / f"{index:05d}.json").read_text())
        for metric, name in names.items():
            assert case["values"]["easyedit"][metric] == float(found["post"][name]), metric
            distinct.add(float(found["post"][name]))
    assert len(distinct) > 3


def onevision_workplace(folder: Path) -> Workplace:
    """Return a workplace whose model EasyEdit's master knows by its folder's name."""
    from tiny_data import write_data

    class OneVision(Workplace):
        @property
        def model(self) -> Path:
            return self.folder / "llava-onevision-tiny"

    work = OneVision(folder)
    tiny_llava_onevision().save(work.model)
    write_data(work.images, 8)
    items = json.loads(work.data.read_text())
    items[1]["alt"] = " blue circle \n"  # as some targets of E-IC are
    items[2]["rephrase"] = items[2]["rephrase"] + "\nin one word"
    work.data.write_text(json.dumps(items))
    return work


@pytest.mark.skipif(REAL is None, reason="MMEDIT_DATA does not name a folder of MMEdit's records")
@pytest.mark.parametrize(
    ("evaluated", "known"),
    [("vqa_eval", "vqa_train"), ("caption_eval_edit", "caption_train_edit")],
)
def test_real_records_go_through_every_protocol(
    work: Workplace, call: Any, evaluated: str, known: str
):
    data = Path(str(REAL))
    hparams = work.hparams(archive=str(work.adapters), gate={"kind": "cosine", "threshold": 0.9999})
    command: list[object] = ["benchmark", "--hparams", hparams, "--stand-ins", "--limit", 50]
    command += ["--data", data / f"{evaluated}.json", "--train", data / f"{known}.json"]
    command += ["--train-limit", 20, "--methods", "dualedit", "--output", work.folder / "out"]
    called = call([str(argument) for argument in command])
    assert called.code == 0, called.err
    metrics = metrics_of(work.folder / "out" / "benchmark")
    found = metrics["methods"][DUALEDIT]["protocols"]
    assert set(found) == {"generate", "visedit", "easyedit", "specificity"}
    assert all(value["n"] == 50 for values in found.values() for value in values.values())
    count = {"vqa_eval": 2093, "caption_eval_edit": 1000}[evaluated]
    pairs = [finding for finding in metrics["audit"]["findings"] if finding["found"] == count]
    assert any("locality" in finding["what"] for finding in pairs)


def test_portability_is_measured_where_the_data_has_it(work: Workplace, call: Any):
    def with_portability(items: list[Any]) -> None:
        for item in items[:3]:
            item["port_new"] = [
                {"port_edit_q": "-", "port_edit_a": "-", "port_q": "Where is it?", "port_a": "one"}
            ]

    work.rewrite(with_portability)
    assert call(benchmark(work, "--protocols", "portability", methods=METHODS[:1])).code == 0
    found = metrics_of(run_of(work))["methods"][DUALEDIT]["protocols"]
    assert set(found) == {"portability"}
    assert found["portability"]["exact_match"]["n"] == 3


def test_binding_is_measured_for_every_method_where_the_data_has_it(work: Workplace, call: Any):
    refused = call(benchmark(work, "--protocols", "binding", methods=METHODS[1:]))
    assert "none of the 4 records has the field binding" in refused.error

    def bound(items: list[Any]) -> None:
        items[0]["binding"] = BOUND
        items[2]["binding"] = {name: BOUND[name] for name in ("text_q", "text_a")}

    work.rewrite(bound)
    called = call(benchmark(work, "--protocols", "binding", methods=METHODS[1:]))
    assert called.code == 0, called.err
    metrics = metrics_of(run_of(work))
    for method in metrics["methods"].values():
        found = method["protocols"]["binding"]
        assert (found["text_untouched"]["n"], found["beside_untouched"]["n"]) == (2, 1)
        shares = [found[name]["mean"] for name in ("picture_old", "picture_new", "picture_neither")]
        assert sum(shares) == 100
    for text in ((run_of(work) / "results.md").read_text(), " ".join(called.out.split())):
        assert "old binding persists" in text
    assert "picture old (1 edit)" in (run_of(work) / "results.md").read_text()
    page = (run_of(work) / "results.html").read_text()
    assert "picture: old answer" in page and BOUND["beside_q"] in page


def with_training(work: Workplace) -> Path:
    """Return a file of six records whose pictures are beside those of the workplace."""
    train = write_data(work.images / "train", 6)
    items = json.loads(train.read_text(encoding="utf-8"))
    for item in items:
        item.update({name: f"train/{item[name]}" for name in ("image", "image_rephrase", "m_loc")})
    train.write_text(json.dumps(items), encoding="utf-8")
    return train


def test_mistakes_in_files_are_told_before_anything_is_tried(work: Workplace, call: Any):
    wrong = work.folder / "wrong.json"
    wrong.write_text('[{"src": "no more"}]')
    options = ("--train", with_training(work), "--tune", 2, "--validation", 2)
    command = benchmark(work, *options, "--training-records", wrong, methods=METHODS[2:])
    assert "record 0 has no field" in call(command).error
    assert not (run_of(work) / "tuning").exists()


def test_hyperparameters_are_chosen_before_anything_is_measured(work: Workplace, call: Any):
    options = ("--tune", 2, "--validation", 2, "--protocols", "generate", "visedit")
    # Records 0 to 3 are in the file, and all are evaluated: nothing can be set aside.
    assert "give more of them (--train)" in call(benchmark(work, *options)).error
    train = with_training(work)
    command = benchmark(work, "--train", train, *options, methods=("dualedit", "ft-last-layer"))
    called = call(command)
    assert called.code == 0, called.err
    metrics = metrics_of(run_of(work))
    tuning = metrics["tuning"]
    assert (tuning["trials"], tuning["validation"]) == (2, 2)
    # DualEdit has nothing to choose; what --set gave stays.
    (name,) = tuning["methods"]
    trials = tuning["methods"][name]["trials"]
    assert name == "FT, last layer" and len(trials) == 2
    assert set(trials[1]["settings"]) == {"learning_rate", "loss_below"}
    run = json.loads((method_folder(run_of(work), name) / "run.json").read_text())
    chosen = trials[tuning["methods"][name]["chosen"]]["settings"]
    assert run["settings"] == {"steps": 2, **chosen}
    assert metrics["data"]["trained_on"]["records"] == 4
    for text in ((run_of(work) / "results.md").read_text(), " ".join(called.out.split())):
        assert "set aside from the training records" in text
    page = (run_of(work) / "results.html").read_text()
    assert "hyperparameters chosen on validation records" in page
    assert call(command).code == 0
    assert metrics_of(run_of(work)) == metrics
    command[command.index("--tune") + 1] = "3"
    assert "tuning.trials was" in call(command).error


def test_names_of_methods_are_arguments():
    assert [slug(name) for name in (DUALEDIT, "DualEdit, no gate", "FT, last layer")] == list(
        METHODS
    )
