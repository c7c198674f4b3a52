"""Gaussian expectations of an activation at any variance, to about 1e-14 relative (in the plane, of the variance's).

Gauss-Hermite rules fail at relu's kink (121 nodes are 11 % off) and at sigmoids much narrower than the Gaussian. Here
the line is cut at 0, where the kinks are, and each half-line into panels that double in length away from 0: the first
is shorter than the activation's own scale, the last reaches into the Gaussian's tail, and a Gauss-Legendre rule sits on
each. In two dimensions polar coordinates put both kinks on rays, so that the same panels serve.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from depthlab.theory.activations import Activation, Array

REACH = 10.0
"""Where the Gaussian is cut off, in standard deviations; the mass beyond is 1.5e-23."""

LINE_NODES = 24
PLANE_NODES = 16

ROWS = 16
"""Radii whose points of the plane are evaluated at a time: few enough for the processor's cache, in half the time."""


def mean_square(activation: Activation, q: float, *, of_derivative: bool = False) -> float:
    """E[phi(sqrt(q) z)^2], or E[phi'(sqrt(q) z)^2], for z ~ N(0, 1) and 0 <= q <= inf (limits at both ends)."""
    if activation.slopes is not None:
        mean = 0.5 * (activation.slopes[0] ** 2 + activation.slopes[1] ** 2)
        return mean if of_derivative or mean == 0.0 else mean * q
    function = activation.derivative if of_derivative else activation.phi
    with np.errstate(over="ignore", under="ignore"):
        if q == 0.0 or math.isinf(q):
            # one point on either side stands for the limit: phi' may jump at 0, and differs between the two tails
            far = 5e-324 if q == 0.0 else 1e300
            return float(np.mean(function(np.array([-far, far])) ** 2))
        z, weights = _line(_doublings(q))
        return float(weights @ function(math.sqrt(q) * z) ** 2)


def mean_value(activation: Activation, q: float, *, of_derivative: bool = False) -> float:
    """E[phi(sqrt(q) z)], or E[phi'(sqrt(q) z)], for z ~ N(0, 1) and 0 < q < inf."""
    function = activation.derivative if of_derivative else activation.phi
    z, weights = _line(_doublings(q))
    with np.errstate(under="ignore"):
        return float(weights @ function(math.sqrt(q) * z))


@lru_cache(maxsize=1000)
def mean_product(activation: Activation, q: float, c: float, *, of_derivative: bool = False) -> float:
    """E[phi(u1) phi(u2)], or E[phi'(u1) phi'(u2)], of centred Gaussians with variance q and correlation c.

    0 < q < inf and -1 <= c <= 1. Piecewise linear phi: the arc-cosine kernels J_0 and J_1 of Cho & Saul 2009. Equal
    and independent Gaussians, c = 1 and c = 0, need the line only.
    """
    angle = math.acos(c)
    if activation.slopes is not None:
        return _arc_cosine(activation.slopes, q, angle, of_derivative)
    if c == 1.0:
        return mean_square(activation, q, of_derivative=of_derivative)
    if c == 0.0:
        return mean_value(activation, q, of_derivative=of_derivative) ** 2
    function = activation.derivative if of_derivative else activation.phi
    r, radial = _half_line(_doublings(q), PLANE_NODES)
    first, second, angular = _half_circle(angle, _doublings(q), activation.is_odd)
    values = np.empty((len(r), len(angular)))
    with np.errstate(under="ignore"):
        for rows in np.split(np.arange(len(r)), range(ROWS, len(r), ROWS)):
            s = math.sqrt(q) * r[rows, None]
            values[rows] = function(s * first) * function(s * second)
    # dz1 dz2 = r dr dtheta, and the plane's density is the line's over sqrt(2 pi); twice, for the mirrored half circle
    return float(2.0 / math.sqrt(2.0 * math.pi) * (radial * r) @ values @ angular)


def _arc_cosine(slopes: tuple[float, float], q: float, angle: float, of_derivative: bool) -> float:
    """phi(u) = left u + (right - left) relu(u), multiplied out; E[relu(u1) u2] = q c / 2."""
    left, jump = slopes[0], slopes[1] - slopes[0]
    c = math.cos(angle)
    if of_derivative:
        return left**2 + left * jump + jump**2 * (math.pi - angle) / (2.0 * math.pi)
    relu = (math.sin(angle) + (math.pi - angle) * c) / (2.0 * math.pi)
    return q * (left**2 * c + left * jump * c + jump**2 * relu)


def _doublings(q: float) -> int:
    """How often the panels halve towards 0, so that the first one spans at most half a unit of sqrt(q) z."""
    return max(2, math.ceil(math.log2(2.0 * REACH * math.sqrt(q))))


@lru_cache(maxsize=128)
def _line(doublings: int) -> tuple[Array, Array]:
    """Nodes z on both sides of 0 and weights that contain the density of N(0, 1)."""
    z, weights = _half_line(doublings, LINE_NODES)
    return np.concatenate([-z, z]), np.concatenate([weights, weights])


@lru_cache(maxsize=128)
def _half_line(doublings: int, nodes: int) -> tuple[Array, Array]:
    """Nodes z > 0 and weights that contain the density of N(0, 1)."""
    z, weights = _panels(0.0, REACH, doublings, nodes)
    return z, weights * np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)


def _half_circle(angle: float, doublings: int, is_odd: bool) -> tuple[Array, Array, Array]:
    """u1 ~ cos(theta), u2 ~ cos(theta - angle) and weights for theta from angle/2 to angle/2 + pi.

    Swapping u1 and u2 mirrors the circle at angle/2, hence half of it is enough. Its middle mirrors (u1, u2) to
    (-u2, -u1), where an odd phi has the same product: then its first half is enough. Panels shrink towards the ray
    where u1 is 0.
    """
    ray, middle = 0.5 * math.pi, 0.5 * (math.pi + angle)
    parts = [_panels(ray, end, doublings + 1, PLANE_NODES) for end in (0.5 * angle, middle)]
    theta, weights = (np.concatenate(part) for part in zip(*parts, strict=True))
    first, second = np.cos(theta), np.cos(theta - angle)
    if is_odd:
        return first, second, 2.0 * weights
    both = np.concatenate([weights, weights])
    return np.concatenate([first, -second]), np.concatenate([second, -first]), both


def _panels(start: float, end: float, doublings: int, nodes: int) -> tuple[Array, Array]:
    """Gauss-Legendre nodes and positive weights between start and end on panels that halve towards start."""
    inside, weights = _unit_panels(doublings, nodes)
    return start + (end - start) * inside, abs(end - start) * weights


@lru_cache(maxsize=128)
def _unit_panels(doublings: int, nodes: int) -> tuple[Array, Array]:
    """The same between 0 and 1."""
    points, weights = _legendre(nodes)
    edges = np.concatenate([[0.0], 0.5 ** np.arange(doublings, -1.0, -1.0)])
    half = 0.5 * np.diff(edges)[:, None]
    return ((edges[:-1, None] + half) + half * points).ravel(), (half * weights).ravel()


@lru_cache(maxsize=4)
def _legendre(nodes: int) -> tuple[Array, Array]:
    points, weights = np.polynomial.legendre.leggauss(nodes)
    return points, weights
