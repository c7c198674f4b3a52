"""Measuring once: against closed forms and float64 twins, and nothing of the model is different afterwards.

What float64 twins allow: outputs and gradients of these nets agree with their float64 copies within 5e-6 relative (2e-4
for a mean that cancels), through 100 layers; what does not is at the floor, and said to be.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import depthlab
from depthlab import probes
from depthlab.config import ModelConfig
from depthlab.nets import build
from depthlab.probes import PROBES, Measured, effective_rank, example_cosine, measure, signal_to_noise

NOT_MEASURED = {"update_norm", "update_ratio", "grad_cosine"}
NAMES = [name for name in PROBES if name not in NOT_MEASURED]
OF_GRADIENTS = ["grad_norm", "grad_rms", "grad_std", "backward_norm", "backward_rms"]

Net = nn.Sequential
Values = dict[tuple[int, str], float]


def linear_net(depth: int = 6, width: int = 7, gain: float = 1.3) -> Net:
    net = nn.Sequential(*(nn.Linear(5 if index == 0 else width, width) for index in range(depth))).double()
    for layer in net:
        nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.weight.shape[1]))
    return net


def healthy_net() -> Net:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()),
        *(nn.Dropout(0.4), nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 20), nn.Sigmoid(), nn.Linear(20, 3)),
    )


def images(count: int = 12, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def loss_of(model: nn.Module, inputs: Tensor) -> Callable[[], Tensor]:
    return lambda: F.cross_entropy(model(inputs), torch.arange(len(inputs)) % 3)


def sigmoid_net(depth: int, width: int = 100) -> nn.Module:
    config = ModelConfig(family="mlp", depth=depth, width=width, activation="sigmoid", init="torch_default")
    return build(config, channels=1, size=28, classes=10, seed=0)


def digits(count: int = 50) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(count) % 10


def valued(rows: Iterable[Measured]) -> Values:
    return {(row.depth, row.probe): row.value for row in rows}


# Values


def closed_form(net: Net, inputs: Tensor, targets: Tensor) -> Values:
    """dL/dz_l = dL/dz_L W_L ... W_{l+1}, dL/dW_l = (dL/dz_l)^T z_{l-1}, of L = mean (z_L - y)^2; in numpy alone."""
    weights = [layer.weight.detach().numpy() for layer in net]
    signals = [inputs.numpy()]
    for weight, layer in zip(weights, net, strict=True):
        signals.append(signals[-1] @ weight.T + layer.bias.detach().numpy())
    delta = 2 * (signals[-1] - targets.numpy()) / targets.numel()
    values: Values = {}
    for depth in reversed(range(1, len(weights) + 1)):
        sites = {"grad": delta.T @ signals[depth - 1], "weight": weights[depth - 1], "output": signals[depth]}
        for site, array in sites.items():
            values |= {(depth, f"{site}_{name}"): number for name, number in statistics(array).items()}
            values[depth, f"{site}_rank"] = rank(array)
        values[depth, "activation_mean"] = values[depth, "output_mean"]
        values[depth, "activation_std"] = values[depth, "output_std"]
        values[depth, "activation_rank"] = values[depth, "output_rank"]
        values[depth, "activation_sparsity"] = 0.0
        values[depth, "output_cosine"] = cosine_of_pairs(signals[depth])
        values[depth, "backward_norm"] = math.sqrt((delta**2).sum())
        values[depth, "backward_rms"] = math.sqrt((delta**2).sum() / delta.size)
        delta = delta @ weights[depth - 1]
    return {key: value for key, value in values.items() if key[1] in PROBES}


def statistics(array: np.ndarray[Any, Any]) -> dict[str, float]:
    squares = (array**2).sum()
    return {
        "norm": math.sqrt(squares),
        "rms": math.sqrt(squares / array.size),
        "mean": array.sum() / array.size,
        "std": math.sqrt(squares / array.size - (array.sum() / array.size) ** 2),
        "sparsity": float((array == 0).sum() / array.size),
    }


def rank(array: np.ndarray[Any, Any]) -> float:
    shares = np.linalg.svd(array, compute_uv=False)
    shares = shares[shares > 0] / shares.sum()
    return math.exp(-(shares * np.log(shares)).sum())


def cosine_of_pairs(rows: np.ndarray[Any, Any]) -> float:
    units = rows / np.sqrt((rows**2).sum(axis=1, keepdims=True))
    pairs = units @ units.T
    return float(pairs[~np.eye(len(rows), dtype=bool)].mean())


@pytest.mark.parametrize("depth", [1, 2, 6, 25])
def test_deep_linear_nets_in_closed_form(depth: int) -> None:
    net = linear_net(depth)
    inputs, targets = torch.randn(9, 5).double(), torch.randn(9, 7).double()
    rows = measure(net, lambda: F.mse_loss(net(inputs), targets), [name for name in NAMES if name != "grad_snr"])
    expected = closed_form(net, inputs, targets)
    assert valued(rows) == pytest.approx(expected, rel=1e-9, abs=1e-14)
    assert {name for _, name in expected} == {*NAMES} - {"grad_snr", "saturation", "dead_fraction"}
    assert not any(row.at_floor for row in rows)
    assert [(row.layer, row.depth) for row in rows][:: len(rows) // depth] == [(str(k), k + 1) for k in range(depth)]


def twin(net: Net, inputs: Tensor) -> Values:
    """Every probe that measures, by plain autograd in float64, layer by layer."""
    signals: list[tuple[Tensor, Tensor, str]] = []
    weights = []
    x = inputs
    modules = list(net)
    for module, following in zip(modules, [*modules[1:], nn.Identity()], strict=True):
        x = module(x)
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            x.retain_grad()
            weights.append(module.weight)
            signals.append((x, x, ""))
        elif isinstance(module, (nn.ReLU, nn.Tanh, nn.Sigmoid)):
            signals[-1] = (signals[-1][0], x, type(module).__name__)
            before = x
        del following
    F.cross_entropy(x, torch.arange(len(x)) % 3).backward()  # type: ignore[no-untyped-call]
    values: Values = {}
    for depth, (weight, (z, h, kind)) in enumerate(zip(weights, signals, strict=True), 1):
        assert weight.grad is not None
        assert z.grad is not None
        matrices = {"grad": weight.grad, "weight": weight, "output": z, "activation": h}
        for site, tensor in matrices.items():
            array = tensor.detach().numpy()
            values |= {(depth, f"{site}_{name}"): number for name, number in statistics(array).items()}
            rows = tensor.detach() if site in ("output", "activation") else tensor.detach().flatten(1)
            rows = rows.movedim(1, -1).flatten(0, -2) if rows.ndim > 2 else rows
            values[depth, f"{site}_rank"] = rank(rows.numpy())
        values[depth, "output_cosine"] = cosine_of_pairs(z.detach().flatten(1).numpy())
        values[depth, "backward_norm"] = statistics(z.grad.numpy())["norm"]
        values[depth, "backward_rms"] = statistics(z.grad.numpy())["rms"]
        if kind == "ReLU":
            values[depth, "dead_fraction"] = float((h.detach().transpose(0, 1).flatten(1).amax(1) == 0).double().mean())
        elif kind:
            share = h.detach() if kind == "Tanh" else 2 * h.detach() - 1
            values[depth, "saturation"] = float((share.abs() > 0.95).double().mean())
    del before
    return {key: value for key, value in values.items() if key[1] in PROBES}


@pytest.mark.parametrize(("dtype", "rel"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_all_probes_of_a_net_of_many_kinds_of_layers(dtype: torch.dtype, rel: float) -> None:
    net = healthy_net().eval().double()
    with torch.no_grad():
        net[0].bias[:2] = -9.0  # dead channels
        net[5].weight.mul_(9.0)  # saturation
        net[7].weight.mul_(30.0)
    inputs = images(dtype=torch.float64)
    expected = twin(copy.deepcopy(net), inputs)
    net.to(dtype)
    rows = measure(net, loss_of(net, inputs.to(dtype)), [name for name in NAMES if name != "grad_snr"])
    assert valued(rows) == pytest.approx(expected, rel=rel, abs=rel / 100)
    assert {name for _, name in expected} == {*NAMES} - {"grad_snr"}
    for probe in ("dead_fraction", "saturation"):
        assert max(value for (_, name), value in expected.items() if name == probe) > 0.3


def test_examples_sample_outputs_but_not_gradients() -> None:
    net, inputs = linear_net(), torch.randn(9, 5).double()
    probes = ["output_rms", "output_cosine", "grad_norm", "backward_norm"]
    every, few = (
        valued(measure(net, lambda: net(inputs).square().mean(), probes, examples=count)) for count in (None, 4)
    )
    assert few[3, "grad_norm"] == every[3, "grad_norm"]
    assert few[3, "backward_norm"] == every[3, "backward_norm"]
    z = net[:3](inputs).detach()
    assert few[3, "output_cosine"] == pytest.approx(float(example_cosine(z[:4])), rel=1e-12, abs=0)
    assert every[3, "output_cosine"] == pytest.approx(float(example_cosine(z)), rel=1e-12, abs=0)
    assert every[3, "output_cosine"] != pytest.approx(few[3, "output_cosine"], rel=1e-3, abs=0)


# Several closures


def test_micro_batches_give_the_mean_loss_and_its_signal_to_noise() -> None:
    net = linear_net()
    parts = [torch.randn(4, 5).double() for _ in range(5)]
    losses = [lambda part=part: net(part).square().mean() for part in parts]
    found = measure(net, losses, ["grad_norm", "grad_std", "grad_rank", "grad_snr", "backward_norm", "output_rms"])
    found = valued(found)
    whole = torch.cat(parts)
    one = valued(measure(net, lambda: net(whole).square().mean(), ["grad_norm", "grad_std", "grad_rank"]))
    assert {key: found[key] for key in one} == pytest.approx(one, rel=1e-12, abs=0)
    alone = [torch.autograd.grad(loss(), [layer.weight for layer in net]) for loss in losses]
    for depth, gradients in enumerate(zip(*alone, strict=True), 1):
        assert found[depth, "grad_snr"] == pytest.approx(
            float(signal_to_noise(torch.stack(gradients))), rel=1e-9, abs=0
        )
        outputs = net[:depth](whole).detach()
        assert found[depth, "output_rms"] == pytest.approx(float(outputs.square().mean().sqrt()), rel=1e-12, abs=0)
    z = net[:3](whole).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(net[3:](z).square().mean(), z)
    assert found[3, "backward_norm"] == pytest.approx(float(gradient.norm()), rel=1e-12, abs=0)


def test_signal_to_noise_where_squares_of_gradients_underflow() -> None:
    net = linear_net(8, gain=1e-5)
    for layer in net:
        nn.init.zeros_(layer.bias)  # beside biases of order 1 the spread over micro-batches would be lost
    parts = [torch.randn(4, 5).double() for _ in range(4)]

    def found(model: Net, dtype: torch.dtype) -> Values:
        inputs = [part.to(dtype) for part in parts]
        losses = [lambda part=part: model(part).sum() for part in inputs]
        rows = measure(model, losses, ["grad_snr", "grad_norm"])
        assert not any(row.at_floor for row in rows)
        return valued(rows)

    expected = found(net, torch.float64)
    assert min(value for (_, name), value in expected.items() if name == "grad_norm") < 1e-25
    assert found(copy.deepcopy(net).float(), torch.float32) == pytest.approx(expected, rel=1e-4, abs=0)


def test_a_part_that_one_micro_batch_does_not_use() -> None:
    """Its gradient is that of the mean loss; a signal-to-noise ratio over some of the micro-batches it has not."""
    stem, left, right = nn.Linear(3, 3), nn.Linear(3, 1), nn.Linear(3, 1)
    net = nn.ModuleList([stem, left, right])
    x = torch.ones(2, 3)
    rows = valued(measure(net, [lambda: left(stem(x)).sum(), lambda: right(stem(x)).sum()], ["grad_norm", "grad_snr"]))
    (expected,) = torch.autograd.grad(left(stem(x)).sum(), left.weight)
    assert rows[2, "grad_norm"] == pytest.approx(float(expected.norm() / 2), rel=1e-6, abs=0)
    assert [depth for depth, name in rows if name == "grad_snr"] == [1]


# Nothing is different afterwards


class Reassigning(nn.Module):
    """Its buffers are other tensors after a pass, or tensors where there were none."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 3)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("late", None)

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + 1
        self.late = x.detach().mean()
        logits: Tensor = self.linear(x.flatten(1)) + 0 * self.count
        return logits


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    """Objects and contents of all that a training goes on from."""
    tensors = [*model.parameters(), *(parameter.grad for parameter in model.parameters())]
    tensors += [buffer for module in model.modules() for buffer in module._buffers.values()]
    tensors += [value for each in optimizer.state.values() for value in each.values() if isinstance(value, Tensor)]
    contents = [None if tensor is None else tensor.detach().numpy().tobytes() for tensor in tensors]
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) + len(module._backward_hooks) for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    return [[id(t) for t in tensors], contents, modes, hooks, flags, torch.get_rng_state().numpy().tobytes()]


