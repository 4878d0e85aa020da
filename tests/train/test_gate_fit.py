"""Which form of the learned gate is trained, and on what it is chosen."""

from dataclasses import replace

import pytest
import torch

from easyedit_dualedit.data.records import METRICS
from easyedit_dualedit.data.scope import HARD, IN_SCOPE, SCOPE
from easyedit_dualedit.errors import CalibrationError
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.gate_fit import FITTINGS, Fitting, fit_projection
from easyedit_dualedit.train.gate_whitening import Whitening
from easyedit_dualedit.train.scope_states import ScopeStates

HIDDEN, KNOWN = 96, 32
CONFIG = TrainingConfig(gate_steps=60)


def states_of(count: int, seed: int) -> ScopeStates:
    """Things in a third of all directions, seen through noise that is larger in the others."""
    source = torch.Generator().manual_seed(seed)

    def draw(scale: float, width: int = HIDDEN) -> torch.Tensor:
        return scale * torch.randn(count, width, generator=source)

    def seen(things: torch.Tensor) -> torch.Tensor:
        noise = draw(1.0)
        noise[:, :KNOWN] *= 0.1
        return torch.nn.functional.pad(things, (0, HIDDEN - KNOWN)) + noise

    things = draw(1.0, KNOWN)
    gate = {kind: seen(things if kind in IN_SCOPE else draw(1.0, KNOWN)) for kind in SCOPE}
    vision = {kind: seen(things if kind in IN_SCOPE else draw(1.0, KNOWN)) for kind in SCOPE}
    counts = {kind: torch.ones(count, dtype=torch.bool) for kind in SCOPE}
    return ScopeStates(gate, vision, vision, counts, torch.full((count,), -1), torch.arange(count))


def opened_for(fitting: Fitting, states: ScopeStates, held_out: ScopeStates) -> float:
    """Return the share of image rephrases above all queries out of scope."""
    torch.manual_seed(0)
    projection = fit_projection(states, fitting, CONFIG, progress=False).eval()
    with torch.no_grad():
        keys = {kind: projection(held_out.gate[kind], held_out.vision[kind]) for kind in SCOPE}
        own = keys[METRICS[0]]
        similar = {kind: projection.similarity(keys[kind], own).diagonal() for kind in SCOPE}
    bound = max(float(similar[kind].max()) for kind in HARD)
    return float((similar["image_generality"] > bound).float().mean())


def test_few_records_are_not_learned_by_heart_by_the_linear_forms():
    taught, held_out = states_of(120, 0), states_of(200, 1)
    opened = {fitting.form: opened_for(fitting, taught, held_out) for fitting in FITTINGS}
    assert opened["linear-pair"] > 0.9 > opened["two-layer"], opened


def crossed_states(count: int, seed: int) -> ScopeStates:
    """Six questions about many pictures; an edit's own in another form differs in the picture."""
    source = torch.Generator().manual_seed(seed)
    asked = torch.randn(6, KNOWN, generator=torch.Generator().manual_seed(99))

    def draw(width: int = KNOWN) -> torch.Tensor:
        return torch.randn(count, width, generator=source)

    def seen(*parts: torch.Tensor) -> torch.Tensor:
        known = torch.cat(parts, 1)
        return torch.nn.functional.pad(known, (0, HIDDEN - known.shape[1])) + 0.3 * draw(HIDDEN)

    question = torch.randint(6, (count,), generator=source)
    other = (question + torch.randint(1, 6, (count,), generator=source)) % 6
    shown = draw()
    whole = {
        "reliability": (question, shown),
        "text_generality": (question, shown),
        "image_generality": (question, shown + 0.6 * draw()),
        "other_question": (other, shown),
        "other_image": (question, draw()),
    }
    asking = {kind: whole.get(kind, (other, draw())) for kind in SCOPE}
    gate = {kind: seen(asked[which], picture) for kind, (which, picture) in asking.items()}
    vision = {kind: seen(picture) for kind, (_, picture) in asking.items()}
    counts = {kind: torch.ones(count, dtype=torch.bool) for kind in SCOPE}
    return ScopeStates(gate, vision, vision, counts, torch.full((count,), -1), torch.arange(count))


def test_a_pair_tells_another_question_from_another_picture_of_the_same():
    """One cosine lets a picture that is wholly alike make up for a question that is not."""
    taught, held_out = crossed_states(200, 0), crossed_states(300, 1)
    single = replace(FITTINGS[1], form="linear")
    opened = {each.form: opened_for(each, taught, held_out) for each in (single, FITTINGS[1])}
    assert opened["linear-pair"] > opened["linear"] + 0.05, opened


def test_a_projection_takes_states_as_they_are(monkeypatch: pytest.MonkeyPatch):
    """What was trained behind a whitening is folded: it gives the keys that training saw."""
    seen: list[Whitening] = []
    real = Whitening.of

    def noting(requests: torch.Tensor, differences: torch.Tensor) -> Whitening:
        seen.append(real(requests, differences))
        return seen[0]

    monkeypatch.setattr(Whitening, "of", noting)
    trained: list[torch.Tensor] = []
    fold = Whitening.fold

    def keeping(whitening: Whitening, layer: torch.nn.Linear) -> None:
        trained.extend((layer.weight.detach().clone(), layer.bias.detach().clone()))
        fold(whitening, layer)

    monkeypatch.setattr(Whitening, "fold", keeping)
    states = states_of(20, 0)
    projection = fit_projection(states, FITTINGS[1], CONFIG, progress=False)
    request = (states.gate[METRICS[0]], states.vision[METRICS[0]])
    weight, bias = trained
    mapped = seen[0].apply(projection.inputs(*request))
    halves = (mapped @ weight.T + bias).chunk(2, -1)
    expected = torch.cat([torch.nn.functional.normalize(half, dim=-1) for half in halves], -1)
    torch.testing.assert_close(projection(*request), expected / 2**0.5, rtol=1e-3, atol=1e-4)
    assert projection.form == "linear-pair" and not projection.is_trained


def test_states_that_are_no_numbers_are_refused():
    states = states_of(10, 0)
    states.gate["image_generality"][3, 2] = torch.nan
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        fit_projection(states, FITTINGS[0], CONFIG, progress=False)
