"""Page: every number and case in one file that fetches nothing and runs nothing but its own."""

import base64
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import pytest
from PIL import Image

from easyedit_dualedit.data.records import METRICS
from easyedit_dualedit.errors import ConfigError, DataError
from easyedit_dualedit.measure.specificity import KINDS
from easyedit_dualedit.report.page import write_page

VOID = {"br", "hr", "img", "input", "link", "meta"}
EVIL = '</script><img src=x onerror="window.hit=1"><script>window.hit=1</script>'


# ---- a benchmark in small ------------------------------------------------------------------------


def value(mean: float, n: int = 40) -> dict[str, float]:
    return {"mean": mean, "low": mean - 2.0, "high": mean + 1.0, "n": n}


def method(mean: float, protocols: Sequence[str] = ("generate", "visedit"), **given: Any) -> Any:
    numbers = {metric: value(mean + place) for place, metric in enumerate(METRICS)}
    return {
        "status": "done",
        "error": None,
        "reads_label": False,
        "remarks": [],
        "protocols": {name: {**numbers, "average": value(mean + 2)} for name in protocols},
        "costs": {
            "seconds_per_edit": 0.25,
            "forward_overhead": 1.02,
            "peak_memory_bytes": 3 * 2**30,
            "trained_parameters": 12_300_000,
            "bytes_per_edit": 2048,
            "training_seconds": None,
        },
        **given,
    }


def metrics_of(**given: Any) -> dict[str, Any]:
    failed = method(0, (), status="failed", error="no <b>memory</b> left", costs={})
    return {
        "title": "E-VQA, tiny",
        "data": {
            "evaluated": {"name": "eval.json", "records": 40, "digest": "0123456789abcdef"},
            "trained_on": {"name": "train.json", "records": 6345, "digest": "fedcba9876543210"},
        },
        "audit": {
            "findings": [
                {"what": "image-locality pairs of eval also in train", "found": 40, "of": 40}
                | {"percent": 100.0, "examples": ["kite.jpg: what is it?"]},
                {"what": "edits of eval also in train", "found": 0, "of": 40}
                | {"percent": 0.0, "examples": []},
            ]
        },
        "quirks": {"target equal to prediction": 4},
        "settings": {"dtype": "bfloat16", "DualEdit": {"text_layer": 16}},
        "versions": {"torch": "9.8.7"},
        "seed": 3,
        "seconds": 750.0,
        "methods": {
            "unedited": method(95.0),
            "DualEdit": method(90.0),
            "FT": method(70.0, ("generate",), reads_label=True, remarks=["one <i>step</i>"]),
            "LoRA": failed,
        },
        "comparison": {
            "protocol": "generate",
            "best": "DualEdit",
            "runner_up": "FT",
            "difference": {"mean": 20.0, "low": 10.1, "high": 24.2, "n": 40},
        },
        **given,
    }


def queries_of(index: int) -> dict[str, Any]:
    return {
        metric: {
            "prompt": f"{metric} question {index}?",
            "image": None if metric == "text_locality" else f"{index % 3}.png",
            "target": f"target {index}",
        }
        for metric in METRICS
    }


def case_of(
    index: int, failing: Sequence[str] = (), answer: str = "a kite", forced: float = 1.0
) -> dict[str, Any]:
    exact = {metric: float(metric not in failing) for metric in METRICS}
    return {
        "index": index,
        "values": {"generate": exact, "visedit": dict.fromkeys(METRICS, forced)},
        "answers": {metric: f"{answer} {index}" for metric in METRICS},
        "gate": {},
    }


def cases_of(count: int = 45, answer: str = "a kite") -> dict[str, list[dict[str, Any]]]:
    """Return cases of which DualEdit fails every tenth, from 3 on, and FT all."""
    unedited = [case_of(index, METRICS[:3], "before") for index in range(count)]
    ours = [
        case_of(index, ["text_locality"] if index % 10 == 3 else (), answer)
        for index in range(count)
    ]
    for case in unedited:
        case["queries"] = queries_of(case["index"])
    for case in ours:
        case["gate"] = {metric: {"similarity": 0.93, "open": True} for metric in METRICS}
    others = [case_of(index, ["reliability"], "other", forced=0.5) for index in range(count)]
    return {"unedited": unedited, "DualEdit": ours, "FT": others}


