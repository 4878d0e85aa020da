"""Makes the testbed model from nothing: ``python -m easyedit_dualedit.testbed.make --out DIR``."""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.testbed.alignment import align_projector
from easyedit_dualedit.testbed.architecture import (
    build_model,
    build_processor,
    build_tokenizer,
)
from easyedit_dualedit.testbed.card import Making, write_card
from easyedit_dualedit.testbed.evaluation import measure_folder
from easyedit_dualedit.testbed.language import Lesson, train_language, train_lookups
from easyedit_dualedit.testbed.vision import draw_gallery, see_all, train_vision
from easyedit_dualedit.testbed.weight_names import save_halves

if TYPE_CHECKING:
    from transformers import LlavaOnevisionForConditionalGeneration, LlavaOnevisionProcessor

logger = logging.getLogger(__name__)

_FAMILY = "llava-onevision"
_ALIGNMENT_STEPS = 600


def train(
    seed: int, pictures: int, vision_steps: int, lookup_steps: int, language_steps: int
) -> tuple[LlavaOnevisionForConditionalGeneration, LlavaOnevisionProcessor]:
    """Return a trained model in evaluation mode and its processor, both made from nothing."""
    tokenizer = build_tokenizer()
    processor = build_processor(tokenizer)
    model = build_model(tokenizer, seed)
    gallery = draw_gallery(pictures, seed)
    tower = model.model.vision_tower
    train_vision(tower, gallery, vision_steps, seed)
    lesson = Lesson(model, processor, gallery, see_all(tower, gallery), seed)
    align_projector(lesson, _ALIGNMENT_STEPS, seed)
    train_lookups(lesson, lookup_steps, seed)
    train_language(lesson, language_steps, seed)
    return model, processor


def save(
    model: LlavaOnevisionForConditionalGeneration,
    processor: LlavaOnevisionProcessor,
    folder: Path,
) -> None:
    """Write model and processor to a folder; weights in float16, to be loaded as float32."""
    save_halves(model, folder)
    processor.save_pretrained(folder)


def main() -> None:
    """Make the testbed model, measure it and write its card."""
    arguments = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    out: Path = arguments.out
    check_folder(out, arguments.overwrite)
    torch.set_num_threads(arguments.threads)
    start = time.monotonic()
    model, processor = train(
        arguments.seed,
        arguments.pictures,
        arguments.vision_steps,
        arguments.lookup_steps,
        arguments.language_steps,
    )
    making = Making(
        seed=arguments.seed,
        arguments=f"--out {out.name} --seed {arguments.seed} --pictures {arguments.pictures} "
        f"--vision-steps {arguments.vision_steps} --lookup-steps {arguments.lookup_steps} "
        f"--language-steps {arguments.language_steps}",
        seconds=time.monotonic() - start,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".making-") as scratch:
        fresh = Path(scratch) / out.name
        save(model, processor, fresh)
        card = write_card(measure_folder(fresh), making)
        (fresh / "README.md").write_text(card, encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        fresh.rename(out)
    logger.info("wrote %s", out)


def check_folder(out: Path, overwrite: bool) -> None:
    """Refuse a folder that EasyEdit could not use or that would be overwritten unasked.

    Raises:
        DataError: the name lacks "llava-onevision", or the folder exists and may not be replaced.
    """
    if _FAMILY not in out.name:
        raise DataError(
            f"the folder name {out.name!r} lacks {_FAMILY!r}, by which EasyEdit knows the family "
            f"of a model; choose a name such as {_FAMILY}-testbed"
        )
    if out.exists() and not overwrite:
        raise DataError(f"{out} exists; choose another folder, or replace it with --overwrite")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m easyedit_dualedit.testbed.make",
        description=main.__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("--pictures", type=int, default=24_000, help="pictures to learn from")
    parser.add_argument("--vision-steps", type=int, default=500, help="batches of 128 pictures")
    parser.add_argument("--lookup-steps", type=int, default=350, help="batches of 24 pictures")
    parser.add_argument("--language-steps", type=int, default=1_850, help="batches of 20 pictures")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads for torch")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder")
    return parser


if __name__ == "__main__":
    main()
