"""Variance maps, their fixed points and chi."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthlab import theory
from depthlab.config import ACTIVATIONS as NAMES
from depthlab.theory import variance

HOMOGENEOUS = ("relu", "leaky_relu", "very_leaky_relu", "identity")


def iterate(q: float, steps: int, *, activation: str, sigma_w: float, sigma_b: float) -> float:
    for _ in range(steps):
        q = theory.variance_map(q, activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)
    return q


@pytest.mark.parametrize(
    ("activation", "sigma_w", "sigma_b"),
    [
        ("sigmoid", 1.0, 0.0),
        ("sigmoid", 6.0, 1.0),
        ("tanh", math.sqrt(1.5), math.sqrt(0.05)),
        ("tanh", 2.5, 0.3),
        ("tanh", 0.0, 0.3),
        ("relu", 1.2, 0.4),
        ("elu", 1.2, 0.1),
        ("selu", 1.0, 0.0),
        ("selu", 1.3, 0.1),
        ("gelu", 1.3, 0.4),
        ("silu", 1.3, 0.4),
    ],
)
@pytest.mark.parametrize("start", [0.01, 1.0, 100.0])
def test_a_finite_fixed_point_is_where_iteration_ends(
    activation: str, sigma_w: float, sigma_b: float, start: float
) -> None:
    q = theory.fixed_point(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b, start=start)
    assert q == pytest.approx(iterate(start, 1000, activation=activation, sigma_w=sigma_w, sigma_b=sigma_b), rel=1e-11)


@pytest.mark.parametrize(
    ("activation", "sigma_w", "sigma_b", "limit"),
    [
        ("relu", math.sqrt(2.0), 0.0, 1.0),  # every variance is a fixed point; the start comes back
        ("identity", 1.0, 0.0, 1.0),
        ("relu", math.sqrt(2.0), 0.1, math.inf),
        ("relu", 1.0, 0.0, 0.0),
        ("relu", 1.0, 0.3, 0.18),
        ("relu", 1.5, 0.0, math.inf),
        ("tanh", 0.5, 0.0, 0.0),
        ("tanh", 1.0, 0.0, 0.0),
        ("elu", 1.0, 0.0, 0.0),
        ("elu", math.sqrt(2.0), 0.0, math.inf),
        ("selu", 1.4, 0.0, math.inf),
        ("gelu", math.sqrt(2.0), 0.0, 0.0),
        ("gelu", 1.9, 0.0, math.inf),
        ("gelu", 1.5, 0.5, math.inf),
        ("sigmoid", 0.0, 0.0, 0.0),
    ],
)
def test_fixed_points_that_are_none_or_many(activation: str, sigma_w: float, sigma_b: float, limit: float) -> None:
    assert theory.fixed_point(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b) == pytest.approx(limit)


def test_a_fixed_point_is_searched_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """chi, correlations and depth scales of one point all ask for it, and a search takes milliseconds."""
    searched: list[float] = []
    search = variance._first_crossing

    def counted(function: Callable[[float], float], start: float, end: float) -> float | None:
        searched.append(start)
        return search(function, start, end)

    monkeypatch.setattr(variance, "_first_crossing", counted)
    for _ in range(3):
        theory.fixed_point(activation="tanh", sigma_w=1.2345678, sigma_b=0.1)
        theory.chi(activation="tanh", sigma_w=1.2345678, sigma_b=0.1)
    assert len(searched) == 1
    theory.fixed_point(activation="tanh", sigma_w=1.2345679, sigma_b=0.1)
    assert len(searched) == 2


def test_a_point_in_float32_does_not_stand_for_the_equal_one_in_float64() -> None:
    short = np.float32(1.7654321)
    theory.fixed_point(activation="tanh", sigma_w=short, sigma_b=0.3)  # type: ignore[arg-type]
    found = theory.fixed_point(activation="tanh", sigma_w=float(short), sigma_b=0.3)
    assert found == variance._searched_fixed_point.__wrapped__("tanh", float(short), 0.3, 1.0)


def test_the_start_decides_where_two_limits_attract() -> None:
    assert theory.fixed_point(activation="relu", sigma_w=math.sqrt(2.0), start=7.0) == 7.0
    assert theory.fixed_point(activation="gelu", sigma_w=1.5, start=1.0) == 0.0
    assert theory.fixed_point(activation="gelu", sigma_w=1.5, start=50.0) == math.inf
    assert iterate(50.0, 200, activation="gelu", sigma_w=1.5, sigma_b=0.0) > 1e6


@pytest.mark.parametrize("start", [0.01, 1.0])
def test_below_a_point_of_no_return_the_nearest_limit_is_found(start: float) -> None:
    """silu with these weights has a stable fixed point, and an unstable one above it: beyond, the variance explodes."""
    weights = {"sigma_w": 1.55, "sigma_b": 0.3}
    q = theory.fixed_point(activation="silu", start=start, **weights)
    assert q == pytest.approx(iterate(start, 1000, activation="silu", **weights), rel=1e-11)
    assert theory.fixed_point(activation="silu", start=100.0, **weights) == math.inf


def test_two_fixed_points_closer_than_a_step_are_not_passed_by() -> None:
    """At this sigma_w silu's stable and unstable fixed points meet and vanish (by bisection of the iterated map)."""
    merge = 1.614093
    below, above = merge - 1e-4, merge + 1e-4
    end = iterate(0.01, 3000, activation="silu", sigma_w=below, sigma_b=0.3)
    assert theory.fixed_point(activation="silu", sigma_w=below, sigma_b=0.3, start=0.01) == pytest.approx(end, rel=1e-6)
    assert iterate(0.01, 3000, activation="silu", sigma_w=above, sigma_b=0.3) > 1e6
    assert theory.fixed_point(activation="silu", sigma_w=above, sigma_b=0.3, start=0.01) == math.inf