class Tree(HTMLParser):
    """Reads a page the way a browser splits it into elements."""

    def __init__(self, text: str):
        super().__init__()
        self.root = Element("root")
        self._open = [self.root]
        self.feed(text)
        assert self._open == [self.root], f"not closed: {[one.tag for one in self._open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        made = Element(tag, {name: text or "" for name, text in attrs})
        self._open[-1].append(made)
        if tag not in VOID:
            self._open.append(made)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        last = self._open[-1]
        if len(last):
            last[-1].tail = (last[-1].tail or "") + data
        else:
            last.text = (last.text or "") + data

    def one(self, path: str) -> Element:
        found = self.root.findall(path)
        assert len(found) == 1, f"{len(found)} of {path}"
        return found[0]

    def cells(self, section: str) -> list[list[str]]:
        rows = self.one(f".//section[@id='{section}']//table").iter("tr")
        return [["".join(cell.itertext()) for cell in row] for row in rows]


def text_of(element: Element) -> str:
    return "".join(element.itertext()).replace("\N{NO-BREAK SPACE}", " ")


def written(folder: Path, metrics: Any = None, cases: Any = None, **options: Any) -> Tree:
    path = folder / "page.html"
    write_page(
        path,
        metrics_of() if metrics is None else metrics,
        cases_of() if cases is None else cases,
        **options,
    )
    return Tree(path.read_text(encoding="utf-8"))


def content_of(tree: Tree) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(tree.one(".//script[@id='content']").text or "")
    return found


# ---- what the file is ----------------------------------------------------------------------------


def test_nothing_can_be_fetched_and_only_the_pages_own_script_can_run(tmp_path: Path):
    tree = written(tmp_path)
    policy = tree.one(".//meta[@http-equiv='Content-Security-Policy']").get("content", "")
    rules = dict(rule.split(maxsplit=1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for kind, text in (
        ("script-src", tree.one(".//body/script").text),
        ("style-src", tree.one(".//style").text),
    ):
        digest = base64.b64encode(hashlib.sha256((text or "").encode()).digest()).decode()
        assert rules[kind] == f"'sha256-{digest}'"
    for element in tree.root.iter():
        assert not [name for name in element.attrib if name.startswith("on") or name == "style"]
        for name in ("src", "href"):
            assert element.get(name, "#").startswith(("#", "data:"))
    assert "url(" not in (tree.one(".//style").text or "")
    assert "@import" not in (tree.one(".//style").text or "")


def test_the_page_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "new" / "page.html"
    write_page(path, metrics_of(), {})
    before = path.read_text(encoding="utf-8")
    assert before.startswith("<!doctype html>")
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DataError, match="No space left"):
        write_page(path, metrics_of(title="other"), {})
    assert path.read_text(encoding="utf-8") == before


def test_texts_of_every_origin_are_no_markup(tmp_path: Path):
    metrics = metrics_of(title=EVIL, settings={EVIL: EVIL}, quirks={EVIL: 1}, versions={"a": EVIL})
    metrics["methods"][EVIL] = method(50.0, remarks=[EVIL])
    metrics["methods"]["LoRA"]["error"] = EVIL
    metrics["audit"]["findings"][0]["examples"] = [EVIL]
    metrics["data"]["evaluated"]["name"] = EVIL
    metrics["comparison"]["runner_up"] = EVIL
    cases = cases_of(2, EVIL)
    cases[EVIL] = [case_of(0, (), EVIL)]
    cases["unedited"][0]["queries"]["reliability"] = dict.fromkeys(
        ("prompt", "image", "target"), EVIL
    )
    tree = written(tmp_path, metrics, cases)
    assert not tree.root.findall(".//img")
    assert len(tree.root.findall(".//script")) == 2
    assert text_of(tree.one(".//h1")) == EVIL
    content = content_of(tree)
    assert content["cases"][0]["methods"]["DualEdit"]["answers"]["reliability"] == f"{EVIL} 0"
    assert "<" not in (tree.one(".//script[@id='content']").text or "")


def test_texts_that_no_file_can_hold_and_numbers_that_are_none_do_no_harm(tmp_path: Path):
    metrics = metrics_of()
    metrics["methods"]["DualEdit"]["protocols"]["generate"]["average"] = value(float("nan"))
    metrics["methods"]["DualEdit"]["remarks"] = ["half \ud83d"]
    cases = cases_of(1, "half \ud83d")
    cases["DualEdit"][0]["values"]["generate"]["reliability"] = float("nan")
    tree = written(tmp_path, metrics, cases)
    ours = content_of(tree)["cases"][0]["methods"]["DualEdit"]
    assert ours["values"]["generate"]["reliability"] is None
    assert ours["answers"]["reliability"] == "half ? 0"
    assert tree.cells("protocol-generate")[2][-1] == "\N{EM DASH}"


@pytest.mark.parametrize("key", ["title", "methods"])
def test_metrics_of_something_else_are_refused(key: str, tmp_path: Path):
    with pytest.raises(DataError, match=f"no {key}.*metrics.json"):
        write_page(tmp_path / "page.html", metrics_of(**{key: None}), {})


def test_what_cannot_be_shown_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="most_cases is -1"):
        write_page(tmp_path / "page.html", metrics_of(), {}, most_cases=-1)
    with pytest.raises(DataError, match="a case of FT has no index"):
        write_page(tmp_path / "page.html", metrics_of(), {"FT": [{"values": {}}]})


