"""The list of edits on the page: a row for each, with its controls, and the buttons for files."""

from collections.abc import Callable
from typing import Any

from easyedit_dualedit.app.actions import Actions
from easyedit_dualedit.app.extra import gradio
from easyedit_dualedit.app.results import edit_html
from easyedit_dualedit.app.session import KeptEdit

SHOWN = 30
"""Edits whose rows are drawn, the newest; all others are there, and can be saved."""


class EditList:
    """Rows of edits, drawn anew when the version changes."""

    def __init__(
        self,
        actions: Actions,
        key: Any,
        version: Any,
        acting: Callable[..., dict[str, Any]],
        fields: list[Any],
    ):
        """Lay out the list.

        Args:
            actions: what the controls do.
            key: component with the session's key.
            version: component whose change has the rows drawn.
            acting: makes an action an event's function, inputs and outputs.
            fields: components of what is asked.
        """
        self._gr = gradio()
        self._actions = actions
        self._key = key
        self._acting = acting
        self._fields = fields
        self._gr.Markdown("## Edits", elem_id="edits")

        drawn = self._gr.render(inputs=[key], triggers=[version.change], show_progress="hidden")
        drawn(self._rows)
        with self._gr.Row():
            self.save = self._gr.Button("Save to a file", elem_id="save", min_width=120)
            self.load = self._gr.UploadButton(
                "Load a file", file_types=[".zip"], elem_id="load", min_width=120
            )
            self.export = self._gr.Button("Export those that are on", elem_id="export")

    def _rows(self, key: str) -> None:
        if not self._actions.sessions.is_key(key):
            return
        edits = self._actions.sessions.of(key).edits
        if not edits:
            self._gr.Markdown("None yet: write what it should say, and edit the model.")
        for edit in edits[:SHOWN]:
            self._row(edit)
        if len(edits) > SHOWN:
            self._gr.Markdown(f"and {len(edits) - SHOWN} older ones")

    def _row(self, edit: KeptEdit) -> None:
        gr, actions = self._gr, self._actions
        with gr.Row(elem_classes="edit", equal_height=True):
            gr.HTML(edit_html(edit), elem_classes="edit-cell")
            name = gr.Textbox(
                edit.label.name,
                label="Name",
                placeholder="unnamed",
                max_lines=1,
                interactive=True,
                scale=3,
                min_width=140,
                elem_id=f"name-{edit.id}",
            )
            is_on = gr.Checkbox(
                edit.label.is_on,
                label="on",
                interactive=True,
                scale=0,
                min_width=70,
                elem_id=f"on-{edit.id}",
            )
            show = gr.Button("Ask it", size="sm", scale=0, min_width=80, elem_id=f"show-{edit.id}")
            remove = gr.Button(
                "Remove",
                size="sm",
                variant="stop",
                scale=0,
                min_width=90,
                elem_id=f"remove-{edit.id}",
            )

        def act(action: Callable[..., Any], *inputs: Any) -> dict[str, Any]:
            # The session's key comes first, then the edit's id, then what the control holds.
            event = self._acting(lambda key, *values: action(key, edit.id, *values))
            return event | {"inputs": [self._key, *inputs]}

        for named in (name.submit, name.blur):
            named(**act(actions.rename, name))
        is_on.input(**act(actions.switch, is_on))
        show.click(**act(actions.show))
        remove.click(**act(actions.remove))
