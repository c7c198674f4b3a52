"""Statistics of gradients: norms of many tensors at once, cosines, signal to noise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor, nn

from depthlab.probes.norms import LEAST_IN_PIECES, LONGEST_FLOAT32_SUM, PIECE, norms
from depthlab.probes.statistics import cosine, norm, signal_to_noise

WHOLE_RANGE = st.floats(width=32)
MODERATE = st.floats(-1e3, 1e3, width=32)


def float32_tensors(elements: st.SearchStrategy[float], **shape: int) -> st.SearchStrategy[Tensor]:
    shapes = arrays.array_shapes(**({"min_dims": 0, "max_dims": 3, "max_side": 5} | shape))
    return arrays.arrays(np.float32, shapes, elements=elements).map(lambda array: torch.from_numpy(array.copy()))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rotation(size: int, seed: int) -> Tensor:
    square = torch.randn(size, size, generator=generator(seed), dtype=torch.float64)
    return torch.linalg.qr(square).Q


class TestNorms:
    @given(st.lists(float32_tensors(WHOLE_RANGE), max_size=6))
    def test_are_those_of_each(self, tensors: list[Tensor]) -> None:
        expected = [norm(tensor).item() for tensor in tensors]
        found = norms(tensors)
        assert (found.dtype, found.shape) == (torch.float64, (len(tensors),))
        assert found.tolist() == pytest.approx(expected, rel=1e-6, abs=0.0, nan_ok=True)

    @pytest.mark.parametrize("exponent", [*range(-45, 39, 3), -16, -17, -13, -14, 38])
    def test_at_every_size_beside_one_of_usual_size(self, exponent: int) -> None:
        tensors = [torch.randn(7, 5, generator=generator(1)), torch.full((30, 30), float(f"1.4e{exponent}"))]
        expected = [math.hypot(*tensor.double().flatten().tolist()) for tensor in tensors]
        assert norms(tensors).tolist() == pytest.approx(expected, rel=1e-6, abs=0.0)
        assert expected[1] > 0

    def test_of_tensors_that_hold_every_size_at_once(self) -> None:
        mixed = torch.logspace(-45, -15, 9999)
        assert norms([mixed, mixed * 1e15, mixed * 1e30]).tolist() == pytest.approx(
            [norm(mixed).item(), norm(mixed * 1e15).item(), norm(mixed * 1e30).item()], rel=1e-5, abs=0.0
        )

    @pytest.mark.parametrize(
        "size",
        [
            LONGEST_FLOAT32_SUM,
            LONGEST_FLOAT32_SUM + 1,
            LEAST_IN_PIECES - 1,
            LEAST_IN_PIECES,
            LEAST_IN_PIECES + PIECE - 1,
            1_000_003,
        ],
    )
    @pytest.mark.parametrize("value", [1.1, 1.317, 0.7, 1.43])
    def test_of_equal_entries_where_float32_roundings_add_up(self, size: int, value: float) -> None:
        tensor = torch.full((size,), value)
        assert norms([tensor]).item() == pytest.approx(tensor[0].item() * math.sqrt(size), rel=1e-5, abs=0.0)

    @pytest.mark.parametrize("rest", [0, 1, PIECE - 1])
    @pytest.mark.parametrize("scale", [1e-30, 1.0, 1e25])
    def test_of_long_tensors_count_every_entry_once(self, rest: int, scale: float) -> None:
        tensor = torch.zeros(LEAST_IN_PIECES + rest)
        tensor[0] = tensor[PIECE] = tensor[-1] = tensor[LEAST_IN_PIECES - 1 - (rest == 0)] = scale
        assert norms([tensor]).item() == pytest.approx(2 * tensor[0].item(), rel=1e-6, abs=0.0)

    @pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("size", [10, LEAST_IN_PIECES + 5])
    def test_of_what_is_not_finite(self, odd: float, size: int) -> None:
        tensor = torch.ones(size)
        tensor[-2] = odd
        assert norms([torch.ones(4), tensor, torch.ones(9)]).tolist() == pytest.approx([2, abs(odd), 3], nan_ok=True)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_of_another_precision_are_exact(self, dtype: torch.dtype) -> None:
        tensor = torch.linspace(-3, 5, 4097).to(dtype)
        assert norms([torch.ones(4), tensor, torch.ones(9)]).tolist() == [2.0, norm(tensor).item(), 3.0]

    def test_of_float64_that_float32_does_not_hold(self) -> None:
        assert norms([torch.full((4,), 1e-100, dtype=torch.float64)]).item() == pytest.approx(2e-100, rel=1e-12)
        exact = torch.tensor([1.0, 1e-9], dtype=torch.float64)
        assert norms([exact * 1e100]).item() == norm(exact * 1e100).item()

    def test_of_a_part_of_a_longer_tensor_see_that_part_alone(self) -> None:
        longer = torch.full((3, LEAST_IN_PIECES + 5), 1e3)
        longer[1] = 1.0
        assert norms([longer[1]]).item() == pytest.approx(math.sqrt(LEAST_IN_PIECES + 5), rel=1e-6)

    def test_of_strided_tensors_are_exact(self) -> None:
        strided = torch.randn(300, 90, generator=generator(2))[:, ::3]
        assert strided.numel() < LONGEST_FLOAT32_SUM
        assert norms([strided, strided.T]).tolist() == [norm(strided).item(), norm(strided.T).item()]

    @pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
    @pytest.mark.parametrize("scale", [1.0, 1e-30])
    def test_of_complex_tensors_are_real(self, dtype: torch.dtype, scale: float) -> None:
        tensor = torch.tensor([3 + 4j, 12j], dtype=dtype) * scale
        found = norms([tensor, tensor.conj(), torch.ones(4)])
        assert found.dtype == torch.float64
        assert found.tolist() == pytest.approx([13 * scale, 13 * scale, 2], rel=1e-6, abs=0.0)
        assert norm(tensor).item() == pytest.approx(13 * scale, rel=1e-6, abs=0.0)

    def test_of_a_sparse_gradient_adds_repeated_rows_first(self) -> None:
        embedding = nn.Embedding(50, 3, sparse=True)
        (embedding(torch.tensor([[4, 7, 4]])) * 1e-25).sum().backward()
        gradient = embedding.weight.grad
        assert gradient is not None
        assert gradient.layout is torch.sparse_coo
        # row 4 was used twice, row 7 once
        assert norms([gradient, torch.ones(4)]).tolist() == pytest.approx([1e-25 * math.sqrt(15), 2], rel=1e-6, abs=0.0)
        assert norms([gradient]).item() == pytest.approx(norm(gradient.to_dense()).item(), rel=1e-6, abs=0.0)

    def test_of_nothing(self) -> None:
        assert norms([]).tolist() == []
        assert norms([]).dtype == torch.float64
        assert norms([torch.empty(0, 3), torch.empty(0, dtype=torch.float64)]).tolist() == [0.0, 0.0]

    def test_of_parameters_carry_no_gradient(self) -> None:
        layer = nn.Linear(3, 4)
        found = norms(list(layer.parameters()))
        assert not found.requires_grad
        assert not norms(list(nn.Linear(3, 4, device="meta").parameters())).requires_grad  # as on a GPU
        assert found.tolist() == pytest.approx([norm(parameter).item() for parameter in layer.parameters()], rel=1e-6)

    @pytest.mark.gpu
    def test_of_a_gpu_do_not_wait_for_it_and_lie_where_the_first_does(self) -> None:
        tensors = [torch.full((3, 3), scale, device="cuda") for scale in (1.0, 1e-30, 1e30, math.inf)]
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = norms(tensors)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert found.device == tensors[0].device
        assert found.tolist() == pytest.approx([3, 3e-30, 3e30, math.inf], rel=1e-6, abs=0.0)
        assert norms([torch.ones(4), *tensors]).device.type == "cpu"


class TestCosine:
    def test_of_known_angles(self) -> None:
        east, north_east = torch.tensor([1.0, 0.0]), torch.tensor([2.0, 2.0])
        assert cosine(east, north_east).item() == pytest.approx(math.sqrt(0.5), rel=1e-12)
        assert cosine(east, torch.tensor([0.0, -7.0])).item() == 0.0
        assert cosine(torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])).item() == pytest.approx(0.96, rel=1e-12)

    @given(float32_tensors(MODERATE, min_dims=1), st.integers(0, 2**32))
    def test_of_any_tensors(self, a: Tensor, seed: int) -> None:
        b = torch.randn(a.shape, generator=generator(seed))
        x, y = a.double().flatten().tolist(), b.double().flatten().tolist()
        lengths = math.hypot(*x) * math.hypot(*y)
        expected = math.fsum(p * q for p, q in zip(x, y, strict=True)) / lengths if lengths else math.nan
        assert cosine(a, b).item() == pytest.approx(expected, rel=0, abs=1e-13, nan_ok=True)
        assert cosine(b, a).item() == pytest.approx(expected, rel=0, abs=1e-13, nan_ok=True)

    @given(
        arrays.arrays(np.float32, 6, elements=MODERATE).map(lambda array: torch.from_numpy(array.copy())),
        st.sampled_from([-1e30, -1.0, 1e-30, 3.7]),
        st.integers(0, 2**32),
    )
    def test_forgets_size_and_turns_with_sign_and_rotation(self, a: Tensor, factor: float, seed: int) -> None:
        b = torch.randn(6, generator=generator(seed), dtype=torch.float64)
        turn = rotation(6, seed)
        before = cosine(a, b).item()
        assert cosine(a.double() * factor, b).item() == pytest.approx(
            math.copysign(before, before * factor), rel=0, abs=1e-12, nan_ok=True
        )
        assert cosine(turn @ a.double(), turn @ b).item() == pytest.approx(before, rel=0, abs=1e-12, nan_ok=True)

    @given(float32_tensors(WHOLE_RANGE.filter(math.isfinite), min_dims=1))
    def test_with_itself_is_one_and_never_more(self, a: Tensor) -> None:
        if a.any():
            assert 1 - 1e-12 <= cosine(a, a).item() <= 1
            assert -1 <= cosine(a, -a).item() <= -1 + 1e-12
        else:
            assert math.isnan(cosine(a, a).item())

    @pytest.mark.parametrize("scale", [1e-44, 1e-30, 1.0, 1e30])
    def test_where_float32_products_leave_float32(self, scale: float) -> None:
        a, b = torch.tensor([1.0, 1.0]) * scale, torch.tensor([1.0, 0.0]) * scale
        assert cosine(a, b).item() == pytest.approx(math.sqrt(0.5), rel=1e-12)

    def test_with_zero_is_nan(self) -> None:
        assert math.isnan(cosine(torch.zeros(3), torch.ones(3)).item())
        assert math.isnan(cosine(torch.ones(3), torch.zeros(3)).item())
        assert math.isnan(cosine(torch.tensor([1.0, math.nan]), torch.ones(2)).item())

    def test_of_a_stack(self) -> None:
        a, b = torch.randn(2, 5, 3, 4, generator=generator(3))
        a[1] = 0
        each = [cosine(x, y).item() for x, y in zip(a, b, strict=True)]
        assert cosine(a, b, dim=(1, 2)).tolist() == pytest.approx(each, rel=1e-12, nan_ok=True)
        assert cosine(a[:, 0], b[:, 0], dim=1)[1].isnan()

    def test_of_different_shapes_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"\(3, 1\) and b \(3,\).*equal shapes"):
            cosine(torch.ones(3, 1), torch.ones(3))


def naive_signal_to_noise(gradients: Any) -> float:
    """From norms at two batch sizes, b and K b, as in McCandlish et al. 2018, appendix A.1, at b = 1."""
    count = len(gradients)
    small = np.mean([np.sum(gradient**2) for gradient in gradients])
    big = np.sum(np.mean(gradients, axis=0) ** 2)
    signal = (count * big - small) / (count - 1)
    noise = (small - big) / (1 - 1 / count)
    return float(signal / noise)


class TestSignalToNoise:
    def test_of_two_micro_batches(self) -> None:
        # means 2 and 0; unbiased variances 2 and 2: (4 - 4/2) / 4
        assert signal_to_noise(torch.tensor([[1.0, 1.0], [3.0, -1.0]])).item() == 0.5

    @given(st.integers(2, 9), st.integers(3, 20), st.integers(0, 2**32))
    def test_is_that_from_two_batch_sizes(self, count: int, size: int, seed: int) -> None:
        gradients = torch.randn(count, size, generator=generator(seed)) + 0.5
        expected = naive_signal_to_noise(gradients.double().numpy())
        assert signal_to_noise(gradients).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)

    def test_recovers_the_truth_and_its_parts_are_unbiased(self) -> None:
        # |G|^2 = 4, tr(Sigma) = 400 * 0.25 = 100, known; with 5000 micro-batches the quotient is 0.04 within 3 %
        gradients = 0.1 + 0.5 * torch.randn(5000, 400, generator=generator(4))
        assert signal_to_noise(gradients).item() == pytest.approx(0.04, rel=0.03)
        # of pure noise at K = 2 the quotients average 0, where |mean g|^2 / s^2 would average 1/2
        noise = torch.randn(300, 2, 400, generator=generator(5))
        found = [signal_to_noise(pair).item() for pair in noise]
        assert sum(found) / 300 == pytest.approx(0, abs=0.01)
        assert min(found) < 0

    @given(st.integers(2, 6), st.sampled_from([1e-30, -2.0, 1e25]), st.integers(0, 2**32))
    def test_forgets_scale_order_shape_and_rotation(self, count: int, factor: float, seed: int) -> None:
        gradients = torch.randn(count, 6, generator=generator(seed), dtype=torch.float64)
        expected = pytest.approx(signal_to_noise(gradients).item(), rel=1e-9, abs=1e-9)
        assert signal_to_noise(gradients * factor).item() == expected
        assert signal_to_noise(gradients[torch.randperm(count, generator=generator(seed))]).item() == expected
        assert signal_to_noise(gradients.view(count, 2, 3)).item() == expected
        assert signal_to_noise(gradients @ rotation(6, seed)).item() == expected

    @pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e30])
    def test_at_the_ends_of_float32(self, scale: float) -> None:
        gradients = torch.tensor([[1.0, 1.0], [3.0, -1.0]]) * scale
        assert signal_to_noise(gradients).item() == pytest.approx(0.5, rel=0.1 if scale < 1e-40 else 1e-6)

    def test_at_the_ends_of_its_range(self) -> None:
        assert signal_to_noise(torch.tensor([[2.0], [-2.0], [3.0], [-3.0]])).item() == pytest.approx(-1 / 4, rel=1e-12)
        assert signal_to_noise(torch.ones(4, 3)).item() == math.inf

    def test_of_one_micro_batch_or_of_zeros_is_nan(self) -> None:
        assert math.isnan(signal_to_noise(torch.ones(1, 3)).item())
        assert math.isnan(signal_to_noise(torch.zeros(4, 3)).item())
        assert math.isnan(signal_to_noise(torch.empty(0, 3)).item())

    def test_of_a_number_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"shape \(\) was given; expected \(micro-batches, ...\)"):
            signal_to_noise(torch.tensor(1.0))

    def test_of_one_parameter(self) -> None:
        assert signal_to_noise(torch.tensor([1.0, 3.0])).item() == pytest.approx((4 - 1) / 2, rel=1e-12)
