"""Each statistic against a closed form, an exact twin in plain Python, its invariances, and the ends of its range."""

from __future__ import annotations

import math
import statistics as exact
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor, nn

from depthlab.probes import dead_fraction, mean, norm, relative_change, saturation, std
from depthlab.probes.norms import norms
from depthlab.probes.statistics import (
    SATURATION_EDGES,
    cosine,
    effective_rank,
    example_cosine,
    rms,
    signal_to_noise,
    sparsity,
)

SHAPES = arrays.array_shapes(min_dims=1, max_dims=4, max_side=6)
WHOLE_RANGE = st.floats(width=32, allow_nan=False, allow_infinity=False)
MODERATE = st.floats(-1e3, 1e3, width=32)


def exactly(expected: float) -> Any:
    """Up to a few roundings of float64."""
    return pytest.approx(expected, rel=1e-12, abs=0.0)


def tensors(elements: st.SearchStrategy[float], dtype: Any = np.float32) -> st.SearchStrategy[Tensor]:
    return arrays.arrays(dtype, SHAPES, elements=elements).map(lambda array: torch.from_numpy(array.copy()))


def entries(tensor: Tensor) -> list[float]:
    values: list[float] = tensor.double().flatten().tolist()
    return values


def shuffled(tensor: Tensor, seed: int) -> Tensor:
    order = torch.randperm(tensor.numel(), generator=torch.Generator().manual_seed(seed))
    return tensor.flatten()[order].reshape(tensor.shape)


def features(*rows: list[float]) -> Tensor:
    return torch.tensor(rows)


class TestNorm:
    def test_of_ramp(self) -> None:
        n = 1000  # sum of k^2 = n (n + 1) (2n + 1) / 6
        expected = math.sqrt(n * (n + 1) * (2 * n + 1) / 6)
        assert norm(torch.arange(1, n + 1, dtype=torch.float32).view(10, 10, 10)).item() == exactly(expected)

    @given(tensors(WHOLE_RANGE))
    def test_of_any_float32_tensor(self, tensor: Tensor) -> None:
        assert norm(tensor).item() == exactly(math.hypot(*entries(tensor)))

    @given(tensors(MODERATE), st.floats(-1e6, 1e6))
    def test_scales(self, tensor: Tensor, factor: float) -> None:
        scaled = tensor.double() * factor
        assert norm(scaled).item() == pytest.approx(abs(factor) * norm(tensor).item(), rel=1e-12, abs=1e-150)

    @given(tensors(WHOLE_RANGE), st.integers(0, 2**32))
    def test_forgets_order_and_shape(self, tensor: Tensor, seed: int) -> None:
        assert norm(shuffled(tensor, seed).flatten()).item() == exactly(norm(tensor).item())

    @pytest.mark.parametrize("entry", [1e-23, 1e-30, 1e-38, 1e-44, 1.4e-45, 1e19, 1e30, 3e38])
    def test_where_float32_squares_leave_float32(self, entry: float) -> None:
        tensor = torch.full((3, 4), -entry, dtype=torch.float32)
        stored = abs(tensor[0, 0].item())  # 1e-44 is rounded to a subnormal
        assert stored > 0
        assert norm(tensor).item() == exactly(stored * math.sqrt(12))
        assert torch.linalg.vector_norm(tensor).item() in (0.0, math.inf)  # what there is to beat

    def test_keeps_a_small_entry_beside_a_large_one(self) -> None:
        assert norm(torch.tensor([1e-30, 3e-30, 1.0])).item() == 1.0
        assert norm(torch.tensor([3e-30, 4e-30])).item() == pytest.approx(5e-30, rel=1e-6)

    def test_of_bfloat16_is_that_of_its_values(self) -> None:
        tensor = (torch.linspace(-3, 5, 4097) * 1e-25).bfloat16()
        assert norm(tensor).item() == exactly(math.hypot(*entries(tensor)))

    def test_of_nothing_is_zero(self) -> None:
        assert norm(torch.empty(0, 3)).item() == 0.0

    @pytest.mark.parametrize(("odd", "expected"), [(math.inf, math.inf), (-math.inf, math.inf)])
    def test_of_infinity(self, odd: float, expected: float) -> None:
        assert norm(torch.tensor([1.0, odd])).item() == expected


