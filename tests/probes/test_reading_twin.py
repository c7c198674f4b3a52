"""Readings of depthlab's networks against a twin that knows no hooks on them: autograd.grad and numpy, in float64.

Which activation belongs to which layer is written down here by name, architecture by architecture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depthlab.config import PROBES, READ_BY_DEFAULT, ModelConfig
from depthlab.nets import Net, build, weight_layers
from depthlab.probes import Reading

Values = dict[tuple[str, str], float]

MLP: dict[str, Any] = {"family": "mlp", "width": 12}
CNN: dict[str, Any] = {"family": "cnn", "width": 4, "stages": 2}
NETS: dict[str, ModelConfig] = {
    "plain tanh": ModelConfig(**MLP, depth=7, activation="tanh", init="gaussian", sigma_w=2.5, sigma_b=0.3),
    "plain relu": ModelConfig(**MLP, depth=7),
    "plain sigmoid": ModelConfig(**MLP, depth=5, activation="sigmoid", init="gaussian", sigma_w=9.0),
    "plain gelu": ModelConfig(**MLP, depth=5, activation="gelu", norm="layer"),
    "normalized tanh": ModelConfig(**MLP, depth=6, norm="batch", activation="tanh", bias=False),
    "residual": ModelConfig(**MLP, depth=8, skip="residual", norm="batch"),
    "preactivation": ModelConfig(**MLP, depth=8, skip="preactivation", norm="rms", activation="tanh"),
    "highway": ModelConfig(**MLP, depth=8, skip="highway", activation="sigmoid", init="gaussian", sigma_w=8.0),
    "plain cnn": ModelConfig(**CNN, depth=6, norm="group"),
    "tanh cnn": ModelConfig(**CNN, depth=6, activation="tanh", init="delta_orthogonal", sigma_w=1.5),
    "residual cnn": ModelConfig(**CNN, depth=10, skip="residual", norm="batch", bias=False),
    "preactivation cnn": ModelConfig(**CNN, depth=10, skip="preactivation", norm="batch"),
    "highway cnn": ModelConfig(**CNN, depth=10, skip="highway"),
}


def make(name: str, dtype: torch.dtype = torch.float64) -> Net:
    return build(NETS[name], channels=2, size=8, classes=5, seed=3).to(dtype)


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(9, 2, 8, 8, generator=generator, dtype=torch.float64) + 0.3
    return inputs.to(dtype), torch.randint(5, (9,), generator=generator)


def own_activation(config: ModelConfig) -> dict[str, str | None]:
    """Name of each layer -> name of the activation that comes next after it, from the architectures' formulas."""
    layer = "linear" if config.family == "mlp" else "conv"
    count = config.depth - 2 if config.skip == "none" else (config.depth - 2) // 2
    blocks = [f"blocks.{block}" for block in range(count)]
    found: dict[str, str | None] = {}
    if config.skip == "preactivation":
        entries = [f"{block}.first.activation" for block in blocks] + ["head.activation"]
        found[f"stem.{layer}"] = entries[0]
        for block, following in zip(blocks, entries[1:], strict=True):
            found[f"{block}.first.{layer}"] = f"{block}.second.activation"
            found[f"{block}.second.{layer}"] = following
    else:
        found[f"stem.{layer}"] = "stem.activation"
        for block in blocks:
            if config.skip == "none":
                found[f"{block}.{layer}"] = f"{block}.activation"
            else:
                end = {"residual": f"{block}.activation", "highway": f"{block}.second.activation"}[config.skip]
                found |= {f"{block}.first.{layer}": f"{block}.first.activation", f"{block}.second.{layer}": end}
    return {**found, "head.linear": None}


