"""The correlation map, its fixed point and its slope."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthlab import theory
from depthlab.config import ACTIVATIONS as NAMES

ensembles = {
    "activation": st.sampled_from(NAMES),
    "sigma_w": st.floats(0.2, 3.0),
    "sigma_b": st.floats(0.0, 1.0),
    "q": st.floats(1e-3, 100.0),
}


@given(**ensembles)
def test_equal_inputs_stay_equal(activation: str, sigma_w: float, sigma_b: float, q: float) -> None:
    c = theory.correlation_map(1.0, activation=activation, sigma_w=sigma_w, sigma_b=sigma_b, q=q)
    assert c == pytest.approx(1.0, abs=1e-13)


@given(c=st.floats(-0.9, 0.9), **ensembles)
def test_its_slope_is_the_expectation_of_derivatives(
    c: float, activation: str, sigma_w: float, sigma_b: float, q: float
) -> None:
    """Price's theorem, by central differences."""
    step = 1e-4
    upper, lower = (
        theory.correlation_map(c + side, activation=activation, sigma_w=sigma_w, sigma_b=sigma_b, q=q)
        for side in (step, -step)
    )
    slope = theory.correlation_chi(c, activation=activation, sigma_w=sigma_w, sigma_b=sigma_b, q=q)
    # error step^2 / 6 times the third derivative of a power series with positive coefficients and sum 1 at c = 1
    assert (upper - lower) / (2.0 * step) == pytest.approx(slope, abs=step**2 / (1.0 - abs(c)) ** 3 + 1e-11)


@pytest.mark.parametrize(
    ("activation", "sigma_w", "sigma_b"),
    [("tanh", 2.0, 0.3), ("sigmoid", 3.0, 0.1), ("relu", 1.2, 0.5), ("selu", 1.0, 0.2), ("silu", 1.2, 0.5)],
)
def test_its_slope_at_one_is_chi(activation: str, sigma_w: float, sigma_b: float) -> None:
    chi = theory.chi(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)
    slope = theory.correlation_chi(1.0, activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)
    assert slope == pytest.approx(chi, rel=1e-12)
    # from one side, and slowly (in the square root of the step) at a kink: extrapolate over that root
    steps = (1e-4, 1e-4 / 4.0)
    coarse, fine = (
        (1.0 - theory.correlation_map(1.0 - step, activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)) / step
        for step in steps
    )
    assert 2.0 * fine - coarse == pytest.approx(chi, rel=2e-4)


@given(ends=st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)), **ensembles)
def test_it_rises_and_is_convex_for_positive_correlations(
    ends: tuple[float, float], activation: str, sigma_w: float, sigma_b: float, q: float
) -> None:
    low, high = sorted(ends)
    at_low, at_middle, at_high = (
        theory.correlation_map(c, activation=activation, sigma_w=sigma_w, sigma_b=sigma_b, q=q)
        for c in (low, (low + high) / 2.0, high)
    )
    assert at_low <= at_middle + 1e-13 <= at_high + 2e-13
    assert at_middle <= (at_low + at_high) / 2.0 + 1e-13


@given(c=st.floats(-1.0, 1.0), q=st.floats(1e-3, 1e3), sigma_w=st.floats(0.1, 3.0))
def test_relu_without_biases_maps_angles_alike_at_any_scale(c: float, q: float, sigma_w: float) -> None:
    """The normalised arc-cosine kernel of degree 1, in the angle."""
    angle = math.acos(c)
    expected = (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / math.pi
    assert theory.correlation_map(c, activation="relu", sigma_w=sigma_w, q=q) == pytest.approx(expected, abs=1e-14)
    assert theory.correlation_map(c, activation="relu", sigma_w=sigma_w) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize(
    ("activation", "sigma_w", "sigma_b"),
    [
        ("tanh", 1.0, 0.3),
        ("tanh", 1.5, 0.3),
        ("tanh", 2.0, 0.05),
        ("tanh", 3.0, 1.0),
        ("selu", 1.3, 0.1),
        ("elu", 1.35, 0.3),
        ("sigmoid", 20.0, 0.5),
        ("relu", 1.0, 0.5),
    ],
)
def test_its_fixed_point_is_where_iteration_ends(activation: str, sigma_w: float, sigma_b: float) -> None:
    c, fixed = 0.0, theory.correlation_fixed_point(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)
    q = theory.fixed_point(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)
    rate = theory.correlation_chi(activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)
    assert rate < 1.0
    for _ in range(math.ceil(math.log(1e-6) / math.log(rate))):
        c = theory.correlation_map(c, activation=activation, sigma_w=sigma_w, sigma_b=sigma_b, q=q)
    assert c == pytest.approx(fixed, abs=2e-6)


def test_chaos_separates_inputs_and_order_merges_them() -> None:
    assert theory.correlation_fixed_point(activation="tanh", sigma_w=2.0, sigma_b=0.3) < 0.9
    assert theory.correlation_fixed_point(activation="tanh", sigma_w=1.0, sigma_b=0.3) == 1.0
    assert theory.correlation_fixed_point(activation="tanh", sigma_w=2.0) == 0.0
    assert theory.correlation_fixed_point(activation="relu", sigma_w=2.0) == 1.0
    assert theory.correlation_fixed_point(activation="identity", sigma_w=1.0) == 0.0


def test_a_variance_that_dies_or_explodes_has_no_correlation() -> None:
    for activation, sigma_w, sigma_b in (("tanh", 0.5, 0.0), ("relu", 2.0, 0.1), ("elu", 2.0, 0.0)):
        with pytest.raises(ValueError, match="needs a positive, finite variance; pass the q of one layer"):
            theory.correlation_map(0.5, activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)
        theory.correlation_map(0.5, activation=activation, sigma_w=sigma_w, sigma_b=sigma_b, q=1.0)


@pytest.mark.parametrize("c", [-1.1, 1.0000001, math.nan])
def test_what_is_no_correlation_is_refused(c: float) -> None:
    for function in (theory.correlation_map, theory.correlation_chi):
        with pytest.raises(ValueError, match=f"c={c} must be a correlation: between -1 and 1"):
            function(c, activation="tanh", sigma_w=1.0, sigma_b=0.1)
