"""The cumulative histogram of weights against numpy's, and against the formula for Gaussian weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from depthlab.config import ModelConfig
from depthlab.nets import build, weight_layers
from depthlab.probes import DISTRIBUTION, statistics, weight_distribution


def test_edges_are_zero_and_half_decades():
    edges = list(DISTRIBUTION.values())
    assert edges[0] == 0
    assert np.log10(edges[1:]) == pytest.approx(np.arange(-8, 1.5, 0.5))
    for name, edge in DISTRIBUTION.items():
        exponent = name.partition("1e")[2]
        assert edge == (10 ** float(exponent) if exponent else 0)


def test_differences_are_numpys_histogram_of_each_layer():
    model = build(ModelConfig(family="cnn", depth=8, width=4), channels=3, size=8, classes=5, seed=0)
    layers = weight_layers(model)
    with torch.no_grad():
        for _, layer in layers:
            layer.weight.mul_(10 ** torch.linspace(-9, 2, layer.weight.numel()).view_as(layer.weight))
            layer.weight.view(-1)[:3] = torch.tensor([0.0, -0.0, 1e-30])
    rows = weight_distribution(layers)
    assert [row.layer for row in rows[:: len(DISTRIBUTION)]] == [name for name, _ in layers]
    for depth, (name, layer) in enumerate(layers, start=1):
        shares = [row.value for row in rows if row.layer == name]
        assert {row.depth for row in rows if row.layer == name} == {depth}
        sizes = layer.weight.detach().abs().double().numpy().ravel()
        counts, _ = np.histogram(sizes, bins=[-1, *np.nextafter(list(DISTRIBUTION.values()), np.inf)])
        assert np.diff([0, *shares]) * len(sizes) == pytest.approx(counts, abs=1e-6)
        assert shares[0] == float(statistics.sparsity(layer.weight)) > 0


def test_gaussian_weights_follow_the_error_function():
    layer = nn.Linear(1000, 300)
    torch.nn.init.normal_(layer.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    for row in weight_distribution([("layer", layer)]):
        expected = math.erf(DISTRIBUTION[row.probe] / 0.05 / math.sqrt(2))
        assert row.value == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / 300_000) + 1e-12)


def test_weights_that_are_no_number_are_beyond_every_edge():
    layer = nn.Linear(4, 1)
    layer.weight.data = torch.tensor([[0.0, math.nan, math.inf, 1.0]])
    shares = [row.value for row in weight_distribution([("layer", layer)])]
    assert shares[0] == 0.25
    assert shares[-1] == 0.5
