"""Two runs compared: what got better and worse, over which cases, and what is no comparison."""

import json
from pathlib import Path

import pytest
from tiny_runs import Wrong, benchmark, evaluation, many, queries_of, write

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.experiments.comparison import Comparison, Difference, compare
from easyedit_dualedit.experiments.stored_run import StoredRun
from easyedit_dualedit.measure.intervals import paired_difference

LOCALITY = ("image_locality",)
MANY_FAIL: Wrong = {index: LOCALITY for index in range(12)}
FEW_FAIL: Wrong = {0: LOCALITY, 1: ("text_generality",), 2: ("reliability",)}


def compared(first: Path, second: Path, **options: str) -> Comparison:
    return compare(StoredRun.read(first), StoredRun.read(second), **options)


def difference(found: Comparison, metric: str, protocol: str = "generate") -> Difference:
    (only,) = [d for d in found.differences if (d.protocol, d.metric) == (protocol, metric)]
    return only


@pytest.mark.parametrize("written", [evaluation, benchmark])
def test_what_got_better_and_worse_case_by_case(written: type, tmp_path: Path):
    first = written(tmp_path / "first", 20, {"DualEdit": MANY_FAIL, "IKE": {}})
    second = written(tmp_path / "second", 20, {"DualEdit": FEW_FAIL, "MEND": {}})
    found = compared(first, second)
    assert dict(found.names) == {"DualEdit": "DualEdit"}
    assert (found.shared, found.alone) == (20, (0, 0))
    assert found.left_out == (["IKE"], ["MEND"])
    locality = difference(found, "image_locality")
    assert (locality.first, locality.second) == (40.0, 95.0)
    assert (locality.better, locality.worse, locality.verdict) == (11, 0, "better")
    before = [float(index not in MANY_FAIL) for index in range(20)]
    after = [float(index != 0) for index in range(20)]
    assert locality.change == paired_difference(after, before)
    reliability = difference(found, "reliability")
    assert (reliability.better, reliability.worse, reliability.verdict) == (0, 1, "unsure")
    assert difference(found, "text_locality").verdict == "same"
    average = difference(found, "average")
    assert average.first == pytest.approx(88.0) and average.second == pytest.approx(97.0)
    # Worse ones come first, each question once for all protocols.
    assert [case.question for case in found.changed[:2]] == ["text_generality", "reliability"]
    worse = found.changed[1]
    assert worse.is_worse and worse.place == ("", 2) and worse.answers == ("yes 2", "no")
    assert worse.query["prompt"] == "reliability 2?"
    assert dict(worse.changes) == {"generate": -1.0, "visedit": -1.0}
    assert len(found.changed) == 13 and found.unedited == (0, 100)


def test_only_cases_that_both_have_count(tmp_path: Path):
    first = evaluation(tmp_path / "first", 20, {"DualEdit": MANY_FAIL})
    second = evaluation(tmp_path / "second", 8, {"DualEdit": {}})
    found = compared(first, second)
    assert (found.shared, found.alone) == (8, (12, 0))
    assert difference(found, "image_locality").first == 0.0


def test_one_method_against_another_also_of_one_run(tmp_path: Path):
    run = evaluation(tmp_path / "run", 20, {"cosine": MANY_FAIL, "learned": {}})
    found = compared(run, run, method="cosine", against="learned")
    assert difference(found, "image_locality").better == 12
    with pytest.raises(DataError, match="no method 'open'; it has cosine; learned"):
        compared(run, run, method="cosine", against="open")
    with pytest.raises(DataError, match="needs --method"):
        compared(run, run, against="cosine")


def test_many_edits_are_compared_by_their_number(tmp_path: Path):
    found = compared(many(tmp_path / "first", {}), many(tmp_path / "second", {3: LOCALITY}))
    assert list(found.names) == ["dualedit, 1 edits", "dualedit, 10 edits"]
    places = [(case.place, case.answers) for case in found.changed]
    assert places == [(("003", 3), ("yes 3", "no")), (("000", 3), ("yes 3", "no"))]
    other = many(tmp_path / "other", {}, data="another digest")
    with pytest.raises(DataError, match="different records.*digest.*another digest"):
        compared(tmp_path / "first", other)


