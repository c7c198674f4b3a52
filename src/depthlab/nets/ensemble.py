"""The mean-field ensemble that a net's first weights are drawn from, known without drawing any (no torch)."""

from __future__ import annotations

import math

from depthlab import theory
from depthlab.config import ModelConfig
from depthlab.theory.activations import LEAKY_SLOPE, VERY_LEAKY_SLOPE

CRITICAL_GAINS = {
    "sigmoid": 1.0,
    "tanh": 1.0,
    "relu": math.sqrt(2),
    "leaky_relu": math.sqrt(2 / (1 + LEAKY_SLOPE**2)),
    "very_leaky_relu": math.sqrt(2 / (1 + VERY_LEAKY_SLOPE**2)),
    "elu": 1.0,
    "selu": 1.0,
    "gelu": 1.0,
    "silu": 1.0,
    "identity": 1.0,
}


def critical_gain(activation: str) -> float:
    """sigma_w at which signals neither die out nor blow up, with biases zero; 1 where there is no such number.

    relu sqrt(2), the leaky ones sqrt(2 / (1 + slope^2)): He et al. 2015b, eqs. 10 and 15, for signals of any size.
    identity 1, exactly; tanh 1, in the limit of small pre-activations (Poole et al. 2016).
    selu 1: the gain that its constants were made for (Klambauer et al. 2017).
    sigmoid, elu, gelu and silu 1: a convention (LeCun's variance 1 / fan_in) and not an edge of chaos; depthlab.theory
    tells their chi.
    """
    return CRITICAL_GAINS[activation]


def scales(config: ModelConfig) -> tuple[float, float]:
    """(sigma_w, sigma_b) of the mean-field ensemble that a net's hidden square layers are drawn from.

    Var[w] = sigma_w^2 / fan_in and Var[b] = sigma_b^2, where fan_in is `width` in an MLP and 9 `width` in the first
    stage of a CNN. torch_default draws both from U(-1/sqrt(fan_in), 1/sqrt(fan_in)): sigma_w^2 = 1/3, not 2, which
    is why deep nets left at torch's default vanish. xavier (Glorot & Bengio 2010, eq. 12): 2 / (fan_in + fan_out),
    so sigma_w = 1 where layers are square. he (He et al. 2015b, eq. 10): sigma_w = sqrt(2), whatever the activation.
    lsuv: the sigma_w that maps variance 1 to variance 1, 1 / sqrt(E[phi(z)^2]), which is what `rescale` comes to in
    wide layers. The three others: config.sigma_w, or critical_gain(activation) if that is None, and config.sigma_b.

    Of a recurrent net these are of the matrices that take a state, or a gate, to the next step, and of the bias that
    each step adds; torch's cells have two, both drawn with torch_default.
    """
    if config.init == "torch_default":
        fan_in = config.width * (9 if config.family == "cnn" else 1)
        biases = config.bias * (2 if config.family == "rnn" else 1)
        return math.sqrt(1 / 3), math.sqrt(biases / (3 * fan_in))
    if config.init == "lsuv":
        return 1 / math.sqrt(theory.variance_map(1.0, activation=config.activation, sigma_w=1.0)), 0.0
    fixed = {"xavier": 1.0, "he": math.sqrt(2)}
    gain = critical_gain(config.activation) if config.sigma_w is None else config.sigma_w
    return fixed.get(config.init, gain), config.sigma_b