def trained(model: nn.Module, *, keep_gradients: bool) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for seed in range(2):
        optimizer.zero_grad()
        loss_of(model, images(seed=seed))().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    if not keep_gradients:
        optimizer.zero_grad()
        first = next(model.parameters())
        first.grad = torch.full_like(first, 3.0)
    return optimizer


MODELS: list[Callable[[], nn.Module]] = [healthy_net, Reassigning]


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("keep_gradients", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_nothing_of_the_model_is_different_afterwards(
    make: Callable[[], nn.Module], keep_gradients: bool, training: bool
) -> None:
    model = make()
    optimizer = trained(model, keep_gradients=keep_gradients)
    model.train(training)
    before = state(model, optimizer)
    first = measure(model, loss_of(model, images()), [name for name in NAMES if name != "grad_snr"])
    second = measure(model, [loss_of(model, images(seed=seed)) for seed in (0, 1)], NAMES)
    assert state(model, optimizer) == before
    assert len(first) > 10
    assert len(second) > 10


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("after_backward", [True, False])
def test_nothing_is_different_after_an_exception(make: Callable[[], nn.Module], after_backward: bool) -> None:
    model = make()
    optimizer = trained(model, keep_gradients=True)
    before = state(model, optimizer)

    def closure() -> Tensor:
        loss = loss_of(model, images())()
        if after_backward:
            loss.backward()  # type: ignore[no-untyped-call]
        torch.rand(3)
        raise RuntimeError("out of data")

    with pytest.raises(RuntimeError, match="out of data"):
        measure(model, [loss_of(model, images()), closure], ["grad_norm", "output_rms", "backward_norm"])
    assert state(model, optimizer)[2:] == before[2:]
    # a closure that calls backward itself adds to gradients in place, as it would anywhere
    if not after_backward:
        assert state(model, optimizer) == before
    measure(model, loss_of(model, images()), ["grad_norm"])  # and it still works


def test_a_training_that_is_measured_goes_on_as_one_that_is_not() -> None:
    def weights(measured: bool) -> list[bytes]:
        torch.manual_seed(3)
        model = healthy_net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for seed in range(4):
            closure = loss_of(model, images(seed=seed))
            if measured:
                measure(model, closure, ["grad_norm", "output_std", "backward_norm"])
            optimizer.zero_grad(set_to_none=False)
            closure().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return [tensor.numpy().tobytes() for tensor in model.state_dict().values()]

    assert weights(True) == weights(False)


def test_hooks_for_accumulated_gradients_do_not_fire() -> None:
    """Users step their optimiser in them."""
    net, fired = linear_net(), []
    for layer in net:
        layer.weight.register_post_accumulate_grad_hook(fired.append)
    measure(net, lambda: net(torch.ones(2, 5).double()).sum(), ["grad_norm", "backward_norm"])
    assert fired == []
    net(torch.ones(2, 5).double()).sum().backward()
    assert len(fired) == len(net)


def test_measures_within_no_grad() -> None:
    net = linear_net()
    closure = lambda: net(torch.ones(2, 5).double()).sum()  # noqa: E731
    with torch.no_grad():
        inside = measure(net, closure, ["grad_norm"])
        assert not torch.is_grad_enabled()
    assert inside == measure(net, closure, ["grad_norm"])


def test_the_mode_is_put_back_where_the_closure_changes_it() -> None:
    net = healthy_net()

    def closure() -> Tensor:
        net.eval()
        return loss_of(net, images())()

    measure(net, closure, ["grad_norm"])
    assert all(module.training for module in net.modules())


# Dropout


def test_draws_as_the_next_training_step_would() -> None:
    net = healthy_net()
    inputs = images()
    rows = valued(measure(net, loss_of(net, inputs), ["grad_norm"]))
    loss_of(net, inputs)().backward()  # type: ignore[no-untyped-call]
    layers = [net[0], net[5], net[7], net[9]]
    assert [rows[depth, "grad_norm"] for depth in (1, 2, 3, 4)] == pytest.approx(
        [float(layer.weight.grad.norm()) for layer in layers], rel=1e-6, abs=0
    )
    other = valued(measure(net, loss_of(net, inputs), ["grad_norm"]))  # a step on: other draws
    assert other[2, "grad_norm"] != pytest.approx(rows[2, "grad_norm"], rel=1e-3, abs=0)


def test_repeated_passes_draw_the_same() -> None:
    """With dropout of its own before every layer, another draw would be another gradient."""
    depth = 70
    layers = [nn.Sequential(nn.Dropout(0.3), nn.Linear(30, 30), nn.Sigmoid()) for _ in range(depth)]
    net = nn.Sequential(*layers)
    inputs = torch.randn(8, 30)
    draws: list[bytes] = []
    net[0][0].register_forward_hook(lambda _module, _inputs, output: draws.append(output.numpy().tobytes()))
    rows = measure(net, lambda: net(inputs).sum(), ["backward_norm"])
    assert len(draws) == 2
    assert draws[0] == draws[1]
    exact = copy.deepcopy(net).double()
    with torch.random.fork_rng(devices=[]):
        # masks are drawn in the inputs' type; the twin takes those of float32
        masks = [F.dropout(torch.ones(8, 30), 0.3) for _ in net]
    x = inputs.double()
    outputs = []
    for layer, mask in zip(exact, masks, strict=True):
        z = layer[1](x * mask.double())
        outputs.append(z)
        x = layer[2](z)
    norms = [float(gradient.norm()) for gradient in torch.autograd.grad(x.sum(), outputs)]
    assert norms[0] < 1e-45
    assert [row.value for row in rows if not row.at_floor] == pytest.approx(
        [norm for norm, row in zip(norms, rows, strict=True) if not row.at_floor], rel=1e-5, abs=0
    )
    assert not any(row.at_floor for row in rows[-40:])


# The lower end of float32


def compared(depth: int, probes: list[str]) -> tuple[list[tuple[Measured, float]], int]:
    """Rows of a sigmoid net in float32 with the float64 twin's values, and how many passes were made."""
    net = sigmoid_net(depth)
    exact = copy.deepcopy(net).double()
    inputs, targets = digits()
    passes = []

    def closure() -> Tensor:
        passes.append(1)
        return F.cross_entropy(net(inputs), targets)

    rows = measure(net, closure, probes)
    truth = measure(exact, lambda: F.cross_entropy(exact(inputs.double()), targets), probes)
    assert not any(row.at_floor for row in truth)
    assert [(row.layer, row.probe) for row in rows] == [(row.layer, row.probe) for row in truth]
    return list(zip(rows, [row.value for row in truth], strict=True)), len(passes)


def test_hundred_layers_of_sigmoid_are_right_or_said_to_be_at_the_floor() -> None:
    pairs, passes = compared(100, OF_GRADIENTS)
    assert passes == 2
    for row, truth in pairs:
        if not row.at_floor:
            assert row.value == pytest.approx(truth, rel=2e-5, abs=0)
    wrong = [row for row, truth in pairs if row.value != pytest.approx(truth, rel=2e-5, abs=0)]
    assert all(row.at_floor for row in wrong)
    assert len(wrong) > 10
    # what the shift gains: 2^100, or 30 decades, beyond the 38 of the type
    smallest = min(row.value for row, _ in pairs if not row.at_floor)
    assert 1e-69 < smallest < 1e-64
    assert {row.depth for row, _ in pairs if row.at_floor} == set(range(1, 24))


def test_sixty_layers_of_sigmoid_are_right_in_every_layer() -> None:
    pairs, passes = compared(60, [name for name in NAMES if name not in ("grad_snr", "output_mean")])
    assert passes == 2
    assert not any(row.at_floor for row, _ in pairs)
    for row, truth in pairs:
        if row.probe.endswith("rank"):  # small singular values are roundings
            continue
        assert row.value == pytest.approx(truth, rel=2e-5, abs=1e-12 if row.probe == "activation_mean" else 0), row
    smallest = min(truth for row, truth in pairs if row.probe == "grad_rms")
    assert smallest < 1e-40  # below float32's normal numbers


def test_hundred_layers_wider_than_the_floor_in_double() -> None:
    """With float64 weights there is nothing to shift."""
    net = sigmoid_net(40, width=20).double()
    inputs, targets = digits()
    passes = []

    def closure() -> Tensor:
        passes.append(1)
        return F.cross_entropy(net(inputs.double()), targets)

    assert not any(row.at_floor for row in measure(net, closure, OF_GRADIENTS))
    assert len(passes) == 1


@pytest.mark.parametrize("closures", [1, 3])
def test_one_pass_where_nothing_is_at_the_floor(closures: int) -> None:
    net, calls = healthy_net(), []

    def closure() -> Tensor:
        calls.append(1)
        return loss_of(net, images())()

    rows = measure(net, [closure] * closures, [name for name in NAMES if name != "grad_snr"])
    assert not any(row.at_floor for row in rows)
    assert len(calls) == closures


def test_gradients_of_both_ends_of_the_range_in_one_net() -> None:
    """1e30 at the head and 1e-44 at the stem: no more than the headroom is taken, and the head stays finite."""
    net = nn.Sequential(*(nn.Linear(10, 10, bias=False) for _ in range(9)))
    for layer in net:
        nn.init.normal_(layer.weight, std=1e-9 / math.sqrt(10))
    exact = copy.deepcopy(net).double()
    inputs = torch.randn(4, 10)
    # z_L is about 1e-81, and so nought in float32; the head's gradient is that of the factor
    probes = ["backward_norm", "backward_rms"]
    rows = measure(net, lambda: 1e30 * net(inputs).sum(), probes)
    truth = valued(measure(exact, lambda: 1e30 * exact(inputs.double()).sum(), probes))
    assert all(math.isfinite(row.value) for row in rows)
    for row in rows:
        assert row.at_floor or row.value == pytest.approx(truth[row.depth, row.probe], rel=1e-5, abs=0)
    assert truth[9, "backward_norm"] > 1e30
    assert truth[1, "backward_norm"] < 1e-39
    assert [row.at_floor for row in rows] == [False] * 18 or all(row.at_floor for row in rows[:2])


def test_a_shift_that_overflows_within_the_pass_is_halved() -> None:
    """Gradients between the weight layers may be far larger than theirs; then a smaller shift is taken."""

    class Bulge(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient * 1e30 * 1e30 * 1e-30 * 1e-30

    first, second = nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False)
    with torch.no_grad():
        second.weight.mul_(1e-30)

    def closure() -> Tensor:
        return 1e-13 * second(Bulge.apply(first(torch.ones(2, 10)))).sum()

    net = nn.ModuleList([first, second])
    rows = measure(net, closure, ["backward_norm", "grad_norm"])
    exact = 1e-13 * second.weight.detach().double().sum(dim=0)
    assert all(math.isfinite(row.value) for row in rows)
    found = valued(rows)
    assert 1e-45 < float(exact.norm()) < 1e-42
    assert found[1, "backward_norm"] == pytest.approx(float(exact.norm()) * math.sqrt(2), rel=1e-5, abs=0)


def test_true_zeros_are_at_the_floor_too() -> None:
    """A gradient that is nought cannot be told from one that float32 has no number for."""
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].bias.fill_(-100.0)
    rows = measure(net, lambda: net(torch.ones(5, 3)).sum(), ["grad_norm", "backward_norm", "output_rms", "grad_rank"])
    assert {(row.depth, row.probe): (row.value, row.at_floor) for row in rows if row.depth == 1} == {
        (1, "grad_norm"): (0.0, True),
        (1, "backward_norm"): (0.0, True),
        (1, "grad_rank"): (0.0, True),
        (1, "output_rms"): (pytest.approx(100, rel=0.05, abs=0), False),
    }


