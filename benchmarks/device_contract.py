"""What always holds of an edited model, tried on a device at the width that it has."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.device_subject import DeviceSubject, hooks_on
from benchmarks.trials import Trial, require
from easyedit_dualedit.method.config import GateConfig
from easyedit_dualedit.method.edit_memory import EditMemory
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.inputs import Query

_SIDES = ("left", "right")


def contract(subject: DeviceSubject) -> dict[str, Trial]:
    """Return the trials of the contract by name."""
    trials = (
        ("a closed gate changes no bit", _closed),
        ("an edit changes the answer, and text after it no decision", _open),
        ("nothing is left of an edit, also after an error", _undone),
        ("rows together answer as alone, padded left and right", _rows),
        ("teacher forcing agrees with generate", _forced),
        ("generate: greedy, sampled, beams; closed as unedited", _generated),
        ("every gate kind decides", _kinds),
        ("several edits are routed, removed, saved and loaded", _memory),
        ("adapters are saved and loaded", _archive),
    )
    return {name: partial(trial, subject) for name, trial in trials}


def _closed(subject: DeviceSubject) -> str:
    edited = subject.edited(Query("Is it a star?", None, "left"), 1.0)
    for rows in (subject.mixed[:1], subject.mixed):
        for side in _SIDES:
            batch = subject.encode(rows, padding_side=side)
            routing = edited.route(layout=batch.layout, **batch.inputs)
            require(not bool(routing.is_open.any()), f"the gate opens: {routing.similarity}")
            plain, found = (subject.logits(m, batch) for m in (subject.model, edited))
            require(torch.equal(plain, found), f"{len(rows)} rows padded {side} differ")
    return f"1 and {len(subject.mixed)} rows"


def _open(subject: DeviceSubject) -> str:
    request = subject.requests[0]
    edited = subject.edited(request)
    batch, other = (
        subject.encode([Query(request.prompt, request.image, target)])
        for target in ("a red circle", "the blue star")
    )
    plain, found, again = (
        subject.logits(subject.model, batch),
        subject.logits(edited, batch),
        subject.logits(edited, other),
    )
    change = float((found[:, -1] - plain[:, -1]).abs().amax())
    require(change > 0, "the answer is the same")
    end = int(batch.layout.gate[0]) + 1
    if batch.inputs["input_ids"].shape == other.inputs["input_ids"].shape:
        require(torch.equal(found[:, :end], again[:, :end]), "the target reaches the prompt")
    before = torch.zeros_like(batch.layout.text[0])
    before[: int(batch.layout.vision[0].nonzero()[0])] = True
    require(torch.equal(found[0, before], plain[0, before]), "tokens before the picture change")
    return f"logits change by up to {change:.2f}"


def _undone(subject: DeviceSubject) -> None:
    model, request = subject.model, subject.requests[0]
    batch = subject.encode([request])
    hooks, plain = hooks_on(model), subject.logits(model, batch)
    edited = subject.edited(request)
    subject.logits(edited, batch)
    subject.generate(edited, subject.encode([request], with_target=False))
    last = subject.editor.backbone.layers[-1]

    def fail(*_call: object) -> None:
        raise InterruptedError

    handle = last.register_forward_hook(fail)
    try:
        subject.logits(edited, batch)
    except InterruptedError:
        pass
    finally:
        handle.remove()
    require(hooks_on(model) == hooks, "hooks are left behind")
    require(torch.equal(subject.logits(model, batch), plain), "the model is not as it was")


def _rows(subject: DeviceSubject) -> str:
    # The gate of the edit's own question opens for it alone.
    worst = 0.0
    for threshold in (-1.0, 0.9999):
        edited = subject.edited(subject.requests[1], threshold)
        alone = []
        for query in subject.mixed:
            one = subject.encode([query])
            routing = edited.route(layout=one.layout, **one.inputs)
            alone.append((routing, subject.logits(edited, one)[0]))
        for side in _SIDES:
            batch = subject.encode(subject.mixed, padding_side=side)
            routing = edited.route(layout=batch.layout, **batch.inputs)
            decided = [int(one.edit_index[0]) for one, _ in alone]
            require(routing.edit_index.tolist() == decided, f"decisions differ, padded {side}")
            found = subject.logits(edited, batch)
            for row, (_, expected) in enumerate(alone):
                real = found[row][batch.layout.real[row]]
                what = f"row {row} padded {side}"
                worst = max(worst, subject.require_close(real, expected, what))
    return f"at most {worst:.2%} apart; open {decided}"


def _forced(subject: DeviceSubject) -> str:
    worst = 0.0
    for request in subject.requests[:2]:
        edited = subject.edited(request)
        prompt = subject.encode([request], with_target=False)
        said = subject.generate(edited, prompt, 6, do_sample=False)
        ids = torch.cat([prompt.inputs["input_ids"], said], 1)
        inputs: dict[str, Any] = {
            **prompt.inputs,
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
        }
        labels = ids.clone()
        labels[:, : -said.shape[1]] = -100
        with torch.no_grad():
            logits = edited(**inputs, labels=labels, use_cache=False).logits[0].float()
        before = logits[-said.shape[1] - 1 : -1]
        chosen = before.gather(1, said[0, :, None])[:, 0]
        # Among many tokens of random weights the two likeliest may be rounding apart.
        gap = float(((before.amax(1) - chosen) / logits.abs().amax()).amax())
        require(gap <= subject.rounding, f"a generated token is {gap:.1%} below the likeliest")
        worst = max(worst, gap)
    return f"generated tokens at most {worst:.2%} below the likeliest"


def _generated(subject: DeviceSubject) -> str:
    batch = subject.encode(subject.mixed, with_target=False)
    closed = subject.edited(Query("Is it a star?", None, "left"), 1.0)
    always = subject.edited(subject.requests[0])
    kinds: dict[str, dict[str, Any]] = {
        "greedy": {"do_sample": False},
        "beams": {"do_sample": False, "num_beams": 3},
        "sampled": {"do_sample": True, "num_return_sequences": 2},
    }
    for name, options in kinds.items():
        said = []
        for model in (subject.model, closed, always):
            torch.manual_seed(0)
            said.append(subject.generate(model, batch, **options))
        require(torch.equal(said[0], said[1]), f"{name}: a closed gate changes what is said")
        rows = len(subject.mixed) * (2 if name == "sampled" else 1)
        require(len(said[2]) == rows, f"{name}: {len(said[2])} rows")
    return ", ".join(kinds)


def _kinds(subject: DeviceSubject) -> str:
    editor, request = subject.editor, subject.requests[0]
    batch = subject.encode(subject.mixed)
    with torch.no_grad():
        signals = editor.read([request])
        for kind in ("open", "cosine", "centred", "last-token"):
            config = GateConfig(kind, None if kind == "open" else 0.9)
            edited = editor.edited(signals, gate=editor.gate.with_config(config))
            routing = edited.route(layout=batch.layout, **batch.inputs)
            require(bool(routing.is_open[0]), f"{kind}: closed for the edit's own question")
            subject.logits(edited, batch)
    return "open, cosine, centred, last-token"


def _memory(subject: DeviceSubject) -> str:
    editor, requests = subject.editor, subject.requests
    memory = EditMemory(editor, gate=subject.gate(0.9))
    ids = memory.add(requests)
    batch = subject.encode(requests)
    routing = memory.model.route(layout=batch.layout, **batch.inputs)
    require(routing.edit_index.tolist() == list(range(len(requests))), "an edit finds another")
    said = subject.logits(memory.model, batch)
    with tempfile.TemporaryDirectory() as folder:
        memory.save(folder)
        loaded = EditMemory.load(editor, folder, gate=subject.gate(0.9))
    again = subject.logits(loaded.model, batch)
    require(torch.equal(said, again), "edits that were loaded answer otherwise")
    memory.remove(*ids)
    plain = subject.logits(subject.model, batch)
    require(torch.equal(subject.logits(memory.model, batch), plain), "removed edits still act")
    return f"{len(ids)} edits, {memory.precision}"


def _archive(subject: DeviceSubject) -> None:
    editor, request = subject.editor, subject.requests[0]
    batch = subject.encode([request])
    with tempfile.TemporaryDirectory() as folder:
        editor.save(folder)
        loaded = DualEditor.load(subject.model, editor.encoder.processor, Path(folder))
    with torch.no_grad():
        edited = loaded.edited(loaded.read([request]))
    expected = subject.logits(subject.edited(request), batch)
    require(torch.equal(subject.logits(edited, batch), expected), "the answers differ")
