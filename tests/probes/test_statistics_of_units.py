"""Statistics of what a layer's units do over a batch: dead units, effective rank, the cosine between examples."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from depthlab.probes.statistics import dead_fraction, effective_rank, example_cosine, sparsity

MATRICES = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=st.floats(-100, 100, width=32).map(lambda value: round(value, 2)),
).map(lambda array: torch.from_numpy(array.copy()))
SEEDS = st.integers(0, 2**32)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rotation(size: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal(size, size, seed=seed).double()).Q


class TestDeadFractionOfAStack:
    def test_is_that_of_each_layer(self) -> None:
        layers = normal(3, 2, 6, 8).relu()
        layers[1, :, :, :5] = 0
        layers[2] = 0
        each = [[dead_fraction(layers[i, j]).item() for j in range(2)] for i in range(3)]
        assert dead_fraction(layers, stack_dims=2).tolist() == each
        assert dead_fraction(layers[:, 0], stack_dims=1).tolist() == [row[0] for row in each]
        assert each[1][0] >= 5 / 8
        assert each[2] == [1.0, 1.0]

    def test_of_stacked_maps_counts_channels(self) -> None:
        maps = normal(2, 4, 3, 5, 5).relu()
        maps[1, :, 2] = 0
        assert dead_fraction(maps, stack_dims=1).tolist() == pytest.approx([0, 1 / 3], abs=1e-15)
        assert dead_fraction(maps[1]).item() == pytest.approx(1 / 3)

    @pytest.mark.parametrize(("shape", "stack_dims"), [((4,), 0), ((4, 3), 1)])
    def test_without_units_is_refused(self, shape: tuple[int, ...], stack_dims: int) -> None:
        with pytest.raises(ValueError, match=r"was given; expected .*\(examples, units, ...\)"):
            dead_fraction(torch.ones(shape), stack_dims=stack_dims)

    def test_is_not_sparsity(self) -> None:
        checkerboard = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        assert (sparsity(checkerboard).item(), dead_fraction(checkerboard).item()) == (0.5, 0.0)


def naive_effective_rank(matrix: Any) -> float:
    """From the eigenvalues of the Gram matrix instead of a singular value decomposition."""
    gram = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
    values = [math.sqrt(max(value, 0.0)) for value in np.linalg.eigvalsh(gram)]
    shares = [value / sum(values) for value in values]
    return math.exp(-sum(share * math.log(share) for share in shares if share > 0))


class TestEffectiveRank:
    @pytest.mark.parametrize("size", [1, 2, 7])
    def test_of_equal_singular_values_is_their_number(self, size: int) -> None:
        assert effective_rank(torch.eye(size)).item() == pytest.approx(size, rel=1e-12)
        assert effective_rank(3 * torch.eye(9)[:size]).item() == pytest.approx(size, rel=1e-12)

    def test_of_known_singular_values(self) -> None:
        # shares 1/2, 1/4, 1/4: an entropy of 3/2 bits
        assert effective_rank(torch.diag(torch.tensor([2.0, 1.0, -1.0]))).item() == pytest.approx(2**1.5, rel=1e-12)

    def test_of_one_direction_is_one(self) -> None:
        outer = normal(5, 1) @ normal(1, 8, seed=1)
        assert effective_rank(outer.double().sign()).item() == pytest.approx(1, abs=1e-9)
        assert effective_rank(torch.full((3, 4), -2.0)).item() == pytest.approx(1, abs=1e-9)

    @pytest.mark.parametrize("shape", [(6, 4), (4, 6), (30, 30), (64, 10)])
    def test_of_normal_matrices(self, shape: tuple[int, int]) -> None:
        matrix = normal(*shape, seed=2)
        assert effective_rank(matrix).item() == pytest.approx(naive_effective_rank(matrix.double().numpy()), rel=1e-6)

    @given(MATRICES, SEEDS)
    def test_lies_in_its_range_and_forgets_scale_order_and_rotation(self, matrix: Tensor, seed: int) -> None:
        rank = effective_rank(matrix).item()
        rows, units = matrix.shape
        if not matrix.any():
            assert rank == 0
            return
        assert 1 - 1e-12 <= rank <= min(rows, units) + 1e-12
        generator = torch.Generator().manual_seed(seed)
        expected = pytest.approx(rank, rel=1e-9)
        assert effective_rank(matrix.double()[torch.randperm(rows, generator=generator)] * -1e20).item() == expected
        assert effective_rank(matrix.double() * 1e-30).item() == expected
        assert effective_rank(matrix.T).item() == expected
        assert effective_rank(rotation(rows, seed) @ matrix.double() @ rotation(units, seed + 1)).item() == expected

    @pytest.mark.parametrize("scale", [1e-30, 1e30])
    def test_at_the_ends_of_float32(self, scale: float) -> None:
        assert effective_rank(torch.diag(torch.tensor([2.0, 1.0, 1.0])) * scale).item() == pytest.approx(2**1.5)

    def test_keeps_small_singular_values(self) -> None:
        # in float32, or from a Gram matrix, the small value drowns: p = 1e-9 adds p (1 - ln p) = 2.2e-8
        matrix = torch.diag(torch.tensor([1.0, 1e-9]))
        assert effective_rank(matrix).item() - 1 == pytest.approx(1e-9 * (1 + math.log(1e9)), rel=1e-4)

    def test_of_a_stack(self) -> None:
        stack = normal(2, 3, 5, 4)
        stack[0, 1] = 0
        stack[1, 2, 3, 1] = math.nan
        stack[1, 0, 0, 0] = math.inf
        each = [[effective_rank(matrix).item() for matrix in row] for row in stack]
        torch.testing.assert_close(
            effective_rank(stack), torch.tensor(each, dtype=torch.float64), rtol=1e-12, atol=0, equal_nan=True
        )
        assert each[0][1] == 0
        assert [math.isnan(value) for value in each[1]] == [True, False, True]

    def test_of_no_rows_or_of_a_vector(self) -> None:
        assert effective_rank(torch.empty(0, 3)).item() == 0
        with pytest.raises(ValueError, match=r"shape \(3,\) was given; expected \(..., rows, units\)"):
            effective_rank(torch.ones(3))


def naive_example_cosine(rows: list[list[float]]) -> float:
    directed = [row for row in rows if any(row)]
    cosines = [
        math.fsum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))
        for a, b in combinations(directed, 2)
    ]
    return math.fsum(cosines) / len(cosines) if cosines else math.nan


class TestExampleCosine:
    def test_of_known_angles(self) -> None:
        assert example_cosine(torch.eye(4)).item() == 0
        assert example_cosine(torch.tensor([[1.0, 0], [3, 0], [0, 2]])).item() == pytest.approx(1 / 3, rel=1e-12)
        # the corners of a simplex are as far apart as n directions can be
        assert example_cosine(torch.eye(5) - 1 / 5).item() == pytest.approx(-1 / 4, rel=1e-6)

    @given(MATRICES)
    def test_of_any_features(self, features: Tensor) -> None:
        expected = naive_example_cosine(features.double().tolist())
        assert example_cosine(features).item() == pytest.approx(expected, rel=0, abs=1e-12, nan_ok=True)

    @given(MATRICES, SEEDS)
    def test_forgets_size_order_and_rotation(self, features: Tensor, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        sizes = 10 ** (40 * torch.rand(len(features), 1, generator=generator, dtype=torch.float64) - 20)
        expected = pytest.approx(example_cosine(features).item(), rel=0, abs=1e-12, nan_ok=True)
        assert example_cosine(features.double() * sizes).item() == expected
        assert example_cosine(features[torch.randperm(len(features), generator=generator)]).item() == expected
        assert example_cosine(features.double() @ rotation(features.shape[1], seed)).item() == expected

    @pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e30])
    def test_at_the_ends_of_float32(self, scale: float) -> None:
        features = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]]) * scale
        assert example_cosine(features).item() == pytest.approx(math.sqrt(2) / 3, rel=1e-12)

    def test_of_equal_rows_is_one_and_never_more(self) -> None:
        for seed in range(20):
            assert 1 - 1e-12 <= example_cosine(normal(1, 7, seed=seed).expand(9, 7)).item() <= 1

    def test_leaves_out_rows_of_zeros(self) -> None:
        features = normal(6, 4)
        features[[1, 4]] = 0
        assert example_cosine(features).item() == pytest.approx(
            example_cosine(features[[0, 2, 3, 5]]).item(), rel=1e-12
        )

    def test_of_fewer_than_two_directions_is_nan(self) -> None:
        one = torch.zeros(5, 3)
        one[2] = torch.tensor([1.0, 2.0, 3.7])
        for features in (one, one[2:3], torch.zeros(5, 3), torch.empty(0, 3)):
            assert math.isnan(example_cosine(features).item())

    @pytest.mark.parametrize("odd", [math.nan, math.inf])
    def test_of_what_is_not_finite_is_nan(self, odd: float) -> None:
        features = normal(4, 3)
        features[1, 1] = odd
        assert math.isnan(example_cosine(features).item())

    def test_of_a_stack(self) -> None:
        stack = normal(2, 3, 5, 4)
        stack[0, 1, 2] = 0
        stack[1, 0, 1:] = 0
        each = [[example_cosine(features).item() for features in row] for row in stack]
        torch.testing.assert_close(
            example_cosine(stack), torch.tensor(each, dtype=torch.float64), rtol=1e-12, atol=1e-14, equal_nan=True
        )
        assert math.isnan(each[1][0])

    def test_of_a_vector_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"shape \(3,\) was given; expected \(..., examples, features\)"):
            example_cosine(torch.ones(3))

    def test_follows_the_correlation_map_of_a_wide_relu_net(self) -> None:
        """Cho and Saul 2009: c' = (sqrt(1 - c^2) + c (pi - arccos c)) / pi, from c = 0."""
        width, c = 4096, 0.0
        values = torch.linalg.qr(normal(width, 6, seed=3)).Q.T  # orthonormal examples
        for seed in range(3):
            values = (values @ (normal(width, width, seed=seed + 4) * math.sqrt(2 / width))).relu()
            c = (math.sqrt(1 - c**2) + c * (math.pi - math.acos(c))) / math.pi
            assert example_cosine(values).item() == pytest.approx(c, abs=0.01)
