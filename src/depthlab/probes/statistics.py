"""Plain functions from a tensor to a number: what is read at a site.

Each returns float64 on the tensor's own device, so that nothing waits for a GPU (but for `effective_rank`); `float()`
fetches a single number. Many layers of one shape, stacked into one tensor, are read with one call: `dim` names the
dimensions that are reduced (None: all of them, to a 0-d tensor), and functions of a matrix take leading dimensions.
Results hold over float32's whole range.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor

Dims: TypeAlias = int | tuple[int, ...] | None

NEAR_END = 0.95
"""A bounded activation counts as saturated in the outer 5 % of its range, half of them at either end."""

SATURATION_EDGES = {
    # |z| beyond which |2 sigmoid(z) - 1| = tanh(|z| / 2), or |tanh(z)|, exceeds NEAR_END
    torch.nn.Sigmoid: 2 * torch.atanh(torch.tensor(NEAR_END, dtype=torch.float64)).item(),
    torch.nn.Tanh: torch.atanh(torch.tensor(NEAR_END, dtype=torch.float64)).item(),
}
RECTIFIERS = (torch.nn.ReLU, torch.nn.ReLU6)
"""Activations that are exactly 0, with gradient 0, over half of their inputs: a unit of theirs can die."""


def norm(tensor: Tensor, dim: Dims = None) -> Tensor:
    """Euclidean norm sqrt(sum |x|^2) over all entries of a tensor of any shape, or over the dimensions `dim`.

    Squares are accumulated in float64: a float32 accumulation returns exactly 0 below about 1e-23 and infinity above
    1e19, where the tensor itself still holds its values.

    >>> float(norm(torch.full((4,), 1e-30)))  # doctest: +ELLIPSIS
    2.0000...e-30
    """
    accumulator = torch.promote_types(tensor.dtype, torch.float64)  # complex128 for complex tensors
    result: Tensor = torch.linalg.vector_norm(tensor, dim=dim, dtype=accumulator)
    return result


def mean(tensor: Tensor, dim: Dims = None) -> Tensor:
    """Mean over all entries, or over the dimensions `dim`."""
    return tensor.mean(dim=dim, dtype=torch.float64)


def std(tensor: Tensor, dim: Dims = None) -> Tensor:
    """Standard deviation over all entries or over `dim`, sqrt(mean (x - mean x)^2), with division by their number.

    NaN for an empty tensor. Taken about the mean in float64: a spread of 1e-30 does not underflow.
    """
    if dim is None:
        return tensor.to(torch.float64).std(correction=0)
    # torch's own reduction of some dimensions takes five times as long
    values = tensor.to(torch.float64, copy=True)
    return rms(values.sub_(values.mean(dim=dim, keepdim=True)), dim)


def rms(tensor: Tensor, dim: Dims = None) -> Tensor:
    """Root mean square sqrt(mean |x|^2) over all entries, or over the dimensions `dim`: the typical size of an entry.

    Unlike a norm it compares layers of different widths. rms^2 = mean^2 + std^2. NaN for an empty tensor.
    """
    norm_of_all = norm(tensor, dim)
    entries = tensor.numel() // max(norm_of_all.numel(), 1)
    return norm_of_all / math.sqrt(entries)


def relative_change(after: Tensor, before: Tensor, norm_before: Tensor | None = None) -> Tensor:
    """Norm of an update over the norm of what it changed: |after - before| / |before|.

    norm_before: |before|, if it is known. Infinity where zero was changed, NaN where it was left.
    """
    return norm(after.to(torch.float64) - before) / (norm(before) if norm_before is None else norm_before)


def cosine(a: Tensor, b: Tensor, dim: Dims = None) -> Tensor:
    """Cosine of the angle between two tensors taken as vectors, a . b / (|a| |b|), in [-1, 1].

    a, b: equal shapes, such as gradients of successive updates; over all entries, or over the dimensions `dim`.
    NaN where either is zero and has no direction. ValueError if the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"a has shape {tuple(a.shape)} and b {tuple(b.shape)}; a cosine needs equal shapes")
    product = (a.to(torch.float64) * b).sum(dim=dim)
    return (product / (norm(a, dim) * norm(b, dim))).clamp(-1, 1)  # rounding may carry a quotient past its end


def signal_to_noise(gradients: Tensor) -> Tensor:
    """Squared norm of the true gradient over the noise of one micro-batch's, |G|^2 / tr(Sigma), in [-1/K, infinity].

    gradients: (micro-batches, ...), the mean gradients g_k of K micro-batches of equal size b at the same weights.

        s^2   = sum over entries of 1/(K-1) sum_k (g_k - mean g)^2     estimates tr(Sigma), of one micro-batch
        |G|^2 = |mean g|^2 - s^2 / K                                   since E|mean g|^2 = |G|^2 + tr(Sigma) / K

    Both are unbiased (McCandlish et al. 2018, "An empirical model of large-batch training", appendix A.1, with
    B_small = b and B_big = K b); their quotient is not. It is b / B_simple for the simple noise scale B_simple of
    equation 2.9: at 1 a micro-batch is as large as the critical batch. It comes out negative, never below -1/K, where
    the mean gradient is smaller than its noise alone would make it: the signal is not to be told from nought at this
    K. Infinity without noise; NaN for one micro-batch, which has no spread, and for gradients that are all zero.
    Liu et al. 2020 take such a ratio parameter by parameter.
    """
    _check_dimensions(gradients, 1, "(micro-batches, ...)")
    count = len(gradients)
    values = gradients.to(torch.float64)
    centre = values.mean(dim=0)
    noise = (values - centre).square().sum() / (count - 1)
    return (centre.square().sum() - noise / count) / noise


