"""Signals in residual nets without normalization: x + W2 phi(W1 phi(x)), pre-activation blocks of two layers.

The weights are those of `variance`: N(0, sigma_w^2 / fan_in), biases N(0, sigma_b^2), in the limit of large width, and
x is Gaussian. In a sum of independent signals variances add, so that a residual net has no fixed point to go to (Yang &
Schoenholz 2017, "Mean field residual networks").
"""

from __future__ import annotations

from depthlab.theory.variance import chi, variance_map


def residual_variance_map(q: float, *, activation: str, sigma_w: float, sigma_b: float = 0.0) -> float:
    """Variance of what leaves a block, from that of what enters it, q >= 0.

    q_next = q + V(V(q)),  V = variance_map        relu with sigma_w = sqrt(2): 2 q, and 2^B q after B blocks

    Raises ValueError as variance_map does.
    """
    within = variance_map(q, activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)
    return q + variance_map(within, activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)


def residual_chi(q: float, *, activation: str, sigma_w: float, sigma_b: float = 0.0) -> float:
    """The factor by which E|dL/dx|^2 grows through a block towards the input, q >= 0 being the variance of what enters.

    1 + chi(q) chi(V(q))        relu with sigma_w = sqrt(2): 2, so that ln|dL/dx| grows by ln(2) / 4 per weight layer

    Never below 1: through a residual net gradients do not vanish, they explode. Raises ValueError as chi does.
    """
    within = variance_map(q, activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)
    first = chi(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b, q=q)
    return 1.0 + first * chi(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b, q=within)
