import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depthlab.config import DataConfig
from depthlab.data import Batches, Images, evaluation_batches, normalize

MEAN, STD = torch.tensor([0.5]), torch.tensor([0.25])
AUGMENTED = DataConfig(crop_padding=2, flip=True, cutout=3)


def numbered(count: int) -> Images:
    """Random images whose labels are their numbers."""
    pixels = torch.randint(1, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Images(pixels, torch.arange(count))


def stream(images: Images, config: DataConfig = AUGMENTED, *, batch_size: int = 4, seed: int = 0) -> Batches:
    return Batches(images, config, batch_size=batch_size, seed=seed, mean=MEAN, std=STD)


def raw(inputs: torch.Tensor) -> torch.Tensor:
    """The pixels that were normalized."""
    return ((inputs * STD + MEAN) * 255).round().to(torch.uint8)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(0, 2**40))
@settings(max_examples=25, deadline=None)
def test_a_batch_depends_on_seed_and_step_alone(steps, seed):
    images = numbered(22)
    used = stream(images, seed=seed)
    torch.manual_seed(len(steps))
    state = torch.get_rng_state()
    for step in steps:
        inputs, labels = used[step]
        fresh_inputs, fresh_labels = stream(images, seed=seed)[step]
        assert torch.equal(inputs, fresh_inputs)
        assert torch.equal(labels, fresh_labels)
    assert torch.equal(torch.get_rng_state(), state)  # the global stream belongs to the net


def test_an_epoch_holds_each_image_at_most_once_and_drops_the_incomplete_batch():
    images = numbered(22)
    batches = stream(images)
    assert batches.steps_per_epoch == 5
    orders = [torch.cat([batches[step][1] for step in range(first, first + 5)]) for first in (0, 5, 10)]
    for order in orders:
        assert len(order.unique()) == 20
    assert not torch.equal(orders[0], orders[1])
    assert {int(label) for order in orders for label in order} == set(range(22))  # not always the same are dropped


def test_seeds_differ_in_order_and_augmentation():
    images = numbered(20)
    assert not torch.equal(stream(images, seed=1)[0][1], stream(images, seed=2)[0][1])
    one, two = (Images(images.pool[:1].expand(20, 1, 8, 8), images.labels) for _ in range(2))
    assert not torch.equal(stream(one, seed=1)[0][0], stream(two, seed=2)[0][0])
    assert not torch.equal(stream(one, seed=1)[0][0], stream(one, seed=1)[1][0])


def test_without_augmentation_inputs_are_the_normalized_images():
    images = numbered(20)
    inputs, labels = stream(images, DataConfig())[7]
    assert torch.equal(inputs, normalize(images.pool[labels], MEAN, STD))


def test_shifts_and_flips_are_uniform_over_all_of_them():
    """Each of 5 x 5 shifts and 2 flips, on every image by itself: chi-square with 49 degrees of freedom."""
    marked = torch.zeros(500, 1, 8, 8, dtype=torch.uint8)
    marked[:, 0, 3, 3], marked[:, 0, 3, 4] = 100, 200  # neither leaves the image; their order tells the flip
    batches = stream(Images(marked, torch.zeros(500).long()), DataConfig(crop_padding=2, flip=True), batch_size=500)
    counts = torch.zeros(50)
    for step in range(20):
        pixels = raw(batches[step][0]).flatten(1)
        position, other = (pixels == 100).nonzero()[:, 1], (pixels == 200).nonzero()[:, 1]
        flipped = other < position
        counts += torch.bincount(
            ((position // 8 - 1) * 5 + torch.where(flipped, position % 8 - 2, position % 8 - 1)) * 2 + flipped.long(),
            minlength=50,
        )
    assert counts.sum() == 10_000
    assert ((counts - 200) ** 2 / 200).sum() < 94  # P = 1e-4; the seed is fixed


def test_cutout_clears_squares_around_uniform_centres():
    grey = Images(torch.full((400, 1, 8, 8), 255, dtype=torch.uint8), torch.zeros(400).long())
    inputs, _ = stream(grey, DataConfig(cutout=3), batch_size=400)[0]
    hidden = inputs == 0
    assert set(hidden.flatten(1).sum(1).tolist()) == {4, 6, 9}  # clipped at a corner, at a side, whole
    share = hidden.float().mean(0)[0]
    # A pixel is hidden by the 9 centres around it, 4 of them if it is a corner: of 64, within five standard errors.
    for pixel, centres in (((4, 4), 9), ((0, 0), 4), ((7, 7), 4)):
        expected = centres / 64
        assert share[pixel] == pytest.approx(expected, abs=5 * (expected * (1 - expected) / 400) ** 0.5)


def test_turning_one_augmentation_on_leaves_the_others_as_they_were():
    images = numbered(64)
    cropped, _ = stream(images, DataConfig(crop_padding=2), batch_size=64)[3]
    both, _ = stream(images, DataConfig(crop_padding=2, flip=True), batch_size=64)[3]
    same = (both == cropped).flatten(1).all(1)
    mirrored = (both == cropped.flip(3)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 16 < int(mirrored.sum()) < 48
    holed, _ = stream(images, DataConfig(crop_padding=2, flip=True, cutout=3), batch_size=64)[3]
    assert torch.equal(torch.where(holed == 0, 0, both), holed)


def test_the_data_are_those_that_finished_runs_saw():
    """Where this fails, runs of equal configuration no longer see equal data: raise depthlab.config.PROTOCOL."""
    batches = stream(numbered(22))
    assert batches[0][1].tolist() == GOLDEN_LABELS[0]
    assert batches[6][1].tolist() == GOLDEN_LABELS[6]
    assert raw(batches[6][0])[:, 0, 4, 4].tolist() == GOLDEN_PIXELS


GOLDEN_LABELS = {0: [17, 12, 10, 18], 6: [13, 6, 21, 12]}
GOLDEN_PIXELS = [191, 128, 194, 34]


@pytest.mark.parametrize("batch_size", [0, 23])
def test_a_batch_size_that_no_epoch_can_fill_is_refused(batch_size):
    with pytest.raises(ValueError, match=rf"batch_size={batch_size} must be between 1 and the number of images, 22"):
        stream(numbered(22), batch_size=batch_size)


def test_negative_steps_are_refused():
    with pytest.raises(IndexError, match="step -1 is before the first"):
        stream(numbered(22))[-1]


def test_evaluation_goes_through_every_image_in_order():
    images = numbered(22)
    parts = list(evaluation_batches(images, batch_size=8, mean=MEAN, std=STD))
    assert [len(labels) for _, labels in parts] == [8, 8, 6]
    assert torch.equal(torch.cat([labels for _, labels in parts]), torch.arange(22))
    assert torch.equal(torch.cat([inputs for inputs, _ in parts]), normalize(images.pool, MEAN, STD))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_sees_the_same_bits():
    images = numbered(64)
    there = Images(images.pool.cuda(), images.labels.cuda())
    on_gpu = Batches(there, AUGMENTED, batch_size=16, seed=0, mean=MEAN.cuda(), std=STD.cuda())
    for step in (0, 5, 6):
        inputs, labels = on_gpu[step]
        expected_inputs, expected_labels = stream(images, batch_size=16)[step]
        assert torch.equal(inputs.cpu(), expected_inputs)
        assert torch.equal(labels.cpu(), expected_labels)