def test_weights_are_never_at_the_floor() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    nn.init.zeros_(net[1].weight)
    rows = measure(net, lambda: net(torch.ones(5, 3)).sum(), ["weight_norm", "grad_norm"])
    assert [(row.depth, row.probe) for row in rows if row.at_floor] == [(1, "grad_norm")]


@pytest.mark.parametrize("probes", [["grad_norm"], ["grad_norm", "backward_norm"]])
def test_digits_lost_further_up_are_not_passed_on(probes: list[str]) -> None:
    """Gradients that pass through 1e-44 on their way, and are large again nearer the input."""
    net = nn.Sequential(*(nn.Linear(20, 20, bias=False) for _ in range(8)))
    for index, layer in enumerate(net):
        nn.init.normal_(layer.weight, std=(1e12 if index < 4 else 1e-11) / math.sqrt(20))
    exact = copy.deepcopy(net).double()
    inputs = torch.randn(6, 20) * 1e-29
    truth = valued(measure(exact, lambda: exact(inputs.double()).sum(), probes))
    for row in measure(net, lambda: net(inputs).sum(), probes):
        assert row.at_floor or row.value == pytest.approx(truth[row.depth, row.probe], rel=1e-4, abs=0), row


def test_a_probe_that_is_nan_costs_no_digits_of_others() -> None:
    net = sigmoid_net(100, width=30)
    inputs, targets = digits(1)  # no two examples: output_cosine is nan
    closure = lambda: F.cross_entropy(net(inputs), targets)  # noqa: E731
    alone = measure(net, closure, ["backward_norm"])
    beside = [row for row in measure(net, closure, ["backward_norm", "output_cosine"]) if row.probe == "backward_norm"]
    assert beside == alone