# ---- what it says --------------------------------------------------------------------------------


def test_the_headline_says_who_is_ahead_and_by_how_much(tmp_path: Path):
    header = text_of(written(tmp_path).one(".//header"))
    assert (
        "DualEdit has the highest average under generate: 92.0, which is 20.0"
        " (95 % interval 10.1 to 24.2) above FT." in header
    )
    assert "not ahead" not in header and "holds 0" not in header
    assert "4 methods, 1 failed" in header


def test_the_headline_says_so_if_another_is_ahead_or_nothing_is_sure(tmp_path: Path):
    metrics = metrics_of()
    metrics["methods"]["FT"] = method(93.0, reads_label=True)
    metrics["comparison"] |= {"best": "FT", "runner_up": "DualEdit"}
    metrics["comparison"]["difference"] = {"mean": 3.0, "low": -0.5, "high": 6.0, "n": 40}
    header = text_of(written(tmp_path, metrics).one(".//header"))
    assert "FT has the highest average under generate: 95.0, which is 3.0 (95 % interval" in header
    assert "interval \N{MINUS SIGN}0.5 to 6.0" in header
    assert "The interval holds 0, so these 40 cases do not tell the two apart." in header
    assert "DualEdit reaches 92.0, 3.0 below." in header
    assert "FT reads the label" in header
    assert "DualEdit is not ahead everywhere:" in header
    assert "generate: reliability (FT 93.0, DualEdit 90.0); text generality (FT" in header


def test_the_headline_does_without_a_comparison(tmp_path: Path):
    metrics = metrics_of(comparison=None)
    del metrics["methods"]["FT"]
    assert "nothing to be compared with" in text_of(written(tmp_path, metrics).one(".//header"))
    metrics["methods"] = {"LoRA": metrics["methods"]["LoRA"]}
    tree = written(tmp_path, metrics, {})
    assert "No method was measured" in text_of(tree.one(".//header"))
    assert tree.cells("costs")[1] == ["LoRA", "failed: no <b>memory</b> left"]


def test_each_protocol_has_a_table_of_its_own_with_every_method(tmp_path: Path):
    tree = written(tmp_path)
    generate, visedit = tree.cells("protocol-generate"), tree.cells("protocol-visedit")
    names = ["reliability", "text generality", "image generality", "text locality"]
    assert generate[0] == ["method", *names, "image locality1", "average"]
    assert generate[2] == [
        "DualEdit",
        *(f"{90 + n}.0 {88 + n}.0–{91 + n}.0" for n in (0, 1, 2, 3, 4, 2)),
    ]
    assert [row[0] for row in generate[1:]] == [
        "unedited",
        "DualEdit",
        "FT reads the label",
        "LoRA",
    ]
    assert generate[4] == ["LoRA", "failed: no <b>memory</b> left"]
    assert visedit[3] == ["FT reads the label", "not measured under this protocol"]
    assert "generate, percent, 40 cases" in text_of(tree.one(".//section[@id='protocol-generate']"))


def test_targets_seen_in_training_are_told_from_others(tmp_path: Path):
    groups = {
        name: {metric: value(mean, n) for metric in METRICS[:3]}
        for name, mean, n in (("seen", 90.0, 30), ("unseen", 40.0, 10))
    }
    ours = method(90.0, by_target={"generate": groups})
    targets = {"source": "from <b>a test</b>", "seen": 30, "unseen": 10, "new_word": 0}
    methods = metrics_of()["methods"] | {"DualEdit": ours}
    tree = written(tmp_path, metrics_of(methods=methods, targets=targets))
    section = tree.one(".//section[@id='protocol-generate']")
    assert len(section.findall(".//table")) == 2
    assert "generate, by whether the target was seen in training" in text_of(section)
    assert "never seen as a whole 10 DualEdit 40.0 (38.0–41.0)" in " ".join(
        cell.text or "" for row in section.iter("tr") for cell in row.iter() if cell.text
    )
    whole = text_of(tree.one(".//section[@id='results']"))
    assert "Of 40 targets, 30 were seen as a whole in training and 10 were not" in whole
    assert "from <b>a test</b>" in whole
    absent = written(tmp_path, metrics_of(targets={"absent": "nobody knows"}))
    assert "No split by targets seen in training: nobody knows." in text_of(
        absent.one(".//section[@id='results']")
    )
    assert len(absent.root.findall(".//section[@id='protocol-generate']//table")) == 1


