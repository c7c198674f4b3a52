"""Which activation is whose: the first after a layer, in its own pass."""

from __future__ import annotations

import pytest
import torch
from loop import IN, OUT, WIDTH, batch, mlp, train, values, watching
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD


def test_bounded_activations_are_seen_to_saturate() -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight *= 20
    table = train(model, steps=1)
    z = F.linear(batch()[0].double(), 20 * mlp()[0].weight.double(), mlp()[0].bias.double())
    expected = (z.tanh().abs() > 0.95).double().mean().item()
    assert 0 < expected < 1
    assert values(table, "saturation") == {(0, "0"): pytest.approx(expected)}


def test_only_the_first_activation_after_a_layer_is_its_own() -> None:
    model = nn.Sequential(nn.Linear(IN, WIDTH), nn.Tanh(), nn.ReLU(), nn.Linear(WIDTH, OUT))
    z = model[0](batch()[0]).detach().double()
    table = train(model, steps=1)
    assert values(table, "activation_std")[0, "0"] == pytest.approx(z.tanh().std(correction=0).item(), rel=1e-6)
    assert values(table, "dead_fraction") == {}


class ActivatedElsewhere(nn.Module):
    """Relus of the data, and of what a layer that is no parameter makes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(IN, WIDTH), nn.Linear(WIDTH, OUT)
        self.register_buffer("fixed", torch.randn(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(F.relu(x))
        return self.head(F.relu(F.linear(x, self.fixed)))


def test_an_activation_of_what_is_no_layers_is_read_of_none() -> None:
    """Nor, in the second micro-batch, of the head of the first."""
    model = ActivatedElsewhere()
    optimizer = SGD(model.parameters(), lr=0.1)
    with watching(model, optimizer) as watcher:
        for part in range(2):
            F.mse_loss(model(batch(part)[0]), batch(part)[1]).backward()
        optimizer.step()
    table = watcher.table()
    assert values(table, "dead_fraction") == {}
    assert {layer for _, layer in values(table, "activation_std")} == {"first", "head"}


def test_a_layer_that_has_an_activation_now_and_then_is_read_with_and_without() -> None:
    class Wavering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.step = nn.Linear(IN, OUT), 0
            self.given: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            self.step += 1
            z = self.layer(x)
            self.given.append(z.tanh() if self.step in (1, 4) else z)
            return self.given[-1]

    model = Wavering()
    found = values(train(model, steps=5, probes=("weight_norm", "activation_std")), "activation_std")
    expected = [given.detach().double().std(correction=0).item() for given in model.given]
    # at a first step without it nothing was sampled, in the belief that there would be one
    assert found == {(step, "layer"): pytest.approx(expected[step], rel=1e-6) for step in (0, 2, 3)}
