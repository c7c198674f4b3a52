"""Inactive units over several passes, against a count that sees all examples at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from depthlab.config import ModelConfig
from depthlab.nets import build, weight_layers
from depthlab.probes import InactiveUnits

SIZES = (5, 1, 9)


def images(count: int = sum(SIZES)) -> Tensor:
    return torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def net(**config: Any) -> nn.Module:
    return build(ModelConfig(**{"width": 8, "depth": 5, **config}), channels=2, size=8, classes=5, seed=3)


def found(model: nn.Module, passes: list[Tensor]) -> dict[str, float]:
    with torch.no_grad(), InactiveUnits(model, weight_layers(model)) as inactive:
        for each in passes:
            model(each)
    rows = inactive.rows("p")
    assert [row.depth for row in rows] == sorted(row.depth for row in rows)
    assert {row.probe for row in rows} <= {"p"}
    return {row.layer: row.value for row in rows}


def counted(model: nn.Module, inputs: Tensor) -> dict[str, float]:
    """Layer by layer of a plain net; a unit is a column of what its activation is given."""
    given: list[Tensor] = []
    x = inputs
    with torch.no_grad():
        for module in [*model.stem, *(part for block in model.blocks for part in block)]:  # type: ignore[misc, union-attr]
            if isinstance(module, (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU)):
                given.append(x)
            x = module(x)
    names = [name for name, _ in weight_layers(model)]
    units = [z.movedim(1, 0).flatten(1) for z in given]
    return {name: sum(float(unit.max()) <= 0 for unit in z) / len(z) for name, z in zip(names[:-1], units, strict=True)}


def test_units_of_a_linear_layer_are_its_last_axis() -> None:
    """As in a transformer, where tokens come before units."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2))
    with torch.no_grad():
        model[0].bias[:2] = -100.0
    tokens = torch.randn(3, 7, 4)
    assert found(model, [tokens[:1], tokens[1:]])["0"] == 2 / 6


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu", "selu", "gelu", "silu"])
@pytest.mark.parametrize(
    "factors", [{}, {"norm": "layer"}, {"family": "cnn", "depth": 6, "width": 4, "stages": 2}], ids=str
)
def test_passes_count_as_one_window(activation: str, factors: dict[str, Any]) -> None:
    model = net(activation=activation, **factors)
    with torch.no_grad():
        for _, layer in weight_layers(model)[:-1]:
            assert layer.bias is not None
            layer.bias -= 1.5  # so that some units are inactive
    values = found(model, list(images().split(list(SIZES))))
    assert values == pytest.approx(counted(model, images()))
    if not factors:
        assert any(0 < value < 1 for value in values.values())


def test_one_example_wakes_a_unit() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
    asleep, awake = torch.tensor([[-1.0, 0.0]] * 4), torch.tensor([[-1.0, 1e-30]])
    for passes, share in (([asleep, asleep], 1.0), ([asleep, awake, asleep], 0.5), ([awake, -awake], 0.0)):
        with InactiveUnits(model, [("0", model[0]), ("2", model[2])]) as inactive:
            for each in passes:
                model(each)
        assert [(row.layer, row.depth, row.value) for row in inactive.rows("p")] == [("0", 1, share)]


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "identity"])
def test_two_sided_activations_have_no_inactive_units(activation: str) -> None:
    assert found(net(activation=activation), [images()]) == {}


def test_only_the_first_activation_after_a_layer_is_its_own() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Linear(3, 4), nn.Tanh(), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    with InactiveUnits(model, [("1", model[1]), ("4", model[4])]) as inactive:
        model(torch.randn(5, 3))
    assert [row.layer for row in inactive.rows("p")] == ["4"]


def test_hooks_are_gone_afterwards_whatever_happens() -> None:
    model = net()
    found(model, [images()])
    with pytest.raises(RuntimeError), InactiveUnits(model, weight_layers(model)):
        model(torch.randn(2, 3))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
