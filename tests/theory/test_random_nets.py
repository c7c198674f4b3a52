"""Theory against real random nets: slopes, variances, backward norms and correlations, with errors over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from depthlab import theory

Array = np.ndarray[Any, np.dtype[np.float64]]

FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "leaky_relu": torch.nn.functional.leaky_relu,
    "very_leaky_relu": lambda u: torch.nn.functional.leaky_relu(u, 1 / 5.5),
    "elu": torch.nn.functional.elu,
    "selu": torch.nn.functional.selu,
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
    "identity": lambda u: u,
}

# (activation, sigma_w, sigma_b)
POINTS = [
    ("sigmoid", 1.0, 0.0),
    ("sigmoid", 12.0, 0.5),
    ("tanh", math.sqrt(1.5), math.sqrt(0.05)),
    ("tanh", 1.0, 0.0),
    ("tanh", 2.0, 0.2),
    ("relu", 1.0, 0.0),
    ("relu", math.sqrt(2.0), 0.0),
    ("relu", 1.8, 0.3),
    ("selu", 1.3, 0.1),
    ("gelu", 1.3, 0.4),
]
MORE_POINTS = [
    ("sigmoid", 4.0, 1.0),
    ("tanh", 0.6, 0.0),
    ("tanh", 1.0, 0.5),
    ("tanh", 3.0, 0.0),
    ("relu", math.sqrt(1.0 / 3.0), 0.1),
    ("leaky_relu", 1.4, 0.0),
    ("very_leaky_relu", 1.3, 0.0),
    ("elu", 1.0, 0.0),
    ("elu", 1.263, 0.3),
    ("elu", 1.6, 0.1),
    ("selu", 1.0, 0.0),
    ("gelu", 1.0, 0.0),
    ("gelu", 1.9, 0.0),
    ("silu", 1.2, 0.5),
    ("silu", 2.0, 0.1),
    ("identity", 0.9, 0.1),
]


@dataclass(frozen=True)
class Measured:
    """Per seed and layer: mean square of z, ln|dL/dz| relative to the last hidden layer, correlation of pairs."""

    variance: Array
    log_backward_norm: Array
    correlation: Array


@dataclass(frozen=True)
class Shape:
    seeds: int
    width: int
    depth: int


FAST = Shape(seeds=12, width=300, depth=25)
LARGE = Shape(seeds=8, width=1000, depth=40)
EXAMPLES = 4
INPUT_CORRELATION = 0.5


def draw(shape: Shape, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Standard normal weights and biases of the hidden layers, and inputs of mean square 1 and given correlation."""
    generator = torch.Generator().manual_seed(seed)
    normal = {"generator": generator, "dtype": torch.float64}
    weights = torch.randn(shape.depth - 1, shape.width, shape.width, **normal)  # type: ignore[call-overload]
    biases = torch.randn(shape.depth - 1, shape.width, **normal)  # type: ignore[call-overload]
    # exact inner products, so that only the weights are random
    basis = torch.linalg.qr(torch.randn(shape.width, EXAMPLES + 1, **normal)).Q.T  # type: ignore[call-overload]
    common, own = basis[:1], basis[1:]
    inputs = math.sqrt(INPUT_CORRELATION) * common + math.sqrt(1.0 - INPUT_CORRELATION) * own
    return weights, biases, inputs * math.sqrt(shape.width)


