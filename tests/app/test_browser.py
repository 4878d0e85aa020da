"""The page in a real Chromium, without a window: what people click, type, upload and take away."""

import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from easyedit_dualedit.app.sessions import Sessions
from easyedit_dualedit.app.shared_editor import SharedEditor
from easyedit_dualedit.app.trial import Trial
from easyedit_dualedit.commands.app_examples import examples_of
from easyedit_dualedit.testbed import Scene, SceneObject, render

if find_spec("gradio") is None:  # importing it would take seconds of each worker
    pytest.skip("needs the extra app: Gradio", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("needs a browser: /usr/bin/chromium of Debian", allow_module_level=True)

OPTIONS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PATIENCE = 30_000
"""Milliseconds that anything may take: the machine may be busy with other tests."""


@pytest.fixture(scope="module")
def address(shared_editor: SharedEditor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the page is served."""
    from easyedit_dualedit.app.page import Page
    from easyedit_dualedit.app.serving import served

    sessions = Sessions(shared_editor, tmp_path_factory.mktemp("sessions"))
    page = Page(sessions, examples_of("testbed"))
    blocks = served(page, host="127.0.0.1", port=None, waits=False)
    yield blocks.local_url
    blocks.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser."""
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@dataclass
class Person:
    """Somebody with a browser of their own, at the page."""

    page: Any
    screenshots: Path | None

    def wait(self, selector: str, text: str = "") -> Any:
        """Wait for an element that is visible and has a text; return it."""
        found = self.page.locator(selector).filter(has_text=text).first
        found.wait_for()
        return found

    def says(self, text: str) -> None:
        """Wait for a message."""
        self.wait("#message .message", text)

    def fill(self, field: str, text: str) -> None:
        """Write into a field."""
        self.page.fill(f"#{field} textarea", text)

    def upload(self, field: str, picture: Image.Image) -> None:
        """Give a picture."""
        content = io.BytesIO()
        picture.save(content, "PNG")
        file = {"name": "mine.png", "mimeType": "image/png", "buffer": content.getvalue()}
        if self.page.locator(f"#{field} img").count():
            self.page.click(f"#{field} button[aria-label='Remove Image']")
        self.page.set_input_files(f"#{field} input[type=file]", file)
        self.wait(f"#{field} img")

    def ask(self) -> None:
        """Ask what the fields say."""
        self.page.click("#ask")
        self.says("Asked")

    def edit(self) -> None:
        """Make the edit that the fields say, and wait for its row."""
        before = self.page.locator(".edit").count()
        self.page.click("#edit")
        self.says("Edited")
        self.page.locator(".edit").nth(before).wait_for()

    @property
    def answers(self) -> list[str]:
        """Answers with the edits, in the table's order."""
        cells = self.page.locator(".results td[data-label='With edits']").all_inner_texts()
        return [cell.splitlines()[0] for cell in cells]

    def shoot(self, name: str, whole: bool = True) -> None:
        """Write a picture of the page, if it is asked for."""
        if self.screenshots is not None:
            self.page.mouse.move(0, 0)
            self.page.wait_for_timeout(300)
            self.screenshots.mkdir(parents=True, exist_ok=True)
            content = self.page.screenshot(full_page=whole)
            shown = Image.open(io.BytesIO(content)).convert("RGB").quantize(255)
            shown.save(self.screenshots / f"{name}.png", optimize=True)


Arrive = Callable[..., Person]


@pytest.fixture
def arrive(chromium: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Arrive]:
    """Open the page as somebody new; nothing may be fetched from elsewhere, and nothing fail."""
    folder = request.config.getoption("--screenshots")
    contexts, wrong = [], []

    def opened(**options: Any) -> Person:
        context = chromium.new_context(**({"viewport": {"width": 1240, "height": 900}} | options))
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda asked: (
                None
                if asked.url.startswith((address, "data:", "blob:"))
                else wrong.append(asked.url)
            ),
        )
        person = Person(page, None if folder is None else Path(folder))
        visit(person, address)
        return person

    yield opened
    for context in contexts:
        context.close()
    assert not wrong


def visit(person: Person, address: str) -> None:
    """Open the page and wait until it knows who came."""
    person.page.goto(address)
    person.wait("#results", "").wait_for()
    person.page.wait_for_function("document.querySelector('#question textarea')?.value")


def test_ask_edit_switch_rename_and_remove(arrive: Arrive, examples: list[Trial]):
    person = arrive()
    first = examples[0]
    person.ask()
    before = person.answers
    assert first.target not in before
    person.edit()
    assert person.answers == [first.target] * 3 + before[3:]
    bars = person.page.locator(".results .bar")
    told = [bar.get_attribute("aria-label") for bar in bars.all()]
    assert [each.split(":")[0] for each in told] == ["gate open"] * 3 + ["gate closed"]
    fired = person.page.locator(".results .fired").all_inner_texts()
    assert fired == [f"{first.prompt} → {first.target}"] * 3 + ["no edit"]
    assert "takes" in person.wait(".edit-text").inner_text()
    person.shoot("edited")

    person.page.click(".edit input[type=checkbox]")
    person.says("Switched off")
    assert person.answers == before
    person.page.click(".edit input[type=checkbox]")
    person.says("Switched on")
    assert person.answers[0] == first.target

    name = person.page.locator(".edit textarea, .edit input[type=text]").first
    name.fill("the heart")
    name.press("Enter")
    person.says("Called the heart")
    person.page.click(".edit button:has-text('Ask it')")
    person.says("The edit's own question")
    assert person.wait(".results .fired").inner_text() == "the heart"

    person.page.click(".edit button:has-text('Remove')")
    person.says("Removed")
    assert person.answers[0] == before[0]
    person.wait("body", "None yet")


def test_a_picture_of_ones_own_is_edited(arrive: Arrive):
    person = arrive()
    things = (SceneObject(0, "circle", "red"), SceneObject(8, "star", "blue"))
    person.upload("picture", render(Scene(things), 3))
    person.fill("question", "What color is the circle?")
    person.fill("target", "white")
    person.page.click("#beside button")
    person.fill("rephrase", "The circle has which color?")
    person.fill("unrelated", "Where is the star?")
    person.upload("other", render(Scene((SceneObject(4, "circle", "red"),)), 5))
    person.ask()
    assert person.answers[0] == "red"
    person.edit()
    assert person.answers[0] == "white" and person.answers[3] == "bottom right"


def test_an_example_fills_the_fields(arrive: Arrive, examples: list[Trial]):
    person = arrive()
    person.page.locator("#examples button img").nth(1).click()
    person.says("An example")
    person.page.wait_for_function(
        "text => document.querySelector('#question textarea').value == text",
        arg=examples[1].prompt,
    )
    person.ask()
    assert len(person.answers) == 4


def test_what_one_saves_another_loads_and_nobody_else_sees_it(
    arrive: Arrive, address: str, examples: list[Trial], tmp_path: Path
):
    one, other = arrive(), arrive()
    one.edit()
    with one.page.expect_download() as download:
        one.page.click("#save")
    one.says("Saved 1 edit")
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    assert file.suffix == ".zip"

    other.ask()
    assert other.page.locator(".edit").count() == 0
    assert examples[0].target not in other.answers
    other.page.set_input_files("#load input[type=file], input[type=file][accept*=zip]", file)
    other.says("Loaded 1 edit")
    other.wait(".edit")
    assert other.answers[0] == examples[0].target
    with other.page.expect_download() as download:
        other.page.click("#export")
    other.says("Exported 1 edit")

    visit(other, address)  # as after a reload
    other.says("Welcome back: 1 edit")
    other.wait(".edit")
    assert other.answers[0] == examples[0].target


def test_mistakes_are_told_in_plain_words_and_lose_nothing(arrive: Arrive, tmp_path: Path):
    person = arrive()
    person.edit()
    person.fill("question", " ")
    person.page.click("#ask")
    assert "no question yet" in person.wait("#message [role=alert]").inner_text()
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"no ZIP file")
    person.page.set_input_files("#load input[type=file], input[type=file][accept*=zip]", broken)
    person.wait("#message [role=alert]", "no ZIP file that can be read")
    assert person.page.locator(".edit").count() == 1


