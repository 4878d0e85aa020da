"""The gate decides here: which edit, if any, applies to each row of a forward.

`Gate.decide` takes the states of the text layer as no edit has changed them. Of each row it reads
the last prompt token and, if the gate is `learned`, the mean over the image tokens; all of them
precede the target, so no label can reach a decision. `Gate.key` makes a unit vector of them,
`Gate.similarity` compares it with the keys of edits, and `Gate.route` chooses the best edit whose
similarity reaches the threshold. The keys of a `learned` gate are those of its trained
`GateProjection`, and of its `TextKeys` where neither query nor edit has a picture; the others
compare the states as they are, by cosine. The kind `last-token` alone reads the last token of
prompt and target: it is the published code's, and here to reproduce it.

How a gate is trained and its thresholds are found is in `gate_calibration` and in `train`.
"""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from easyedit_dualedit.errors import CalibrationError, DataError
from easyedit_dualedit.method.config import GateConfig, GateKind, gate_from
from easyedit_dualedit.method.gate_keys import (
    STRICTEST,
    GateProjection,
    TextKeys,
    Thresholded,
    vision_mean,
)
from easyedit_dualedit.method.gate_loading import prepare_learned, warn_of_fallback
from easyedit_dualedit.model.backbone import TurnMarker
from easyedit_dualedit.model.hooks import in_own_precision
from easyedit_dualedit.model.inputs import TokenLayout
from easyedit_dualedit.model.letters import LETTERS_WIDTH, TokenLetters

CALIBRATED_KINDS: tuple[GateKind, ...] = ("cosine", "centred", "last-token")
"""Kinds that compare the states as they are, in the order in which a gate stores thresholds."""