def pass_through(
    drawn: tuple[torch.Tensor, torch.Tensor, torch.Tensor], activation: str, sigma_w: float, sigma_b: float
) -> tuple[Array, Array, Array]:
    weights, biases, h = drawn
    width = weights.shape[-1]
    layers = []
    for weight, bias in zip(weights, biases, strict=True):
        z = (h @ weight.T) * (sigma_w / math.sqrt(width)) + sigma_b * bias
        layers.append(z.requires_grad_())
        h = FUNCTIONS[activation](z)
    readout = torch.randn(h.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    norms = [grad.norm().item() for grad in torch.autograd.grad((h * readout).sum(), layers)]
    grams = [(z @ z.T / width).detach() for z in layers]
    variance = [gram.diagonal().mean().item() for gram in grams]
    pairs = (1.0 - torch.eye(EXAMPLES, dtype=torch.float64)) / (EXAMPLES * (EXAMPLES - 1))
    covariance = [(gram * pairs).sum().item() for gram in grams]
    return np.array(variance), np.log(norms) - np.log(norms[-1]), np.array(covariance) / np.array(variance)


def measure(shape: Shape, points: list[tuple[str, float, float]]) -> dict[tuple[str, float, float], Measured]:
    """Every point on the same draws: drawing the weights costs more than passing through them."""
    found: dict[tuple[str, float, float], list[tuple[Array, Array, Array]]] = {point: [] for point in points}
    for seed in range(shape.seeds):
        drawn = draw(shape, seed)
        for point in points:
            found[point].append(pass_through(drawn, *point))
    return {point: Measured(*(np.stack(part) for part in zip(*each, strict=True))) for point, each in found.items()}


@pytest.fixture(scope="module")
def fast() -> dict[tuple[str, float, float], Measured]:
    return measure(FAST, POINTS)


@pytest.fixture(scope="module")
def large() -> dict[tuple[str, float, float], Measured]:
    return measure(LARGE, POINTS + MORE_POINTS)


def predict(shape: Shape, point: tuple[str, float, float]) -> tuple[theory.Profile, Array]:
    """The profile, and the correlations of the hidden layers' pre-activations, iterated from the inputs' own."""
    activation, sigma_w, sigma_b = point
    profile = theory.profile(shape.depth, activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)
    correlations = [(sigma_w**2 * INPUT_CORRELATION + sigma_b**2) / profile.variance[0]]
    for q in profile.variance[:-2]:
        correlations.append(
            theory.correlation_map(
                correlations[-1], activation=activation, sigma_w=sigma_w, sigma_b=sigma_b, q=float(q)
            )
        )
    return profile, np.array(correlations)


def noise(samples: Array, chance: float) -> Array:
    """How far a mean over seeds (the first axis) strays with that chance: Student's t times the standard error."""
    seeds = len(samples)
    quantile = float(stats.t.ppf(1.0 - chance / 2.0, seeds - 1))
    return np.asarray(quantile * samples.std(axis=0, ddof=1) / math.sqrt(seeds))


def slopes(values: Array, first: int) -> Array:
    """Least-squares slope per layer of each seed, from layer `first` (counted from 1) to the last."""
    layers = np.arange(values.shape[1] - first + 1)
    return np.asarray(np.polyfit(layers, values[:, first - 1 :].T, 1)[0])


def log_bias(shape: Shape, activation: str, q: float) -> float:
    """How much larger than predicted the mean slope of ln|dL/dz| may be at finite width, per layer.

    Theory predicts E|dL/dz|^2, whose logarithm exceeds the mean logarithm by half the relative variance: per layer
    (3 E[phi'^4] / E[phi'^2]^2 - 1) / width for one example, and less for several (relu: 5 / width).
    """
    z = torch.linspace(-10.0, 10.0, 200_001, dtype=torch.float64)
    u = (math.sqrt(q) * z).requires_grad_()
    (slope,) = torch.autograd.grad(FUNCTIONS[activation](u).sum(), u)
    density = torch.softmax(-0.5 * z**2, dim=0)
    square, fourth = ((density * slope**power).sum().item() for power in (2, 4))
    return 0.25 * (3.0 * fourth / square**2 - 1.0) / shape.width


def check_slope(shape: Shape, point: tuple[str, float, float], measured: Measured) -> None:
    profile, _ = predict(shape, point)
    samples = slopes(measured.log_backward_norm, 1)
    deviation = float(samples.mean() - slopes(profile.log_backward_norm[None, :-1], 1)[0])
    limit = float(noise(samples, 0.01))
    assert -limit <= deviation <= limit + log_bias(shape, point[0], float(profile.variance[shape.depth // 2]))


@pytest.mark.parametrize("point", POINTS)
def test_backward_slopes(point: tuple[str, float, float], fast: dict[tuple[str, float, float], Measured]) -> None:
    check_slope(FAST, point, fast[point])


@pytest.mark.parametrize("point", POINTS)
def test_every_layers_variance_backward_norm_and_correlation(
    point: tuple[str, float, float], fast: dict[tuple[str, float, float], Measured]
) -> None:
    measured, (profile, correlation) = fast[point], predict(FAST, point)
    chance = 0.001  # of each of the 24 layers, whose errors go together
    log_variance = np.log(measured.variance)
    deviation = log_variance.mean(axis=0) - np.log(profile.variance[:-1])
    assert (np.abs(deviation) <= noise(log_variance, chance)).all()

    deviation = measured.log_backward_norm.mean(axis=0) - profile.log_backward_norm[:-1]
    bias = log_bias(FAST, point[0], float(profile.variance[FAST.depth // 2])) * (FAST.depth - 1 - profile.layer[:-1])
    limit = noise(measured.log_backward_norm, chance)
    assert (deviation <= limit).all()
    assert (deviation >= -limit - bias).all()

    rounding = 1e-12  # where all inputs have become one, the noise is 0
    deviation = measured.correlation.mean(axis=0) - correlation
    assert (np.abs(deviation) <= noise(measured.correlation, chance) + rounding).all()


def test_on_the_critical_line_the_fixed_point_is_not_enough(fast: dict[tuple[str, float, float], Measured]) -> None:
    """tanh with sigma_w = 1: chi is 1 at q* = 0, but at finite depth gradients vanish; the profile says how fast."""
    samples = slopes(fast["tanh", 1.0, 0.0].log_backward_norm, 10)
    assert samples.mean() - theory.backward_slope(activation="tanh", sigma_w=1.0) > 5.0 * noise(samples, 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS + MORE_POINTS)
def test_backward_slopes_of_wide_nets(
    point: tuple[str, float, float], large: dict[tuple[str, float, float], Measured]
) -> None:
    check_slope(LARGE, point, large[point])
    measured, (profile, _) = large[point], predict(LARGE, point)
    log_variance = np.log(measured.variance)
    deviation = log_variance.mean(axis=0) - np.log(profile.variance[:-1])
    assert (np.abs(deviation) <= noise(log_variance, 0.001)).all()