class TestMean:
    def test_of_ramp(self) -> None:
        assert mean(torch.arange(1001, dtype=torch.float32)).item() == 500.0

    @given(tensors(WHOLE_RANGE))
    def test_of_any_float32_tensor(self, tensor: Tensor) -> None:
        values = entries(tensor)
        largest = max(map(abs, values))
        assert mean(tensor).item() == pytest.approx(math.fsum(values) / len(values), rel=0, abs=1e-13 * largest)

    @given(tensors(MODERATE), st.floats(-1e3, 1e3), st.integers(0, 2**32))
    def test_moves_with_its_values_and_forgets_their_order(self, tensor: Tensor, shift: float, seed: int) -> None:
        moved = shuffled(tensor, seed).double() + shift
        assert mean(moved).item() == pytest.approx(mean(tensor).item() + shift, rel=1e-12, abs=1e-9)

    def test_does_not_drift_in_float32_or_bfloat16(self) -> None:
        # float32 sums of 0.1 go wrong in the sixth digit; in bfloat16 a sum stops growing at 256
        for tensor in (torch.full((2**20,), 0.1), torch.full((2**20,), 1.0, dtype=torch.bfloat16)):
            assert mean(tensor).item() == exactly(tensor[0].item())

    @pytest.mark.parametrize("entry", [1e-44, 1e-30, 1e30, 3e38])
    def test_at_the_ends_of_float32(self, entry: float) -> None:
        tensor = torch.full((1000,), entry)
        assert mean(tensor).item() == exactly(tensor[0].item())


class TestStd:
    def test_of_ramp(self) -> None:
        n = 1000  # variance of a discrete uniform distribution: (n^2 - 1) / 12
        assert std(torch.arange(n, dtype=torch.float32)).item() == exactly(math.sqrt((n**2 - 1) / 12))

    @given(tensors(MODERATE))
    def test_of_any_float32_tensor(self, tensor: Tensor) -> None:
        values = entries(tensor)
        rounding = 1e-12 * max(map(abs, values))
        assert std(tensor).item() == pytest.approx(exact.pstdev(values), rel=1e-12, abs=rounding)

    @given(tensors(MODERATE), st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.integers(0, 2**32))
    def test_forgets_shift_and_order_and_scales(self, tensor: Tensor, shift: float, factor: float, seed: int) -> None:
        changed = shuffled(tensor, seed).double() * factor + shift
        assert std(changed).item() == pytest.approx(abs(factor) * std(tensor).item(), rel=1e-9, abs=1e-7)

    def test_of_a_small_spread_about_a_large_mean(self) -> None:
        assert std(torch.tensor([4096.0, 4096.5]).repeat(500)).item() == exactly(0.25)

    @pytest.mark.parametrize("spread", [1e-44, 1e-30, 1e30, 3e38])
    def test_at_the_ends_of_float32(self, spread: float) -> None:
        tensor = torch.tensor([spread, -spread]).repeat(7)
        assert std(tensor).item() == exactly(tensor[0].item())

    def test_of_one_value_is_zero_and_of_bfloat16_that_of_its_values(self) -> None:
        assert std(torch.tensor([7.0])).item() == 0.0
        tensor = torch.linspace(-3, 5, 513).bfloat16()
        assert std(tensor).item() == exactly(exact.pstdev(entries(tensor)))


class TestRms:
    def test_of_ramp(self) -> None:
        n = 1000
        expected = math.sqrt((n + 1) * (2 * n + 1) / 6)
        assert rms(torch.arange(1, n + 1, dtype=torch.float32).view(10, 100)).item() == exactly(expected)

    @given(tensors(WHOLE_RANGE))
    def test_of_any_float32_tensor(self, tensor: Tensor) -> None:
        values = entries(tensor)
        assert rms(tensor).item() == exactly(math.hypot(*values) / math.sqrt(len(values)))

    @given(tensors(MODERATE), st.floats(-1e6, 1e6), st.integers(0, 2**32))
    def test_scales_forgets_order_and_is_made_of_mean_and_spread(
        self, tensor: Tensor, factor: float, seed: int
    ) -> None:
        changed = shuffled(tensor, seed).double() * factor
        assert rms(changed).item() == pytest.approx(abs(factor) * rms(tensor).item(), rel=1e-12, abs=1e-150)
        parts = mean(tensor).item() ** 2 + std(tensor).item() ** 2
        assert rms(tensor).item() ** 2 == pytest.approx(parts, rel=1e-9, abs=1e-150)

    @pytest.mark.parametrize("entry", [1e-44, 1e-30, 1e30, 3e38])
    def test_at_the_ends_of_float32_does_not_depend_on_size(self, entry: float) -> None:
        for size in (1, 10, 10_000):
            tensor = torch.full((size,), -entry)
            assert rms(tensor).item() == exactly(-tensor[0].item())