def test_protocols_and_metrics_that_the_page_does_not_know_are_shown_too(tmp_path: Path):
    metrics = metrics_of()
    ours = metrics["methods"]["DualEdit"]["protocols"]
    ours["specificity"] = {"CI": value(1), "RI": value(2), "other_score": value(3, n=7)}
    ours["own"] = {"fluency": value(4)}
    tree = written(tmp_path, metrics)
    assert tree.cells("protocol-specificity")[0] == ["method", "RI", "CI", "other score"]
    assert tree.cells("protocol-specificity")[2][3] == "3.0 1.0–4.0 n 7"
    assert tree.cells("protocol-own")[0] == ["method", "fluency"]
    order = [one.get("id") for one in tree.root.findall(".//section[@class='protocol']")]
    assert order == [f"protocol-{n}" for n in ("generate", "visedit", "specificity", "own")]


def test_the_best_of_a_column_is_bold_also_if_it_is_a_baseline(tmp_path: Path):
    metrics = metrics_of()
    metrics["methods"]["FT"]["protocols"]["generate"]["image_locality"] = value(94.04)
    metrics["methods"]["FT"]["protocols"]["generate"]["text_locality"] = value(94.9)
    tree = written(tmp_path, metrics)
    table = tree.one(".//section[@id='protocol-generate']//table")
    bold = [[text_of(one) for one in row.iter("strong")] for row in table.iter("tr")]
    assert bold == [[], [], ["90.0", "91.0", "92.0", "94.0", "92.0"], ["94.9", "94.0"], []]


def test_answers_that_are_told_apart_rank_nobody(tmp_path: Path):
    metrics = metrics_of()
    for name, old, untouched in (("DualEdit", 40.0, 90.0), ("FT", 60.0, 95.0)):
        metrics["methods"][name]["protocols"]["binding"] = {
            "picture_old": value(old),
            "text_untouched": value(untouched),
        }
    tree = written(tmp_path, metrics)
    table = tree.one(".//section[@id='protocol-binding']//table")
    assert [text_of(one) for one in table.iter("strong")] == ["95.0"]
    (behind,) = (
        text_of(one) for one in tree.root.findall(".//li") if text_of(one).startswith("binding")
    )
    assert "text untouched" in behind and "old answer" not in behind


def test_every_table_has_a_caption_and_heads_with_a_scope(tmp_path: Path):
    tree = written(tmp_path)
    tables = tree.root.findall(".//table")
    assert len(tables) == 2 + 1 + 3 + 3
    for table in tables:
        assert table.find("caption") is not None
        heads = list(table.iter("th"))
        assert heads and {head.get("scope") for head in heads} == {"col", "row"}


def test_a_chart_for_each_metric_names_every_method(tmp_path: Path):
    charts = written(tmp_path).one(".//section[@id='protocol-generate']").findall(".//svg")
    assert len(charts) == 6
    assert charts[1].get("aria-label") == (
        "reliability: unedited 95.0 (93.0 to 96.0); DualEdit 90.0 (88.0 to 91.0);"
        " FT 70.0 (68.0 to 71.0); LoRA failed"
    )
    assert len(charts[1].findall(".//rect")) == 3
    assert [float(one.get("width", "")) for one in charts[1].iter("rect")] == [285, 270, 210]
    assert len(charts[1].findall(".//line[@class='whisker']")) == 9


def test_costs_are_told_in_units(tmp_path: Path):
    rows = written(tmp_path).cells("costs")
    assert rows[2] == ["DualEdit", "0.25 s", "1.02", "3 GiB", "12.3 M", "2 KiB", "\N{EM DASH}"]
    assert rows[4] == ["LoRA", "failed: no <b>memory</b> left"]