def test_runs_that_are_no_pair_are_refused_by_name(tmp_path: Path):
    first = evaluation(tmp_path / "first", 4, {"DualEdit": {}})
    with pytest.raises(DataError, match="a run of evaluate and .* one of benchmark"):
        compared(first, benchmark(tmp_path / "benchmark", 4, {"DualEdit": {}}))
    with pytest.raises(DataError, match="no method is in both"):
        compared(first, evaluation(tmp_path / "method", 4, {"IKE": {}}))
    other = evaluation(tmp_path / "other", 4, {"DualEdit": {}})
    path = other / "cases" / "00002.json"
    text = path.read_text().replace("reliability 2?", "something else?")
    path.write_text(text)
    with pytest.raises(DataError, match="record 2 asks 'reliability 2\\?'.*'something else\\?'"):
        compared(first, other)
    pictures = evaluation(tmp_path / "pictures", 4, {"DualEdit": {}})
    path = pictures / "cases" / "00001.json"
    whole = path.read_text()
    path.write_text(whole.replace('"1.png"', '"elsewhere/1.png"'))
    assert compared(first, pictures).differences, "pictures may lie in another folder"
    path.write_text(whole.replace('"1.png"', '"other.png"'))
    with pytest.raises(DataError, match="about 1.png -> .* about other.png -> "):
        compared(first, pictures)
    protocol = evaluation(tmp_path / "protocol", 4, {"DualEdit": {}})
    for path in protocol.glob("cases/*.json"):
        path.write_text(path.read_text().replace('"generate"', '"portability"'))
        path.write_text(path.read_text().replace('"visedit"', '"binding"'))
    with pytest.raises(DataError, match="no protocol is in both.*generate.*portability"):
        compared(first, protocol)
    with pytest.raises(DataError, match="holds no run"):
        compared(first, tmp_path / "nothing")


def test_an_unedited_model_that_answers_otherwise_is_told(tmp_path: Path):
    first = evaluation(tmp_path / "first", 4, {"DualEdit": {}})
    second = evaluation(tmp_path / "second", 4, {"DualEdit": {}})
    assert queries_of(1)["reliability"]["prompt"] == "reliability 1?"
    path = second / "cases" / "00001.json"
    text = path.read_text().replace('"reliability": "no"', '"reliability": "perhaps"')
    path.write_text(text)
    assert compared(first, second).unedited == (1, 20)
    write(second / "cases" / "00002.json", {"index": 2, "queries": queries_of(2), "methods": {}})
    assert compared(first, second).alone == (1, 0)


def test_questions_that_were_drawn_otherwise_are_not_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    folders = []
    for name, asked, value in (("first", "Is it red?", 1.0), ("second", "How many?", 0.0)):
        folder = evaluation(tmp_path / name, 4, {"DualEdit": {}})
        for index, path in enumerate(sorted((folder / "cases").glob("*.json"))):
            case = json.loads(path.read_text())
            # Of the first record both runs ask the same.
            prompt = asked if index else "Is it round?"
            case["queries"]["no_image"] = {"prompt": prompt, "target": name}
            edited = case["methods"]["DualEdit"]
            edited["answers"]["no_image"] = name
            edited["values"]["generate"] |= {"no_image": value, "NI": value}
            path.write_text(json.dumps(case))
        folders.append(folder)
    found = compared(*folders)
    told = {each.metric: each for each in found.differences if each.protocol == "generate"}
    assert told["no_image"].worse == told["NI"].worse == 1
    assert told["no_image"].first - told["no_image"].second == 100
    assert told["reliability"].verdict == "same"
    assert [case.place[1] for case in found.changed] == [0]
    assert "3 records have other questions of no_image" in caplog.text


def test_answers_that_a_mean_is_made_of_are_told(tmp_path: Path):
    """ComprehendEdit's two numbers are means over the samples that lie nearest."""
    folders = []
    for name, answer, value in (("first", "yes", 1.0), ("second", "no", 0.0)):
        asked = ("nearest_wrong_0", "nearest_right_0", "portability_0")
        values = {
            "comprehendedit": {"knowledge_generalisation": value, "knowledge_preservation": value},
            "portability": {"exact_match": value},
        }
        edited = {"values": values, "answers": dict.fromkeys(asked, answer), "gate": {}}
        queries = {question: {"prompt": question, "target": "x"} for question in asked}
        case = {"index": 0, "queries": queries, "before": {}, "methods": {"DualEdit": edited}}
        folder = tmp_path / name
        (folder / "cases").mkdir(parents=True)
        (folder / "run.json").write_text("{}")
        (folder / "cases" / "00000.json").write_text(json.dumps(case))
        folders.append(folder)
    found = compared(*folders)
    assert {case.question for case in found.changed} == set(asked)
    assert all(case.is_worse and case.answers == ("yes", "no") for case in found.changed)
