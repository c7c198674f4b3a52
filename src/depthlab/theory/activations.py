"""The activations as functions on float64 numpy arrays, with their derivatives.

Apart from torch's own on purpose: expectations are taken in float64 at thousands of points, in microseconds.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

Array = NDArray[np.float64]

SELU_SCALE = 1.0507009873554805
SELU_ALPHA = 1.6732632423543772
LEAKY_SLOPE, VERY_LEAKY_SLOPE = 0.01, 1 / 5.5


@dataclass(frozen=True)
class Activation:
    """phi and phi', elementwise; phi may have a kink or jump in a derivative at 0 and nowhere else.

    `slopes` are those left and right of 0 where phi is linear on both half-lines, else None: such a phi is
    homogeneous, phi(a u) = a phi(u) for a >= 0, and its expectations have closed forms. `is_odd` where
    phi(-u) = -phi(u), so that phi' is even: half of the plane then tells all.
    """

    phi: Callable[[Array], Array]
    derivative: Callable[[Array], Array]
    slopes: tuple[float, float] | None = None
    is_odd: bool = False


def _linear_halves(left: float, right: float) -> Activation:
    return Activation(
        phi=lambda u: np.where(u > 0, right * u, left * u),
        derivative=lambda u: np.where(u > 0, right, left),
        slopes=(left, right),
    )


def _exponential_linear(scale: float, alpha: float) -> Activation:
    return Activation(
        phi=lambda u: scale * np.where(u > 0, u, alpha * np.expm1(np.minimum(u, 0.0))),
        derivative=lambda u: scale * np.where(u > 0, 1.0, alpha * np.exp(np.minimum(u, 0.0))),
    )


def _sigmoid(u: Array) -> Array:
    return _float64(scipy.special.expit(u))


def _sigmoid_derivative(u: Array) -> Array:
    return _float64(scipy.special.expit(u) * scipy.special.expit(-u))


def _tanh_derivative(u: Array) -> Array:
    # not 1 - tanh^2, which cancels to 0 where the derivative is still 1e-17
    return 4.0 * _sigmoid_derivative(2.0 * u)


def _gelu(u: Array) -> Array:
    return _float64(u * scipy.special.ndtr(u))


def _gelu_derivative(u: Array) -> Array:
    return _float64(scipy.special.ndtr(u) + u * np.exp(-0.5 * u * u) / math.sqrt(2.0 * math.pi))


def _silu(u: Array) -> Array:
    return _float64(u * scipy.special.expit(u))


def _silu_derivative(u: Array) -> Array:
    return _float64(scipy.special.expit(u) * (1.0 + u * scipy.special.expit(-u)))


def _float64(values: Any) -> Array:
    return np.asarray(values, dtype=np.float64)


ACTIVATIONS = {
    "sigmoid": Activation(_sigmoid, _sigmoid_derivative),
    "tanh": Activation(np.tanh, _tanh_derivative, is_odd=True),
    "relu": _linear_halves(0.0, 1.0),
    "leaky_relu": _linear_halves(LEAKY_SLOPE, 1.0),
    "very_leaky_relu": _linear_halves(VERY_LEAKY_SLOPE, 1.0),
    "elu": _exponential_linear(1.0, 1.0),
    "selu": _exponential_linear(SELU_SCALE, SELU_ALPHA),
    "gelu": Activation(_gelu, _gelu_derivative),
    "silu": Activation(_silu, _silu_derivative),
    "identity": _linear_halves(1.0, 1.0),
}


def find_activation(name: str) -> Activation:
    """The activation of that name. Raises ValueError on another name, with the nearest known one."""
    if name not in ACTIVATIONS:
        near = difflib.get_close_matches(name, ACTIVATIONS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"activation={name!r} must be one of {', '.join(ACTIVATIONS)}{hint}")
    return ACTIVATIONS[name]
