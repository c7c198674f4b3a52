"""How the variance of the pre-activations and the size of the gradient change from layer to layer.

A fully connected net with weights N(0, sigma_w^2 / fan_in) and biases N(0, sigma_b^2), in the limit of large width: the
pre-activations z_l of layer l are Gaussian with variance q_l (Poole et al. 2016; Schoenholz et al. 2017). Convolutions
obey the same formulas, with the fan_in of a filter, as far as borders can be neglected (Xiao et al. 2018).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import scipy

from depthlab.theory.activations import find_activation
from depthlab.theory.expectation import mean_square

CRITICAL_TOLERANCE = 1e-9
"""chi closer to 1 than this counts as critical: sigma_w = sqrt(2) is itself rounded."""

SMALLEST, LARGEST = 1e-30, 1e12
"""Fixed points beyond these count as 0 and as infinite."""

SEARCH_STEP = 0.25
"""Of ln q, in the search for fixed points; the map's growth q_next / q varies on a scale of 1 or more."""

ROUNDING = 1e-12
"""What accumulates in expectations and their differences."""


def variance_map(q: float, *, activation: str, sigma_w: float, sigma_b: float = 0.0) -> float:
    """Variance of the next layer's pre-activations, from this layer's q >= 0 (inf gives the limit).

    q_next = sigma_w^2 E[phi(sqrt(q) z)^2] + sigma_b^2,  z ~ N(0, 1)   (Poole et al. 2016, eq. 3)

    Raises ValueError on an unknown activation, a negative variance or a negative or infinite sigma.
    """
    check_weights(sigma_w, sigma_b)
    check_variance(q)
    grown = mean_square(find_activation(activation), q)
    return (sigma_w**2 * grown if sigma_w > 0.0 else 0.0) + sigma_b**2  # 0 times inf would be nan


def fixed_point(*, activation: str, sigma_w: float, sigma_b: float = 0.0, start: float = 1.0) -> float:
    """q*: the limit of the variance from layer to layer, when it begins at `start` > 0. May be 0 or inf.

    - sigmoid, tanh: one finite limit, whatever the start; 0 for tanh with sigma_b = 0 and sigma_w <= 1.
    - relu, leaky ones, identity, with a = sigma_w^2 E[phi(z)^2] (relu: sigma_w^2 / 2): sigma_b^2 / (1 - a) for a < 1,
      inf for a > 1. At a = 1 the variance grows by sigma_b^2 per layer to inf; with sigma_b = 0 every q is a fixed
      point and `start` comes back.
    - elu, selu: finite while sigma_w^2 times the squared slope at infinity is below 2, else inf.
    - gelu, silu: E[phi^2] / q *grows* with q, from 1/4 to 1/2. Between sigma_w^2 = 2 and 4 a small start may therefore
      die out where a large one explodes: the limit depends on the start.

    A limit below 1e-30 is reported as 0, one above 1e12 as inf.
    """
    check_weights(sigma_w, sigma_b)
    if not 0.0 < start <= LARGEST:
        raise ValueError(f"start={start} must be a variance above 0 and at most {LARGEST:g}, such as 1.0")
    found = find_activation(activation)
    if found.slopes is not None:
        return _homogeneous_fixed_point(sigma_w**2 * mean_square(found, 1.0), sigma_b, start)
    return _searched_fixed_point(activation, sigma_w, sigma_b, start)


@functools.lru_cache(maxsize=1000, typed=True)
def _searched_fixed_point(activation: str, sigma_w: float, sigma_b: float, start: float) -> float:
    """The limit of which no formula is known; a point's chi, correlation and depth scale all ask for it."""

    @functools.cache  # the steps of the search ask for the same points again
    def log_growth(log_q: float) -> float:
        q = math.exp(log_q)
        grown = variance_map(q, activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)
        return math.log(grown / q) if grown > 0.0 else -math.inf

    # the map rises with q, so the limit is the first fixed point met in the direction of the first step
    log_start = math.log(start)
    if log_growth(log_start) > 0.0:
        log_limit = _first_crossing(log_growth, log_start, math.log(LARGEST))
        return math.inf if log_limit is None else math.exp(log_limit)
    lowest = variance_map(0.0, activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)  # no fixed point is below
    log_limit = _first_crossing(log_growth, log_start, math.log(max(lowest, SMALLEST)))
    return lowest if log_limit is None else math.exp(log_limit)