def saturation(preactivations: Tensor, edge: float, dim: Dims = None) -> Tensor:
    """Share of entries z with |z| > edge, in [0, 1]: where a bounded activation is in the outer 5 % of its range.

    Taken before the activation, where the distance from the centre is not squeezed. `SATURATION_EDGES` holds the edge
    of each bounded activation: atanh(0.95) = 1.83 for tanh, twice that for the sigmoid.
    """
    return (preactivations.abs() > edge).to(torch.float64).mean(dim=dim)


def sparsity(tensor: Tensor, dim: Dims = None) -> Tensor:
    """Share of entries that are exactly 0, in [0, 1], over all entries or over the dimensions `dim`.

    About a half after a rectifier in a healthy net, all of whose units may live: `dead_fraction` counts dead ones.
    """
    return (tensor == 0).to(torch.float64).mean(dim=dim)


def dead_fraction(activations: Tensor, stack_dims: int = 0) -> Tensor:
    """Share of units that are 0 on every example, in [0, 1].

    activations: (examples, units) or (examples, channels, ...), after a rectifier. A unit of a convolution is a
    channel, dead if it is 0 at every place of every example. This is not the share of zero entries: a healthy
    relu net has half of those and no dead unit.
    stack_dims: leading dimensions that are kept; (layers, examples, units) with 1 gives (layers,).
    """
    expected = "(examples, units, ...)" if stack_dims == 0 else f"{stack_dims} stacked, then (examples, units, ...)"
    _check_dimensions(activations, stack_dims + 2, expected)
    examples_and_places = (stack_dims, *range(stack_dims + 2, activations.ndim))
    # a sum of magnitudes is 0 where all are, and NaN where one is; torch's any takes six to nine times as long
    active = activations.abs().sum(dim=examples_and_places) != 0
    return 1 - active.to(torch.float64).mean(dim=-1)


def effective_rank(matrix: Tensor) -> Tensor:
    """Number of directions that a matrix uses, exp(-sum p ln p) with p = s / sum(s), s its singular values.

    matrix: (..., rows, units), such as the activations of a batch; gives (...), in [1, min(rows, units)]. Roy and
    Vetterli 2007, "The effective rank": k equal singular values count as k, small ones as little; never more than the
    rank, and so 0 for a matrix of zeros. NaN where an entry is not finite. Subtract the mean row first to count
    directions of spread: a common offset is one large singular value.

    On a GPU torch's singular value decomposition waits for the device, to see whether it converged.
    """
    _check_dimensions(matrix, 2, "(..., rows, units)")
    finite = matrix.isfinite().all(dim=(-2, -1))
    # the decomposition raises on a NaN, but a diverged run is to be read to its end
    values: Tensor = torch.linalg.svdvals(torch.where(finite[..., None, None], matrix.to(torch.float64), 0.0))
    total = values.sum(dim=-1, keepdim=True)
    shares = values / torch.where(total == 0, 1.0, total)
    rank = torch.special.entr(shares).sum(dim=-1).exp()
    return torch.where(finite, torch.where(total.squeeze(-1) == 0, 0.0, rank), math.nan)


def example_cosine(features: Tensor) -> Tensor:
    """Mean cosine between the features of two different examples, in [-1, 1].

    features: (..., examples, features), flattened; gives (...). With unit rows u of n examples, (|sum u|^2 - n) /
    (n (n - 1)), the mean over all pairs, without forming them. The correlation c of Schoenholz et al. 2017: with depth
    it tends to 1 in an ordered net, which no longer tells inputs apart, and below 1 in a chaotic one.

    Rows of zeros have no direction and are left out; NaN where fewer than two rows are left.
    """
    _check_dimensions(features, 2, "(..., examples, features)")
    lengths = norm(features, dim=-1)[..., None]
    units = torch.where(lengths == 0, 0.0, features / lengths)
    count = (lengths != 0).to(torch.float64).sum(dim=(-2, -1))
    mean_cosine = (units.sum(dim=-2).square().sum(dim=-1) - count) / (count * (count - 1))
    return torch.where(count < 2, math.nan, mean_cosine).clamp(-1, 1)


def _check_dimensions(tensor: Tensor, least: int, expected: str) -> None:
    if tensor.ndim < least:
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} was given; expected {expected}")
