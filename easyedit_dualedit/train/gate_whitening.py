"""Makes what varies between the queries of one edit alike in all directions.

A projection of some hundred records learns them by heart: it opens for all of their image rephrases
and for three in four of new ones. Seen through the inverse of how rephrases differ from their
requests, what tells edits apart stands out, and few of its directions are needed at a time.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

_ADDED = 1.0
"""Variance that is added everywhere, as a share of the mean one: few records do not say all."""
_SMALLEST = 1e-12


@dataclass(frozen=True)
class Whitening:
    """An affine map of the inputs of a projection. Shapes: i inputs."""

    mean: Tensor
    """Of the requests, [i]."""
    factor: Tensor
    """[i, i]."""

    @classmethod
    def of(cls, requests: Tensor, differences: Tensor) -> "Whitening":
        """Return the map after which rephrases differ from their requests alike in all directions.

        Args:
            requests: inputs of the requests, [n, i].
            differences: of rephrases from their requests, [m, i].
        """
        covariance = differences.T @ differences / len(differences)
        covariance /= covariance.diagonal().mean().clamp(min=_SMALLEST)
        covariance.diagonal().add_(_ADDED)
        lower = torch.linalg.cholesky(covariance)
        identity = torch.eye(len(lower), device=lower.device)
        inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
        return cls(requests.mean(0), inverse.T)

    def apply(self, inputs: Tensor) -> Tensor:
        """Return mapped inputs, [..., i]."""
        return (inputs - self.mean) @ self.factor

    @torch.no_grad()
    def fold(self, layer: nn.Linear) -> None:
        """Change a layer that was trained on mapped inputs so that it takes them as they are."""
        layer.weight.copy_(layer.weight @ self.factor.T)
        layer.bias.sub_(layer.weight @ self.mean)
