"""Logits at chosen positions are those of the whole rows, and the lm_head sees nothing else."""

import threading
from functools import partial

import pytest
import torch
from tiny_editors import picture
from tiny_models import TinyModel
from torch import nn

from easyedit_dualedit.model.answer_logits import last_position, logits_at
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder, output_head
from easyedit_dualedit.model.inputs import Query


def batch_of(tiny: TinyModel):
    encoder = Encoder(Backbone.of(tiny.model), tiny.processor)
    queries = [
        Query("What colour is the circle?", picture(), "red"),
        Query("Where is the star in the picture?", picture("blue"), "top left"),
    ]
    return encoder.backbone, encoder.encode(queries)


def seen_by(head: nn.Module) -> tuple[list[torch.Size], object]:
    shapes: list[torch.Size] = []
    return shapes, head.register_forward_hook(lambda _m, args, _out: shapes.append(args[0].shape))


@torch.no_grad()
def test_they_are_those_of_whole_rows_over_every_family(every: TinyModel):
    backbone, batch = batch_of(every)
    call = partial(backbone.model, **batch.inputs, use_cache=False)
    whole = call().logits
    at = batch.target.roll(-1, 1)
    shapes, handle = seen_by(output_head(backbone))
    got = logits_at(backbone, at, call)
    handle.remove()
    assert shapes == [(1, int(at.sum()), backbone.hidden_size)]
    torch.testing.assert_close(got, whole[at], rtol=1e-4, atol=1e-4 * float(whole.abs().max()))
    ends = logits_at(backbone, last_position(batch.inputs["input_ids"]), call)
    torch.testing.assert_close(ends, whole[:, -1], rtol=1e-4, atol=1e-4 * float(whole.abs().max()))
    assert torch.equal(call().logits, whole), "nothing is left behind"


@torch.no_grad()
def test_a_call_that_runs_other_code_gives_the_same_positions(llava: TinyModel):
    backbone, batch = batch_of(llava)
    whole = backbone.model(**batch.inputs).logits
    at = batch.target.roll(-1, 1)
    assert torch.equal(logits_at(backbone, at, lambda: whole), whole[at])


@torch.no_grad()
def test_another_thread_has_its_whole_rows(llava: TinyModel):
    backbone, batch = batch_of(llava)
    at = batch.target.roll(-1, 1)
    shapes = []

    def beside() -> None:
        with torch.no_grad():
            shapes.append(backbone.model(**batch.inputs).logits.shape[:2])

    def call():
        thread = threading.Thread(target=beside)
        thread.start()
        thread.join()
        return backbone.model(**batch.inputs)

    assert logits_at(backbone, at, call).shape[0] == int(at.sum())
    assert shapes == [at.shape]


def test_a_failing_call_leaves_nothing_behind(llava: TinyModel):
    backbone, batch = batch_of(llava)
    with pytest.raises(ZeroDivisionError):
        logits_at(backbone, batch.target, lambda: 1 / 0)
    assert not output_head(backbone)._forward_pre_hooks
