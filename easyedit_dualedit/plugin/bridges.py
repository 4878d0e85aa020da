"""Extends EasyEdit, from outside, to models that it cannot load, and mends what it gets wrong.

Each replacement names the defect that it works around. All of them are undone by `unregister`.
"""

import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError

from easyedit_dualedit.errors import UpstreamError
from easyedit_dualedit.model.inputs import open_image
from easyedit_dualedit.model.loading import load_model
from easyedit_dualedit.model.pictures import unreadable
from easyedit_dualedit.model.video_frames import FRAMES_OF_A_FILE, strip_of
from easyedit_dualedit.model.videos import Video
from easyedit_dualedit.plugin import ads_edit, comprehend_edit
from easyedit_dualedit.plugin.comprehend_edit import dataset_reader
from easyedit_dualedit.plugin.edit_calls import (
    with_checked_dataset,
    with_own_sequence,
    without_sequences,
)
from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.legacy import LegacyModel
from easyedit_dualedit.plugin.models import (
    AUTO_CLASS,
    HF_NAME,
    OWN_MODELS,
    ConfigView,
    bridged_path,
    is_ours,
    known_to_host,
    load_processor,
)
from easyedit_dualedit.plugin.patching import Patches
from easyedit_dualedit.plugin.picture_items import PictureItems, path_of
from easyedit_dualedit.plugin.ports.samples import port_samples_of
from easyedit_dualedit.plugin.samples import questions_of
from easyedit_dualedit.plugin.trainer_calls import checking_first, loading_folders

_MODEL_MODULES = ("trainer.models", "trainer.BaseTrainer", "trainer.MultimodalTrainer")
_LOW_RESOLUTION = (384, 384)
"""To which upstream's plain reader makes pictures that are shown together, and frames."""
_DATASETS = (("dataset.vqa", "VQADataset"), ("dataset.coco_caption", "CaptionDataset"))


def apply_bridges(host: Host, patches: Patches) -> None:
    """Make every replacement that the edition of EasyEdit needs."""
    for name in _MODEL_MODULES:
        # BaseTrainer and MultimodalTrainer hold their own references to get_model.
        if hasattr(host.module(name), "get_model"):
            patches.wrap(host.module(name), "get_model", functools.partial(_get_model, host))
    editor = host.module("editors.multimodal_editor").MultimodalEditor
    patches.wrap(editor, "__init__", functools.partial(_editor_init, host))
    trainer = host.module("trainer.BaseTrainer")
    patches.wrap(trainer, "load_archive", loading_folders)
    patches.wrap(trainer.BaseTrainer, "__init__", functools.partial(checking_first, host))
    if host.edition == "master":
        patches.wrap(editor, "edit", with_own_sequence)
        patches.wrap(editor, "edit_dataset", with_checked_dataset)
        _bridge_master(host, patches)
    else:
        _bridge_release(host, patches, editor)


def _bridge_master(host: Host, patches: Patches) -> None:
    for module, name in _DATASETS:
        dataset = getattr(host.module(module), name)
        patches.wrap(dataset, "__init__", functools.partial(_dataset_init, host))
        patches.wrap(dataset, "collate_fn", _collating_questions)
    dataset = getattr(host.package, comprehend_edit.NAME)
    read = comprehend_edit.reading_for_every_model
    patches.wrap(dataset, "__init__", functools.partial(read, host))
    patches.wrap(dataset, "collate_fn", _collating_questions)
    driving = ads_edit.imported(host, patches)
    read_driving = functools.partial(ads_edit.reading_for_every_model, reader_of=dataset_reader)
    patches.wrap(driving, "__init__", functools.partial(read_driving, host))
    patches.wrap(driving, "collate_fn", _collating_questions)
    editors = host.module("editors.multimodal_editor")
    known = {**editors.MULTIMODAL_DS_DICT, "comprehendedit": dataset, "adsedit": driving}
    patches.replace(editors, "MULTIMODAL_DS_DICT", known)
    for loaded in [m for n, m in sys.modules.items() if n.startswith("easyeditor.")]:
        # Master chooses its code for transformers models by names that leave LLaVA-1.5 out.
        if "is_hf_multimodal_model" in vars(loaded):
            patches.wrap(loaded, "is_hf_multimodal_model", functools.partial(_is_hf_model, host))
    plain, other = _readers(host)
    for each in (plain, other):
        upright = functools.partial(_reading_upright, is_plain=each is plain)
        patches.wrap(each, "__call__", upright)
        patches.wrap(each, "__call__", _reading_more)


