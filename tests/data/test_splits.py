import collections
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depthlab.config import DATASETS, DataConfig, stream_seed
from depthlab.data import DataError, Images, load
from depthlab.data.built_in import digits
from depthlab.data.splits import channel_statistics, noisy, split_indices

CPU = torch.device("cpu")
DIGITS = torch.arange(1438) % 7 % 6  # unequal classes: 0 comes twice as often


def pixels(part: Images) -> torch.Tensor:
    return part[:][0]


def image_set(part: Images) -> collections.Counter[bytes]:
    return collections.Counter(image.numpy().tobytes() for image in pixels(part))


@given(st.floats(0.01, 0.8), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_validation_has_its_exact_count_and_every_class_its_share(fraction, seed):
    config = DataConfig(validation_fraction=fraction, split_seed=seed)
    training, validation = split_indices(DIGITS, 6, config)
    assert len(validation) == round(fraction * 1438)
    assert torch.equal(torch.cat([training, validation]).sort().values, torch.arange(1438))
    share = torch.bincount(DIGITS).double() * (len(validation) / 1438)
    assert ((torch.bincount(DIGITS[validation], minlength=6) - share).abs() < 1).all()


@given(st.integers(10, 800), st.integers(10, 800), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_subsets_are_balanced_nested_and_share_the_validation_part(one, two, seed):
    small, large = sorted((one, two))
    (few, validation), (many, same) = (
        split_indices(DIGITS, 6, DataConfig(train_size=size, split_seed=seed)) for size in (small, large)
    )
    assert torch.equal(validation, same)
    assert (len(few), len(many)) == (small, large)
    assert set(few.tolist()) <= set(many.tolist())
    for part in (few, many):
        counts = torch.bincount(DIGITS[part], minlength=6)
        assert counts.max() - counts.min() <= 1


@given(st.integers(10, 250), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_parts_are_disjoint_and_balanced_and_part_0_is_the_subset(size, seed):
    config = DataConfig(train_size=size, split_seed=seed)
    few, validation = split_indices(DIGITS, 6, config)
    parts = []
    for part in range(5):
        training, same = split_indices(DIGITS, 6, DataConfig(train_size=size, split_seed=seed, part=part))
        assert torch.equal(validation, same)
        assert len(training) == size
        if 6 * size * (part + 1) <= 1294:  # classes are unequal: beyond, the small ones have run out
            counts = torch.bincount(DIGITS[training], minlength=6)
            assert counts.max() - counts.min() <= 1
        parts.append(training)
    assert torch.equal(parts[0], few)
    assert len(torch.cat([validation, *parts]).unique()) == len(validation) + 5 * size


def test_noise_of_one_part_says_nothing_of_that_of_another():
    labels = torch.zeros(1000).long()
    one, two = (noisy(labels, 10, DataConfig(train_size=200, label_noise=0.5, part=part)) for part in (1, 2))
    both = ((one > 0) & (two > 0)).sum()
    assert abs(int(both) - 250) < 40  # of 1000, half of them twice: 250 +- 8 if independent, 500 if the same
    assert torch.equal(one, noisy(labels, 10, DataConfig(train_size=200, label_noise=0.5, part=1)))


def test_the_largest_subset_is_all_that_is_left():
    everything, _ = split_indices(DIGITS, 6, DataConfig())
    assert torch.equal(split_indices(DIGITS, 6, DataConfig(train_size=1294))[0], everything)


def folds_of(size: int | None, count: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Training and validation part of each fold, as large as the configuration says."""
    found = []
    for fold in range(count):
        config = DataConfig(pool_size=size, folds=count, fold=fold, split_seed=seed)
        training, validation = split_indices(DIGITS, 6, config)
        assert (len(training), len(validation)) == (config.training_images, config.validation_images)
        found.append((training, validation))
    return found


@given(st.none() | st.integers(30, 1438), st.integers(2, 20), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_folds_are_a_partition_with_counts_that_differ_by_at_most_one(size, count, seed):
    """Each image of the pool is validation once, and is trained on in all other folds."""
    found = folds_of(size, count, seed)
    pools = [torch.cat(parts).sort().values for parts in found]
    assert all(torch.equal(pool, pools[0]) for pool in pools)
    assert len(set(pools[0].tolist())) == len(pools[0]) == (size or 1438)
    validation = [part for _, part in found]
    assert torch.equal(torch.cat(validation).sort().values, pools[0])
    for counts in (
        torch.stack([torch.bincount(DIGITS[part], minlength=6) for part in validation]),
        torch.tensor([[len(part)] for part in validation]),
    ):
        assert (counts.max(0).values - counts.min(0).values <= 1).all()


def test_folds_are_those_of_dealing_out_cards():
    """Built image by image: shuffled, sorted into classes, and dealt to the folds in turn."""
    shuffled = torch.randperm(1438, generator=torch.Generator().manual_seed(stream_seed(3, "split"))).tolist()
    dealt: list[list[int]] = [[] for _ in range(7)]
    for turn, image in enumerate(sorted(shuffled, key=lambda image: DIGITS[image].item())):
        dealt[turn % 7].append(image)
    for fold, (training, validation) in enumerate(folds_of(None, 7, 3)):
        assert validation.tolist() == sorted(dealt[fold])
        assert training.tolist() == sorted(set(range(1438)) - set(dealt[fold]))


@given(st.integers(30, 1438), st.integers(30, 1438), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_pools_are_balanced_and_nested(one, two, seed):
    small, large = (
        torch.cat(split_indices(DIGITS, 6, DataConfig(pool_size=size, split_seed=seed))) for size in sorted((one, two))
    )
    assert (len(small), len(large)) == tuple(sorted((one, two)))
    assert set(small.tolist()) <= set(large.tolist())
    counts = torch.bincount(DIGITS[small], minlength=6)
    used_up = counts == torch.bincount(DIGITS)
    assert ((counts >= counts.max() - 1) | used_up).all()


def test_validation_is_cut_from_the_pool_and_subsets_from_what_is_left():
    training, validation = split_indices(DIGITS, 6, DataConfig(pool_size=600, validation_fraction=0.25, train_size=90))
    whole, same = split_indices(DIGITS, 6, DataConfig(pool_size=600, validation_fraction=0.25))
    assert (len(training), len(validation), len(whole)) == (90, 150, 450)
    assert torch.equal(validation, same)
    assert set(training.tolist()) < set(whole.tolist())


def test_splits_of_old_runs_are_frozen():
    """Sums of positions, as they were before there were pools and folds."""
    found = [
        [int((part * torch.arange(1, len(part) + 1)).sum()) for part in split_indices(DIGITS, 6, config)]
        for config in (DataConfig(), DataConfig(split_seed=3, train_size=200, validation_fraction=0.25))
    ]
    assert found == [[805009786, 9712352], [19993887, 62125648]]


def test_split_seed_chooses_the_split():
    first, again, other = (split_indices(DIGITS, 6, DataConfig(split_seed=seed))[1] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@given(st.floats(0, 1), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_label_noise_changes_its_exact_share(share, seed):
    config = DataConfig(label_noise=share, split_seed=seed)
    given_labels = DIGITS.clone()
    changed = noisy(given_labels, 6, config) != DIGITS
    assert torch.equal(given_labels, DIGITS)
    assert int(changed.sum()) == round(share * 1438)


def test_label_noise_draws_every_other_class_alike():
    labels = torch.full((9000,), 4)
    counts = torch.bincount(noisy(labels, 10, DataConfig(label_noise=1)), minlength=10).double()
    assert counts[4] == 0
    others = counts[torch.arange(10) != 4]
    assert ((others - 1000) ** 2 / 1000).sum() < 32  # chi-square, 8 degrees of freedom: P = 1e-4; the seed is fixed


@pytest.mark.parametrize("name", ["digits", "synthetic", "spirals"])
def test_built_in_sets_load_without_a_disk(name, monkeypatch, tmp_path):
    monkeypatch.setenv("DEPTHLAB_DATA", str(tmp_path / "absent"))
    splits, again = load(DataConfig(name=name), CPU), load(DataConfig(name=name), CPU)
    facts = DATASETS[name]
    assert len(splits.train) + len(splits.validation) == facts.train
    assert len(splits.test) == facts.test
    assert len(splits.classes) == facts.classes
    for part, twin in zip(
        (splits.train, splits.validation, splits.test), (again.train, again.validation, again.test), strict=True
    ):
        assert pixels(part).dtype == torch.uint8
        assert pixels(part).shape == (len(part), facts.channels, facts.size, facts.size)
        assert part.labels.dtype == torch.int64
        assert set(part.labels.tolist()) == set(range(facts.classes))
        assert torch.equal(pixels(part), pixels(twin))
    assert not (tmp_path / "absent").exists()


def test_digits_are_those_of_scikit_learn_every_fifth_of_them_for_testing():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    splits = load(DataConfig(), CPU)
    assert torch.equal(splits.test.labels, torch.from_numpy(bunch.target[4::5]))
    assert torch.equal((pixels(splits.test)[:, 0] / 255 * 16).round().double(), torch.from_numpy(bunch.images[4::5]))
    assert pixels(splits.test).max() == 255
    kept = [index for index in range(1797) if index % 5 != 4]
    everything = image_set(splits.train) + image_set(splits.validation)
    scaled = torch.from_numpy(bunch.images[kept]).mul(255 / 16).round().to(torch.uint8)
    assert everything == image_set(Images(scaled, torch.zeros(len(kept))))


def test_digits_are_found_where_scikit_learn_keeps_them_elsewhere(monkeypatch):
    usual = digits()
    monkeypatch.setattr(metadata.PathDistribution, "locate_file", lambda self, path: Path("/absent") / path)
    moved = digits()
    assert np.array_equal(usual.train_images, moved.train_images)
    assert np.array_equal(usual.test_labels, moved.test_labels)
    assert usual.classes == moved.classes


def test_synthetic_can_be_learned_but_not_by_heart():
    """Nearest class mean, the simplest classifier: well above the 10 % of chance, well below all."""
    splits = load(DataConfig(name="synthetic"), CPU)
    training = pixels(splits.train).flatten(1).float()
    means = torch.stack([training[splits.train.labels == label].mean(0) for label in range(10)])
    guess = torch.cdist(pixels(splits.test).flatten(1).float(), means).argmin(1)
    assert 0.5 < (guess == splits.test.labels).float().mean() < 0.95


def test_label_noise_and_subsets_leave_validation_and_test_alone():
    plain = load(DataConfig(), CPU)
    changed = load(DataConfig(label_noise=0.5, train_size=200), CPU)
    for part, twin in ((plain.validation, changed.validation), (plain.test, changed.test)):
        assert torch.equal(pixels(part), pixels(twin))
        assert torch.equal(part.labels, twin.labels)
    clean = load(DataConfig(train_size=200), CPU)
    assert torch.equal(pixels(clean.train), pixels(changed.train))
    assert int((clean.train.labels != changed.train.labels).sum()) == 100


def test_statistics_are_those_of_the_training_part():
    splits = load(DataConfig(name="synthetic", train_size=100), CPU)
    training = pixels(splits.train).double() / 255
    torch.testing.assert_close(splits.mean, training.mean((0, 2, 3)).float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(splits.std, training.std((0, 2, 3), correction=0).float(), rtol=1e-6, atol=0)


def test_a_constant_channel_is_refused():
    images = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    images[:, 1] = 7
    with pytest.raises(DataError, match="training images of cifar10 are the same throughout a channel"):
        channel_statistics(Images(images, torch.zeros(5).long()), "cifar10")


def test_the_split_is_that_of_finished_runs():
    """Where this fails, runs of equal configuration no longer train on equal data: raise depthlab.config.PROTOCOL."""
    training, validation = split_indices(DIGITS, 6, DataConfig(train_size=20))
    assert training.tolist() == GOLDEN_TRAINING
    assert validation[:8].tolist() == GOLDEN_VALIDATION
    assert noisy(torch.zeros(20).long(), 10, DataConfig(label_noise=0.5)).tolist() == GOLDEN_NOISY


GOLDEN_TRAINING = [
    5,
    286,
    409,
    540,
    798,
    900,
    911,
    970,
    990,
    1034,
    1147,
    1194,
    1213,
    1233,
    1244,
    1269,
    1304,
    1312,
    1422,
    1434,
]
GOLDEN_VALIDATION = [14, 17, 27, 30, 45, 51, 55, 62]
GOLDEN_NOISY = [6, 0, 4, 5, 0, 2, 0, 0, 0, 7, 0, 0, 0, 4, 0, 5, 5, 0, 4, 3]


class TestClasses:
    def test_parts_hold_the_images_of_these_classes_under_new_labels(self):
        whole, some = load(DataConfig(), CPU), load(DataConfig(classes=(7, 2, 4)), CPU)
        assert some.classes == ("7", "2", "4")
        everything = {name: image_set_by_label(whole, name) for name in ("training", "test")}
        for name in everything:
            found = image_set_by_label(some, name)
            assert found == {new: everything[name][old] for new, old in enumerate((7, 2, 4))}

    def test_halves_share_no_image_and_leave_none_out(self):
        halves = [load(DataConfig(classes=classes), CPU) for classes in ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9))]
        whole = load(DataConfig(), CPU)
        assert image_set(halves[0].test) + image_set(halves[1].test) == image_set(whole.test)
        assert not image_set(halves[0].test) & image_set(halves[1].test) - image_set(whole.test)
        assert sum(len(half.train) + len(half.validation) for half in halves) == len(whole.train) + len(
            whole.validation
        )

    def test_all_classes_in_order_are_no_choice(self):
        whole, all_named = load(DataConfig(), CPU), load(DataConfig(classes=tuple(range(10))), CPU)
        for part in ("train", "validation", "test"):
            one, other = getattr(whole, part), getattr(all_named, part)
            assert all(torch.equal(*pair) for pair in zip(one[:], other[:], strict=True))
        assert torch.equal(whole.mean, all_named.mean)

    def test_subsets_are_balanced_and_normalized_by_themselves(self):
        some = load(DataConfig(classes=(1, 8), train_size=101), CPU)
        assert sorted(torch.bincount(some.train.labels).tolist()) == [50, 51]
        assert torch.allclose(some.mean, (pixels(some.train).double() / 255).mean((0, 2, 3)).float())

    def test_more_images_than_there_are_of_these_classes_are_refused(self):
        """Digits are not balanced: of 1 and 3 there are more than of 0 and 8."""
        counts = torch.bincount(load(DataConfig(), CPU).test.labels)
        assert counts.min() < counts.max()
        rare = tuple(sorted(range(10), key=lambda label: int((load_all_labels() == label).sum()))[:2])
        size = DataConfig(classes=rare, validation_fraction=0.1).training_images
        with pytest.raises(DataError, match=r"data\.train_size=\d+ is more than the \d+ images that digits has"):
            load(DataConfig(classes=rare, train_size=size), CPU)


def load_all_labels() -> torch.Tensor:
    whole = load(DataConfig(), CPU)
    return torch.cat([whole.train.labels, whole.validation.labels])


def image_set_by_label(splits, name):
    parts = [splits.test] if name == "test" else [splits.train, splits.validation]
    images, labels = (torch.cat(each) for each in zip(*(part[:] for part in parts), strict=True))
    return {
        label: collections.Counter(image.numpy().tobytes() for image in images[labels == label])
        for label in labels.unique().tolist()
    }
