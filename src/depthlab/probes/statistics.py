"""Plain functions from a tensor to a number: what is read at a site.

Each returns a 0-d float64 tensor on the tensor's own device, so that nothing waits for a GPU; `float()` fetches it.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEAR_END = 0.95
"""A bounded activation counts as saturated in the outer 5 % of its range, half of them at either end."""

SATURATION_EDGES = {
    # |z| beyond which |2 sigmoid(z) - 1| = tanh(|z| / 2), or |tanh(z)|, exceeds NEAR_END
    torch.nn.Sigmoid: 2 * torch.atanh(torch.tensor(NEAR_END, dtype=torch.float64)).item(),
    torch.nn.Tanh: torch.atanh(torch.tensor(NEAR_END, dtype=torch.float64)).item(),
}
RECTIFIERS = (torch.nn.ReLU, torch.nn.ReLU6)
"""Activations that are exactly 0, with gradient 0, over half of their inputs: a unit of theirs can die."""


def norm(tensor: Tensor) -> Tensor:
    """Euclidean norm sqrt(sum x^2) over all entries of a tensor of any shape.

    Squares are accumulated in float64: a float32 accumulation returns exactly 0 below about 1e-23 and infinity above
    1e19, where the tensor itself still holds its values.

    >>> float(norm(torch.full((4,), 1e-30)))  # doctest: +ELLIPSIS
    2.0000...e-30
    """
    result: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    return result


def mean(tensor: Tensor) -> Tensor:
    """Mean over all entries."""
    return tensor.mean(dtype=torch.float64)


def std(tensor: Tensor) -> Tensor:
    """Standard deviation over all entries, sqrt(mean (x - mean x)^2), with division by their number.

    NaN for an empty tensor. Taken about the mean in float64: a spread of 1e-30 does not underflow.
    """
    return tensor.to(torch.float64).std(correction=0)


def relative_change(after: Tensor, before: Tensor) -> Tensor:
    """Norm of an update over the norm of what it changed: |after - before| / |before|.

    Infinity where zero was changed, NaN where it was left.
    """
    return norm(after.to(torch.float64) - before) / norm(before)


def saturation(preactivations: Tensor, edge: float) -> Tensor:
    """Share of entries z with |z| > edge, in [0, 1]: where a bounded activation is in the outer 5 % of its range.

    Taken before the activation, where the distance from the centre is not squeezed. `SATURATION_EDGES` holds the edge
    of each bounded activation: atanh(0.95) = 1.83 for tanh, twice that for the sigmoid.
    """
    return (preactivations.abs() > edge).to(torch.float64).mean()


def dead_fraction(activations: Tensor) -> Tensor:
    """Share of units that are 0 on every example, in [0, 1].

    activations: (examples, units) or (examples, channels, ...), after a rectifier. A unit of a convolution is a
    channel, dead if it is 0 at every place of every example. This is not the share of zero entries: a healthy
    relu net has half of those and no dead unit.
    """
    active = (activations != 0).transpose(0, 1).flatten(1).any(dim=1)
    return 1 - active.to(torch.float64).mean()