class TestSparsity:
    def test_counts_exact_zeros_of_either_sign(self) -> None:
        assert sparsity(torch.tensor([[0.0, -0.0, 1e-45], [-3.0, math.inf, math.nan]])).item() == exactly(2 / 6)

    @given(arrays.arrays(np.bool_, SHAPES), st.integers(0, 2**32))
    def test_of_any_activity(self, active: Any, seed: int) -> None:
        values = torch.from_numpy(active.astype(np.float32)) * -1e-30
        assert sparsity(values).item() == exactly(1 - active.mean())
        assert sparsity(shuffled(values, seed)).item() == sparsity(values).item()

    def test_is_not_rounded_by_many_entries(self) -> None:
        values = torch.ones(2**24 + 1)
        values[0] = 0
        assert sparsity(values).item() == exactly(1 / (2**24 + 1))


class TestRelativeChange:
    @given(tensors(MODERATE.filter(lambda x: abs(x) > 1e-3)), st.floats(-1.5, 1.5))
    def test_of_a_rescaling(self, before: Tensor, factor: float) -> None:
        after = before.double() * (1 + factor)
        assert relative_change(after, before).item() == pytest.approx(abs(factor), rel=1e-9, abs=1e-15)

    def test_of_orthogonal_step(self) -> None:
        assert relative_change(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0])).item() == exactly(4 / 3)

    def test_of_float32_rounding_in_the_last_place(self) -> None:
        before = torch.ones(9)
        after = torch.nextafter(before, torch.tensor(2.0))
        assert relative_change(after, before).item() == exactly(2.0**-23)

    def test_where_the_difference_leaves_float32(self) -> None:
        assert relative_change(torch.tensor([3e38]), torch.tensor([-3e38])).item() == 2.0
        assert relative_change(torch.tensor([3e-30]), torch.tensor([1e-30])).item() == pytest.approx(2.0, rel=1e-6)

    def test_from_zero(self) -> None:
        assert relative_change(torch.ones(2), torch.zeros(2)).item() == math.inf
        assert math.isnan(relative_change(torch.zeros(2), torch.zeros(2)).item())


class TestSaturation:
    @pytest.mark.parametrize(("kind", "edge"), [(nn.Tanh, 1.831780823064823), (nn.Sigmoid, 3.663561646129646)])
    def test_edge_is_the_outer_twentieth_of_the_range(self, kind: type[nn.Module], edge: float) -> None:
        assert SATURATION_EDGES[kind] == pytest.approx(edge, rel=1e-14)
        low, high = {nn.Tanh: (-1.0, 1.0), nn.Sigmoid: (0.0, 1.0)}[kind]
        at_edge = kind()(torch.tensor([-edge, edge], dtype=torch.float64))
        assert ((at_edge - low) / (high - low)).tolist() == pytest.approx([0.025, 0.975], rel=1e-12)

    def test_counts_both_sides_and_not_the_edge_itself(self) -> None:
        z = torch.tensor([[-2.1, -2.0, 0.0], [2.0, 2.1, math.inf]])
        assert saturation(z, 2.0).item() == 3 / 6

    @given(tensors(MODERATE), st.floats(0, 100, width=32), st.integers(0, 2**32))
    def test_of_any_tensor(self, z: Tensor, edge: float, seed: int) -> None:
        count = sum(abs(value) > edge for value in entries(z))
        assert saturation(z, edge).item() == exactly(count / z.numel())
        assert saturation(-shuffled(z, seed), edge).item() == saturation(z, edge).item()

    def test_is_not_rounded_by_many_entries(self) -> None:
        z = torch.zeros(2**24 + 1)
        z[0] = 9.0
        assert saturation(z, 1.0).item() == exactly(1 / (2**24 + 1))


class TestDeadFraction:
    def test_counts_units_not_entries(self) -> None:
        # units: never, once, always and never active; 9 of 12 entries are 0
        active = features([0, 0, 1, 0], [0, 2, 3, 0], [0, 0, 1, 0])
        assert dead_fraction(active).item() == 0.5
        assert dead_fraction(torch.eye(5)).item() == 0.0

    def test_units_whose_values_cancel_are_active(self) -> None:
        assert dead_fraction(features([3e38, 0], [-3e38, 0], [3e38, 0], [-3e38, 0])).item() == 0.5
        assert dead_fraction(features([math.nan, 0], [math.inf, 0])).item() == 0.5

    def test_a_channel_is_a_unit(self) -> None:
        maps = torch.zeros(4, 3, 5, 5)
        maps[2, 0, 4, 1] = 1e-44
        maps[:, 2] = 1.0
        assert dead_fraction(maps).item() == exactly(1 / 3)

    @given(
        arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=4, max_side=5)),
        st.integers(0, 2**32),
    )
    def test_of_any_activity(self, active: Any, seed: int) -> None:
        examples, units = active.shape[:2]
        dead = [all(not active[example, unit].any() for example in range(examples)) for unit in range(units)]
        values = torch.from_numpy(active.astype(np.float32))
        assert dead_fraction(values).item() == pytest.approx(sum(dead) / units, rel=1e-12, abs=1e-15)
        generator = torch.Generator().manual_seed(seed)
        moved = values[torch.randperm(examples, generator=generator)][:, torch.randperm(units, generator=generator)]
        assert dead_fraction(moved * 3).item() == dead_fraction(values).item()

    def test_of_bfloat16(self) -> None:
        assert dead_fraction(features([0, 1], [0, 0]).bfloat16()).item() == 0.5


