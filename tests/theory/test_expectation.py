"""Expectations against 30-digit quadrature, closed forms and brute-force sums."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special, stats

from depthlab.config import ACTIVATIONS as NAMES
from depthlab.theory.activations import ACTIVATIONS, SELU_ALPHA, SELU_SCALE, find_activation
from depthlab.theory.expectation import mean_product, mean_square, mean_value

# E[phi^2] and E[phi'^2] at variance q, by mpmath.quad with 30 digits on panels cut at the scales of phi and of z
PRECISE = [
    ("sigmoid", 1e-3, 0.25006246877211526, 0.062468777313191832),
    ("sigmoid", 0.7, 0.28321784956513895, 0.048408132827589586),
    ("sigmoid", 1e4, 0.49601123320316442, 0.00066486092372651973),
    ("tanh", 1e-3, 0.00099800564609165084, 0.99800696883297489),
    ("tanh", 0.7, 0.33051879945171715, 0.52951666662884284),
    ("tanh", 1e4, 0.99202148248051304, 0.0053191446440146221),
    ("gelu", 1e-3, 0.00025047667035218063, 0.25063534902132636),
    ("gelu", 0.7, 0.2815037760204513, 0.43211235637744381),
    ("gelu", 1e4, 4999.9981245829413, 0.5005624679562025),
    ("silu", 1e-3, 0.00025018734390476652, 0.25024975029127145),
    ("silu", 0.7, 0.23434915149562873, 0.35548983299509809),
    ("silu", 1e4, 4999.9868843854492, 0.50085612793083837),
]
SMOOTH = ("sigmoid", "tanh", "gelu", "silu")
CORRELATIONS = (-1.0, -0.6, 0.0, 0.3, 0.99, 1.0)


def test_every_configured_activation_has_a_theory() -> None:
    assert tuple(ACTIVATIONS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_activations_are_torchs_own(name: str) -> None:
    leaky = torch.nn.functional.leaky_relu
    functions = {"identity": lambda x: x, "very_leaky_relu": lambda x: leaky(x, 1 / 5.5)}
    phi = functions.get(name) or getattr(torch.nn.functional, name, None) or getattr(torch, name)
    u = torch.linspace(-30, 30, 400, dtype=torch.float64, requires_grad=True)
    values = phi(u)
    (slopes,) = torch.autograd.grad(values.sum(), u)
    points = u.detach().numpy()
    # torch's gelu cancels in its left tail, where ours does not
    np.testing.assert_allclose(ACTIVATIONS[name].phi(points), values.detach().numpy(), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(ACTIVATIONS[name].derivative(points), slopes.numpy(), rtol=1e-12, atol=1e-15)


def test_an_unknown_activation_is_named_with_the_nearest_known_one() -> None:
    with pytest.raises(ValueError, match=r"activation='relo' must be one of sigmoid, .*; did you mean relu\?"):
        find_activation("relo")


@pytest.mark.parametrize(("name", "q", "square", "slope_square"), PRECISE)
def test_mean_squares_to_fourteen_digits(name: str, q: float, square: float, slope_square: float) -> None:
    assert mean_square(ACTIVATIONS[name], q) == pytest.approx(square, rel=3e-15)
    assert mean_square(ACTIVATIONS[name], q, of_derivative=True) == pytest.approx(slope_square, rel=3e-15)


@pytest.mark.parametrize("q", [0.25, 1.0, 30.0, 1e6, 1e12])
@pytest.mark.parametrize(("name", "scale", "alpha"), [("elu", 1.0, 1.0), ("selu", SELU_SCALE, SELU_ALPHA)])
def test_exponential_linear_units_have_closed_forms(name: str, scale: float, alpha: float, q: float) -> None:
    """E[e^{k u}; u < 0] = erfcx(k sqrt(q / 2)) / 2."""
    one, two = (0.5 * float(special.erfcx(k * math.sqrt(q / 2.0))) for k in (1.0, 2.0))
    square = scale**2 * (q / 2.0 + alpha**2 * (two - 2.0 * one + 0.5))
    value = scale * (math.sqrt(q / (2.0 * math.pi)) + alpha * (one - 0.5))
    assert mean_square(ACTIVATIONS[name], q) == pytest.approx(square, rel=1e-13)
    assert mean_square(ACTIVATIONS[name], q, of_derivative=True) == pytest.approx(
        scale**2 * (0.5 + alpha**2 * two), rel=1e-13
    )
    assert mean_value(ACTIVATIONS[name], q) == pytest.approx(value, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "very_leaky_relu", "identity"])
@pytest.mark.parametrize("c", CORRELATIONS)
def test_the_quadrature_agrees_with_the_closed_forms_at_kinks(name: str, c: float) -> None:
    exact = ACTIVATIONS[name]
    numeric = dataclasses.replace(exact, slopes=None)
    for q in (1e-6, 1.0, 1e5):
        for slope in (False, True):
            scale = mean_square(exact, q, of_derivative=slope)
            assert mean_square(numeric, q, of_derivative=slope) == pytest.approx(scale, rel=1e-14)
            got = mean_product(numeric, q, c, of_derivative=slope)
            assert got == pytest.approx(mean_product(exact, q, c, of_derivative=slope), abs=1e-13 * scale)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("c", [-0.95, -0.3, 0.5, 0.99])
@pytest.mark.parametrize("slope", [False, True])
def test_products_of_smooth_activations_against_a_dense_sum(name: str, c: float, slope: bool) -> None:
    """The trapezoid rule on the plane converges exponentially for analytic functions."""
    q, step = 2.3, 0.05
    z = np.arange(-9.0, 9.0 + step / 2, step)
    density = np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi) * step
    function = ACTIVATIONS[name].derivative if slope else ACTIVATIONS[name].phi
    second = c * z[:, None] + math.sqrt(1.0 - c * c) * z
    brute = (density * function(math.sqrt(q) * z)) @ function(math.sqrt(q) * second) @ density
    assert mean_product(ACTIVATIONS[name], q, c, of_derivative=slope) == pytest.approx(float(brute), abs=1e-13)


@pytest.mark.parametrize("name", [name for name in NAMES if ACTIVATIONS[name].slopes is None])
def test_odd_activations_are_marked_and_need_half_of_the_plane(name: str) -> None:
    phi, u = ACTIVATIONS[name], np.linspace(0.1, 9.0, 90)
    assert phi.is_odd == np.allclose(phi.phi(-u), -phi.phi(u))
    whole = dataclasses.replace(phi, is_odd=False)
    for c, slope in itertools.product((-1.0, -0.4, 0.2, 0.999), (False, True)):
        expected = mean_product(whole, 2.0, c, of_derivative=slope)
        assert mean_product(phi, 2.0, c, of_derivative=slope) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("q", [0.5, 40.0])
@pytest.mark.parametrize("c", [-0.8, 0.0, 0.7, 0.999])
def test_products_of_selu_against_its_conditional_mean(q: float, c: float) -> None:
    """E[phi(u2) | u1] is known in closed form, so that one integral is left, cut at the kink."""
    tau = math.sqrt(q * (1.0 - c * c))

    def conditional(u: float) -> float:
        mean = c * u
        linear = mean * special.ndtr(mean / tau) + tau * stats.norm.pdf(mean / tau)
        log_exponential = mean + tau**2 / 2.0 + special.log_ndtr(-(mean + tau**2) / tau)
        return float(SELU_SCALE * (linear + SELU_ALPHA * (math.exp(log_exponential) - special.ndtr(-mean / tau))))

    def integrand(z: float) -> float:
        u = math.sqrt(q) * z
        return float(ACTIVATIONS["selu"].phi(np.array(u))) * conditional(u) * float(stats.norm.pdf(z))

    halves = [integrate.quad(integrand, *ends, epsabs=1e-12, limit=200)[0] for ends in ((-10, 0), (0, 10))]
    assert mean_product(ACTIVATIONS["selu"], q, c) == pytest.approx(sum(halves), rel=1e-10, abs=1e-11)


@given(
    name=st.sampled_from(NAMES),
    c=st.floats(-1.0, 1.0),
    log_q=st.floats(math.log(1e-8), math.log(1e6)),
    slope=st.booleans(),
)
def test_products_lie_within_cauchy_schwarz_and_meet_it_at_one(name: str, c: float, log_q: float, slope: bool) -> None:
    phi, q = ACTIVATIONS[name], math.exp(log_q)
    square = mean_square(phi, q, of_derivative=slope)
    assert abs(mean_product(phi, q, c, of_derivative=slope)) <= square * (1.0 + 1e-12)
    assert mean_product(phi, q, 1.0, of_derivative=slope) == pytest.approx(square, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("slope", [False, True])
def test_uncorrelated_products_are_squared_means(name: str, slope: bool) -> None:
    """Which need the line only; the plane gives the same a step beside."""
    phi = ACTIVATIONS[name]
    square = mean_value(phi, 3.0, of_derivative=slope) ** 2
    for c in (0.0, 1e-16, -1e-16):
        assert mean_product(phi, 3.0, c, of_derivative=slope) == pytest.approx(square, abs=1e-14)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("slope", [False, True])
def test_the_plane_goes_over_into_the_line_where_inputs_are_equal(name: str, slope: bool) -> None:
    phi = ACTIVATIONS[name]
    beside = mean_product(phi, 3.0, math.nextafter(1.0, 0.0), of_derivative=slope)
    assert beside == pytest.approx(mean_product(phi, 3.0, 1.0, of_derivative=slope), rel=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_both_ends_of_the_variance_are_limits(name: str) -> None:
    phi = ACTIVATIONS[name]
    assert mean_square(phi, 0.0) == float(phi.phi(np.zeros(1))[0]) ** 2
    assert mean_square(phi, 0.0, of_derivative=True) == pytest.approx(
        mean_square(phi, 1e-16, of_derivative=True), rel=1e-7
    )
    assert mean_square(phi, math.inf, of_derivative=True) == pytest.approx(
        mean_square(phi, 1e20, of_derivative=True), abs=1e-9
    )
    bounded = {"sigmoid": 0.5, "tanh": 1.0}
    assert mean_square(phi, math.inf) == bounded.get(name, math.inf)