def test_buffers_are_the_same_in_every_pass() -> None:
    """Spectral norm takes a step of its power iteration, and so another weight, in each."""
    blocks: list[nn.Module] = []
    for _ in range(60):
        layer = nn.utils.parametrizations.spectral_norm(nn.Linear(20, 20))
        nn.init.normal_(layer.parametrizations.weight.original)  # far from where its power iteration had come
        blocks += [layer, nn.Sigmoid()]
    net = nn.Sequential(*blocks)
    exact = copy.deepcopy(net).double()
    inputs = torch.randn(8, 20)
    truth = valued(measure(exact, lambda: exact(inputs.double()).sum(), ["backward_norm"]))
    rows = measure(net, lambda: net(inputs).sum(), ["backward_norm"])
    assert truth[1, "backward_norm"] < 1e-40
    for row in rows:
        assert row.at_floor or row.value == pytest.approx(truth[row.depth, row.probe], rel=1e-4, abs=0), row


@pytest.mark.parametrize(("bias", "lost"), [(-100.0, True), (0.0, False)])
def test_activations_are_judged_by_their_own_size(bias: float, lost: bool) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2))
    nn.init.zeros_(net[0].weight)
    nn.init.constant_(net[0].bias, bias)
    row = measure(net, lambda: net(torch.ones(5, 3)).sum(), ["activation_mean"])[0]
    assert row.value == pytest.approx(1 / (1 + math.exp(-bias)), rel=1e-6, abs=0) or row.at_floor
    assert row.at_floor == lost