@dataclass
class Trace:
    """What every module of one forward pass was given, and gave."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def traced(model: nn.Module) -> Iterator[Trace]:
    """Wraps each module's `forward` itself, where the instrument uses hooks."""
    trace = Trace()

    def wrap(name: str, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def recorded(x: Tensor) -> Tensor:
            trace.inputs[name], trace.outputs[name] = x, forward(x)
            return trace.outputs[name]

        return recorded

    modules = dict(model.named_modules())
    for name, module in modules.items():
        module.forward = wrap(name, module.forward)
    try:
        yield trace
    finally:
        for module in modules.values():
            del module.forward


def twin(model: Net, config: ModelConfig, lr: float) -> Values:
    """All numbers of one plain SGD update, in float64."""
    inputs, labels = batch()
    names = list(own_activation(config))
    weights = [model.get_parameter(f"{name}.weight") for name in names]
    with traced(model) as trace:
        loss = F.cross_entropy(model(inputs), labels)
    signals = [trace.outputs[name] for name in names]
    gradients = torch.autograd.grad(loss, [*signals, *weights])
    values: Values = {}
    for position, (name, activation) in enumerate(own_activation(config).items()):
        weight, gradient = array(weights[position]), array(gradients[len(names) + position])
        values[name, "backward_norm"] = root_of_squares(array(gradients[position]))
        values[name, "grad_norm"] = root_of_squares(gradient)
        values[name, "weight_norm"] = root_of_squares(weight)
        values[name, "update_ratio"] = lr * root_of_squares(gradient) / root_of_squares(weight)
        own = array(trace.outputs[activation or name])
        values[name, "activation_mean"] = own.sum() / own.size
        values[name, "activation_std"] = math.sqrt(((own - own.sum() / own.size) ** 2).sum() / own.size)
        if activation:
            values[name, "activation_sparsity"] = (own == 0).sum() / own.size
        if activation and config.activation in ("tanh", "sigmoid"):
            centred = own if config.activation == "tanh" else 2 * own - 1  # by the output, not by the pre-activation
            assert np.allclose(own, array(model.get_submodule(activation)(trace.inputs[activation])))
            values[name, "saturation"] = (np.abs(centred) > 0.95).sum() / own.size
        if activation and config.activation == "relu":
            values[name, "dead_fraction"] = sum(not own[:, unit].any() for unit in range(own.shape[1])) / own.shape[1]
    return values


def array(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    return tensor.detach().double().numpy()


def root_of_squares(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    return math.sqrt((values * values).sum())


def measured(model: Net, lr: float, inputs: Tensor, labels: Tensor) -> Values:
    layers = weight_layers(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with Reading(model, layers, PROBES) as reading:
        F.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
    reading.before_update()
    optimizer.step()
    optimizer.zero_grad()
    rows = reading.rows()
    assert [row.depth for row in rows] == sorted(row.depth for row in rows)
    assert {(row.depth, row.layer) for row in rows} == {(i + 1, name) for i, (name, _) in enumerate(layers)}
    assert all(math.isfinite(row.value) for row in rows)
    assert len({(row.layer, row.probe) for row in rows}) == len(rows)
    return {(row.layer, row.probe): row.value for row in rows}


@pytest.mark.parametrize("name", NETS)
def test_every_number_of_every_layer(name: str) -> None:
    expected = twin(make(name), NETS[name], lr=0.1)
    # abs: means may cancel, and updates are differences of rounded weights
    assert measured(make(name), 0.1, *batch()) == pytest.approx(expected, rel=1e-10, abs=1e-15)


@pytest.mark.parametrize("name", ["plain tanh", "residual", "highway cnn"])
def test_float32_net_reads_its_float64_twin(name: str) -> None:
    expected = twin(make(name), NETS[name], lr=0.1)
    found = measured(make(name, torch.float32), 0.1, *batch(torch.float32))
    counts = ("saturation", "dead_fraction")  # one entry at the edge may fall on either side
    for key, value in expected.items():
        close = pytest.approx(value, abs=0.02) if key[1] in counts else pytest.approx(value, rel=2e-4, abs=1e-6)
        assert found[key] == close, key


@pytest.mark.parametrize("name", NETS)
def test_depth_counts_weight_layers_without_gates(name: str) -> None:
    rows = measured(make(name), 0.1, *batch())
    layers = list(dict.fromkeys(layer for layer, _ in rows))
    assert layers == list(own_activation(NETS[name]))
    assert len(layers) == NETS[name].depth


def test_saturation_and_dead_units_are_seen_at_all() -> None:
    """So that the comparisons above are not of zeros."""
    for name in ("plain tanh", "plain sigmoid", "highway", "tanh cnn"):
        shares = [value for (_, probe), value in measured(make(name), 0.1, *batch()).items() if probe == "saturation"]
        assert len(shares) == NETS[name].depth - 1
        assert any(0.02 < share < 0.98 for share in shares), name
    dead = [
        value for (_, probe), value in measured(make("plain relu"), 0.1, *batch()).items() if probe == "dead_fraction"
    ]
    assert any(0 < share < 1 for share in dead)


@pytest.mark.parametrize(
    ("name", "layer", "last", "units"),
    [
        ("plain relu", "blocks.2.linear", "blocks.2.linear", 12),
        ("plain cnn", "blocks.2.conv", "blocks.2.norm", 8),
        ("residual", "blocks.1.first.linear", "blocks.1.first.norm", 12),
    ],
)
def test_planted_dead_units(name: str, layer: str, last: str, units: int) -> None:
    """`last` is what comes right before the layer's activation; its bias holds all units but two below zero."""
    before, model = measured(make(name), 0.0, *batch()), make(name)
    with torch.no_grad():
        bias = model.get_parameter(f"{last}.bias")
        bias.fill_(-1e3)
        bias[:2] = 1e3
    assert before[layer, "dead_fraction"] < 0.5
    assert measured(model, 0.0, *batch())[layer, "dead_fraction"] == pytest.approx((units - 2) / units, rel=1e-12)


def test_planted_saturation() -> None:
    model = make("plain tanh")
    with torch.no_grad():
        bias = model.get_parameter("blocks.1.linear.bias")
        model.get_parameter("blocks.1.linear.weight").mul_(1e-12)
        bias.copy_(torch.tensor([1.83, -1.83, 1.84, -1.84, 0.0, 5.0, -5.0, 0.1, 0.2, 0.3, 0.4, 0.5]))
    assert measured(model, 0.0, *batch())["blocks.1.linear", "saturation"] == pytest.approx(4 / 12, rel=1e-12)


def test_head_has_the_spread_of_the_logits_and_no_activation() -> None:
    rows = measured(make("plain tanh"), 0.1, *batch())
    logits = array(make("plain tanh")(batch()[0]))
    assert {probe for layer, probe in rows if layer == "head.linear"} == set(READ_BY_DEFAULT) - {
        "saturation",
        "dead_fraction",
    }
    assert rows["head.linear", "activation_mean"] == pytest.approx(logits.mean(), rel=1e-12)
    assert rows["head.linear", "activation_std"] == pytest.approx(logits.std(), rel=1e-12)
