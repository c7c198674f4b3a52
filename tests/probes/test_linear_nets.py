"""Every probe on deep linear nets, where all of them have closed forms; computed here with numpy alone.

z_l = z_{l-1} W_l^T + b_l,  L = mean (z_L - y)^2,  delta_L = 2 (z_L - y) / (n classes)
dL/dz_l = delta_L W_L ... W_{l+1},  dL/dW_l = (dL/dz_l)^T z_{l-1}
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depthlab.config import PROBES, ModelConfig
from depthlab.nets import build, weight_layers
from depthlab.probes import Reading

Array = np.ndarray[Any, np.dtype[np.float64]]
Values = dict[tuple[int, str], float]

LR, EXAMPLES, SIZE, CLASSES = 0.3, 6, 3, 5


@dataclass(frozen=True)
class Net:
    model: nn.Module
    inputs: Tensor
    targets: Tensor

    @property
    def numbers(self) -> tuple[list[Array], list[Array], Array, Array]:
        """Weights, biases, flat inputs and targets in float64."""
        layers = [layer for _, layer in weight_layers(self.model)]
        weights = [layer.weight.detach().double().numpy().copy() for layer in layers]
        biases = [layer.bias.detach().double().numpy().copy() for layer in layers if layer.bias is not None]
        return weights, biases, self.inputs.double().flatten(1).numpy(), self.targets.double().numpy()


def linear_net(depth: int, *, gain: float = 1.3, bias: float = 0.2, dtype: torch.dtype = torch.float64) -> Net:
    config = ModelConfig(depth=depth, width=7, activation="identity", init="gaussian", sigma_w=gain, sigma_b=bias)
    model = build(config, channels=1, size=SIZE, classes=CLASSES, seed=depth).to(dtype)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(EXAMPLES, 1, SIZE, SIZE, generator=generator, dtype=dtype)
    return Net(model, inputs, torch.randn(EXAMPLES, CLASSES, generator=generator, dtype=dtype))


def closed_form(net: Net) -> Values:
    weights, biases, h, targets = net.numbers
    signals = [h]
    for weight, bias in zip(weights, biases, strict=True):
        signals.append(signals[-1] @ weight.T + bias)
    delta = 2 * (signals[-1] - targets) / targets.size
    values: Values = {}
    for depth in reversed(range(1, len(weights) + 1)):
        weight, z = weights[depth - 1], signals[depth]
        gradient = delta.T @ signals[depth - 1]
        values[depth, "backward_norm"] = frobenius(delta)
        values[depth, "grad_norm"] = frobenius(gradient)
        values[depth, "weight_norm"] = frobenius(weight)
        values[depth, "update_ratio"] = LR * frobenius(gradient) / frobenius(weight)
        values[depth, "activation_mean"] = z.sum() / z.size
        values[depth, "activation_std"] = math.sqrt(((z - z.sum() / z.size) ** 2).sum() / z.size)
        delta = delta @ weight
    return values


def frobenius(array: Array) -> float:
    return math.hypot(*array.flatten().tolist())


def measured(net: Net, *, loss: Callable[[Tensor, Tensor], Tensor] = F.mse_loss, lr: float = LR) -> Values:
    optimizer = torch.optim.SGD(net.model.parameters(), lr=lr)
    with Reading(net.model, weight_layers(net.model), PROBES) as reading:
        loss(net.model(net.inputs), net.targets).backward()  # type: ignore[no-untyped-call]
    reading.before_update()
    optimizer.step()
    optimizer.zero_grad()
    rows = reading.rows()
    assert [row.depth for row in rows] == sorted(row.depth for row in rows)
    assert all(row.layer == weight_layers(net.model)[row.depth - 1][0] for row in rows)
    return {(row.depth, row.probe): row.value for row in rows}


@pytest.mark.parametrize("depth", [2, 3, 12, 60])
def test_every_probe_in_every_layer(depth: int) -> None:
    net = linear_net(depth)
    expected = closed_form(net)
    # abs: a mean may cancel, and an update is the difference of two rounded weights
    assert measured(net) == pytest.approx(expected, rel=1e-11, abs=1e-15)
    assert {depth for depth, _ in expected} == set(range(1, depth + 1))


def test_gradients_of_1e_minus_30_in_float32() -> None:
    """Where torch's own norm of the same gradients is 0."""
    net = linear_net(12, gain=1e-3, dtype=torch.float32)
    expected, found = closed_form(net), measured(net)
    gradients = [key for key in expected if key[1] in ("grad_norm", "backward_norm")]
    for key in gradients:
        assert found[key] == pytest.approx(expected[key], rel=1e-4, abs=0)
    vanished = [key for key in gradients if 0 < expected[key] < 1e-28]
    assert len(vanished) >= 4
    F.mse_loss(net.model(net.inputs), net.targets).backward()  # type: ignore[no-untyped-call]
    assert torch.linalg.vector_norm(net.model.get_parameter("stem.linear.weight").grad) == 0


def test_gradients_beyond_1e19_in_float32() -> None:
    net = linear_net(12, gain=1.0, bias=0.0, dtype=torch.float32)
    with torch.no_grad():
        net.model.get_parameter("head.linear.weight").mul_(1e25)
    found = measured(net, loss=lambda logits, _: (logits * 1e4).sum(), lr=0.0)
    weights, _, _, targets = net.numbers
    delta = np.full(targets.shape, 1e4)
    for depth in reversed(range(1, 13)):
        assert found[depth, "backward_norm"] == pytest.approx(frobenius(delta), rel=1e-5)
        delta = delta @ weights[depth - 1]
    assert 1e26 < found[1, "grad_norm"] < math.inf


def test_loss_that_is_a_sum_reads_batch_size_times_one_that_is_a_mean() -> None:
    mean = measured(linear_net(4), lr=0.0)
    total = measured(linear_net(4), lr=0.0, loss=lambda logits, y: F.mse_loss(logits, y, reduction="sum"))
    for depth in (1, 2, 3, 4):
        for probe in ("grad_norm", "backward_norm"):
            assert total[depth, probe] == pytest.approx(EXAMPLES * CLASSES * mean[depth, probe], rel=1e-12)