# What is not there, and what cannot be


def test_layers_that_are_frozen_have_no_gradient() -> None:
    net = linear_net(3)
    net[1].weight.requires_grad_(False)
    rows = valued(measure(net, lambda: net(torch.ones(2, 5).double()).sum(), ["grad_norm", "backward_norm"]))
    assert [depth for depth, name in rows if name == "grad_norm"] == [1, 3]
    assert [depth for depth, name in rows if name == "backward_norm"] == [1, 2, 3]


def test_a_gradient_left_from_before_freezing_is_not_read() -> None:
    net = linear_net(3)
    net(torch.ones(2, 5).double()).sum().backward()
    net[1].weight.requires_grad_(False)
    rows = measure(net, lambda: net(torch.ones(2, 5).double()).sum(), ["grad_norm"])
    assert [row.depth for row in rows] == [1, 3]


def test_sparse_gradients() -> None:
    net = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 2))
    dense = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2))
    dense.load_state_dict(net.state_dict())
    found, expected = (
        valued(
            measure(
                model,
                [
                    lambda m=model: m(torch.tensor([1, 2, 3])).square().mean(),
                    lambda m=model: m(torch.tensor([1])).sum(),
                ],
                ["grad_norm", "grad_std", "grad_sparsity", "grad_rank"],
            )
        )
        for model in (net, dense)
    )
    assert found == pytest.approx(expected, rel=1e-6, abs=0)


