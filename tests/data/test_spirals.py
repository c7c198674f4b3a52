"""Two spirals: where the points lie, and that they come through the data room as points of a plane."""

import numpy as np
import pytest
import torch

from depthlab.config import DATASETS, DataConfig
from depthlab.data import Batches, load
from depthlab.data.built_in import spirals

CPU = torch.device("cpu")


def unrolled() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance from the centre, as a part of the spiral, and the turn by which a point is off its own arm."""
    prepared = spirals()
    images, labels = prepared.train_images, prepared.train_labels
    x, y = (images.reshape(-1, 2).astype(float) / 127.5 - 1).T
    radius = np.hypot(x, y) / 0.92
    off = np.angle(np.exp(1j * (np.arctan2(y, x) - 6 * np.pi * radius - np.pi * labels))) / (2 * np.pi)
    return radius, off, labels


def test_each_class_lies_on_its_own_arm_with_little_noise():
    """At a turn's offset of half a turn lies the other class. Radial noise of 0.02 / 0.92 is 0.065 turns."""
    radius, off, _ = unrolled()
    outside = off[radius > 0.3]
    assert np.abs(outside).max() < 0.45
    assert outside.std() == pytest.approx(3 * 0.02 / 0.92, rel=0.1)
    assert abs(outside.mean()) < 0.01


def test_points_are_as_dense_outside_as_inside_and_classes_as_many():
    radius, _, labels = unrolled()
    assert np.mean(radius < 0.5) == pytest.approx(0.25, abs=0.03)
    assert np.bincount(labels).tolist() == [1000, 1000]


def test_no_point_of_the_test_set_is_drawn_with_the_training_set():
    """Some fall on the same of 256 x 256 places; a copied set would share all."""
    prepared = spirals()
    train, test = ({*map(tuple, part.reshape(-1, 2))} for part in (prepared.train_images, prepared.test_images))
    assert len(train & test) < 0.2 * len(test)
    assert np.array_equal(prepared.train_images, spirals().train_images)


def test_points_come_as_images_of_one_pixel_with_two_normalized_channels():
    config = DataConfig(name="spirals")
    splits = load(config, CPU)
    assert splits.train.pool.shape[1:] == splits.test.pool.shape[1:] == (2, 1, 1)
    assert len(splits.test) == DATASETS["spirals"].test
    inputs, labels = Batches(splits.train, config, batch_size=1800, seed=0, mean=splits.mean, std=splits.std)[0]
    assert inputs.shape == (1800, 2, 1, 1)
    assert inputs.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert inputs.std(dim=(0, 2, 3)).tolist() == pytest.approx([1, 1], abs=1e-3)
    assert set(labels.tolist()) == {0, 1}
