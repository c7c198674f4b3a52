"""Residual nets without norm: the closed forms of relu, and wide random nets drawn here."""

import math

import numpy as np
import pytest

from depthlab import theory

WIDTH, EXAMPLES, BLOCKS = 600, 40, 40

PHI = {
    "relu": (lambda x: np.maximum(x, 0), lambda x: (x > 0).astype(float)),
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
}


@pytest.mark.parametrize("q", [1e-6, 1.0, 30.0])
def test_relu_with_hes_gain_doubles(q):
    assert theory.residual_variance_map(q, activation="relu", sigma_w=math.sqrt(2)) == pytest.approx(2 * q)
    assert theory.residual_chi(q, activation="relu", sigma_w=math.sqrt(2)) == pytest.approx(2)


def test_biases_add_to_the_variance():
    found = theory.residual_variance_map(1.0, activation="identity", sigma_w=0.5, sigma_b=2.0)
    assert found == pytest.approx(1 + 0.25 * (0.25 + 4) + 4)


def test_a_negative_variance_is_refused():
    with pytest.raises(ValueError, match="q=-1"):
        theory.residual_variance_map(-1, activation="relu", sigma_w=1.0)


@pytest.mark.parametrize(
    ("activation", "sigma_w", "sigma_b"), [("relu", math.sqrt(2), 0.0), ("tanh", 1.5, 0.3), ("relu", 0.8, 0.5)]
)
def test_blocks_of_wide_random_nets(activation, sigma_w, sigma_b):
    """Forward variance and backward |dL/dx|^2 of blocks that are written out here, over theory; a mean over blocks.

    That of a single block strays by sqrt(2 / WIDTH), 0.06, since a batch through relus has much in common.
    """
    phi, slope = PHI[activation]
    weights = {"activation": activation, "sigma_w": sigma_w, "sigma_b": sigma_b}
    random = np.random.default_rng(0)
    x = random.normal(size=(EXAMPLES, WIDTH)) * 1.3
    forward, backward = [], []
    for _ in range(BLOCKS):
        q = np.square(x).mean()
        w1, w2 = random.normal(size=(2, WIDTH, WIDTH)) * sigma_w / math.sqrt(WIDTH)
        b1, b2 = random.normal(size=(2, WIDTH)) * sigma_b
        z = phi(x) @ w1 + b1
        above = random.normal(size=x.shape)
        below = above + (above @ w2.T * slope(z)) @ w1.T * slope(x)
        x = x + phi(z) @ w2 + b2
        backward.append(np.square(below).sum() / np.square(above).sum() / theory.residual_chi(q, **weights))
        forward.append(np.square(x).mean() / theory.residual_variance_map(q, **weights))
    assert np.mean(forward) == pytest.approx(1, abs=0.03)
    assert np.mean(backward) == pytest.approx(1, abs=0.01)