def test_signal_to_noise_of_sparse_gradients() -> None:
    net = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 2))
    batches = [torch.tensor([1, 2, 3]), torch.tensor([1, 4, 5])]
    rows = valued(measure(net, [lambda b=batch: net(b).square().mean() for batch in batches], ["grad_snr"]))
    assert math.isfinite(rows[1, "grad_snr"])


def test_signal_to_noise_where_no_weight_is_in_all_micro_batches() -> None:
    net = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])
    closures = [lambda layer=layer: layer(torch.ones(2, 3)).sum() for layer in net]
    rows = measure(net, closures, ["grad_snr", "grad_norm"])
    assert [row.probe for row in rows] == ["grad_norm", "grad_norm"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["grad_nrom"], r"grad_nrom.*must be one of .*did you mean 'grad_norm'|grad_nrom.*grad_norm"),
        (["update_ratio"], "update_ratio.*no update.*depthlab.watch"),
        (["grad_norm", "update_norm"], "update_norm.*depthlab.watch"),
        (["grad_cosine"], "grad_cosine.*successor.*depthlab.watch"),
        (["grad_snr"], "grad_snr.*sequence of closures"),
    ],
)
def test_probes_that_cannot_be_measured(names: list[str], message: str) -> None:
    def never() -> Tensor:
        raise AssertionError("a pass was made")

    with pytest.raises(ValueError, match=message):
        measure(linear_net(), never, names)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda net: net(torch.ones(2, 5).double()), r"given a tensor of shape \(2, 7\)"),
        (lambda net: net(torch.ones(2, 5).double()).sum().detach(), "without a gradient"),
        (lambda net: net(torch.ones(2, 5).double()).sum().item(), "given float"),
        (lambda net: None, "given NoneType"),
    ],
)
def test_losses_that_are_none(loss: Callable[[Net], Any], message: str) -> None:
    net = linear_net()
    optimizer = trained_linear(net)
    before = state(net, optimizer)
    with pytest.raises(ValueError, match=message):
        measure(net, lambda: loss(net), ["grad_norm"])
    assert state(net, optimizer) == before


