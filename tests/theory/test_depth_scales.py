"""Slopes, scales and phases, and the layer-by-layer profile."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthlab import theory
from depthlab.config import ACTIVATIONS as NAMES


@pytest.mark.parametrize(
    ("activation", "sigma_w", "sigma_b", "slope"),
    [
        ("sigmoid", 1.0, 0.0, 1.4437),
        ("tanh", math.sqrt(1.5), math.sqrt(0.05), 0.0317),
        ("relu", math.sqrt(2.0), 0.0, 0.0),
        ("relu", 1.0, 0.0, 0.3466),
        ("relu", math.sqrt(1.0 / 3.0), 0.0, 0.8959),  # torch's default: a factor of 0.408
        ("relu", 2.0, 0.0, -0.3466),
    ],
)
def test_backward_slopes_of_known_nets(activation: str, sigma_w: float, sigma_b: float, slope: float) -> None:
    got = theory.backward_slope(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)
    assert got == pytest.approx(slope, abs=5e-5)


def test_without_weights_no_gradient_passes() -> None:
    assert theory.backward_slope(activation="tanh", sigma_w=0.0) == math.inf
    assert theory.depth_scale(activation="tanh", sigma_w=0.0) == 0.0


@pytest.mark.parametrize(
    ("activation", "sigma_w", "sigma_b"),
    [
        ("relu", 1.0, 0.0),
        ("relu", 2.0, 0.3),
        ("tanh", 0.5, 0.0),
        ("elu", 1.6, 0.1),
        ("gelu", 1.9, 0.0),
        ("silu", 1.3, 0.0),
    ],
)
def test_forward_slopes_are_those_of_the_iterated_variance(activation: str, sigma_w: float, sigma_b: float) -> None:
    logs = 0.5 * np.log(theory.profile(300, activation=activation, sigma_w=sigma_w, sigma_b=sigma_b).variance)
    slope = theory.forward_slope(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)
    assert slope != 0.0
    assert slope == pytest.approx(logs[-1] - logs[-2], abs=1e-6)


def test_where_the_variance_settles_the_forward_slope_is_zero() -> None:
    assert theory.forward_slope(activation="tanh", sigma_w=2.0, sigma_b=0.1) == 0.0
    assert theory.forward_slope(activation="relu", sigma_w=math.sqrt(2.0)) == 0.0
    assert theory.forward_slope(activation="relu", sigma_w=math.sqrt(2.0), sigma_b=0.1) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize(
    ("activation", "sigma_w", "sigma_b", "phase"),
    [
        ("tanh", 1.0, 0.3, "ordered"),
        ("tanh", 1.0, 0.0, "critical"),
        ("tanh", 1.5, 0.1, "chaotic"),
        ("relu", 1.4, 0.1, "ordered"),
        ("relu", math.sqrt(2.0), 0.0, "critical"),
        ("relu", 1.5, 0.0, "chaotic"),
        ("sigmoid", 4.0, 0.0, "ordered"),
        ("sigmoid", 11.0, 0.0, "chaotic"),
    ],
)
def test_phases(activation: str, sigma_w: float, sigma_b: float, phase: str) -> None:
    assert theory.phase(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b) == phase


def test_depth_scales_diverge_at_the_edge_of_chaos() -> None:
    edge = theory.critical_sigma_w(activation="tanh", sigma_b=0.2)
    for scale in (theory.depth_scale, theory.correlation_depth_scale, theory.trainable_depth):
        below, near, at, above = (
            scale(activation="tanh", sigma_w=edge * factor, sigma_b=0.2) for factor in (0.9, 0.99, 1.0, 1.1)
        )
        assert 0.0 < below < near < at == math.inf
        assert above < math.inf


def test_a_perturbation_decays_by_e_over_one_depth_scale() -> None:
    weights = {"sigma_w": 1.8, "sigma_b": 0.2}
    q, c = (f(activation="tanh", **weights) for f in (theory.fixed_point, theory.correlation_fixed_point))
    scale = theory.correlation_depth_scale(activation="tanh", **weights)
    disturbed = theory.correlation_map(c + 1e-5, activation="tanh", q=q, **weights)
    assert (disturbed - c) / 1e-5 == pytest.approx(math.exp(-1.0 / scale), rel=1e-4)


def test_trainable_depth_is_six_scales() -> None:
    for activation, sigma_w, sigma_b in (
        ("tanh", 1.0, 0.3),
        ("relu", 1.0, 0.3),
        ("relu", 1.0, 0.0),
        ("tanh", 0.5, 0.0),
    ):
        scale = theory.depth_scale(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)
        depth = theory.trainable_depth(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)
        assert depth == pytest.approx(6.0 * scale, rel=1e-12)
    chaotic = theory.trainable_depth(activation="tanh", sigma_w=2.0, sigma_b=0.2)
    assert chaotic == 6.0 * theory.correlation_depth_scale(activation="tanh", sigma_w=2.0, sigma_b=0.2)
    assert chaotic > 6.0 * theory.depth_scale(activation="tanh", sigma_w=2.0, sigma_b=0.2)


def test_a_profile_by_hand() -> None:
    """relu with sigma_w^2 = 3: variances grow by 3/2, backward norms by sqrt(3/2) towards the input."""
    profile = theory.profile(4, activation="relu", sigma_w=math.sqrt(3.0), q0=2.0)
    np.testing.assert_array_equal(profile.layer, [1, 2, 3, 4])
    np.testing.assert_allclose(profile.variance, [6.0, 9.0, 13.5, 20.25], rtol=1e-14)
    np.testing.assert_allclose(
        profile.log_backward_norm, [math.log(1.5), 0.5 * math.log(1.5), 0.0, math.nan], rtol=1e-14
    )
    assert all(array.dtype == np.float64 for array in (profile.layer, profile.variance, profile.log_backward_norm))


def test_a_profile_follows_the_layers_own_variance() -> None:
    profile = theory.profile(3, activation="tanh", sigma_w=1.5, sigma_b=0.2, q0=0.7)
    first = 1.5**2 * 0.7 + 0.2**2
    factor = theory.chi(activation="tanh", sigma_w=1.5, sigma_b=0.2, q=first)
    second = theory.variance_map(first, activation="tanh", sigma_w=1.5, sigma_b=0.2)
    np.testing.assert_allclose(profile.variance[:2], [first, second], rtol=1e-14)
    np.testing.assert_allclose(profile.log_backward_norm[:2], [0.5 * math.log(factor), 0.0], rtol=1e-14)


@settings(max_examples=30)
@given(activation=st.sampled_from(NAMES), sigma_w=st.floats(0.3, 3.0), sigma_b=st.floats(0.05, 1.0))
def test_far_from_the_input_a_profile_has_the_backward_slope(activation: str, sigma_w: float, sigma_b: float) -> None:
    q = theory.fixed_point(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)
    start = 1.0 if math.isinf(q) else max(0.0, q - sigma_b**2) / sigma_w**2
    profile = theory.profile(400, activation=activation, sigma_w=sigma_w, sigma_b=sigma_b, q0=start)
    slope = theory.backward_slope(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)
    last = profile.log_backward_norm[-2] - profile.log_backward_norm[-3]
    if not math.isinf(q):
        assert last == pytest.approx(slope, abs=1e-7)
    elif profile.variance[-1] > 1e12:
        assert last == pytest.approx(slope, abs=1e-5)


def test_profiles_survive_variances_beyond_floating_point() -> None:
    exploding = theory.profile(3000, activation="silu", sigma_w=3.0)
    assert exploding.variance[-1] == math.inf
    assert np.isfinite(exploding.log_backward_norm[:-1]).all()
    dying = theory.profile(3000, activation="tanh", sigma_w=0.5)
    assert dying.variance[-1] == 0.0
    assert dying.log_backward_norm[0] == pytest.approx(2998 * math.log(0.5), abs=1.0)


def test_a_profile_of_200_layers_takes_milliseconds() -> None:
    theory.profile(200, activation="tanh", sigma_w=1.2, sigma_b=0.1)
    times = []
    for _ in range(5):
        begin = time.process_time()
        theory.profile(200, activation="tanh", sigma_w=1.2, sigma_b=0.1)
        times.append(time.process_time() - begin)
    assert min(times) < 0.05


@pytest.mark.parametrize("depth", [1, 0, -3])
def test_a_profile_needs_a_hidden_layer(depth: int) -> None:
    with pytest.raises(ValueError, match=f"depth={depth} must count at least a hidden weight layer and the head"):
        theory.profile(depth, activation="tanh", sigma_w=1.0)
    with pytest.raises(ValueError, match=r"q=-1\.0 must be a variance"):
        theory.profile(5, activation="tanh", sigma_w=1.0, q0=-1.0)
