"""An edited port of EasyEdit's."""

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from easyedit_dualedit.method.active_edits import EditSignal
from easyedit_dualedit.method.edited_model import EditedModel
from easyedit_dualedit.method.stored_edit import StoredEdit
from easyedit_dualedit.plugin.ports.model import no_generate
from easyedit_dualedit.plugin.ports.samples import PortSamples


class PortEdited:
    """An edited port that is called as the port itself is.

    Everything else is the port's own.
    """

    def __init__(self, edited: EditedModel, samples: PortSamples):
        """Combine the edited model with the reader of samples."""
        self.edited = edited
        self._samples = samples

    @property
    def edits(self) -> tuple[EditSignal | StoredEdit, ...]:
        """The edits applied, oldest first."""
        return self.edited.edits

    def __call__(self, samples: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Any:
        """Return the edited output for samples: `logits`, `labels` and `attention_mask`."""
        batch = self._samples.read(samples)
        output = self.edited(layout=batch.layout, **batch.inputs)
        output.labels = batch.labels
        output.attention_mask = batch.inputs["attention_mask"]
        return output

    def forward(self, samples: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Any:
        """Return what a call returns; not the port's own, unedited `forward`."""
        return self(samples)

    def generate(self, *_: Any, **__: Any) -> Any:
        """Refuse to generate.

        Raises:
            UpstreamError: always.
        """
        raise no_generate(self._samples.model.port)

    def predict_answers(self, *_: Any, **__: Any) -> Any:
        """Refuse to generate.

        Raises:
            UpstreamError: always.
        """
        raise no_generate(self._samples.model.port)

    def __getattr__(self, name: str) -> Any:
        """Return the port's attribute; methods that return the port return this one."""
        if name.startswith("__") or name in ("edited", "_samples"):
            raise AttributeError(name)
        port = self._samples.model.port
        value = getattr(port, name)
        if not inspect.ismethod(value):
            return value

        @functools.wraps(value)
        def method(*args: Any, **kwargs: Any) -> Any:
            result = value(*args, **kwargs)
            return self if result is port else result

        return method
