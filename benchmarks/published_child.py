"""Steps of the published code, one for each line that is read: run by `benchmarks.published`.

It stands alone, since the published code runs on transformers 4.41. What it cannot start without is
put in its place here: a module that its repository lacks, a model of random weights instead of
weights by path, the CPU instead of a second GPU. The trace that its configuration does not use is
left out. Nothing of it is changed besides.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

import torch
from PIL import Image

_LACKING = "editor.vllms_for_edit.minigpt4"
_LAYER = "language_model.model.layers.{}"


def main() -> None:
    """Say "ready", then answer each line with what a step took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("told", type=Path, help="file that says what to do")
    told = json.loads(parser.parse_args().told.read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    sys.path.insert(0, told["clone"])
    os.chdir(told["clone"])
    for name in (_LACKING, f"{_LACKING}.minigpt4"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules[f"{_LACKING}.minigpt4"].MiniGPT4ForEdit = object  # type: ignore[attr-defined]
    # It prints the model's tree.
    with tempfile.TemporaryDirectory() as kept, contextlib.redirect_stdout(io.StringIO()) as _:
        editor = _editor(told, kept)
        paths = editor.preprocess_train_data(_Data(told["records"], told["shapes"]["side"]))
        editor.opt = editor.get_a_new_optimizer()
        editor.reinit_train_parameters()
        editor.set_train(True)
        sys.__stdout__.write("ready\n")  # type: ignore[union-attr]
        sys.__stdout__.flush()  # type: ignore[union-attr]
        size = told["batch"]
        for place, _line in enumerate(sys.stdin):
            start = time.process_time()
            batch = editor.organize_batch_data(paths[place * size : (place + 1) * size])
            editor.train_a_batch(batch)
            taken = 1e3 * (time.process_time() - start)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            sys.__stdout__.write(json.dumps({"milliseconds": taken, "peak_mib": peak}) + "\n")  # type: ignore[union-attr]
            sys.__stdout__.flush()  # type: ignore[union-attr]


class _Data:
    """Records, in the form that its data sets have."""

    def __init__(self, records: list[list[dict[str, Any]]], side: int):
        def asked(query: dict[str, Any], answer: str) -> dict[str, Any]:
            colour = query["colour"]
            picture = None if colour is None else Image.new("RGB", (side, side), tuple(colour))
            return {"image": picture, "prompt": query["prompt"], answer: query["target"]}

        self.data = [
            {
                "request": asked(request, "target_new"),
                "generality": {
                    "text_rephrase": [asked(rephrase, "target")],
                    "image_rephrase": [asked(shown, "target")],
                },
                "locality": {
                    "text_loc": [asked(text, "target")],
                    "image_loc": [asked(image, "target")],
                },
            }
            for request, rephrase, shown, text, image in records
        ]

    def dataset_name(self) -> str:
        return "records"


def _editor(told: dict[str, Any], kept: str) -> Any:
    from editor.vllm_editors.vead.vead import VEAD, VEADConfig  # type: ignore[import-not-found]
    from editor.vllms_for_edit.base import BaseVLLMForEdit  # type: ignore[import-not-found]
    from editor.vllms_for_edit.llava.llava import LlavaForEdit  # type: ignore[import-not-found]

    shapes = told["shapes"]
    wrapped = LlavaForEdit.__new__(LlavaForEdit)
    wrapped.model, wrapped.processor = _model(shapes, Path(told["tokenizer"]), Path(kept))
    BaseVLLMForEdit.__init__(wrapped, wrapped.model, "cpu", True)
    config = VEADConfig(
        edit_model_name="published",
        llm_layer_tmp=_LAYER,
        llm_att_tmp=f"{_LAYER}.self_attn",
        llm_hidden_size=shapes["hidden"],
        adaptor_mid_dim=shapes["width"],
        adaptor_cross_att_head_n=8,
        train_cfg=VEADConfig.TrainConfig(1e-4, 1, 1, 1, 0.1),
        IT=VEADConfig.InfluenceTrace(
            False, [shapes["layers"] - 2, shapes["layers"] - 1], 1, 0.7, 0, 16, 64
        ),
        edit_layers=[shapes["vision_layer"]],
        edit_text_layers=[shapes["text_layer"]],
    )
    editor = VEAD(wrapped, config, "cpu", wrapped, "cpu", kept)
    # Its step calls it whether or not the configuration uses what it makes.
    VEAD.__get_xy_for_influence_mapper__ = lambda *_arguments: None
    editor.random_seed = 0
    return editor


def _model(shapes: dict[str, Any], tokenizer_folder: Path, kept: Path) -> tuple[Any, Any]:
    import transformers

    tokenizer: Any = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(_older_tokenizer(tokenizer_folder, kept))
    )
    named = json.loads((tokenizer_folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    for name in ("pad_token", "bos_token", "eos_token", "unk_token"):
        if isinstance(named.get(name), str):
            setattr(tokenizer, name, named[name])
    image = tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    config: Any = transformers.LlavaConfig(
        transformers.CLIPVisionConfig(
            hidden_size=shapes["tower_hidden"],
            intermediate_size=shapes["tower_inner"],
            num_hidden_layers=shapes["tower_layers"],
            num_attention_heads=shapes["tower_heads"],
            image_size=shapes["side"],
            patch_size=14,
        ),
        transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shapes["hidden"],
            intermediate_size=shapes["inner"],
            num_hidden_layers=shapes["layers"],
            num_attention_heads=shapes["heads"],
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        image_token_index=image,
        ignore_index=-100,
        pad_token_id=tokenizer.pad_token_id,
    )
    config.pad_token_id = tokenizer.pad_token_id
    model: Any = transformers.LlavaForConditionalGeneration(config)
    side = shapes["side"]
    processor: Any = transformers.LlavaProcessor(  # type: ignore[no-untyped-call]
        transformers.CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        ),
        tokenizer,
    )
    return model.eval().requires_grad_(False), processor


def _older_tokenizer(folder: Path, kept: Path) -> Path:
    """Return a copy of a tokenizer's file with merges as tokenizers 0.19 reads them."""
    values = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    merges = values["model"].get("merges") or []
    values["model"]["merges"] = [
        each if isinstance(each, str) else " ".join(each) for each in merges
    ]
    path = kept / "tokenizer.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
