"""Nets on the plane: where their inputs lie, how large the nets are, and how many linear regions theory expects."""

from __future__ import annotations

import functools

import pandas as pd
import torch

from depthlab import data, nets, theory
from depthlab.config import DATASETS, DataConfig
from depthlab.figures.predictions import model_of


@functools.cache
def points(name: str) -> data.Splits:
    """The splits of a data set, on the CPU."""
    return data.load(DataConfig(name=name), torch.device("cpu"))


def half_side(name: str) -> float:
    """Half of the side of the square that all inputs lie in, after normalization: the mean of both coordinates."""
    return float((0.5 / points(name).std).mean())


def hidden_widths(readings: pd.DataFrame) -> list[int]:
    """The widths of the hidden layers of the net in readings of one condition."""
    model = model_of(readings)
    return [model.width] * (model.depth - 1)


def parameters(readings: pd.DataFrame) -> int:
    """How many weights and biases the net in readings of one condition has."""
    facts = DATASETS[readings["data.name"].iloc[0]]
    net = nets.build(model_of(readings), channels=facts.channels, size=facts.size, classes=facts.classes, seed=0)
    return sum(parameter.numel() for parameter in net.parameters())


def predicted_regions(readings: pd.DataFrame) -> float:
    """Mean number of linear regions of random nets as that of one condition, wide in theory, where its inputs lie.

    See `theory.expected_regions`; the square is that of all pixel values, normalized as the data set is.
    """
    sigma_w, sigma_b = nets.scales(model_of(readings))
    side = half_side(readings["data.name"].iloc[0])
    return theory.expected_regions(hidden_widths(readings), half_side=side, sigma_w=sigma_w, sigma_b=sigma_b)