def _homogeneous_fixed_point(gain: float, sigma_b: float, start: float) -> float:
    """The limit of q_next = gain q + sigma_b^2."""
    if abs(gain - 1.0) < CRITICAL_TOLERANCE:
        return start if sigma_b == 0.0 else math.inf
    return sigma_b**2 / (1.0 - gain) if gain < 1.0 else math.inf


def _first_crossing(function: Callable[[float], float], start: float, end: float) -> float | None:
    """The first zero met on the way from start to end, None if there is none; values below ROUNDING have no sign.

    Found in small steps, and between them where a dip towards 0 has its bottom: silu and gelu may have two fixed points
    close together.
    """
    if abs(function(start)) < ROUNDING:
        return start
    sign = math.copysign(1.0, function(start))

    def above(x: float) -> float:
        return sign * function(x)

    points = np.linspace(start, end, 2 + int(abs(end - start) / SEARCH_STEP)).tolist()
    values = [above(points[0])]
    for index in range(1, len(points)):
        values.append(above(points[index]))
        if values[-1] < -ROUNDING:
            return _zero_between(above, points[index - 1], points[index])
        if index > 1 and values[-2] < min(values[-3], values[-1]) - ROUNDING:
            ends = sorted((points[index - 2], points[index]))
            bottom = float(scipy.optimize.minimize_scalar(above, bounds=ends, method="bounded").x)
            if above(bottom) < -ROUNDING:
                return _zero_between(above, points[index - 2], bottom)
    return None


def _zero_between(above: Callable[[float], float], here: float, beyond: float) -> float:
    return here if above(here) <= 0.0 else float(scipy.optimize.brentq(above, here, beyond, xtol=1e-14, rtol=1e-14))


def chi(*, activation: str, sigma_w: float, sigma_b: float = 0.0, q: float | None = None) -> float:
    """Susceptibility: the factor by which E|dL/dz|^2 grows per layer towards the input, at variance q (default q*).

    chi = sigma_w^2 E[phi'(sqrt(q) z)^2]   (Schoenholz et al. 2017, where it is chi_1)

    Below 1 gradients vanish towards the input, above 1 they explode. At a fixed point of 0 or inf this is the limit.
    """
    check_weights(sigma_w, sigma_b)
    if q is None:
        q = fixed_point(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)
    check_variance(q)
    return sigma_w**2 * mean_square(find_activation(activation), q, of_derivative=True)


def critical_sigma_w(*, activation: str, sigma_b: float = 0.0) -> float:
    """The sigma_w at which chi = 1 at the fixed point: the edge of chaos for this sigma_b (relu: sqrt(2), tanh: 1).

    Raises ValueError where chi jumps over 1, as for gelu and silu with small sigma_b (see fixed_point).
    """
    check_weights(1.0, sigma_b)
    found = find_activation(activation)
    at_zero = math.sqrt(1.0 / mean_square(found, 0.0, of_derivative=True))
    if found.slopes is not None:
        return at_zero
    if sigma_b == 0.0 and fixed_point(activation=activation, sigma_w=at_zero) == 0.0:
        return at_zero  # exact, where the search below would touch chi = 1 only tangentially

    def excess(log_sigma_w: float) -> float:
        return chi(activation=activation, sigma_w=math.exp(log_sigma_w), sigma_b=sigma_b) - 1.0

    low, high = math.log(1e-3), math.log(1e3)
    log_sigma_w = float(scipy.optimize.brentq(excess, low, high, xtol=1e-13, rtol=1e-13, maxiter=1000))
    if abs(excess(log_sigma_w)) > 1e-6:
        raise ValueError(
            f"activation={activation!r} with sigma_b={sigma_b} has no critical sigma_w: chi jumps over 1 at "
            f"sigma_w={math.exp(log_sigma_w):.4f}, where the variance begins to explode; try a larger sigma_b"
        )
    return math.exp(log_sigma_w)


def check_weights(sigma_w: float, sigma_b: float) -> None:
    """Raises ValueError unless both standard deviations are finite and not negative."""
    for name, sigma in (("sigma_w", sigma_w), ("sigma_b", sigma_b)):
        if not 0.0 <= sigma < math.inf:
            raise ValueError(f"{name}={sigma} must be a standard deviation: finite and at least 0")


def check_variance(q: float) -> None:
    """Raises ValueError unless q is a variance; inf is one."""
    if not q >= 0.0:
        raise ValueError(f"q={q} must be a variance: at least 0")