def test_the_keyboard_is_enough(arrive: Arrive, examples: list[Trial]):
    person = arrive()
    person.page.focus("#question textarea")
    person.page.keyboard.press("Enter")
    person.says("Asked")
    person.page.keyboard.press("Tab")
    person.page.keyboard.press("Tab")
    focused = "document.activeElement.closest('#target') !== null"
    assert person.page.evaluate(focused)
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert person.page.evaluate(outline) == "solid"
    person.page.keyboard.press("Enter")
    person.says("Edited")
    person.wait(".edit")
    assert person.answers[0] == examples[0].target


def test_it_fits_a_phone(arrive: Arrive):
    person = arrive(viewport={"width": 390, "height": 844}, has_touch=True)
    person.edit()
    widest = "document.documentElement.scrollWidth"
    assert person.page.evaluate(widest) <= 390
    for control in ("#question textarea", "#ask", "#edit", "#save", ".results .bar >> nth=0"):
        box = person.page.locator(control).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390, control
    person.page.evaluate("document.querySelector('#message').scrollIntoView()")
    person.shoot("phone", whole=False)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_in_dark(arrive: Arrive, scheme: str):
    person = arrive(color_scheme=scheme)
    person.edit()
    ratios = person.page.evaluate(_CONTRASTS)
    assert len(ratios) > 20
    weak = {text: ratio for text, ratio in ratios if ratio < 4.5}
    assert not weak
    background = person.page.evaluate(_BRIGHTNESS)
    assert (background < 0.2) if scheme == "dark" else (background > 0.8)
    if scheme == "dark":
        person.shoot("dark")


