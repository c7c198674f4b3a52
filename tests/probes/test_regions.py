"""Linear regions against closed forms, against activation patterns on a fine grid, and of nets made by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from depthlab.config import ModelConfig
from depthlab.nets import build
from depthlab.probes import linear_regions
from depthlab.theory import arrangement_regions, expected_regions

LOW, HIGH = (-1.5, -1.0), (1.0, 2.0)


def net(seed: int = 0, **factors: Any) -> nn.Module:
    config = ModelConfig(**{"init": "gaussian", "sigma_b": 0.5, **factors})
    return build(config, channels=2, size=1, classes=2, seed=seed)


def area(polygon: np.ndarray) -> float:
    x, y = polygon.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def sides(model: nn.Module, points: Tensor) -> Tensor:
    """Which side of its kink each hidden unit is on, (points, units): from hooks on the activations."""
    seen: list[Tensor] = []
    handles = [
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0] > 0))
        for module in model.modules()
        if isinstance(module, nn.ReLU | nn.LeakyReLU)
    ]
    with torch.no_grad():
        model(points[:, :, None, None])
    for handle in handles:
        handle.remove()
    return torch.cat(seen, dim=1)


def patterns_on_grid(model: nn.Module, count: int) -> int:
    along = [torch.linspace(low, high, count, dtype=torch.float64) for low, high in zip(LOW, HIGH, strict=True)]
    found = sides(model.double(), torch.cartesian_prod(*along)).numpy()
    return len(np.unique(np.packbits(found, axis=1), axis=0))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_one_hidden_layer_is_an_arrangement_of_lines(seed: int, activation: str) -> None:
    """1 + lines that cross the rectangle + crossings inside it, counted by linear algebra."""
    model = net(seed, depth=2, width=30, activation=activation, sigma_b=1.5)
    layer = model.get_submodule("stem.linear")
    normals, offsets = (tensor.detach().double().numpy() for tensor in layer.parameters())
    corners = np.array(list(itertools.product(*zip(LOW, HIGH, strict=True))))
    side = corners @ normals.T + offsets > 0
    lines = np.flatnonzero(side.any(axis=0) & ~side.all(axis=0))
    crossings = [np.linalg.solve(normals[[i, j]], -offsets[[i, j]]) for i, j in itertools.combinations(lines, 2)]
    inside = sum(bool((np.array(LOW) < x).all() and (x < HIGH).all()) for x in crossings)
    assert 0 < len(lines) < 30
    assert len(linear_regions(model, LOW, HIGH)) == arrangement_regions(len(lines), inside)


@pytest.mark.parametrize("activation", ["relu", "very_leaky_relu"])
@pytest.mark.parametrize("depth", [2, 3, 6])
def test_small_nets_have_as_many_as_a_fine_grid_sees(depth: int, activation: str) -> None:
    """A grid sees at most what there is; of large regions all. Those that it misses are smaller than its cells."""
    model = net(1, depth=depth, width=5, activation=activation)
    regions = linear_regions(model, LOW, HIGH)
    seen = patterns_on_grid(model, 900)
    cell = (HIGH[0] - LOW[0]) * (HIGH[1] - LOW[1]) / 899**2
    large = sum(area(polygon) > 200 * cell for polygon in regions)
    assert large <= seen <= len(regions)
    assert seen >= 0.95 * len(regions)
    assert len(regions) > 10


@pytest.mark.parametrize("depth", [2, 4, 9])
def test_regions_fill_the_rectangle_and_each_has_a_pattern_of_its_own(depth: int) -> None:
    model = net(2, depth=depth, width=8, activation="leaky_relu", bias=True)
    regions = linear_regions(model, LOW, HIGH)
    areas = np.array([area(polygon) for polygon in regions])
    assert (areas > 0).all()
    assert areas.sum() == pytest.approx((HIGH[0] - LOW[0]) * (HIGH[1] - LOW[1]), rel=1e-12)
    centres = torch.from_numpy(np.array([polygon.mean(axis=0) for polygon in regions]))
    assert len(np.unique(sides(model.double(), centres).numpy(), axis=0)) == len(regions)


def test_the_net_is_linear_in_every_region() -> None:
    model = net(3, depth=4, width=6).double()
    for polygon in linear_regions(model, LOW, HIGH):
        points = torch.from_numpy(np.concatenate([polygon, polygon.mean(axis=0, keepdims=True)]))
        with torch.no_grad():
            outputs = model(points[:, :, None, None])
        assert torch.allclose(outputs[-1], outputs[:-1].mean(dim=0), atol=1e-9)


@pytest.mark.parametrize("layers", [1, 2, 5, 9])
def test_a_composed_tent_map_folds_each_layer_in_two(layers: int) -> None:
    """t(x) = 2 relu(x) - 4 relu(x - 1/2), applied to the first input alone (Telgarsky 2015): 2^layers regions."""
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    first.weight.data = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    second.weight.data = torch.tensor([[2.0, -4.0], [2.0, -4.0]])
    first.bias.data = second.bias.data = torch.tensor([0.0, -0.5])
    hidden = [module for layer in [first, *[second] * (layers - 1)] for module in (layer, nn.ReLU())]
    # each layer a module of its own, as modules() shows one that is used twice only once
    model = nn.Sequential(*[_copied(module) for module in hidden], nn.Linear(2, 1))
    assert len(linear_regions(model, (0, 0), (1, 1))) == 2**layers


def _copied(module: nn.Module) -> nn.Module:
    copy = nn.Linear(2, 2) if isinstance(module, nn.Linear) else nn.ReLU()
    copy.load_state_dict(module.state_dict())
    return copy


def test_without_biases_lines_of_the_first_layer_make_a_fan() -> None:
    """All lines meet in one point, a corner of every region: two sectors a line."""
    model = net(0, depth=2, width=25, sigma_b=0.0)
    assert len(linear_regions(model, LOW, HIGH)) == 50


def test_a_line_through_a_corner_or_along_an_edge_cuts_as_often_as_it_should() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    model[0].weight.data = torch.tensor([[1.0, -1.0], [1.0, 0.0]])
    model[0].bias.data = torch.tensor([0.0, 1.0])  # the diagonal, and the left edge
    assert len(linear_regions(model, (-1, -1), (1, 1))) == 2


def test_units_that_are_off_everywhere_cut_nothing() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
    model[0].bias.data.fill_(-100)
    assert len(linear_regions(model, (-1, -1), (1, 1))) == 1


def test_counting_leaves_the_net_as_it_was_and_dropout_out() -> None:
    model = net(0, depth=4, width=6, dropout=0.5)
    model.get_submodule("stem").eval()
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    without = net(0, depth=4, width=6)
    assert len(linear_regions(model, LOW, HIGH)) == len(linear_regions(without, LOW, HIGH))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(("activation", "slope"), [("relu", 0.0), ("very_leaky_relu", 1 / 5.5)])
def test_wide_random_nets_have_the_mean_that_theory_tells(activation: str, slope: float) -> None:
    """Two hidden layers, whose lines are bent; the count of one layer of 80 units would be 7 % more."""
    model = {"depth": 3, "width": 40, "sigma_w": 1.4, "sigma_b": 0.6, "activation": activation}
    counts = [len(linear_regions(net(seed, **model), (-2, -2), (2, 2))) for seed in range(6)]
    found = expected_regions([40, 40], half_side=2, sigma_w=1.4, sigma_b=0.6, negative_slope=slope)
    assert np.mean(counts) == pytest.approx(found, rel=0.05)


class Bypassed(nn.Module):
    """A net whose modules look like a chain, and which is none."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.chain(x)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (net(depth=4, width=4, skip="residual"), "it has Shortcut where"),
        (net(depth=4, width=4, norm="layer"), "it has LayerNorm where an activation is due"),
        (net(depth=4, width=4, activation="tanh"), "it has Tanh where an activation is due"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "it has Linear where an activation is due"),
        (nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), "it has ReLU where Linear is due"),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "it does not end in Linear"),
        (nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)), "it has 3 inputs"),
        (Bypassed(), "its layers, run one after the other, differ from it by"),
    ],
)
def test_other_nets_are_refused(model: nn.Module, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"of plain nets of two inputs.*{reason}"):
        linear_regions(model, LOW, HIGH)


def test_corners_must_span_a_rectangle() -> None:
    with pytest.raises(ValueError, match=r"low and high must be two corners .* given \(1, 1\) and \(1, 2\)"):
        linear_regions(net(depth=2), (1, 1), (1, 2))