def test_the_audit_stands_beside_the_numbers_and_with_the_data(tmp_path: Path):
    tree = written(tmp_path)
    section = text_of(tree.one(".//section[@id='protocol-visedit']"))
    found = "Audit: image-locality pairs of eval also in train: 40 of 40 (100.0 %)."
    assert section.count(found) == 1
    data = text_of(tree.one(".//section[@id='data']"))
    for text in ("eval.json", "6,345", "0123456789ab…", "kite.jpg: what is it?", "100.0 %"):
        assert text in data
    assert "target equal to prediction4" in data
    bare = metrics_of(audit=None, quirks={})
    bare["data"]["trained_on"] = None
    data = text_of(written(tmp_path, bare).one(".//section[@id='data']"))
    assert "not audited" in data and "trained onnothing" in data and "Quirks" not in data


def test_workarounds_and_what_it_ran_with_are_told(tmp_path: Path):
    tree = written(tmp_path)
    section = tree.one(".//section[@id='workarounds']")
    assert "FTone <i>step</i>" in text_of(section)
    assert "None for unedited, DualEdit, LoRA." in text_of(section)
    details = text_of(section.findall("details")[0])
    for text in ("torch9.8.7", "seed3", 'DualEdit{"text_layer": 16}', "dtypebfloat16"):
        assert text in details


# ---- its cases -----------------------------------------------------------------------------------


def test_failures_of_the_favourite_come_first_and_the_rest_is_left_out(tmp_path: Path):
    cases = cases_of()
    cases["DualEdit"][8]["values"]["visedit"]["reliability"] = 0.5
    tree = written(tmp_path, cases=cases, most_cases=8)
    assert [case["index"] for case in content_of(tree)["cases"]] == [3, 13, 23, 33, 43, 8, 0, 1]
    cases["DualEdit"][0]["values"]["binding"] = {"picture_old": 0.0}  # which is no failure
    again = written(tmp_path, cases=cases, most_cases=8)
    assert content_of(again)["cases"][-2]["index"] == 0
    cases["DualEdit"][1]["values"]["binding"] = {"text_untouched": 0.0}
    again = written(tmp_path, cases=cases, most_cases=8)
    assert content_of(again)["cases"][-3]["index"] == 1
    said = text_of(tree.one(".//p[@id='embedded']"))
    assert "This page holds 8 of 45 cases" in said
    assert "Those in which DualEdit fails under generate come first." in said
    assert "All 45 cases" in text_of(written(tmp_path).one(".//p[@id='embedded']"))
    metrics = metrics_of()
    metrics["methods"]["DualEdit"]["status"] = "failed"
    tree = written(tmp_path, metrics, most_cases=0)
    assert "FT fails under generate" in text_of(tree.one(".//p[@id='embedded']"))
    assert content_of(tree)["cases"] == []


def test_a_case_holds_its_queries_and_the_part_of_each_method_once(tmp_path: Path):
    content = content_of(written(tmp_path, cases=cases_of(1)))
    (case,) = content["cases"]
    assert case["queries"] == queries_of(0)
    assert set(case["methods"]) == {"unedited", "DualEdit", "FT"}
    assert case["methods"]["DualEdit"]["gate"]["reliability"] == {"similarity": 0.93, "open": True}
    assert content["protocols"] == {"generate": list(METRICS), "visedit": list(METRICS)}


def test_every_control_has_a_label(tmp_path: Path):
    form = written(tmp_path).one(".//form")
    labelled = {label.get("for") for label in form.iter("label")}
    controls = [*form.iter("select"), *form.iter("input")]
    assert labelled == {control.get("id") for control in controls}
    assert len(labelled) == 5