@pytest.mark.parametrize("excess", [1e-3, 1e-5, 1e-8])
def test_just_above_the_edge_of_chaos_tanh_has_a_tiny_fixed_point(excess: float) -> None:
    """E[tanh^2] = q - 2 q^2 + 17/3 q^3 - ..., hence q* = e / 2 + 17/24 e^2 - e^2 / 2 ... for sigma_w^2 = 1 + e."""
    q = theory.fixed_point(activation="tanh", sigma_w=math.sqrt(1.0 + excess))
    assert q == pytest.approx(excess / 2.0, rel=2.0 * excess + 1e-6)


@given(
    activation=st.sampled_from(NAMES),
    sigma_w=st.floats(0.1, 4.0),
    sigma_b=st.floats(0.0, 2.0),
    q=st.floats(1e-6, 1e4),
    factor=st.floats(1.01, 10.0),
)
def test_variance_maps_rise(activation: str, sigma_w: float, sigma_b: float, q: float, factor: float) -> None:
    lower = theory.variance_map(q, activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)
    upper = theory.variance_map(q * factor, activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)
    assert lower >= sigma_b**2
    assert upper > lower * (1.0 - 1e-13)


@given(activation=st.sampled_from(HOMOGENEOUS), sigma_w=st.floats(0.1, 4.0), q=st.floats(1e-6, 1e6))
def test_piecewise_linear_activations_have_no_scale(activation: str, sigma_w: float, q: float) -> None:
    """The map is chi times q, and chi is the same at every q."""
    chi = theory.chi(activation=activation, sigma_w=sigma_w, q=q)
    assert chi == theory.chi(activation=activation, sigma_w=sigma_w)
    assert theory.variance_map(q, activation=activation, sigma_w=sigma_w) == pytest.approx(chi * q, rel=1e-14)


@given(activation=st.sampled_from(NAMES), sigma_w=st.floats(0.1, 4.0), sigma_b=st.floats(0.0, 2.0))
def test_a_fixed_point_is_fixed(activation: str, sigma_w: float, sigma_b: float) -> None:
    q = theory.fixed_point(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)
    after = theory.variance_map(q, activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)
    # where q grows by 1e-16 of itself per layer, 1e-9 of it is as far as 16 digits tell
    assert after == pytest.approx(q, rel=1e-9, abs=1e-29)