def trained_linear(net: Net) -> torch.optim.Optimizer:
    net(torch.ones(2, 5).double()).square().sum().backward()
    return torch.optim.SGD(net.parameters(), lr=0.1)


def test_a_loss_of_shape_one_will_do() -> None:
    net = linear_net()
    one = measure(net, lambda: net(torch.ones(2, 5).double()).sum().reshape(1, 1), ["grad_norm"])
    assert one == measure(net, lambda: net(torch.ones(2, 5).double()).sum(), ["grad_norm"])


def test_a_loss_that_does_not_depend_on_the_model() -> None:
    net, other = linear_net(), linear_net()
    with pytest.raises(ValueError, match="depends on"):
        measure(net, lambda: other(torch.ones(2, 5).double()).sum(), ["grad_norm"])


def test_no_closures_and_nothing_to_train() -> None:
    net = linear_net()
    with pytest.raises(ValueError, match="empty sequence"):
        measure(net, [], ["grad_norm"])
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="no weight of the model requires a gradient"):
        measure(net, lambda: net(torch.ones(2, 5).double()).sum(), ["grad_norm"])
    with pytest.raises(ValueError, match="no weight of the model"):
        measure(nn.ReLU(), lambda: torch.zeros(()), ["grad_norm"])


# The table


def test_table_has_the_rows() -> None:
    net = healthy_net()
    table = depthlab.measure(net, loss_of(net, images()))
    assert isinstance(table, pd.DataFrame)
    assert table.columns.tolist() == ["layer", "depth", "probe", "value", "at_floor"]
    assert table.dtypes.astype(str).tolist() == ["str", "int64", "str", "float64", "bool"]
    assert set(table["probe"]) == {"grad_norm", "weight_norm", "backward_norm", "activation_mean", "activation_std"}
    rows = measure(net, loss_of(net, images()), list(dict.fromkeys(table["probe"])))
    assert list(table.itertuples(index=False, name=None)) == [
        (row.layer, row.depth, row.probe, row.value, row.at_floor) for row in rows
    ]
    assert probes.measure is measure


def test_table_without_rows_has_its_columns() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    table = depthlab.measure(net, lambda: net(torch.ones(5, 3)).sum(), ["saturation"])
    assert table.columns.tolist() == ["layer", "depth", "probe", "value", "at_floor"]


def test_ranks_are_of_rows_and_units() -> None:
    """Of a gradient: outputs by inputs; of an output: examples by units."""
    net, inputs = linear_net(2), torch.randn(3, 5).double()
    rows = valued(measure(net, lambda: net(inputs).square().mean(), ["grad_rank", "output_rank"]))
    (gradient,) = torch.autograd.grad(net(inputs).square().mean(), net[0].weight)
    assert rows[1, "grad_rank"] == pytest.approx(float(effective_rank(gradient)), rel=1e-9, abs=0)
    assert rows[1, "output_rank"] == pytest.approx(float(effective_rank(net[0](inputs).detach())), rel=1e-9, abs=0)
    assert rows[1, "grad_rank"] <= 3 + 1e-9