def test_all_pictures_and_controls_have_names(arrive: Arrive):
    person = arrive()
    person.edit()
    person.page.click("#beside button")
    nameless = person.page.evaluate(_NAMELESS)
    assert nameless == []


_CONTRASTS = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.9) return colour;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll('.results *, #message *, .edit-text *')]
    .filter((node) => [...node.childNodes].some((c) => c.nodeType === 3 && c.data.trim()))
    .filter((node) => node.offsetParent)
    .map((node) => {
      const pair = [light(parse(getComputedStyle(node).color)), light(behind(node))];
      const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
      return [`${node.className} ${node.textContent.slice(0, 30)}`, ratio];
    });
}"""

_BRIGHTNESS = """() => {
  const colour = getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/g).map(Number);
  return (colour[0] + colour[1] + colour[2]) / 765;
}"""

_NAMELESS = """() => [...document.querySelectorAll('img, button, input, textarea, a[href]')]
  .filter((node) => node.offsetParent !== null)
  .filter((node) => node.tagName === 'IMG'
    ? !node.alt
    : !(node.ariaLabel || node.title || node.textContent.trim() || node.labels?.length
        || [...node.querySelectorAll('img')].some((img) => img.alt)))
  .map((node) => node.outerHTML.slice(0, 200))"""


def test_what_is_no_picture_is_told(arrive: Arrive):
    """Gradio opens what is uploaded before an action sees it, and would say nothing of why."""
    person = arrive()
    if person.page.locator("#picture img").count():
        person.page.click("#picture button[aria-label='Remove Image']")
    file = {"name": "broken.png", "mimeType": "image/png", "buffer": b"no picture"}
    person.page.set_input_files("#picture input[type=file]", file)
    person.page.wait_for_timeout(500)
    person.fill("question", "What is it?")
    person.page.click("#ask")
    person.wait(".toast-body", "cannot be read as a picture")
