"""What follows for deep nets: slopes per layer, depth scales, the phase, and the exact layer-by-layer profile.

Slopes and scales hold far from the input, at the fixed point; `profile` holds in every layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from depthlab.theory.activations import Array
from depthlab.theory.correlation import correlation_chi, is_scale_free
from depthlab.theory.variance import CRITICAL_TOLERANCE, check_variance, chi, fixed_point, variance_map

LARGEST_FLOAT32 = float(np.finfo(np.float32).max)

Phase = Literal["ordered", "critical", "chaotic"]


@dataclass(frozen=True)
class Profile:
    """Predictions for the weight layers l = 1..depth; every array is float64 of shape (depth,).

    `layer` holds l; `variance` that of the pre-activations z_l; `log_backward_norm` ln|dL/dz_l| - ln|dL/dz_{depth-1}|,
    which is 0 in the last hidden layer and nan in the head: its fan_out is another, and its gradient that of the loss.
    """

    layer: Array
    variance: Array
    log_backward_norm: Array


def profile(depth: int, *, activation: str, sigma_w: float, sigma_b: float = 0.0, q0: float = 1.0) -> Profile:
    """Pre-activation variances and backward norms of every weight layer of a net of constant width.

    q_1 = sigma_w^2 q0 + sigma_b^2 with q0 the mean square of the input's entries; q_{l+1} = variance_map(q_l);
    |dL/dz_l|^2 = |dL/dz_{l+1}|^2 sigma_w^2 E[phi'(sqrt(q_l) z)^2]   (Schoenholz et al. 2017)

    Right where slopes are not: near the input, and on the critical line, which is approached only algebraically (tanh
    with sigma_w = 1, sigma_b = 0). The head is taken to be drawn as the other layers are. These are means of squares at
    large width; the mean of ln|dL/dz| over nets falls (3 E[phi'^4] / E[phi'^2]^2 - 1) / (4 width) further per layer
    (relu: 5 / (4 width); Hanin & Nica 2020). Raises ValueError on depth < 2 and as variance_map does.
    """
    if depth < 2:
        raise ValueError(f"depth={depth} must count at least a hidden weight layer and the head: 2 or more")
    check_variance(q0)
    variance = np.empty(depth)
    variance[0] = variance_map(q0, activation="identity", sigma_w=sigma_w, sigma_b=sigma_b)
    for index in range(1, depth):
        q = float(variance[index - 1])
        variance[index] = variance_map(q, activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)
    log_backward_norm = np.full(depth, math.nan)
    log_backward_norm[-2] = 0.0
    for index in reversed(range(depth - 2)):
        factor = chi(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b, q=float(variance[index]))
        log_backward_norm[index] = log_backward_norm[index + 1] + _half_log(factor)
    return Profile(np.arange(1.0, depth + 1.0), variance, log_backward_norm)


def backward_slope(*, activation: str, sigma_w: float, sigma_b: float = 0.0) -> float:
    """Slope d ln|dL/dz_l| / d l far from the input, l counted from the input: -1/2 ln chi.

    Positive: gradients vanish towards the input; negative: they explode; inf for sigma_w = 0.
    """
    return 0.0 - _half_log(chi(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b))


def forward_slope(*, activation: str, sigma_w: float, sigma_b: float = 0.0) -> float:
    """Slope d ln sqrt(q_l) / d l far from the input: 0 where the variance settles, else how fast it dies or explodes.

    With q* = 0 or inf, phi is linear on either half-line as far as z_l can see, so that q_next / q = chi and the slope
    is 1/2 ln chi; 0 also where q grows slower than exponentially (relu with sigma_w^2 = 2, sigma_b > 0).
    """
    q = fixed_point(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)
    if 0.0 < q < math.inf:
        return 0.0
    return _half_log(chi(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b, q=q))


def overflow_depth(
    *, activation: str, sigma_w: float, sigma_b: float = 0.0, q0: float = 1.0, largest: float = LARGEST_FLOAT32
) -> float:
    """The layer l, not rounded, in which the standard deviation of the pre-activations reaches `largest`.

    l = 1 + ln(largest / sqrt(q_1)) / forward_slope,   q_1 = sigma_w^2 q0 + sigma_b^2;   inf where the variance does not
    grow exponentially. float32 ends at 3.4e38, bfloat16 there too, float16 at 65504. The largest entries of a layer are
    several standard deviations large, and leave a little earlier; the backward signal, which grows at the same rate
    where phi is linear on either side of 0, leaves in the first layers of a net that is about as deep. Exact for relu,
    leaky ones and identity; for others as long as the first layers are few.
    """
    check_variance(q0)
    slope = forward_slope(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)
    if slope <= 0.0:
        return math.inf
    first = variance_map(q0, activation="identity", sigma_w=sigma_w, sigma_b=sigma_b)
    return 1.0 + (math.log(largest) - _half_log(first)) / slope


def phase(*, activation: str, sigma_w: float, sigma_b: float = 0.0) -> Phase:
    """Either "ordered" (chi < 1: gradients vanish), "critical" (chi = 1 to 1e-9) or "chaotic" (chi > 1: they explode).

    For bounded activations chaos also drives inputs apart (c* < 1). For relu it does not: its variance explodes, and
    its correlation tends to 1 in every phase.
    """
    susceptibility = chi(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)
    if abs(susceptibility - 1.0) < CRITICAL_TOLERANCE:
        return "critical"
    return "ordered" if susceptibility < 1.0 else "chaotic"


def depth_scale(*, activation: str, sigma_w: float, sigma_b: float = 0.0) -> float:
    """Number of layers xi = 1 / |ln chi| in which E|dL/dz|^2 changes e-fold; inf where critical.

    Schoenholz et al. 2017.
    """
    return _scale(chi(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b))


def correlation_depth_scale(*, activation: str, sigma_w: float, sigma_b: float = 0.0) -> float:
    """Number of layers xi_c = 1 / |ln chi_c*| in which a correlation's distance from c* falls e-fold.

    inf where it falls algebraically. Schoenholz et al. 2017. Equal to depth_scale in the ordered phase at a
    positive q*. Raises ValueError where the variance has no positive, finite limit.
    """
    return _scale(correlation_chi(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b))


def trainable_depth(*, activation: str, sigma_w: float, sigma_b: float = 0.0) -> float:
    """About how deep a net still trains: 6 xi_c layers (Schoenholz et al. 2017, from experiments).

    Where correlations do not settle exponentially because the variance itself dies, explodes or has no scale (relu
    without biases), 6 xi of the gradients stands in. inf where critical.
    """
    q = fixed_point(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)
    settles = 0.0 < q < math.inf and not is_scale_free(activation, sigma_b)
    scale = correlation_depth_scale if settles else depth_scale
    return 6.0 * scale(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)


def _scale(factor: float) -> float:
    if factor == 0.0:
        return 0.0
    return math.inf if abs(factor - 1.0) < CRITICAL_TOLERANCE else 1.0 / abs(math.log(factor))


def _half_log(factor: float) -> float:
    return 0.5 * math.log(factor) if factor > 0.0 else -math.inf
