"""Runs one data set on one model with DualEdit and EasyEdit's own methods, inside EasyEdit.

    python run_multimodal_edit.py   # draws the pictures of the small model
    python examples/compare_in_easyedit.py --data outputs/demo/data/vqa_eval.json \
        --images outputs/demo/data/images --model testbed --limit 5 \
        --hparams hparams/DualEdit/testbed.yaml examples/hparams/*/testbed.yaml

Each file is one for edits, as EasyEdit ships them: `alg_name` says which method it is of. What is
printed are EasyEdit's own metrics, the mean over the records, in percent. EasyEdit's master
(EASYEDIT_HOME) has all of these methods; its release on PyPI, whose `edit_dataset` cannot be
called, runs those that it has on records in MMEdit's format. `python run_multimodal_edit.py
benchmark` compares under more protocols.
"""

import argparse
import copy
import gc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from easyedit_dualedit import register
from easyedit_dualedit.model.loading import dtype_from
from easyedit_dualedit.plugin.values import device_from, model_path

register()  # before EasyEdit's editor is made

import easyeditor  # noqa: E402  (only now does it know DualEdit)

HPARAMS = {
    "DualEdit": "DualEditMultimodalHparams",
    "GRACE": "GraceHyperParams",
    "IKE": "IKEMultimodalHyperParams",
    "LoRA": "LoRAMultimodalHyperParams",
    "MEND": "MENDMultimodalHparams",
    "SERAC": "SERACMultimodalHparams",
    "WISE": "WISEMultimodalHyperParams",
}
DATASETS = {
    "caption": "CaptionDataset",
    "comprehendedit": "ComprehendEditDataset",
    "vqa": "VQADataset",
}
METRICS = {
    "rewrite_acc": "reliability",
    "rephrase_acc": "text generality",
    "image_rephrase_acc": "image generality",
    "locality_acc": "text locality",
    "multimodal_locality_acc": "image locality",
}
IS_RELEASE = not hasattr(easyeditor, "LoRAMultimodalHyperParams")
CHANGE_THE_MODEL = ("GRACE", "LoRA", "WISE")
"""EasyEdit's `edit_dataset` does not undo an edit, so these get the model anew for each record."""


def main() -> None:
    """Print a row of EasyEdit's metrics for each file of hyperparameters."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hparams", nargs="+", required=True, type=Path, metavar="YAML")
    parser.add_argument("--data", required=True, type=Path, help="records, or ComprehendEdit's")
    parser.add_argument("--dataset", choices=sorted(DATASETS), default="vqa")
    parser.add_argument("--images", required=True, type=Path, help="folder of the pictures")
    parser.add_argument("--model", required=True, help="folder or hub id, or testbed")
    parser.add_argument(
        "--device", default=None, help="cpu, cuda, an index (default: what is there)"
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--limit", type=int, default=None, metavar="N", help="the first N records")
    arguments = parser.parse_args()
    rows = []
    for path in arguments.hparams:
        name = method_of(path)
        try:
            metrics = measured(path, name, arguments)
            rows.append([name, *(percent(metrics, key) for key in METRICS)])
        except Exception as error:  # a method that fails is a row that says why
            line = " ".join(str(error).split())[:160]
            rows.append([name, f"failed: {type(error).__name__}: {line}"])
        gc.collect()
        torch.cuda.empty_cache()
    print_table(["method", *METRICS.values()], rows)


def method_of(path: Path) -> str:
    """Return the `alg_name` in a file of hyperparameters."""
    return str(yaml.safe_load(path.read_text(encoding="utf-8"))["alg_name"])


def measured(path: Path, name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what EasyEdit's editor measures of each record."""
    if IS_RELEASE:
        editor = editor_of(path, name, arguments)
        return list(editor.edit(**edits_in(arguments.data, arguments.limit))[0])
    if name not in CHANGE_THE_MODEL:
        editor, records = prepared(path, name, arguments)
        return list(editor.edit_dataset(records, verbose=False)[0])
    metrics: list[dict[str, Any]] = []
    count = len(prepared(path, name, arguments)[1])
    for place in range(count):
        editor, records = prepared(path, name, arguments)
        only = copy.copy(records)
        only._data = [records[place]]
        metrics += editor.edit_dataset(only, verbose=False)[0]
    return metrics


def editor_of(path: Path, name: str, arguments: argparse.Namespace) -> Any:
    """Return EasyEdit's editor with a freshly loaded model."""
    hparams = getattr(easyeditor, HPARAMS[name]).from_hparams(str(path))
    hparams.model_name = hparams.name = hparams.tokenizer_name = model_path(arguments.model)
    hparams.device, hparams.dtype = device_from(arguments.device), dtype_from(arguments.dtype)
    hparams.coco_image = hparams.rephrase_image = str(arguments.images)
    return easyeditor.MultimodalEditor.from_hparams(hparams)


def prepared(path: Path, name: str, arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Return EasyEdit's editor with a freshly loaded model, and its data set."""
    editor = editor_of(path, name, arguments)
    kind = getattr(easyeditor, DATASETS[arguments.dataset])
    more = {"mode": "test"} if arguments.dataset == "comprehendedit" else {}
    return editor, kind(str(arguments.data), size=arguments.limit, config=editor.hparams, **more)


def edits_in(path: Path, limit: int | None) -> dict[str, Any]:
    """Return what EasyEdit's `edit` takes for the records of a file in MMEdit's format."""
    records = json.loads(path.read_text(encoding="utf-8"))[:limit]

    def each(field: str) -> list[str]:
        return [record[field] for record in records]

    return {
        "prompts": each("src"),
        "targets": each("alt"),
        "image": each("image"),
        "rephrase_prompts": each("rephrase"),
        "rephrase_image": each("image_rephrase"),
        "locality_inputs": {
            "text": {"prompt": each("loc"), "ground_truth": each("loc_ans")},
            "vision": {
                "prompt": each("m_loc_q"),
                "ground_truth": each("m_loc_a"),
                "image": each("m_loc"),
            },
        },
    }


def percent(metrics: Sequence[dict[str, Any]], key: str) -> str:
    """Return the mean of a metric after the edits, or a dash if there is none."""
    values = [float(case["post"][key]) for case in metrics if key in case["post"]]
    return f"{100 * sum(values) / len(values):.1f}" if values else "-"


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under titles, in Markdown."""
    print("| " + " | ".join(titles) + " |")
    print("|" + "---|" * len(titles))
    for row in rows:
        cells = [*row, *[""] * (len(titles) - len(row))]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
