"""Copies of weights, and norms of them and of what has changed, against float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from depthlab.probes.copies import BLOCK, Copies
from depthlab.probes.norms import LEAST_FLOAT32_NORM, PIECE

MANY = [
    (3, 2),
    (100, 784),
    *[(100, 100)] * 20,
    (1, PIECE),
    (1, PIECE + 1),
    (7, PIECE - 1),
    (10, 0),
    (300, 1000),
    (10, 100),
]
"""Shapes that fill several blocks; one of them is longer than a block."""


def drawn(shapes: Sequence[Sequence[int]] = MANY, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator) * scale for shape in shapes]


def exact(tensors: Sequence[Tensor]) -> list[float]:
    wide = [tensor.to(torch.promote_types(tensor.dtype, torch.float64)) for tensor in tensors]
    return [torch.linalg.vector_norm(each).item() for each in wide]


def assert_are_those_of_float64(before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
    copies = Copies(before)
    assert copies.take(before).tolist() == pytest.approx(exact(before), rel=1e-6, abs=0.0)
    wide = [torch.promote_types(tensor.dtype, torch.float32) for tensor in before]
    changes = [old.to(dtype) - new.to(dtype) for old, new, dtype in zip(before, after, wide, strict=True)]
    found = copies.subtract(after)
    assert found.dtype is torch.float64
    assert found.tolist() == pytest.approx(exact(changes), rel=1e-6, abs=0.0)


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-20, 1.0, 1e20, 1e34])
def test_norms_of_weights_and_changes_are_those_of_float64(scale: float) -> None:
    before = drawn(scale=scale)
    assert sum(tensor.numel() for tensor in before) > 3 * BLOCK
    assert_are_those_of_float64(before, [tensor * 0.75 for tensor in before])


def test_changes_are_seen_far_below_the_weights() -> None:
    """Weights at rest, moved by gradients that have vanished: float32 has no squares of such changes."""
    before = [torch.zeros(shape) for shape in MANY]
    after = drawn(scale=1e-30)
    assert max(exact(after)) < LEAST_FLOAT32_NORM
    assert min(norm for norm in exact(after) if norm) > 0
    assert_are_those_of_float64(before, after)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_of_other_types_too(dtype: torch.dtype) -> None:
    before, after = ([tensor.to(dtype) for tensor in drawn(scale=scale)] for scale in (1.0, 0.3))
    assert_are_those_of_float64(before, after)
    assert_are_those_of_float64([*before, *drawn()], [*after, *drawn(scale=0.5)])


def test_of_any_order_in_memory() -> None:
    (image,), (matrix,) = drawn([(8, 16, 5, 3)]), drawn([(60, 90)])
    strided = [image.contiguous(memory_format=torch.channels_last), matrix.T, matrix[:, ::2], matrix[0].expand(9, 90)]
    others = [image.flip(0), matrix.T.contiguous(), matrix[:, 1::2], matrix[1:10]]
    assert_are_those_of_float64(strided, others)
    assert_are_those_of_float64(others, strided)


@pytest.mark.parametrize("odd", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_stays_with_its_own_weight(odd: float) -> None:
    before, after = drawn(), drawn(scale=0.5)
    before[1][3, 5] = odd
    copies = Copies(before)
    found, changed = copies.take(before).tolist(), copies.subtract(after).tolist()
    for norms in (found, changed):
        assert norms[1] == pytest.approx(abs(odd), nan_ok=True)
        assert all(math.isfinite(norm) for position, norm in enumerate(norms) if position != 1)


def test_what_does_not_change_has_changed_by_nothing() -> None:
    weights = drawn()
    copies = Copies(weights)
    copies.take(weights)
    assert copies.subtract(weights).tolist() == [0.0] * len(weights)


def test_nothing_stays_from_one_update_to_the_next() -> None:
    weights = drawn()
    copies = Copies(weights)
    first = copies.take(weights).tolist(), copies.subtract(drawn(scale=0.5)).tolist()
    assert (copies.take(weights).tolist(), copies.subtract(drawn(scale=0.5)).tolist()) == first


def test_weights_that_share_their_memory_have_copies_of_their_own() -> None:
    (whole,) = drawn([(4, 6)])
    shared = [whole, whole[:2], whole.T]
    copies = Copies(shared)
    copies.take(shared)
    was = exact([torch.full((4, 6), 0.5), torch.full((2, 6), 0.5), torch.full((6, 4), 0.5)])
    whole += 0.5
    assert copies.subtract(shared).tolist() == pytest.approx(was, rel=1e-6)


def test_the_types_that_a_program_has_set_change_nothing() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert_are_those_of_float64(drawn([(30, 40)]), drawn([(30, 40)], scale=0.5))
        weights = [tensor.float() for tensor in drawn()]
        assert {copy.dtype for copy in Copies(weights)._copies} == {torch.float32}
        assert_are_those_of_float64(weights, [tensor * 0.5 for tensor in weights])
    finally:
        torch.set_default_dtype(torch.float32)


def test_fit_weights_of_the_same_shapes_types_and_devices_only() -> None:
    copies = Copies(drawn())
    assert copies.fit(drawn(scale=2.0))
    assert not copies.fit(drawn()[:-1])
    assert not copies.fit([*drawn()[:-1], torch.ones(100, 10)])
    assert not copies.fit([tensor.double() for tensor in drawn()])
    assert not copies.fit([tensor.to("meta") for tensor in drawn()])
    assert not Copies([]).fit(drawn())


def test_take_no_more_room_than_the_weights_and_a_piece_each() -> None:
    weights = drawn()
    (memory,) = {
        copy.untyped_storage().data_ptr(): copy.untyped_storage().nbytes() for copy in Copies(weights)._copies
    }.values()
    assert memory < 4 * sum(tensor.numel() + PIECE for tensor in weights)
