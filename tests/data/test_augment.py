"""Batched augmentation against a naive reference that treats one image, one pixel at a time: exactly equal."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depthlab.data import cut_out, normalize, shift_and_flip

SHAPES = st.tuples(st.integers(1, 4), st.sampled_from([1, 3]), st.integers(2, 7), st.integers(2, 7))


def random_images(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@given(
    SHAPES,
    st.integers(0, 4),
    st.integers(0, 2**32),
    st.sampled_from([torch.contiguous_format, torch.channels_last]),
    st.data(),
)
@settings(max_examples=100, deadline=None)
def test_shift_and_flip_moves_each_pixel_as_a_naive_loop_does(shape, padding, seed, memory_format, data):
    images = random_images(shape, seed).to(memory_format=memory_format)
    before = images.clone()
    count, _, height, width = shape
    corners = st.lists(st.integers(0, 2 * padding), min_size=count, max_size=count)
    top, left = data.draw(corners), data.draw(corners)
    flip = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))

    expected = torch.zeros_like(images)
    for i in range(count):
        for row in range(height):
            for column in range(width):
                source_row = row + top[i] - padding
                source_column = (width - 1 - column if flip[i] else column) + left[i] - padding
                if 0 <= source_row < height and 0 <= source_column < width:
                    expected[i, :, row, column] = images[i, :, source_row, source_column]

    actual = shift_and_flip(images, torch.tensor(top), torch.tensor(left), torch.tensor(flip), padding)
    assert actual.dtype == torch.uint8
    assert actual.is_contiguous()
    assert torch.equal(actual, expected)
    assert torch.equal(images, before), "they lie in the pool of all images"


@given(SHAPES, st.integers(0, 7), st.integers(0, 2**32), st.data())
@settings(max_examples=60, deadline=None)
def test_cut_out_clears_the_square_that_a_naive_loop_clears(shape, side, seed, data):
    images = random_images(shape, seed).float()
    count, _, height, width = shape
    row = data.draw(st.lists(st.integers(0, height - 1), min_size=count, max_size=count))
    column = data.draw(st.lists(st.integers(0, width - 1), min_size=count, max_size=count))

    expected = images.clone()
    for i in range(count):
        for down in range(side):
            for across in range(side):
                y, x = row[i] - side // 2 + down, column[i] - side // 2 + across
                if 0 <= y < height and 0 <= x < width:
                    expected[i, :, y, x] = 0

    assert torch.equal(cut_out(images.clone(), torch.tensor(row), torch.tensor(column), side), expected)


def test_cut_out_of_even_side_is_that_of_the_authors():
    """Their code: rows from clip(y - side // 2) up to clip(y + side // 2), not included."""
    side, y, x = 4, 1, 5
    expected = torch.ones(1, 1, 8, 8)
    expected[..., max(y - side // 2, 0) : y + side // 2, x - side // 2 : min(x + side // 2, 8)] = 0
    assert torch.equal(cut_out(torch.ones(1, 1, 8, 8), torch.tensor([y]), torch.tensor([x]), side), expected)


@given(SHAPES, st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_normalize_is_the_formula_in_float64_rounded(shape, seed):
    images = random_images(shape, seed)
    stream = torch.Generator().manual_seed(seed)
    mean = torch.rand(shape[1], generator=stream)
    std = torch.rand(shape[1], generator=stream) + 0.1
    exact = (images.double() / 255 - mean.double()[:, None, None]) / std.double()[:, None, None]
    actual = normalize(images, mean, std)
    assert actual.dtype == torch.float32
    # Three roundings of numbers below 10, each off by at most 2**-24 of its size.
    torch.testing.assert_close(actual.double(), exact, rtol=0, atol=3e-6)