_TIE = 1e-5
"""Cosines closer than this differ by rounding: two edits of one request, say."""


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
    text: TextKeys | None
    """Keys of questions without a picture, where they were fitted."""

    def __init__(
        self,
        hidden_size: int,
        config: GateConfig,
        turn: TurnMarker | None = None,
        letters: TokenLetters | None = None,
    ):
        """Build a gate over states of `hidden_size`, not calibrated yet.

        Args:
            hidden_size: of the states that it compares.
            config: which kind decides.
            turn: tells where the last turn of a chat begins; text keys compare nothing before it.
            letters: spells tokens, for text keys.
        """
        super().__init__()
        self.config = config
        self._turn = turn
        self._letters = letters
        self.register_buffer("mean", torch.zeros(hidden_size))
        self.register_buffer("thresholds", torch.full((len(CALIBRATED_KINDS),), math.nan))
        self.projection = GateProjection(hidden_size)
        # In the dictionary of modules, which gates that share what was learned have in common.
        self.register_module("text", None)
        self.register_load_state_dict_pre_hook(prepare_learned)  # type: ignore[no-untyped-call]
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
        vision = text = None
        if self.config.kind == "learned":
            vision = vision_mean(hidden, layout.vision)
            text = None if self.text is None else self.said(hidden, layout)
        return self.route(hidden[rows, index.to(hidden.device)], edits, assignment, vision, text)

    def route(
        self,
        queries: Tensor,
        edits: Tensor,
        assignment: Tensor | None = None,
        vision: Tensor | None = None,
        text: Tensor | None = None,
    ) -> Routing:
        """Return which edit applies to each query.

        The best edit applies if its similarity reaches the threshold among so many; the newest wins
        a tie. A query or an edit that is NaN or infinite matches nothing.

        Args:
            queries: states of the queries' gate tokens, [b, d].
            edits: keys of the edits, [n, k], oldest first.
            assignment: the only edit that each query may use, long [b]; None allows all.
            vision: means of the queries' image tokens, [b, d], as in `key`.
            text: means of the prompts of queries without a picture, [b, d], as in `key`.

        Raises:
            CalibrationError: if the gate has no threshold yet.
        """
        if len(edits) == 0:
            nothing = queries.new_full((len(queries),), -math.inf, dtype=torch.float32)
            return Routing(nothing, torch.full_like(nothing, -1, dtype=torch.long))
        # A query that may use one edit only is not tempted by the others.
        count = len(edits) if assignment is None else 1
        threshold = self.threshold_among(count)
        with in_own_precision(edits.device):
            similarity = self.similarity(self.key(queries, vision, text), edits, among=count)
        if assignment is None:
            numbers = torch.arange(len(edits), device=edits.device)
        else:
            numbers = assignment.to(edits.device)[:, None]
            similarity = similarity.gather(1, numbers)
        similarity = similarity.nan_to_num(nan=-math.inf, posinf=-math.inf, neginf=-math.inf)
        best = similarity.amax(1, keepdim=True)
        # Every cosine is above -2: an open gate has no threshold, and still refuses NaN.
        applies = (similarity >= best - _TIE) & (best >= max(threshold, -2.0))
        edit_index = torch.where(applies, numbers, -1).amax(1)  # the newest of equals
        return Routing(best[:, 0].to(queries.device), edit_index.to(queries.device))

    def similarity(self, queries: Tensor, edits: Tensor, *, among: int) -> Tensor:
        """Return how similar keys of queries, [b, k], are to keys of edits, [n, k]: [b, n].

        Args:
            queries: keys.
            edits: keys.
            among: number of edits whose threshold similarities are meant for.
        """
        if self.kind != "learned":
            return queries @ edits.T
        width = self.projection.key_width
        similarity = self.projection.similarity(queries[:, :width], edits[:, :width])
        queries, edits = queries[:, width:], edits[:, width:]
        # Edits that were kept before the gate had text keys have none.
        if self.text is None or not edits.shape[1] or not bool(queries.any()):
            return similarity
        alone = queries.any(1)[:, None] & edits.any(1)
        # One threshold serves both: distances from 1 are in the unit of the threshold's.
        own = min(self.projection.threshold(among), STRICTEST)
        unit = (1 - own) / (1 - self.text.threshold(among))
        return torch.where(alone, 1 - unit * (1 - queries @ edits.T), similarity)

    def said(self, hidden: Tensor, layout: TokenLayout) -> Tensor:
        """Return what prompts without a picture say (`TextKeys.said`), float32 [b, d + l]; zeros
        where none are compared.

        Args:
            hidden: states of the text layer that no edit has changed, [b, s, d].
            layout: what each position is.
        """
        if self.text is None:
            width = hidden.shape[-1] + LETTERS_WIDTH
            return hidden.new_zeros(len(hidden), width, dtype=torch.float32)
        return self.text.said(hidden, layout, self._turn, self._letters)

    def key(
        self, states: Tensor, vision: Tensor | None = None, text: Tensor | None = None
    ) -> Tensor:
        """Return unit vectors, float32 [..., k], which `similarity` compares.

        A `learned` gate alone reads the means; its keys are two or three unit vectors side by side,
        the last of them zeros with a picture.

        Args:
            states: states of gate tokens at the text layer, [..., d].
            vision: means of the image tokens there, [..., d]; zeros, or None, without a picture.
            text: what the prompts say there (`said`), [..., d + l]; zeros, or None, with one.
        """
        kind = self.kind
        with in_own_precision(self.mean.device):
            if kind == "learned":
                picture = None if vision is None else vision.to(self.mean)
                keys: Tensor = self.projection(states.to(self.mean), picture).float()
                if self.text is None:
                    return keys
                width = len(self.mean) + LETTERS_WIDTH
                said = states.new_zeros(*states.shape[:-1], width) if text is None else text
                return torch.cat([keys, self.text(said.to(self.mean)).float()], -1)
            states = states.to(self.mean.device, torch.float32)
            if kind == "centred":
                states = states - self.mean.float()
            return functional.normalize(states, dim=-1)
