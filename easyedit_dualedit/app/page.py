"""The page itself: fields, results and the list of edits, wired to `Actions` by Gradio."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from easyedit_dualedit.app.actions import Actions, View, trial_of
from easyedit_dualedit.app.edit_list import EditList
from easyedit_dualedit.app.extra import gradio
from easyedit_dualedit.app.sessions import Sessions
from easyedit_dualedit.app.trial import Trial

TITLE = "Edit what a model says"
STYLE = Path(__file__).with_name("style.css")

_INTRODUCTION = """# {title}
Ask **{model}** about a picture, say what it should answer instead, and ask again. Its own weights
never change: beside each answer stands how similar the question is to the nearest edit, and whether
that reaches the threshold from which the gate lets the edit in."""
_KEY = """(...given) => {
  const name = "easyedit-dualedit-session";
  const held = (() => { try { return localStorage.getItem(name); } catch { return null; } })();
  let key = held || window[name];
  if (!/^[0-9a-f]{32}$/.test(key)) {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    key = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  }
  window[name] = key;
  try { localStorage.setItem(name, key); } catch {}
  given[0] = key;
  return given;
}"""
"""Puts the browser's key in place of an event's first value, making one the first time.

The browser makes it, so that nothing can be done before there is one.
"""

_DOWNLOAD = (
    "() => setTimeout(() => { const place = document.querySelector('#download');"
    " const link = place.matches('a,button') ? place : place.querySelector('a,button');"
    " link.click(); }, 150)"
)
"""Clicks the link to a file that was just made."""


class Page:
    """The page of an editor's sessions."""

    def __init__(self, sessions: Sessions, examples: list[Trial]):
        """Lay out the page.

        Args:
            sessions: everybody's.
            examples: what the gallery shows.

        Raises:
            ConfigError: if Gradio is not installed.
        """
        self._gr = gradio()
        self._actions = Actions(sessions, examples)
        self._drawn = 0
        # Files that people gave or took are removed after a day.
        with self._gr.Blocks(
            title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)
        ) as self.blocks:
            self._key = self._gr.Textbox(visible=False)
            self._version = self._gr.State(0)
            self._gr.Markdown(_INTRODUCTION.format(title=TITLE, model=sessions.shared.name))
            with self._gr.Row(equal_height=False):
                with self._gr.Column(scale=4, min_width=300):
                    self._lay_out_fields(examples)
                with self._gr.Column(scale=6, min_width=300):
                    self._message = self._gr.HTML("", elem_id="message")
                    self._results = self._gr.HTML("", elem_id="results")
            self._edits = EditList(
                self._actions, self._key, self._version, self.acting, self._fields
            )
            self._download = self._gr.DownloadButton(
                "Download", visible="hidden", elem_id="download"
            )
            self._wire()

    @property
    def _fields(self) -> list[Any]:
        return [
            self._picture,
            self._prompt,
            self._target,
            self._rephrase,
            self._other,
            self._unrelated,
        ]

    def acting(self, action: Callable[..., View], *, takes_trial: bool = False) -> dict[str, Any]:
        """Return what an event needs so that an action's view appears.

        Args:
            action: takes the session's key, and the values of the event's other inputs.
            takes_trial: whether it takes the fields as a `Trial`.
        """

        def acted(key: str, *values: Any) -> tuple[Any, ...]:
            given = (trial_of(*values),) if takes_trial else values
            return self._updates(action(key, *given))

        outputs = [self._message, self._results, self._version, *self._fields]
        return {
            "fn": acted,
            "inputs": [self._key, *(self._fields if takes_trial else [])],
            "outputs": outputs,
            "api_visibility": "private",
            "js": _KEY,
        }

    def _told_of_what_is_no_picture(self, field: Any) -> None:
        """Let a field say that what it was given is no picture; Gradio reads it before we do."""
        real = field.preprocess

        def preprocess(payload: Any) -> Any:
            try:
                return real(payload)
            except Exception as error:
                raise self._gr.Error(
                    f"{field.label}: this cannot be read as a picture ({error}); choose another"
                ) from error

        field.preprocess = preprocess

    def _lay_out_fields(self, examples: list[Trial]) -> None:
        gr = self._gr
        self._picture = gr.Image(
            label="Picture",
            type="pil",
            format="png",  # others change what the model sees
            sources=["upload", "webcam", "clipboard"],
            height=260,
            buttons=[],
            elem_id="picture",
            alt_text="the picture that is asked about",
        )
        self._told_of_what_is_no_picture(self._picture)
        self._gallery = gr.Gallery(
            [(each.picture, each.name) for each in examples],
            label="Examples",
            format="png",
            columns=6,
            height="auto",
            allow_preview=False,
            interactive=False,
            buttons=[],
            visible=bool(examples),
            elem_id="examples",
        )
        self._prompt = gr.Textbox(label="Question", elem_id="question", max_lines=3)
        self._ask = gr.Button("Ask", elem_id="ask")
        self._target = gr.Textbox(label="It should say", elem_id="target", max_lines=3)
        self._edit = gr.Button("Edit the model", variant="primary", elem_id="edit")
        with gr.Accordion("Asked beside it", open=False, elem_id="beside"):
            self._rephrase = gr.Textbox(label="The question in other words", elem_id="rephrase")
            self._other = gr.Image(
                label="Another picture, for the same question",
                type="pil",
                format="png",
                sources=["upload", "clipboard"],
                height=160,
                buttons=[],
                elem_id="other",
                alt_text="another picture that the same question is asked about",
            )
            self._told_of_what_is_no_picture(self._other)
            self._unrelated = gr.Textbox(
                label="Something else about the first picture", elem_id="unrelated"
            )

    def _wire(self) -> None:
        ask = self.acting(self._actions.ask, takes_trial=True)
        edit = self.acting(self._actions.edit, takes_trial=True)
        for event, what in (
            (self._ask.click, ask),
            (self._prompt.submit, ask),
            (self._edit.click, edit),
            (self._target.submit, edit),
        ):
            event(**what)

        def chosen(event: Any) -> tuple[Any, ...]:
            return self._updates(self._actions.example(int(event.index)))

        # By this Gradio knows that the function takes what was chosen.
        chosen.__annotations__["event"] = self._gr.SelectData
        self._gallery.select(
            chosen,
            outputs=[self._message, self._results, self._version, *self._fields],
            api_visibility="private",
        )
        for button, action in (
            (self._edits.save, self._actions.save),
            (self._edits.export, self._actions.export),
        ):
            button.click(
                partial(self._file_of, action),
                inputs=[self._key],
                outputs=[self._message, self._download],
                api_visibility="private",
                js=_KEY,
            ).success(fn=None, js=_DOWNLOAD)
        load = self.acting(self._actions.load)
        load["inputs"] = [self._key, self._edits.load]
        self._edits.load.upload(**load)
        self.blocks.load(
            self._opened,
            inputs=[self._key],
            outputs=[self._key, self._message, self._results, self._version, *self._fields],
            api_visibility="private",
            js=_KEY,
        )

    def _opened(self, key: str) -> tuple[Any, ...]:
        return key, *self._updates(self._actions.opened(key))

    def _file_of(self, action: Callable[[str], View], key: str) -> tuple[Any, Any]:
        view = action(key)
        if view.file is None:
            return view.message, self._gr.skip()
        return view.message, self._gr.DownloadButton(value=str(view.file))

    def _updates(self, view: View) -> tuple[Any, ...]:
        skip = self._gr.skip()
        self._drawn += view.list_changed
        fields: list[Any] = [skip] * len(self._fields)
        if view.trial is not None:
            trial = view.trial
            fields = [
                trial.picture,
                trial.prompt,
                trial.target,
                trial.rephrase,
                trial.other_picture,
                trial.unrelated,
            ]
        return (
            view.message,
            skip if view.results is None else view.results,
            self._drawn if view.list_changed else skip,
            *fields,
        )
