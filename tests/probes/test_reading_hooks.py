"""How a reading attaches to anybody's module, and lets go of it."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depthlab.config import NORMS, PROBES, READ_BY_DEFAULT, SKIPS, ModelConfig
from depthlab.nets import build, weight_layers
from depthlab.probes import Reading


class AddInPlace(nn.Module):
    """What many published networks do: `x += y` on a layer's own output, and in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.activation(self.first(x)))
        y += x
        y *= 2
        logits: Tensor = self.head(self.activation(y))
        return logits


class AddOutOfPlace(AddInPlace):
    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.first(x)))
        logits: Tensor = self.head(F.relu((y + x) * 2))
        return logits


def layers_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def hooks_of(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def read(model: nn.Module, inputs: Tensor, probes: Any = PROBES) -> dict[tuple[str, str], float]:
    with Reading(model, layers_of(model), probes) as reading:
        model(inputs).square().mean().backward()
    reading.before_update()
    return {(row.layer, row.probe): row.value for row in reading.rows()}


def twins(kind: Callable[[], nn.Module], other: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    first, second = kind().double(), other().double()
    second.load_state_dict(first.state_dict())
    return first, second


def test_in_place_operations_change_no_gradient_reading() -> None:
    torch.manual_seed(0)
    in_place, out_of_place = twins(AddInPlace, AddOutOfPlace)
    inputs = torch.randn(8, 6, dtype=torch.float64)
    found, expected = read(in_place, inputs), read(out_of_place, inputs)
    for layer in ("first", "second", "head"):
        for probe in ("grad_norm", "backward_norm", "weight_norm"):
            assert found[layer, probe] == pytest.approx(expected[layer, probe], rel=1e-12)
    assert found["first", "dead_fraction"] < 1


def test_in_place_relu_in_sequence() -> None:
    torch.manual_seed(0)

    def net(inplace: bool) -> nn.Module:
        parts = [module for _ in range(5) for module in (nn.Linear(6, 6), nn.ReLU(inplace))]
        return nn.Sequential(*parts, nn.Linear(6, 3))

    in_place, out_of_place = twins(lambda: net(True), lambda: net(False))
    inputs = torch.randn(8, 6, dtype=torch.float64)
    assert read(in_place, inputs) == read(out_of_place, inputs)


def test_hooks_are_there_inside_and_gone_outside() -> None:
    model = AddInPlace()
    with Reading(model, layers_of(model), PROBES):
        assert hooks_of(model) == 4
    assert hooks_of(model) == 0


def test_own_hooks_of_the_user_survive() -> None:
    model, calls = AddInPlace(), []
    model.first.register_forward_hook(lambda *_: calls.append(1))
    read(model, torch.randn(2, 6))
    model(torch.randn(2, 6))
    assert hooks_of(model) == 1
    assert len(calls) == 2


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_hooks_are_gone_after_an_exception(where: str) -> None:
    model = AddInPlace()
    with pytest.raises(RuntimeError), Reading(model, layers_of(model), PROBES):  # noqa: PT012
        logits = model(torch.randn(2, 6 if where == "backward" else 5))
        logits.backward()  # not a scalar
    assert hooks_of(model) == 0
    assert model(torch.randn(2, 6)).shape == (2, 3)


def test_only_what_was_asked_for() -> None:
    for probe in PROBES:
        assert {name for _, name in read(AddInPlace(), torch.randn(4, 6), [probe])} <= {probe}
    assert read(AddInPlace(), torch.randn(4, 6), []) == {}


def test_a_probe_alone_reads_what_it_reads_among_all() -> None:
    def update(probes: Sequence[str]) -> dict[tuple[str, str], float]:
        torch.manual_seed(0)
        model = AddInPlace()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with Reading(model, layers_of(model), probes) as reading:
            model(torch.randn(4, 6)).square().mean().backward()
        reading.before_update()
        optimizer.step()
        return {(row.layer, row.probe): row.value for row in reading.rows()}

    together = update(PROBES)
    assert together["first", "update_ratio"] > 0
    for probe in PROBES:
        assert update([probe]) == {place: value for place, value in together.items() if place[1] == probe}


def test_only_the_first_activation_after_a_layer_is_its_own() -> None:
    model = nn.Sequential(nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.ReLU(), nn.Sigmoid(), nn.Linear(6, 3))
    inputs = torch.randn(8, 6)
    found = read(model, inputs)
    assert found["1", "activation_mean"] == pytest.approx(model[:3](inputs).double().mean().item(), rel=1e-12)
    assert found["1", "saturation"] == pytest.approx((model[:3](inputs).abs() > 0.95).double().mean().item())
    assert ("1", "dead_fraction") not in found


def test_layer_without_gradient_has_the_other_numbers() -> None:
    model = AddInPlace()
    model.first.requires_grad_(False)
    found = read(model, torch.randn(4, 6))
    assert {probe for layer, probe in found if layer == "first"} == {
        "weight_norm", "update_ratio", "activation_mean", "activation_std", "activation_sparsity", "dead_fraction",
    }  # fmt: skip
    assert found["first", "update_ratio"] == 0


def test_forward_pass_alone_reads_activations() -> None:
    model = AddInPlace()
    with torch.no_grad(), Reading(model, layers_of(model), READ_BY_DEFAULT) as reading:
        model(torch.randn(4, 6))
    assert {row.probe for row in reading.rows()} == {"activation_mean", "activation_std", "dead_fraction"}


def test_not_a_number_is_read_and_not_hidden() -> None:
    model = AddInPlace()
    with torch.no_grad():
        model.second.weight[0, 0] = math.nan
    found = read(model, torch.rand(4, 6))
    assert math.isnan(found["second", "weight_norm"])
    assert math.isnan(found["second", "activation_mean"])
    assert math.isfinite(found["first", "activation_mean"])


def test_misuse_is_named() -> None:
    model = AddInPlace()
    with pytest.raises(ValueError, match=r"grad_norms.*must be one of grad_norm, .*did you mean grad_norm"):
        Reading(model, layers_of(model), ["grad_norms"])
    with pytest.raises(ValueError, match="layer 'other' is no part of the model"):
        Reading(model, [("other", nn.Linear(2, 2))], PROBES)
    with pytest.raises(TypeError, match="ReLU has no weight"):
        Reading(model, [("activation", model.activation)], PROBES)


@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("family", ["mlp", "cnn"])
def test_every_network_of_depthlab_reads_finite_numbers_in_depth_order(family: str, norm: str, skip: str) -> None:
    config = ModelConfig(family=family, depth=8, width=4, norm=norm, skip=skip, dropout=0.1)
    model = build(config, channels=1, size=8, classes=3, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Reading(model, weight_layers(model), PROBES) as reading:
        F.cross_entropy(model(torch.randn(6, 1, 8, 8)), torch.arange(6) % 3).backward()  # type: ignore[no-untyped-call]
    reading.before_update()
    optimizer.step()
    rows = reading.rows()
    every = {"grad_norm", "weight_norm", "update_ratio", "backward_norm", "activation_mean", "activation_std"}
    assert [(row.depth, row.probe) for row in rows] == sorted((row.depth, row.probe) for row in rows)
    assert {row.probe for row in rows if row.depth == 8} == every
    for depth in range(1, 8):
        assert {row.probe for row in rows if row.depth == depth} == every | {"dead_fraction", "activation_sparsity"}
    assert all(math.isfinite(row.value) for row in rows)
    assert hooks_of(model) == 0


def test_no_tensor_is_kept_for_each_number() -> None:
    """They would lie between activations, and part the room that these leave: gigabytes of ten thousand layers."""
    model = build(ModelConfig(depth=30, width=4), channels=1, size=8, classes=10, seed=0)

    def tensors_after_reading(probes: Sequence[str]) -> int:
        with Reading(model, weight_layers(model), probes) as reading:
            model(torch.ones(5, 1, 8, 8)).sum().backward()
        reading.before_update()
        gradients = [weight.grad for weight in model.parameters()]
        found = sum(issubclass(type(each), Tensor) for each in gc.get_objects())
        assert len(gradients) == 60
        assert len(reading.rows()) >= 30 * len(probes) - 2
        return found

    assert tensors_after_reading([]) == tensors_after_reading(["activation_mean", "backward_norm", "grad_norm"])
