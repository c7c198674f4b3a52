"""How large the state of a recurrent net becomes from step to step, and the gradient on its way back through time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from depthlab.theory.activations import Array
from depthlab.theory.variance import check_variance, chi, variance_map


@dataclass(frozen=True)
class TimeProfile:
    """Predictions for the time steps t = 1..T; every array is float64 of shape (T,).

    `step` holds t; `variance` that of the pre-activations z_t; `log_backward_norm` ln|dL/dh_t| - ln|dL/dh_T|.
    """

    step: Array
    variance: Array
    log_backward_norm: Array


def time_profile(drive: Sequence[float], *, activation: str, sigma_w: float) -> TimeProfile:
    """State variances and backward norms of a wide random cell h_t = phi(z_t), z_t = W h_{t-1} + U x_t + b, h_0 = 0.

    q_t = sigma_w^2 E[phi(sqrt(q_{t-1}) z)^2] + drive_t,   drive_t = sigma_u^2 |x_t|^2 / n + sigma_b^2
    |dL/dh_{t-1}|^2 = |dL/dh_t|^2 chi(q_t),                chi(q) = sigma_w^2 E[phi'(sqrt(q) z)^2]

    (Chen, Pennington & Schoenholz 2018.) The input acts as the bias of a feedforward net does, so that for a constant
    drive and many steps d ln|dL/dh_t| / dt is `backward_slope` with sigma_b^2 = drive. That W is the same at every step
    changes no mean at large width. The loss is read from the last state only. `drive` is that of one example; gradients
    of a batch are root mean squares over profiles of its examples, of which those with little drive saturate least and
    reach furthest. Raises ValueError for no steps, for a negative drive, and as variance_map does.

    >>> round(float(time_profile([1.0] * 50, activation="tanh", sigma_w=1.0).log_backward_norm[0]), 2)
    -22.51
    """
    if not len(drive):
        raise ValueError("drive=[] has no time steps; give one number for each, such as the mean square of a row")
    variance, log_slopes = np.empty(len(drive)), np.empty(len(drive))
    q = 0.0
    for step, each in enumerate(drive):
        check_variance(each)
        q = variance_map(q, activation=activation, sigma_w=sigma_w) * (step > 0) + each  # h_0 = 0, not phi(0)
        variance[step] = q
        factor = chi(activation=activation, sigma_w=sigma_w, q=q)
        log_slopes[step] = 0.5 * math.log(factor) if factor > 0.0 else -math.inf
    backward = np.append(np.cumsum(log_slopes[:0:-1])[::-1], 0.0)
    return TimeProfile(np.arange(1.0, len(drive) + 1.0), variance, backward)