@pytest.mark.parametrize(
    ("activation", "sigma_w", "sigma_b", "chi"),
    [
        ("sigmoid", 1.0, 0.0, 0.0557),
        ("tanh", math.sqrt(1.5), math.sqrt(0.05), 0.9386),
        ("relu", math.sqrt(2.0), 0.0, 1.0),
        ("relu", 1.0, 0.0, 0.5),
        ("relu", math.sqrt(1.0 / 3.0), 0.0, 1.0 / 6.0),  # torch's default
        ("tanh", 1.0, 0.0, 1.0),
        ("selu", 1.0, 0.0, 1.0716),
        ("elu", 1.5, 0.0, 1.125),  # q* is infinite: half of sigma_w^2
        ("gelu", 1.0, 0.0, 0.25),  # q* = 0: a quarter
    ],
)
def test_chi_of_known_nets(activation: str, sigma_w: float, sigma_b: float, chi: float) -> None:
    assert theory.chi(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b) == pytest.approx(chi, abs=5e-5)


@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("sigma_b", [0.0, 0.2, 1.0])
def test_critical_weights_make_chi_one(activation: str, sigma_b: float) -> None:
    if activation in ("gelu", "silu") and sigma_b < 1.0:
        with pytest.raises(ValueError, match="has no critical sigma_w: chi jumps over 1 at sigma_w=1"):
            theory.critical_sigma_w(activation=activation, sigma_b=sigma_b)
        return
    sigma_w = theory.critical_sigma_w(activation=activation, sigma_b=sigma_b)
    assert theory.chi(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b) == pytest.approx(1.0, abs=1e-9)
    assert theory.phase(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b) == "critical"


def test_critical_weights_of_relu_and_tanh() -> None:
    assert theory.critical_sigma_w(activation="relu", sigma_b=0.5) == math.sqrt(2.0)
    assert theory.critical_sigma_w(activation="tanh") == 1.0


@pytest.mark.parametrize(
    ("sigma_w", "sigma_b", "q", "message"),
    [
        (-1.0, 0.0, 1.0, r"sigma_w=-1.0 must be a standard deviation: finite and at least 0"),
        (math.nan, 0.0, 1.0, r"sigma_w=nan must"),
        (1.0, math.inf, 1.0, r"sigma_b=inf must"),
        (1.0, 0.0, -0.5, r"q=-0.5 must be a variance"),
        (1.0, 0.0, math.nan, r"q=nan must be a variance"),
    ],
)
def test_what_is_no_variance_is_refused(sigma_w: float, sigma_b: float, q: float, message: str) -> None:
    for function in (theory.chi, theory.correlation_fixed_point):
        with pytest.raises(ValueError, match=message):
            function(activation="tanh", sigma_w=sigma_w, sigma_b=sigma_b, q=q)
    with pytest.raises(ValueError, match=message):
        theory.variance_map(q, activation="tanh", sigma_w=sigma_w, sigma_b=sigma_b)


@pytest.mark.parametrize("start", [0.0, -1.0, math.inf, math.nan])
def test_a_fixed_point_needs_a_start(start: float) -> None:
    with pytest.raises(ValueError, match=f"start={start} must be a variance above 0"):
        theory.fixed_point(activation="tanh", sigma_w=1.0, start=start)


@pytest.mark.parametrize("activation", NAMES)
def test_an_infinite_variance_stays_infinite_unless_bounded(activation: str) -> None:
    expected = {"sigmoid": 2.0 + 0.25, "tanh": 4.0 + 0.25}.get(activation, math.inf)
    assert theory.variance_map(math.inf, activation=activation, sigma_w=2.0, sigma_b=0.5) == expected
    assert theory.variance_map(math.inf, activation=activation, sigma_w=0.0, sigma_b=0.5) == 0.25
