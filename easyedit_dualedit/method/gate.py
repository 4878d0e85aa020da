"""The gate decides here: which edit, if any, applies to each row of a forward.

`Gate.decide` takes the states of the text layer as no edit has changed them. Of each row it reads
the last prompt token and, if the gate is `learned`, the mean over the image tokens; all of them
precede the target, so no label can reach a decision. `Gate.key` makes a unit vector of them,
`Gate.similarity` compares it with the keys of edits, and `Gate.route` chooses the best edit whose
similarity reaches the threshold. The keys of a `learned` gate are those of its trained
`GateProjection`; the others compare the states as they are, by cosine. The kind `last-token` alone
reads the last token of prompt and target: it is the published code's, and here to reproduce it.

How a gate is trained and its thresholds are found is in `gate_calibration` and in `train`.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from easyedit_dualedit.errors import CalibrationError, DataError
from easyedit_dualedit.method.config import GateConfig, GateKind, gate_from
from easyedit_dualedit.method.gate_loading import Thresholded, prepare_projection, warn_of_fallback
from easyedit_dualedit.model.hooks import in_own_precision
from easyedit_dualedit.model.inputs import TokenLayout

CALIBRATED_KINDS: tuple[GateKind, ...] = ("cosine", "centred", "last-token")
"""Kinds that compare the states as they are, in the order in which a gate stores thresholds."""

_TIE = 1e-5
"""Cosines closer than this differ by rounding: two edits of one request, say."""

EDIT_COUNTS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)
"""Numbers of stored edits that a `learned` gate keeps thresholds for."""

KEY_WIDTH = 128
"""Length of a unit vector that a `learned` gate compares."""

GateForm = Literal["two-layer", "linear", "linear-pair"]
"""What makes a key of the states: two layers; one, which cannot learn single records by heart; or
one that makes a pair of unit vectors, which must both be alike."""

GATE_FORMS: tuple[GateForm, ...] = get_args(GateForm)

_HIDDEN_WIDTH = 256
"""Width of the layer between states and keys, where there are two."""

_SHARPNESS = 20.0
"""Of the soft minimum of a pair's cosines: it is at most log(2) / 20 = 0.03 above the minimum."""


@dataclass(frozen=True)
class Routing:
    """Which edit applies to each row of one forward.

    Shapes: b rows.
    """

    similarity: Tensor
    """Similarity to the best edit, float [b]; -inf without edits."""
    edit_index: Tensor
    """Index of the edit that applies, long [b]; -1 where none does."""

    @property
    def is_open(self) -> Tensor:
        """True where an edit applies, bool [b]."""
        return self.edit_index >= 0

    def open_rows(self) -> dict[int, int]:
        """Return the rows that edits apply to: index of the row -> index of its edit."""
        return {row: edit for row, edit in enumerate(self.edit_index.tolist()) if edit >= 0}