def edge_17(tensor: Tensor, dim: Any = None) -> Tensor:
    return saturation(tensor, 1.7, dim)


def cosine_with_ramp(tensor: Tensor, dim: Any = None) -> Tensor:
    ramp = torch.linspace(-1, 2, tensor.numel(), device=tensor.device).view(tensor.shape)
    return cosine(tensor, ramp, dim)


OVER_DIMENSIONS = [norm, mean, std, rms, edge_17, sparsity, cosine_with_ramp]
OF_MATRICES = [effective_rank, example_cosine]
STATISTICS = [*OVER_DIMENSIONS, dead_fraction, signal_to_noise]


@pytest.mark.parametrize("statistic", OVER_DIMENSIONS)
@pytest.mark.parametrize("dim", [0, -1, (1, 2), (0, 2), (0, 1, 2)])
def test_over_dimensions_is_a_loop_over_the_others(statistic: Any, dim: int | tuple[int, ...]) -> None:
    stack = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1)).mul(2).clamp(min=-0.5)
    stack[stack == -0.5] = 0
    ramp = torch.linspace(-1, 2, 60).view(3, 4, 5)
    reduced = sorted(d % 3 for d in ((dim,) if isinstance(dim, int) else dim))
    kept = [d for d in range(3) if d not in reduced]
    each = stack.permute(*kept, *reduced).flatten(len(kept)).reshape(-1, math.prod(stack.shape[d] for d in reduced))
    ramps = ramp.permute(*kept, *reduced).reshape(each.shape)
    expected = [
        (cosine(row, other) if statistic is cosine_with_ramp else statistic(row)).item()
        for row, other in zip(each, ramps, strict=True)
    ]
    found = statistic(stack, dim=dim)
    assert found.shape == tuple(stack.shape[d] for d in kept)
    assert found.dtype == torch.float64
    assert found.flatten().tolist() == pytest.approx(expected, rel=1e-12, abs=0.0, nan_ok=True)


@pytest.mark.parametrize("statistic", [*STATISTICS, *OF_MATRICES, lambda tensor: norms([tensor, tensor]).sum()])
def test_values_are_never_looked_at(statistic: Any) -> None:
    # a tensor without values: .item(), a branch on a value or a shape that depends on one raises
    result = statistic(torch.empty(4, 6, device="meta"))
    assert (result.device.type, result.dtype, result.shape) == ("meta", torch.float64, ())


@pytest.mark.parametrize("statistic", [norm, mean, std, rms, cosine_with_ramp, signal_to_noise, *OF_MATRICES])
def test_nan_is_not_hidden(statistic: Any) -> None:
    assert math.isnan(statistic(torch.tensor([[1.0, math.nan], [2.0, 3.0]])).item())


@pytest.mark.parametrize("statistic", [saturation, dead_fraction])
def test_nan_is_neither_saturated_nor_dead(statistic: Any) -> None:
    extra = (0.5,) if statistic is saturation else ()
    assert statistic(torch.tensor([[math.nan, 0.0], [0.0, 0.0]]), *extra).item() in (0.0, 0.5)
    assert statistic(torch.full((3, 2), math.nan), *extra).item() == 0.0


@pytest.mark.parametrize("statistic", [mean, std, rms, edge_17, sparsity, dead_fraction, cosine_with_ramp])
def test_share_or_mean_of_no_units_is_nan(statistic: Any, recwarn: pytest.WarningsRecorder) -> None:
    assert math.isnan(statistic(torch.empty(4, 0)).item())


@pytest.mark.parametrize("statistic", [*STATISTICS, *OF_MATRICES])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_result_is_a_float64_scalar_and_the_tensor_is_left_alone(statistic: Any, dtype: torch.dtype) -> None:
    tensor = torch.linspace(-3, 3, 24).view(4, 6).to(dtype)
    before = tensor.clone()
    result = statistic(tensor)
    assert (result.dtype, result.shape) == (torch.float64, ())
    assert torch.equal(tensor, before)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_memory_layout_does_not_matter(statistic: Any) -> None:
    maps = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    maps[:, 1] = 0
    expected = statistic(maps).item()
    assert statistic(maps.to(memory_format=torch.channels_last)).item() == pytest.approx(expected, rel=1e-12)