def picture_of(content: dict[str, Any], name: str) -> Image.Image:
    head, data = content["pictures"][name].split(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_pictures_are_small_and_embedded_once(tmp_path: Path):
    Image.new("RGB", (400, 100), "red").save(tmp_path / "0.png")
    Image.new("RGBA", (30, 60), (0, 0, 255, 0)).save(tmp_path / "1.png")
    (tmp_path / "2.png").write_text("no picture")
    Image.new("RGB", (9, 9)).save(tmp_path / "unused.png")
    files = {name: tmp_path / name for name in ("0.png", "1.png", "2.png", "unused.png")}
    tree = written(tmp_path, pictures=files)
    content = content_of(tree)
    assert set(content["pictures"]) == {"0.png", "1.png"}
    assert picture_of(content, "0.png").size == (112, 28)
    assert picture_of(content, "1.png").size == (30, 60)
    assert min(picture_of(content, "1.png").getpixel((15, 30))) > 250  # type: ignore[arg-type, type-var]
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count("data:image/jpeg") == 2
    assert "1 picture could not be read and is left out: 2.png." in text


# ---- in a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    from selenium.webdriver.chrome.service import Service

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver")
    profile = tmp_path_factory.mktemp("profile")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    made = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield made
    finally:
        made.quit()


class Shown:
    """A page in the browser."""

    def __init__(self, browser: Any, path: Path):
        self.browser = browser
        self.path = path

    def open(self, state: str = "") -> None:
        self.browser.get("about:blank")
        self.browser.get(self.path.as_uri() + state)

    def ask(self, script: str, *given: Any) -> Any:
        return self.browser.execute_script(f"return {script}", *given)

    def find(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def choose(self, name: str, option: str) -> None:
        from selenium.webdriver.support.ui import Select

        Select(self.find(f"#{name}")).select_by_value(option)

    @property
    def state(self) -> str:
        return str(self.ask("location.hash"))

    @property
    def count(self) -> str:
        return str(self.find("#count").text)

    @property
    def indices(self) -> list[int]:
        found = self.ask("[...document.querySelectorAll('.index')].map((one) => one.textContent)")
        return [int(text[1:]) for text in found]


@pytest.fixture
def shown(browser: Any, tmp_path: Path) -> Iterator[Shown]:
    """A page of 45 cases, opened; afterwards nothing was logged and nothing but it was read."""
    for name in ("0.png", "1.png"):
        Image.new("RGB", (40, 30), "red").save(tmp_path / name)
    files = {name: tmp_path / name for name in ("0.png", "1.png")}
    written(tmp_path, pictures=files)
    page = Shown(browser, tmp_path / "page.html")
    browser.get_log("performance")
    browser.get_log("browser")
    page.open()
    yield page
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [one["params"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    # A new browser also loads the parts of its own first page.
    requests = {
        one["request"]["url"].split("#")[0]
        for one in sent
        if one["documentURL"].startswith(page.path.as_uri())
    }
    assert page.path.as_uri() in requests
    assert not {
        url for url in requests if url != page.path.as_uri() and not url.startswith("data:")
    }
    assert page.ask("window.hit === undefined")


def test_failures_are_those_of_method_protocol_and_metric(shown: Shown):
    assert shown.count == "45 of 45 cases"
    shown.find("#failures").click()
    assert shown.count == "45 of 45 cases"  # FT fails in all
    shown.choose("method", "DualEdit")
    assert shown.count == "5 of 45 cases"
    assert shown.indices == [3, 13, 23, 33, 43]
    shown.choose("metric", "reliability")
    assert shown.count == "0 of 45 cases"
    assert "No case is like this" in shown.find("#list").text
    shown.choose("method", "FT")
    assert shown.count == "45 of 45 cases"
    shown.choose("method", "DualEdit")
    shown.choose("metric", "text_locality")
    assert shown.count == "5 of 45 cases"
    shown.choose("protocol", "visedit")
    assert shown.count == "0 of 45 cases"
    shown.find("#clear").click()
    assert shown.count == "45 of 45 cases"
    assert shown.state == "#cases"


def test_a_case_shows_answers_verdicts_and_gates(shown: Shown):
    shown.choose("protocol", "generate")
    rows = shown.ask(
        "[...document.querySelector('.case').querySelectorAll('tbody tr')].map((row) =>"
        " [...row.children].map((cell) => cell.innerText.replace(/\\n+/g, '\\n')))"
    )
    heads = shown.ask("[...document.querySelector('.case').querySelectorAll('thead th')]")
    assert [head.text for head in heads] == ["question", "before the edit", "DualEdit", "FT"]
    assert [text.split("\n") for text in rows[0]] == [
        ["reliability", "reliability question 3?", "target target 3"],
        ["before 3", "✗ wrong"],
        ["a kite 3", "✓ right", "gate open 0.930"],
        ["other 3", "✗ wrong"],
    ]
    assert rows[3][0].startswith("no picture")
    assert [text.split("\n") for text in rows[3][1:]] == [
        ["before 3"],
        ["a kite 3", "✗ changed", "⚠ gate open 0.930"],
        ["other 3", "✓ same"],
    ]
    assert shown.ask("document.querySelectorAll('.case td.failure').length") == 1 + 20 + 4
    shown.choose("protocol", "visedit")
    assert "◐ 50 % same" in shown.find(".case tbody tr:last-child td:last-child").text


def test_pictures_are_seen_and_missing_ones_named(shown: Shown):
    shown.find("#search").send_keys("#0")
    sizes = shown.ask(
        "[...document.querySelectorAll('.case img')].map((one) => [one.alt, one.naturalWidth])"
    )
    assert sizes == [["picture 0.png", 40]] * 4
    shown.find("#search").clear()
    shown.find("#search").send_keys("question 2?")
    assert 2 in shown.indices
    assert "not shown: 2.png" in shown.find("#list").text


def test_search_finds_every_word_and_marks_it(shown: Shown):
    shown.find("#search").send_keys("KITE 4 (")
    assert shown.count == "0 of 45 cases"
    shown.find("#search").clear()
    shown.find("#search").send_keys("OTHER 44")
    assert shown.count == "1 of 45 cases"
    assert shown.indices == [44]
    marks = shown.ask(
        "[...new Set([...document.querySelectorAll('mark')].map((m) => m.innerText))]"
    )
    assert set(marks) == {"other", "44"}


def test_the_address_keeps_what_was_chosen(shown: Shown):
    shown.choose("protocol", "visedit")
    shown.choose("method", "FT")
    shown.choose("metric", "text_locality")
    shown.find("#search").send_keys("a & b=c")
    shown.find("#search").clear()
    shown.find("#search").send_keys("question #")
    shown.find("#failures").click()
    shown.find("#filters .next").click()
    state, indices, count = shown.state, shown.indices, shown.count
    assert len(indices) == 20 and count == "45 of 45 cases"
    shown.open(state)
    assert (shown.state, shown.indices, shown.count) == (state, indices, count)
    chosen = shown.ask("['protocol', 'method', 'metric', 'search'].map((n) => window[n].value)")
    assert chosen == ["visedit", "FT", "text_locality", "question #"]
    assert shown.find("#failures").is_selected()
    assert shown.find("#filters .page").text == "page 2 of 3"
    assert shown.ask("document.getElementById('cases').getBoundingClientRect().top") < 300
    # Another link in the same tab, with choices that there are not.
    shown.ask("void (location.hash = '#method=nobody&protocol=toString&metric=x&page=99')")
    shown.browser.execute_async_script("setTimeout(arguments[0], 50)")
    assert shown.count == "45 of 45 cases"
    assert shown.find("#filters .page").text == "page 3 of 3"


def test_each_case_has_an_address_of_its_own(shown: Shown):
    shown.choose("protocol", "visedit")
    shown.find("#search").send_keys("OTHER 44")
    link = shown.find(".case .index")
    assert link.text == "#44"
    link.click()
    shown.browser.execute_async_script("setTimeout(arguments[0], 50)")
    assert shown.state == "#protocol=visedit&case=44"
    assert (shown.indices, shown.count) == ([44], "1 of 45 cases")
    assert shown.find("#search").get_attribute("value") == ""
    shown.open("#case=7")
    assert shown.indices == [7]
    assert shown.ask("document.getElementById('list').getBoundingClientRect().top") < 800
    # Whatever is chosen next is chosen among all.
    shown.choose("method", "DualEdit")
    assert shown.count == "45 of 45 cases" and shown.state == "#method=DualEdit"
    shown.open("#case=99")
    assert "Case 99 is not among those on this page" in shown.find("#list").text
    shown.find("#clear").click()
    assert shown.count == "45 of 45 cases" and shown.state == "#cases"


def test_a_page_has_twenty_cases(shown: Shown):
    assert len(shown.indices) == 20
    assert not shown.find("#filters .previous").is_enabled()
    shown.find("#list + .paging .next").click()
    assert shown.find("#filters .page").text == "page 2 of 3"
    assert shown.ask("document.activeElement.id") == "list"
    shown.find("#filters .next").click()
    assert len(shown.indices) == 5
    assert not shown.find("#filters .next").is_enabled()
    shown.find("#failures").click()
    assert shown.find("#filters .page").text == "page 1 of 3"


def test_all_of_it_works_from_the_keyboard(shown: Shown):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def press(*keys: str) -> str:
        ActionChains(shown.browser).send_keys(*keys).perform()
        return str(shown.ask("document.activeElement.id"))

    shown.find("#protocol").send_keys("")
    assert press(Keys.TAB) == "method"
    press("D")
    assert press(Keys.TAB) == "metric"
    assert press(Keys.TAB) == "search"
    assert press(Keys.TAB) == "failures"
    press(Keys.SPACE)
    assert shown.count == "5 of 45 cases"
    assert press(Keys.TAB) == "clear"
    press(Keys.ENTER)
    assert shown.count == "45 of 45 cases"


def test_light_dark_and_narrow(shown: Shown):
    def emulate(scheme: str, width: int) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        shown.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        shown.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def brightness(part: str) -> int:
        found = shown.ask(f"getComputedStyle(document.body).{part}")
        return sum(int(each) for each in re.findall(r"\d+", found)[:3])

    try:
        emulate("light", 1200)
        assert brightness("color") < 200 < 600 < brightness("backgroundColor")
        emulate("dark", 1200)
        assert brightness("backgroundColor") < 200 < 600 < brightness("color")
        emulate("dark", 400)
        for part in ("document.documentElement", "document.querySelector('.case .scrolling')"):
            assert shown.ask(f"{part}.scrollWidth <= {part}.clientWidth")
        assert (
            shown.ask("getComputedStyle(document.querySelector('.matrix tr')).display") == "block"
        )
    finally:
        shown.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        shown.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_what_a_model_says_is_inert(shown: Shown):
    cases = cases_of(3, EVIL)
    cases["unedited"][0]["queries"]["reliability"] |= {"prompt": EVIL, "image": EVIL}
    written(shown.path.parent, cases=cases)
    shown.open("#search=onerror")
    assert shown.count == "3 of 3 cases"
    said = shown.ask("document.querySelector('.case td:nth-of-type(2) .said').textContent")
    assert said == f"{EVIL} 0"
    assert shown.ask("document.querySelectorAll('[onerror]').length") == 0
    # Even markup that got in would not run: the policy knows the page's own script alone.
    shown.ask("document.body.insertAdjacentHTML('beforeend', arguments[0])", EVIL)
    shown.browser.execute_async_script("setTimeout(arguments[0], 100)")
    refused = [entry["message"] for entry in shown.browser.get_log("browser")]
    assert refused and all("Content Security Policy" in message for message in refused)
    assert shown.ask("window.hit === undefined")
    shown.browser.get_log("performance")
    shown.open()


def test_means_over_several_queries_are_shown_with_each(shown: Shown):
    cases = cases_of(1)
    queries = cases["unedited"][0]["queries"]
    for key in (*KINDS, "portability_0", "portability_1"):
        queries[key] = {"prompt": f"{key}?", "image": None, "target": "a"}
    for found in cases.values():
        found[0]["answers"] |= dict.fromkeys(queries, "a")
        found[0]["values"] |= {
            "specificity": {"RI": 0.5, "NI": 1.0, "CI": 0.0},
            "portability": {"exact_match": 0.5, "token_accuracy": 1.0},
        }
    written(shown.path.parent, cases=cases)
    shown.open("#protocol=specificity")
    shape = (
        "[...document.querySelectorAll('.case tbody tr')].map((row) => ["
        "row.querySelector('.metric').innerText,"
        "...[...row.children[2].querySelectorAll('.verdict')].map((one) => one.innerText)])"
    )
    assert shown.ask(shape) == [
        ["edit's question, random picture", "RI ◐ 50 % same"],
        ["edit's picture, random question", "RI ◐ 50 % same"],
        ["edit's question, no picture", "NI ✓ same"],
        ["sample with the most similar question", "CI ✗ changed"],
        ["sample with the most similar picture", "CI ✗ changed"],
    ]
    shown.choose("metric", "NI")
    assert len(shown.ask(shape)) == 1
    shown.choose("protocol", "portability")
    verdicts = ["exact match ◐ 50 % right", "token accuracy ✓ right"]
    assert shown.ask(shape) == [["portability 0", *verdicts], ["portability 1", *verdicts]]


def test_answers_that_are_told_apart_are_no_failures(shown: Shown):
    cases = cases_of(2)
    asked = ("binding_text", "binding_picture")
    for found in cases.values():
        for case in found:
            for key in asked:
                if case.get("queries"):
                    case["queries"][key] = {"prompt": "p?", "image": None, "target": "a"}
                case["answers"][key] = "a"
            case["values"]["binding"] = {"picture_old": 0.0, "picture_new": 1.0} | {
                "picture_neither": 0.0,
                "text_untouched": 1.0,
            }
    cases["DualEdit"][1]["values"]["binding"]["text_untouched"] = 0.0
    written(shown.path.parent, cases=cases)
    shown.open("#protocol=binding&failures=1&method=DualEdit")
    assert shown.count == "1 of 2 cases"
    shown.open("#protocol=binding")
    verdicts = "[...document.querySelectorAll('.case .verdict')].map((one) => one.innerText.trim())"
    assert set(shown.ask(verdicts)) == {
        "picture: new answer",
        "text untouched ✓ same",
        "text untouched ✗ changed",
    }


def test_a_page_without_cases_says_so(shown: Shown):
    written(shown.path.parent, cases={})
    shown.open("#protocol=generate")
    assert "There are no cases to show." in shown.find("#cases").text
    assert not shown.find("#filters").is_displayed()
