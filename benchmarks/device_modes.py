"""Ways in which a model may run, tried on a device: caches, compilers, attentions, number types."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import accelerate  # type: ignore[import-untyped]
import torch

from benchmarks.device_subject import DeviceSubject
from benchmarks.trials import SkippedError, Trial, require
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.step import TrainingStep

_ATTENTIONS = {"eager": None, "sdpa": None, "flash_attention_2": "flash_attn"}
"""Implementation -> package that it needs."""


def modes(subject: DeviceSubject) -> dict[str, Trial]:
    """Return the trials of modes by name; the last leaves the model spread over devices."""
    found: dict[str, Trial] = {}
    for name in _ATTENTIONS:
        found[f"attention: {name}"] = partial(_attention, subject, name)
    for kind in ("float32", "bfloat16", "float16"):
        found[f"number type: {kind}"] = partial(_number_type, subject, getattr(torch, kind))
    found["generate with a static cache"] = partial(_static, subject)
    found["a model that torch.compile has compiled"] = partial(_compiled, subject)
    found["generate with a static cache, compiled"] = partial(_static_compiled, subject)
    found["a model partly offloaded"] = partial(_offloaded, subject)
    return found


def _attention(subject: DeviceSubject, name: str) -> str:
    package = _ATTENTIONS[name]
    if package is not None and importlib.util.find_spec(package) is None:
        raise SkippedError(f"{package} is not installed")
    if package is not None and subject.device.type != "cuda":
        raise SkippedError("needs a GPU")
    request, model = subject.requests[0], subject.model
    batch = subject.encode(subject.mixed)
    expected = subject.logits(subject.edited(request), batch)
    usual = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        worst = 0.0
        found = subject.logits(subject.edited(request), batch)
        for row, real in enumerate(batch.layout.real):
            what = f"row {row}"
            each = subject.require_close(found[row][real], expected[row][real], what)
            worst = max(worst, each)
        _closed_and_trained(subject)
    finally:
        model.set_attn_implementation(usual)
    return f"at most {worst:.2%} from {usual}"


def _number_type(subject: DeviceSubject, dtype: torch.dtype) -> None:
    usual = subject.model.dtype
    subject.model.to(dtype)
    try:
        _closed_and_trained(subject)
        prompt = subject.encode(subject.mixed, with_target=False)
        subject.generate(subject.edited(subject.requests[0]), prompt, do_sample=False)
    finally:
        subject.model.to(usual)


def _closed_and_trained(subject: DeviceSubject) -> None:
    """Try what may differ from one mode to another: a closed gate, and a step."""
    batch = subject.encode(subject.mixed)
    closed = subject.edited(Query("Is it a star?", None, "left"), 1.0)
    plain, found = (subject.logits(model, batch) for model in (subject.model, closed))
    require(torch.equal(plain, found), "a closed gate changes the answer")
    losses = TrainingStep(subject.editor).losses(subject.records[:2], TrainingConfig())
    losses.total.backward()  # type: ignore[no-untyped-call]
    for name, parameter in subject.editor.adapters.named_parameters():
        gradient, parameter.grad = parameter.grad, None
        require(gradient is not None and bool(gradient.isfinite().all()), f"{name}: no gradient")


def _static(subject: DeviceSubject, *, compiles: bool = False) -> str:
    batch = subject.encode(subject.mixed, with_target=False)
    edited = subject.edited(subject.requests[0])
    closed = subject.edited(Query("Is it a star?", None, "left"), 1.0)
    static: dict[str, Any] = {
        "cache_implementation": "static",
        "do_sample": False,
        "disable_compile": not compiles,
    }
    plain, said, shut, usual = (
        subject.generate(subject.model, batch, **static),
        subject.generate(edited, batch, **static),
        subject.generate(closed, batch, **static),
        subject.generate(edited, batch, do_sample=False),
    )
    require(torch.equal(plain, shut), "a closed gate changes what is said")
    same = float((said == usual).float().mean())
    require(bool((said[:, 0] == usual[:, 0]).all()), "the first token differs from a dynamic cache")
    return f"{same:.0%} of the tokens are those of a dynamic cache"


def _static_compiled(subject: DeviceSubject) -> str:
    if subject.device.type != "cuda":
        raise SkippedError("generate compiles on a GPU alone")
    return _static(subject, compiles=True)


def _compiled(subject: DeviceSubject) -> str:
    if subject.device.type != "cuda":
        raise SkippedError("takes minutes on a processor")
    request, batch = subject.requests[0], subject.encode(subject.mixed[:3])
    edited, closed = subject.edited(request), subject.edited(Query("Is it?", None, "left"), 1.0)
    expected = subject.logits(edited, batch)
    with _compiling(subject.model):
        plain = subject.logits(subject.model, batch)
        found, shut = subject.logits(edited, batch), subject.logits(closed, batch)
        again = subject.logits(subject.model, batch)
        prompt = subject.encode([request], with_target=False)
        subject.generate(edited, prompt, do_sample=False)
    share = subject.require_close(found, expected, "edited")
    subject.require_close(shut, plain, "closed")
    require(torch.equal(plain, again), "something is left of the edit")
    is_same = "the very numbers of" if torch.equal(shut, plain) else "within rounding of"
    return f"edited {share:.2%} from uncompiled; a closed gate gives {is_same} the unedited"


@contextmanager
def _compiling(model: Any) -> Iterator[None]:
    model.compile()
    try:
        yield
    finally:
        model._compiled_call_impl = None
        torch.compiler.reset()


def _offloaded(subject: DeviceSubject) -> str:
    if subject.device.type != "cuda":
        raise SkippedError("needs a GPU")
    request, batch = subject.requests[0], subject.encode(subject.mixed)
    expected = subject.logits(subject.edited(request), batch)
    names: dict[str, int | str] = {
        "model.vision_tower": 0,
        "model.multi_modal_projector": 0,
        "lm_head": 0,
    }
    names |= {"model.language_model": "cpu"}
    accelerate.dispatch_model(subject.model, names, main_device=0, force_hooks=True)
    found = subject.logits(subject.edited(request), batch)
    subject.require_close(found, expected, "edited")
    _closed_and_trained(subject)
    return "the decoder on the processor"
