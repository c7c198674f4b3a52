"""Data sets that need no file and no network."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depthlab.config import DATASETS
from depthlab.data.prepared import Prepared

SPIRAL_TURNS = 3
SPIRAL_REACH = 0.92  # of the square: what noise adds stays inside
SPIRAL_NOISE = 0.02


def digits() -> Prepared:
    """scikit-learn's handwritten digits, 8 x 8 grey pixels scaled from 0..16 to 0..255; every fifth image is test.

    Images of one writer lie together, so that taking every fifth gives training and test the same writers: a test
    accuracy on them says less than one on MNIST.
    """
    table = _digits_table()
    images = np.rint(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = table[:, -1].astype(np.int64)
    test = np.arange(len(labels)) % 5 == 4
    names = tuple(str(digit) for digit in range(10))
    return Prepared(images[~test], labels[~test], images[test], labels[test], names)


def _digits_table() -> NDArray[np.float64]:
    """(1797, 65): 64 pixels and the label, from the file of scikit-learn, whose import would take a second."""
    path = metadata.distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    try:
        return np.loadtxt(str(path), delimiter=",")
    except FileNotFoundError:  # a release that keeps it elsewhere
        from sklearn.datasets import load_digits  # noqa: PLC0415

        bunch = load_digits()
        return np.column_stack([bunch.data, bunch.target])


def synthetic() -> Prepared:
    """Smooth random patterns, one a class, moved about and buried in noise: 8 x 8 colour pixels, always the same."""
    facts = DATASETS["synthetic"]
    random = np.random.default_rng(0)
    coarse = random.standard_normal((facts.classes, 3, 3, facts.channels))
    smooth = _interpolation(facts.size, 3)
    patterns = np.einsum("ia,jb,kabc->kijc", smooth, smooth, coarse)

    def draw(count: int) -> tuple[NDArray[np.uint8], NDArray[np.integer[Any]]]:
        labels = np.arange(count) % facts.classes
        moves = random.integers(-1, 2, size=(count, 2))
        images = np.stack([np.roll(patterns[label], move, (0, 1)) for label, move in zip(labels, moves, strict=True)])
        images = 128 + 32 * images + 64 * random.standard_normal(images.shape)
        return np.rint(images.clip(0, 255)).astype(np.uint8), labels

    names = tuple(f"pattern {label}" for label in range(facts.classes))
    return Prepared(*draw(facts.train), *draw(facts.test), names)


def spirals() -> Prepared:
    """Points on two interleaved spirals, a class each, always the same: images of one pixel, with channels x and y.

    (x, y) = 0.92 r (cos a, sin a) + noise, a = 6 pi r + pi label: three turns, in the square from -1 to 1. r^2 is
    uniform in 0..1 and the noise Gaussian of standard deviation 0.02; neighbouring arms are 0.15 apart (after Lang &
    Witbrock 1988, who had no noise). A coordinate has the 256 values of a pixel, -1 being 0 and 1 being 255.
    """
    facts = DATASETS["spirals"]
    random = np.random.default_rng(0)

    def draw(count: int) -> tuple[NDArray[np.uint8], NDArray[np.integer[Any]]]:
        labels = np.arange(count) % facts.classes
        radius = np.sqrt(random.uniform(size=count))  # points lie as dense outside as inside
        angle = 2 * np.pi * SPIRAL_TURNS * radius + np.pi * labels
        points = SPIRAL_REACH * radius * np.stack([np.cos(angle), np.sin(angle)])
        points += SPIRAL_NOISE * random.standard_normal(points.shape)
        pixels = np.rint(127.5 * (1 + points.clip(-1, 1))).astype(np.uint8)
        return pixels.T.reshape(count, facts.size, facts.size, facts.channels), labels

    return Prepared(*draw(facts.train), *draw(facts.test), ("first arm", "second arm"))


def _interpolation(size: int, points: int) -> NDArray[np.float64]:
    """(size, points): the weights of linear interpolation from points to size pixels, ends on ends."""
    position = np.linspace(0, points - 1, size)
    return np.stack([np.interp(position, np.arange(points), unit) for unit in np.eye(points)], axis=1)