class Gate(Thresholded):
    """Decides which edit applies to a query, by how similar their states are.

    One calibration serves every kind, so that a trained editor can be used with any of them.

        >>> gate = Gate(hidden_size=4, config=GateConfig("cosine", threshold=0.8))
        >>> edits = gate.key(torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 3.0, 0.0, 0.0]]))
        >>> queries = torch.tensor([[0.0, 2.0, 0.0, 0.1], [1.0, 0.0, 0.0, 0.0]])
        >>> gate.route(queries, edits).edit_index  # the second edit, and none
        tensor([ 1, -1])
    """

    mean: Tensor

    def __init__(self, hidden_size: int, config: GateConfig):
        """Build a gate over states of `hidden_size`, not calibrated yet."""
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(hidden_size))
        self.register_buffer("thresholds", torch.full((len(CALIBRATED_KINDS),), math.nan))
        self.projection = GateProjection(hidden_size)
        self.register_load_state_dict_pre_hook(prepare_projection)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(warn_of_fallback)  # type: ignore[no-untyped-call]

    @property
    def kind(self) -> GateKind:
        """The kind that decides: `cosine` in place of a `learned` gate that is not trained."""
        if self.config.kind == "learned" and not self.projection.is_trained:
            return "cosine"
        return self.config.kind

    @property
    def threshold(self) -> float:
        """Cosine at or above which the gate opens for a single edit.

        Raises:
            CalibrationError: if there is none yet.
        """
        return self.threshold_among(1)

    def threshold_among(self, count: int) -> float:
        """Return the cosine at or above which the gate opens for the best of `count` edits.

        A `learned` gate is stricter the more edits there are; one that was set is always the same.

        Raises:
            CalibrationError: if there is none yet.
        """
        kind = self.kind
        if kind == "open":
            return -math.inf
        if self.config.threshold is not None:
            return self.config.threshold
        if kind == "learned":
            return self.projection.threshold(count)
        value = float(self.thresholds[CALIBRATED_KINDS.index(kind)])
        if math.isnan(value):
            raise CalibrationError(
                f"the {self.config.kind} gate has no threshold: train it, load adapters that hold"
                " one, or set gate.threshold in the configuration"
            )
        return value

    def with_config(self, config: "GateConfig | Gate | None") -> "Gate":
        """Return a gate of another kind or threshold that shares what this one has learned, or a
        gate that is given whole, or this one for None."""
        if config is None or isinstance(config, Gate):
            return config or self
        gate = copy.copy(self)
        gate.config = gate_from(config)
        return gate

    def decide(
        self, hidden: Tensor, layout: TokenLayout, edits: Tensor, assignment: Tensor | None = None
    ) -> Routing:
        """Return which edit applies to each row of a forward.

        Args:
            hidden: states of the text layer that no edit has changed, [b, s, d].
            layout: what each position is.
            edits: keys of the edits, [n, k], oldest first.
            assignment: the only edit that each row may use, long; as many as rows, or fewer if
                each row of a batch is repeated in place. None allows all.

        Raises:
            DataError: if the rows do not fit the assignment.
            CalibrationError: if the gate has no threshold yet.
        """
        index = layout.last if self.config.kind == "last-token" else layout.gate
        rows = torch.arange(len(hidden), device=hidden.device)
        if assignment is not None and len(assignment) != len(hidden):
            if len(hidden) % len(assignment):
                raise DataError(
                    f"{len(hidden)} rows for edits assigned to {len(assignment)}; give as many"
                    " rows as the assignment, or a multiple that repeats each"
                )
            # Beam search and sampling repeat each row of the batch in place.
            assignment = assignment.repeat_interleave(len(hidden) // len(assignment))
        is_learned = self.config.kind == "learned"
        pictures = vision_mean(hidden, layout.vision) if is_learned else None
        return self.route(hidden[rows, index.to(hidden.device)], edits, assignment, pictures)

    def route(
        self,
        queries: Tensor,
        edits: Tensor,
        assignment: Tensor | None = None,
        vision: Tensor | None = None,
    ) -> Routing:
        """Return which edit applies to each query.

        The best edit applies if its similarity reaches the threshold among so many; the newest wins
        a tie. A query or an edit that is NaN or infinite matches nothing.

        Args:
            queries: states of the queries' gate tokens, [b, d].
            edits: keys of the edits, [n, k], oldest first.
            assignment: the only edit that each query may use, long [b]; None allows all.
            vision: means of the queries' image tokens, [b, d], as in `key`.

        Raises:
            CalibrationError: if the gate has no threshold yet.
        """
        if len(edits) == 0:
            nothing = queries.new_full((len(queries),), -math.inf, dtype=torch.float32)
            return Routing(nothing, torch.full_like(nothing, -1, dtype=torch.long))
        with in_own_precision(edits.device):
            similarity = self.similarity(self.key(queries, vision), edits)
        if assignment is None:
            threshold = self.threshold_among(len(edits))
            numbers = torch.arange(len(edits), device=edits.device)
        else:  # a query that may use one edit only is not tempted by the others
            threshold = self.threshold_among(1)
            numbers = assignment.to(edits.device)[:, None]
            similarity = similarity.gather(1, numbers)
        similarity = similarity.nan_to_num(nan=-math.inf, posinf=-math.inf, neginf=-math.inf)
        best = similarity.amax(1, keepdim=True)
        # Every cosine is above -2: an open gate has no threshold, and still refuses NaN.
        applies = (similarity >= best - _TIE) & (best >= max(threshold, -2.0))
        edit_index = torch.where(applies, numbers, -1).amax(1)  # the newest of equals
        return Routing(best[:, 0].to(queries.device), edit_index.to(queries.device))

    def similarity(self, queries: Tensor, edits: Tensor) -> Tensor:
        """Return how similar keys of queries, [b, k], are to keys of edits, [n, k]: [b, n]."""
        if self.kind == "learned":
            return self.projection.similarity(queries, edits)
        return queries @ edits.T

    def key(self, states: Tensor, vision: Tensor | None = None) -> Tensor:
        """Return unit vectors, float32 [..., k], which `similarity` compares.

        Args:
            states: states of gate tokens at the text layer, [..., d].
            vision: means of the image tokens there, [..., d]; zeros, or None, without a picture.
                Only a `learned` gate reads them.
        """
        kind = self.kind
        with in_own_precision(self.mean.device):
            if kind == "learned":
                picture = None if vision is None else vision.to(self.mean)
                keys: Tensor = self.projection(states.to(self.mean), picture).float()
                return keys
            states = states.to(self.mean.device, torch.float32)
            if kind == "centred":
                states = states - self.mean.float()
            return functional.normalize(states, dim=-1)


class GateProjection(Thresholded):
    """The trained part of a `learned` gate: it makes keys that tell a thousand edits apart.

    A key joins the state of the last prompt token, which knows what is asked, and the mean over the
    image tokens, which hardly changes when a scene is rearranged and tells scenes apart whose
    answer is the same. A key of the form `linear-pair` is two unit vectors, and its similarity the
    soft minimum of their cosines: one cosine lets what is alike in the picture make up for what
    differs in the question. The threshold grows with the number of edits, since each more is one
    more chance to open for a query that concerns none. Which form it has is chosen in training, on
    records that taught it nothing. At LLaVA-1.5-7B size there are 2.1 million parameters in two
    layers or in a pair, 6 % of the adapters', or 1.0 million in one layer.
    """

    def __init__(self, hidden_size: int, form: GateForm = "two-layer"):
        """Build an untrained projection of states of `hidden_size`."""
        super().__init__()
        self.form = form
        self.parts = 2 if form == "linear-pair" else 1
        width = 2 * hidden_size
        layers = (
            [nn.Linear(width, _HIDDEN_WIDTH), nn.GELU(), nn.Linear(_HIDDEN_WIDTH, KEY_WIDTH)]
            if form == "two-layer"
            else [nn.Linear(width, self.parts * KEY_WIDTH)]
        )
        self.layers = nn.Sequential(*layers)
        self.register_buffer("thresholds", torch.full((len(EDIT_COUNTS),), math.nan))

    @property
    def is_trained(self) -> bool:
        """True once it has been trained and its thresholds calibrated."""
        return not math.isnan(self.thresholds[0])

    @staticmethod
    def form_of(layers: Mapping[str, Tensor]) -> GateForm:
        """Return the form that tensors of `layers` are of; whether they are whole shows later."""
        if "2.weight" in layers:
            return "two-layer"
        width = layers["0.weight"].shape[:1] if "0.weight" in layers else ()
        return "linear-pair" if width == (2 * KEY_WIDTH,) else "linear"

    def forward(self, states: Tensor, vision: Tensor | None = None) -> Tensor:
        """Return unit vectors, [..., k].

        Args:
            states: states of last prompt tokens, [..., d].
            vision: means of the states of the image tokens at the same layer, [..., d]; zeros, or
                None, without a picture.
        """
        return self.keys(self.inputs(states, vision))

    def keys(self, inputs: Tensor) -> Tensor:
        """Return unit vectors, [..., k], of `inputs`, [..., 2 d]."""
        parts = functional.normalize(self.layers(inputs).unflatten(-1, (self.parts, -1)), dim=-1)
        return parts.flatten(-2) / math.sqrt(self.parts)

    def similarity(self, queries: Tensor, edits: Tensor) -> Tensor:
        """Return the similarity of keys, [b, k] and [n, k], at most 1: [b, n].

        It is the cosine, and of a pair the soft minimum of both cosines.
        """
        if self.parts == 1:
            return queries @ edits.T
        pairs = zip(queries.chunk(2, -1), edits.chunk(2, -1), strict=True)
        one, other = (-2 * _SHARPNESS * (query @ edit.T) for query, edit in pairs)
        return (math.log(2) - torch.logaddexp(one, other)) / _SHARPNESS

    @staticmethod
    def inputs(states: Tensor, vision: Tensor | None = None) -> Tensor:
        """Return what the layers see of states: both, normalised each for itself, [..., 2 d].

        Args:
            states: as in `forward`.
            vision: as in `forward`.
        """
        # The norm of zeros is zeros, so a query without a picture needs no case of its own.
        picture = torch.zeros_like(states) if vision is None else vision
        both = functional.layer_norm(torch.stack([states, picture], -2), states.shape[-1:])
        return both.flatten(-2)

    def threshold(self, count: int) -> float:
        """Return the cosine at or above which the best of `count` edits applies; NaN if untrained.

        It is linear in the logarithm of the count between `EDIT_COUNTS`, and constant outside.
        """
        values: list[float] = self.thresholds.tolist()
        if count <= EDIT_COUNTS[0]:
            return values[0]
        if count >= EDIT_COUNTS[-1]:
            return values[-1]
        upper = next(place for place, each in enumerate(EDIT_COUNTS) if each >= count)
        low, high = math.log(EDIT_COUNTS[upper - 1]), math.log(EDIT_COUNTS[upper])
        share = (math.log(count) - low) / (high - low)
        return values[upper - 1] + share * (values[upper] - values[upper - 1])


def vision_mean(hidden: Tensor, vision: Tensor) -> Tensor:
    """Return the mean state of the image tokens of each row, float32 [b, d]; zeros without any.

    Args:
        hidden: states, [b, s, d].
        vision: True at image tokens, bool [b, s].
    """
    mask = vision.to(hidden.device)
    # Left out, not multiplied by zero: NaN may stand at padding.
    kept = torch.where(mask[..., None], hidden.float(), 0.0)
    return kept.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
