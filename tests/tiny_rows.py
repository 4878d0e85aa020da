"""A record, a bench and what is asked, for the tests of EasyEdit's methods as rows."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from tiny_editors import picture, request_of
from tiny_models import TinyModel

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.measure.contender import Bench, Edited
from easyedit_dualedit.measure.easyedit_rows import joined_row
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.train.losses import answer_cross_entropy


def record_of(index: int = 0, **changes: Any) -> Record:
    request = request_of()
    record = Record(
        index,
        request,
        Query("The circle is?", request.image, "blue"),
        Query(request.prompt, picture("red", (34, 38)), "blue"),
        Query("Where is the star?", None, "top left"),
        Query("How many squares are there?", picture("green"), "three"),
        "red",
    )
    return dataclasses.replace(record, **changes)


def bench_of(tiny: TinyModel, folder: Path, *, training: Any = (), **settings: Any) -> Bench:
    return Bench(
        "tiny", lambda: (tiny.model, tiny.processor), "cpu", folder, training, settings=settings
    )


@torch.no_grad()
def loss_of(model: Any, encoder: Encoder, query: Query) -> float:
    row = joined_row(encoder, query)
    return float(answer_cross_entropy(model(**row.inputs).logits, row.labels))


@torch.no_grad()
def answer_of(edited: Edited, encoder: Encoder, query: Query) -> torch.Tensor:
    batch = encoder.encode([edited.asked(query)], with_target=False)
    tokens: torch.Tensor = edited.model.generate(
        **batch.inputs, max_new_tokens=4, do_sample=False, use_cache=True
    )
    return tokens[0, batch.inputs["input_ids"].shape[1] :]


@torch.no_grad()
def state_of(model: Any, encoder: Encoder) -> dict[str, Any]:
    """Return all that an edit might have changed, by what it is."""
    row = joined_row(encoder, request_of())
    modules = dict(model.named_modules())
    hooks = [name for name in vars(model) if "hook" in name and isinstance(vars(model)[name], dict)]
    return {
        "logits": model(**row.inputs).logits.tolist(),
        "weights": {k: (v.dtype, v.float().tolist()) for k, v in model.state_dict().items()},
        "modules": {name: id(module) for name, module in modules.items()},
        "parameters": {name: id(value) for name, value in model.named_parameters()},
        "requires_grad": {n: value.requires_grad for n, value in model.named_parameters()},
        "gradients": [n for n, value in model.named_parameters() if value.grad is not None],
        "training": {name: module.training for name, module in modules.items()},
        "hooks": {n: [list(vars(m)[hook]) for hook in hooks] for n, m in modules.items()},
        "attributes": {name: sorted(vars(module)) for name, module in modules.items()},
        "checkpointing": {
            n: getattr(m, "gradient_checkpointing", None) for n, m in modules.items()
        },
        "config": model.config.to_dict(),
        "use_cache": getattr(model.config, "use_cache", None),
        "generation": model.generation_config.to_dict(),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name, value in before.items():
        assert after[name] == value, name
