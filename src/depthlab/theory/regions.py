"""How many linear regions a relu net has on a plane of inputs: at most, and on average before it is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

Array = NDArray[np.float64]

NODES = 200
"""Of the quadratures, along each side of the square."""


def arrangement_regions(lines: int, inside: int | None = None) -> int:
    """Into how many parts `lines` that cross a convex region cut it, of whose crossings `inside` lie in it.

    1 + lines + inside                  all crossings inside (None): 1 + n + n (n - 1) / 2     (Zaslavsky 1975)

    What a net with one hidden layer has on a plane: one line a unit. Raises ValueError for a count that cannot be.
    """
    pairs = math.comb(lines, 2) if lines >= 0 else -1
    inside = pairs if inside is None else inside
    if not 0 <= inside <= pairs:
        raise ValueError(f"{lines} lines have no {inside} crossings; give lines >= 0 and 0 to lines (lines - 1) / 2")
    return 1 + lines + inside


def most_regions(widths: Sequence[int], inputs: int = 2) -> int:
    """No relu net of these hidden widths has more linear regions: the bound of Serra et al. 2018, theorem 1.

    sum over (j_1, ..., j_L) of prod_l binom(n_l, j_l),  0 <= j_l <= min(inputs, n_1 - j_1, ..., n_{l-1} - j_{l-1}, n_l)

    For one hidden layer it is Zaslavsky's count, which is reached. Raises ValueError for a width or inputs below 1.
    """
    _require_widths(widths, inputs)
    reachable = {inputs: 1}  # by the dimension that is left
    for width in widths:
        after: dict[int, int] = {}
        for dimension, count in reachable.items():
            for j in range(min(dimension, width) + 1):
                left = min(dimension, width - j)
                after[left] = after.get(left, 0) + count * math.comb(width, j)
        reachable = after
    return sum(reachable.values())


def foldable_regions(widths: Sequence[int], inputs: int = 2) -> int:
    """Some relu net of these hidden widths, each >= inputs, has as many: Montufar et al. 2014.

    prod_{l < L} floor(n_l / inputs)^inputs  sum_{j <= inputs} binom(n_L, j)

    It folds the plane upon itself in each layer but the last: exponential in depth, for weights that are chosen so.
    """
    _require_widths(widths, inputs)
    if min(widths) < inputs:
        raise ValueError(f"widths must be at least the {inputs} inputs; given {list(widths)}")
    folds: int = math.prod((width // inputs) ** inputs for width in widths[:-1])
    return folds * sum(math.comb(widths[-1], j) for j in range(inputs + 1))


def expected_regions(
    widths: Sequence[int], *, half_side: float, sigma_w: float, sigma_b: float, negative_slope: float = 0.0
) -> float:
    """Mean number of linear regions on the square |x|, |y| <= half_side over random nets of two inputs, wide in theory.

    Weights N(0, sigma_w^2 / fan_in), biases N(0, sigma_b^2). Regions are convex, so that by Euler's formula

        regions = 1 + crossings of two neurons' lines inside + points at which lines meet the boundary / 2

    however often lines are bent. In a wide net the neurons' inputs z are independent Gaussian fields (those of the
    first layer at any width). Layer l has Var z = q_l and E dz/dx_a dz/dx_b = g_l delta_ab, with

        g_1 = sigma_w^2 / 2,  g_{l+1} = c g_l,  c = sigma_w^2 (1 + negative_slope^2) / 2
        q_1 = sigma_b^2 + g_1 |x|^2,  q_{l+1} = sigma_b^2 + c q_l

    Where z = 0 its gradient has the variances g along the circle about the origin and g (q - g |x|^2) / q across it.
    The formula of Kac and Rice integrates over place E|det(gradients of the two)| / (2 pi sqrt(q_l q_m)) for each pair
    of neurons, and E|derivative along the boundary| / sqrt(2 pi q_l) for each neuron (so do Hanin & Rolnick 2019a,
    who bound these densities; in wide nets they are known). On a large square one pair of neurons crosses about
    once, whichever layers they are in: N^2 / 2 for N neurons in all, and not exponential in depth (their 2019b).
    Exact for one hidden layer. Raises ValueError for widths below 1 or scales that are not positive.
    """
    _require_widths(widths, 2)
    if min(half_side, sigma_w, sigma_b) <= 0:
        raise ValueError(f"half_side, sigma_w and sigma_b must be above 0; given {half_side}, {sigma_w} and {sigma_b}")
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    edge = math.asinh(half_side / sigma_b)
    along = sigma_b * np.sinh(edge * nodes)  # dense at the origin, about which a large square has all of its crossings
    weights = edge * weights * np.hypot(along, sigma_b)
    layers = list(zip(widths, _fields(len(widths), sigma_w, sigma_b, negative_slope), strict=True))
    square = along[:, None] ** 2 + along**2
    pairs = [(one, other) for place, one in enumerate(layers) for other in layers[place:]]
    crossings = sum(
        (math.comb(n, 2) if first is second else n * m) * float(weights @ _crossings(first, second, square) @ weights)
        for (n, first), (m, second) in pairs
    )
    meetings = sum(4 * n * float(_meetings(field, half_side, along) @ weights) for n, field in layers)
    return 1 + crossings + meetings / 2


@dataclass(frozen=True)
class _Field:
    """A neuron's input z over the plane: Var z = offset + slope |x|^2, E dz/dx_a dz/dx_b = slope delta_ab."""

    offset: float
    slope: float

    def variance(self, square: Array) -> Array:
        return self.offset + self.slope * square


def _fields(layers: int, sigma_w: float, sigma_b: float, negative_slope: float) -> list[_Field]:
    growth = sigma_w**2 * (1 + negative_slope**2) / 2
    found = [_Field(sigma_b**2, sigma_w**2 / 2)]
    for _ in range(layers - 1):
        found.append(_Field(sigma_b**2 + growth * found[-1].offset, growth * found[-1].slope))
    return found


def _crossings(one: _Field, other: _Field, square: Array) -> Array:
    """Density, where |x|^2 is `square`, of points at which the lines of two neurons cross.

    With gradients (a u1, b u2) and (c v1, d v2), u and v standard normal and a and c along x, the mean of
    |det| = |a d u1 v2 - b c u2 v1| is 2 / pi times the longer of a d and b c times the complete elliptic integral
    E(1 - (shorter / longer)^2).
    """
    q, p = one.variance(square), other.variance(square)
    # the radial variances a^2 = g (q - g |x|^2) / q, of which q - g |x|^2 is the offset
    first, second = (np.sqrt(one.slope * other.slope * f.offset / v) for f, v in ((one, q), (other, p)))
    longer, shorter = np.maximum(first, second), np.minimum(first, second)
    determinant = 2 / np.pi * longer * scipy.special.ellipe(1 - (shorter / longer) ** 2)
    density: Array = determinant / (2 * np.pi * np.sqrt(q * p))
    return density


def _meetings(field: _Field, half_side: float, along: Array) -> Array:
    """Density, along a side of the square, of points at which a neuron's line meets it."""
    q = field.variance(half_side**2 + along**2)
    density: Array = np.sqrt(field.slope * (q - field.slope * along**2)) / (np.pi * q)
    return density


def _require_widths(widths: Sequence[int], inputs: int) -> None:
    if not widths or min(*widths, inputs) < 1:
        raise ValueError(
            f"give one hidden width or more, and inputs, of at least 1 each; given {list(widths)}, {inputs}"
        )
