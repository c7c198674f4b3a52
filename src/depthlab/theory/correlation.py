"""How the correlation between two inputs changes from layer to layer: whether a deep net can still tell them apart."""

from __future__ import annotations

import math

import scipy

from depthlab.theory.activations import find_activation
from depthlab.theory.expectation import mean_product
from depthlab.theory.variance import ROUNDING, fixed_point, variance_map


def correlation_map(
    c: float, *, activation: str, sigma_w: float, sigma_b: float = 0.0, q: float | None = None
) -> float:
    """Correlation of two inputs' pre-activations in the next layer, from c in [-1, 1] and variance q (default q*).

    c_next = (sigma_w^2 E[phi(u1) phi(u2)] + sigma_b^2) / q_next,  u1, u2 ~ N(0, q) with correlation c

    (Poole et al. 2016, eq. 5; q_next = q at the fixed point.) c = 1 is always mapped to 1. Raises ValueError where the
    variance has no positive, finite limit and no q is given.
    """
    if not -1.0 <= c <= 1.0:
        raise ValueError(f"c={c} must be a correlation: between -1 and 1")
    return _mapped(c, activation, sigma_w, sigma_b, _variances(activation, sigma_w, sigma_b, q))


def correlation_chi(
    c: float | None = None, *, activation: str, sigma_w: float, sigma_b: float = 0.0, q: float | None = None
) -> float:
    """Slope d c_next / d c of the correlation map at c (default: its fixed point c*).

    sigma_w^2 E[phi'(u1) phi'(u2)] q / q_next   (Schoenholz et al. 2017; q_next = q at the fixed point)

    At the fixed point of q and c = 1 it is chi, the factor of the gradients. Raises as correlation_map does.
    """
    if c is None:
        c = correlation_fixed_point(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b, q=q)
    if not -1.0 <= c <= 1.0:
        raise ValueError(f"c={c} must be a correlation: between -1 and 1")
    q, q_next = _variances(activation, sigma_w, sigma_b, q)
    return sigma_w**2 * mean_product(find_activation(activation), q, c, of_derivative=True) * q / q_next


def correlation_fixed_point(*, activation: str, sigma_w: float, sigma_b: float = 0.0, q: float | None = None) -> float:
    """c*: the limit in [0, 1] of the correlation of two inputs that begin uncorrelated, at variance q (default q*).

    1 where the slope of the map at 1 is at most 1 (inputs become indistinguishable), else the stable point below 1.
    0 for an odd activation without biases, which keeps uncorrelated inputs uncorrelated. Raises as correlation_map.
    """
    variances = _variances(activation, sigma_w, sigma_b, q)
    slope_at_one = correlation_chi(1.0, activation=activation, sigma_w=sigma_w, sigma_b=sigma_b, q=variances[0])

    def excess(c: float) -> float:
        # the root at c = 1 divided out: the map is convex on [0, 1], so what is left falls and has one root at most
        if c == 1.0:
            return 1.0 - slope_at_one
        return (_mapped(c, activation, sigma_w, sigma_b, variances) - c) / (1.0 - c)

    if excess(0.0) <= ROUNDING:
        return 0.0
    if slope_at_one <= 1.0 + ROUNDING:
        return 1.0
    return float(scipy.optimize.brentq(excess, 0.0, 1.0, xtol=1e-14))


def _mapped(c: float, activation: str, sigma_w: float, sigma_b: float, variances: tuple[float, float]) -> float:
    """c in the next layer, where the variances in this one and in that are known."""
    q, q_next = variances
    covariance = sigma_w**2 * mean_product(find_activation(activation), q, c) + sigma_b**2
    return min(1.0, max(-1.0, covariance / q_next))


def _variances(activation: str, sigma_w: float, sigma_b: float, q: float | None) -> tuple[float, float]:
    """The variance in this layer and in the next, both positive and finite."""
    if q is None and is_scale_free(activation, sigma_b):
        q = 1.0
    elif q is None:
        q = fixed_point(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)
    q_next = variance_map(q, activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)
    if not (0.0 < q < math.inf and 0.0 < q_next < math.inf):
        raise ValueError(
            f"q={q} (next layer: {q_next}) has no correlation: activation={activation!r}, sigma_w={sigma_w}, "
            f"sigma_b={sigma_b} needs a positive, finite variance; pass the q of one layer"
        )
    return q, q_next


def is_scale_free(activation: str, sigma_b: float) -> bool:
    """Whether correlations do not depend on the variance: relu, the leaky ones and identity without biases."""
    return find_activation(activation).slopes is not None and sigma_b == 0.0
