"""Bounds against brute force, and the mean over random nets against lines drawn here."""

import itertools
import math

import numpy as np
import pytest

from depthlab import theory
from depthlab.theory.regions import _crossings, _fields

HE = {"sigma_w": math.sqrt(2), "sigma_b": 0.3}


def test_lines_in_general_position():
    assert [theory.arrangement_regions(n) for n in (0, 1, 2, 3, 20)] == [1, 2, 4, 7, 211]
    assert theory.arrangement_regions(3, 1) == 5
    with pytest.raises(ValueError, match=r"2 lines have no 2 crossings"):
        theory.arrangement_regions(2, 2)
    with pytest.raises(ValueError, match=r"-1 lines"):
        theory.arrangement_regions(-1)


@pytest.mark.parametrize(("widths", "inputs"), [([7], 2), ([3, 4], 2), ([2, 3, 1, 4], 2), ([4, 2, 3], 3), ([1, 9], 2)])
def test_the_upper_bound_is_its_sum_term_by_term(widths, inputs):
    total = 0
    for js in itertools.product(*(range(min(inputs, n) + 1) for n in widths)):
        left = [n - j for n, j in zip(widths, js, strict=True)]
        limits = [min([inputs, *left[:layer]]) for layer in range(len(widths))]
        if all(j <= limit for j, limit in zip(js, limits, strict=True)):
            total += math.prod(math.comb(n, j) for n, j in zip(widths, js, strict=True))
    assert theory.most_regions(widths, inputs) == total


def test_bounds_meet_for_one_layer_and_are_apart_for_two():
    assert theory.most_regions([20]) == theory.foldable_regions([20]) == theory.arrangement_regions(20) == 211
    assert theory.foldable_regions([10, 10]) == 25 * 56
    assert theory.most_regions([10, 10]) == 56**2
    with pytest.raises(ValueError, match=r"widths must be at least the 2 inputs; given \[5, 1\]"):
        theory.foldable_regions([5, 1])
    for widths in ([], [3, 0]):
        with pytest.raises(ValueError, match=r"one hidden width or more"):
            theory.most_regions(widths)


def drawn_regions(random, half_side, sigma_w, sigma_b, units):
    """Of one hidden layer, from the crossings of its lines with each other and with the sides of the square."""
    normals = random.normal(0, sigma_w / math.sqrt(2), (units, 2))
    offsets = random.normal(0, sigma_b, units)
    at_corners = np.array(list(itertools.product((-half_side, half_side), repeat=2))) @ normals.T + offsets > 0
    lines = at_corners.any(axis=0) & ~at_corners.all(axis=0)
    first, second = np.triu_indices(units, 1)
    pairs = np.stack([normals[first], normals[second]], axis=1)
    points = np.linalg.solve(pairs, -np.stack([offsets[first], offsets[second]], axis=1)[:, :, None])[:, :, 0]
    return 1 + lines.sum() + (np.abs(points) < half_side).all(axis=1).sum()


@pytest.mark.parametrize("sigma_b", [0.1, 1.0])
@pytest.mark.parametrize("sigma_w", [0.8, 2.0])
def test_one_hidden_layer_has_the_mean_of_random_lines(sigma_w, sigma_b):
    random = np.random.default_rng(0)
    drawn = np.array([drawn_regions(random, 1.3, sigma_w, sigma_b, 12) for _ in range(2000)])
    found = theory.expected_regions([12], half_side=1.3, sigma_w=sigma_w, sigma_b=sigma_b)
    assert found == pytest.approx(drawn.mean(), abs=4 * drawn.std() / math.sqrt(len(drawn)))


@pytest.mark.parametrize(("activation", "slope"), [("relu", 0.0), ("very_leaky_relu", 1 / 5.5)])
def test_variances_are_those_of_the_variance_map(activation, slope):
    """|x|^2 is the sum over two inputs, whose mean square enters the first layer as any activation's does."""
    q = 1.3**2 * 0.7 / 2 + 0.4**2
    for field in _fields(4, 1.3, 0.4, slope):
        assert field.variance(0.7) == pytest.approx(q)
        q = theory.variance_map(q, activation=activation, sigma_w=1.3, sigma_b=0.4)


@pytest.mark.parametrize(("one", "other"), [(0, 0), (0, 3), (2, 1)])
def test_the_density_of_crossings_is_that_of_drawn_gradients(one, other):
    """At (x, 0), given that both inputs are 0: Gaussian conditioning by hand."""
    square, random = 1.7, np.random.default_rng(0)
    drawn, at_zero = [], 1.0
    for field in (_fields(4, 1.3, 0.4, 0.0)[layer] for layer in (one, other)):
        variance = field.offset + field.slope * square
        across = field.slope - (field.slope * math.sqrt(square)) ** 2 / variance  # less what z tells of dz/dx
        drawn.append(random.standard_normal((400_000, 2)) * np.sqrt([across, field.slope]))
        at_zero /= math.sqrt(2 * math.pi * variance)
    determinants = np.abs(np.linalg.det(np.stack(drawn, axis=1)))
    found = _crossings(*(_fields(4, 1.3, 0.4, 0.0)[layer] for layer in (one, other)), np.array(square))
    assert float(found) == pytest.approx(at_zero * determinants.mean(), rel=0.008)


def test_it_depends_on_the_side_over_the_bias_alone_as_relu_has_no_scale():
    one = theory.expected_regions([9, 7], half_side=1.0, sigma_w=1.3, sigma_b=0.2)
    assert theory.expected_regions([9, 7], half_side=10.0, sigma_w=1.3, sigma_b=2.0) == pytest.approx(one, rel=1e-9)


@pytest.mark.parametrize("widths", [[10], [5, 5], [30, 30], [25] * 4])
def test_on_the_whole_plane_pairs_cross_about_once_whatever_their_layers(widths):
    """All pairs of one layer do, exactly; so the count is about N^2 / 2 and not exponential in depth."""
    found = theory.expected_regions(widths, half_side=1e5, **HE)
    neurons = sum(widths)
    assert found == pytest.approx(theory.arrangement_regions(neurons), rel=1e-4 if len(widths) == 1 else 0.06)


def test_scales_that_are_not_positive_are_refused():
    for scales in ({"sigma_b": 0.0}, {"sigma_w": 0.0}, {"half_side": 0.0}):
        with pytest.raises(ValueError, match=r"must be above 0; given"):
            theory.expected_regions([5], **{"half_side": 1.0, **HE, **scales})
    with pytest.raises(ValueError, match=r"one hidden width or more"):
        theory.expected_regions([5, 0], half_side=1.0, **HE)
