"""Makes single edits with EasyEdit's own editor, for measurements of our own."""

from typing import Any

from easyedit_dualedit.method.edited_model import EditedModel
from easyedit_dualedit.model.inputs import Query, open_image
from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams
from easyedit_dualedit.plugin.legacy import LegacyEdited, LegacyModel
from easyedit_dualedit.plugin.registry import register


class Workbench:
    """EasyEdit's `MultimodalEditor` on one model, and the model behind it."""

    def __init__(self, hparams: DualEditMultimodalHparams):
        """Register DualEdit and have EasyEdit load the model.

        Raises:
            EasyEditNotFoundError: if EasyEdit is not importable.
            ModelLoadError: if the model cannot be loaded.
        """
        self.host: Host = register()
        self.editor: Any = self.host.package.MultimodalEditor.from_hparams(hparams)
        self.model: Any = self.editor.model
        self.processor: Any = self.editor.tok
        if isinstance(self.model, LegacyModel):
            self.model, self.processor = self.model.base, self.model.processor
        self.model.eval()

    def edit(self, request: Query, hparams: DualEditMultimodalHparams) -> EditedModel:
        """Return the edited model that EasyEdit's editor gets for one request on its own.

        Args:
            request: what to edit.
            hparams: of the method; they may name another archive or gate than the editor's.

        Raises:
            ArchiveError: if the adapters are missing, damaged or of another model.
            DataError: if the picture cannot be read.
        """
        images = [open_image(picture) for picture in request.pictures]
        # One picture as EasyEdit gives it for most models, several as it gives them for Qwen's.
        image = images[0] if len(images) == 1 else images
        item: dict[str, Any] = {"prompt": request.prompt, "target": request.target, "image": image}
        if request.video is not None:
            item |= {"file_type": "video", "image": request.video}
        elif not images:
            item |= {"file_type": "text", "image": None}
        edited, _ = self.editor.apply_algo(
            self.editor.model,
            self.editor.tok,
            [item],
            hparams,
            copy=False,
            return_orig_weights=True,
            keep_original_weight=False,
        )
        return edited.edited if isinstance(edited, LegacyEdited) else edited