def _readers(host: Host) -> tuple[Any, Any]:
    """Return master's reader that gives pictures as they are, and that for its Qwen models."""
    return (
        host.module("dataset.processor.llavaov_processors").LLaVAOneVisionProcessor,
        host.module("dataset.processor.qwen2vl_processors").Qwen2VLProcessor,
    )


def _bridge_release(host: Host, patches: Patches, editor: Any) -> None:
    for module, name in _DATASETS:
        dataset = getattr(host.module(module), name)
        # The trainer asks for a collate_gpt_fn unless the model's name is blip2 or minigpt4, and
        # the datasets for pictures have none.
        patches.replace(dataset, "collate_gpt_fn", dataset.collate_fn)
        patches.wrap(dataset, "__init__", _asking_as_the_editor_does)
    patches.wrap(editor, "edit", without_sequences)
    patches.wrap(editor, "edit_dataset", _refusing_edit_dataset)
    patches.wrap(editor, "_prepare_requests", _allowing_no_locality)


def _get_model(host: Host, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(original)
    def get_model(config: Any) -> Any:
        path = bridged_path(host, config)
        if path is None:
            return original(config)
        if is_ours(config):
            model, _ = load_model(path, **config.placement)
        else:
            view = ConfigView(config, model_name=path, model_class=AUTO_CLASS)
            model = original(view).to(getattr(config, "dtype", torch.float32))
        return LegacyModel(model, load_processor(path)) if host.edition == "pypi" else model

    return get_model


def _editor_init(host: Host, original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def __init__(self: Any, hparams: Any) -> None:
        path = bridged_path(host, hparams)
        if path is None:
            original(self, hparams)
            return
        if not hasattr(hparams, "dtype"):
            hparams.dtype = torch.float32
        ours = getattr(hparams, "placement", None)
        model, _ = load_model(path, **(ours or {"dtype": hparams.dtype}))
        processor = load_processor(path)
        tokenizer = processor
        if host.edition == "pypi":
            model, tokenizer = LegacyModel(model, processor), processor.tokenizer
        # EasyEdit takes a ready model and tokenizer in place of a name, but sets no vis_tok then.
        original(self, ConfigView(hparams, model_name=(model, tokenizer)))
        self.hparams = hparams
        self.model_name = path if host.edition == "pypi" else HF_NAME
        self.vis_tok = _picture_reader(host)

    return __init__


def _picture_reader(host: Host) -> Any:
    if host.edition == "master":
        return host.module("dataset.processor.llavaov_processors").LLaVAOneVisionProcessor()
    reader = host.module("dataset.processor.blip_processors").BlipImageEvalProcessor
    return reader(image_size=364, mean=None, std=None)


def _dataset_init(host: Host, original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def __init__(
        self: Any, data_dir: str, size: int | None = None, config: Any = None, **options: Any
    ) -> None:
        known = known_to_host(host, config)
        if known.model_name in OWN_MODELS:
            original(self, data_dir, size=size, config=known, **options)
            return
        # Upstream opens the pictures of all records at once, three files each.
        patches = Patches()
        for reader in _readers(host):
            patches.replace(
                reader, "__call__", lambda _self, file, file_type: path_of(file, file_type)
            )
        try:
            original(self, data_dir, size=size, config=known, **options)
        finally:
            patches.undo()
        plain, _ = _readers(host)
        is_plain = isinstance(self.vis_processor, plain)
        self._data = PictureItems(self._data, self.vis_processor, is_plain=is_plain)

    return __init__


def _collating_questions(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def collate_fn(self: Any, batch: Any) -> Any:
        if not is_ours(self.config):
            return original(self, batch)
        if self.config.model_name in OWN_MODELS:
            return port_samples_of(batch, self.tok)
        return questions_of(batch)

    return collate_fn


def _is_hf_model(host: Host, original: Callable[[Any], bool]) -> Callable[[Any], bool]:
    @functools.wraps(original)
    def is_hf_multimodal_model(model_name: Any) -> bool:
        named = ConfigView(None, model_name=model_name, name=None)
        return original(model_name) or bridged_path(host, named) is not None

    return is_hf_multimodal_model


def _reading_upright(original: Callable[..., Any], *, is_plain: bool) -> Callable[..., Any]:
    @functools.wraps(original)
    def __call__(self: Any, file: Any, file_type: str) -> Any:
        # Upstream leaves the file of each picture of a dataset open, three a record, does not turn
        # photos as their EXIF says, and keeps palettes, transparency and 16 bits, which some image
        # processors refuse and others misread.
        if isinstance(file, list | tuple):
            opened = [_opened(each) for each in file]
            if is_plain and all(isinstance(each, Image.Image) for each in opened):
                return [each.resize(_LOW_RESOLUTION) for each in opened]
            return original(self, opened, file_type)
        opened = _opened(file) if file_type in ("image", "single-image") else file
        if is_plain and isinstance(opened, Image.Image):
            return opened
        return original(self, opened, file_type)

    return __call__


def _opened(file: Any) -> Any:
    """Return the picture in a file; addresses stay, which readers of Qwen's models fetch."""
    if isinstance(file, str) and ("://" in file or file.startswith("data:")):
        return file
    if isinstance(file, str | Path | Image.Image):
        return open_image(Path(file) if isinstance(file, str) else file)
    return file


def _reading_more(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def __call__(self: Any, file: Any, file_type: str) -> Any:
        # Upstream's editor takes file_type="text", and its readers refuse it.
        if file_type == "text":
            return None
        if file_type == "video" and isinstance(file, str) and Path(file).is_dir():
            file = [str(frame) for frame in Video(file).frames or ()]
        try:
            return original(self, file, file_type)
        except (FileNotFoundError, UnidentifiedImageError) as error:
            raise unreadable(Path(getattr(error, "filename", None) or str(file)), error) from error
        except (AttributeError, ImportError):
            # Its reader for Qwen's models wants a torchvision that still decodes videos.
            if file_type != "video" or not isinstance(file, str):
                raise
            return original(self, strip_of(Video(file), FRAMES_OF_A_FILE), file_type)

    return __call__


def _asking_as_the_editor_does(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def __init__(
        self: Any, data_dir: str, size: int | None = None, config: Any = None, **options: Any
    ) -> None:
        original(self, data_dir, size=size, config=config, **options)
        if is_ours(config):
            # Upstream trains on "Question: ... Short answer: ", and its editor then asks without.
            self.prompt = "{} "

    return __init__


def _refusing_edit_dataset(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def edit_dataset(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_ours(self.hparams):
            raise UpstreamError(
                "edit_dataset of EasyEdit 0.0.1.dev0 fails for every method (its pictures' datasets"
                " have no case_id); use `edit`, EasyEdit's master, or this package's own"
                " evaluation: python run_multimodal_edit.py evaluate"
            )
        return original(self, *args, **kwargs)

    return edit_dataset


def _allowing_no_locality(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def _prepare_requests(
        self: Any,
        prompts: Any,
        targets: Any,
        image: Any,
        rephrase_prompts: Any = None,
        rephrase_image: Any = None,
        locality_inputs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        # Upstream documents locality_inputs as optional and fails without.
        given = {} if locality_inputs is None else locality_inputs
        return original(
            self, prompts, targets, image, rephrase_prompts, rephrase_image, given, **kwargs
        )

    return _prepare_requests
