"""Watching networks of others: each weight layer once, with the right numbers, and nothing of the training changed."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import fleet
import pandas as pd
import pytest
import torch
from fleet import FLEET, SMALL, Training
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from depthlab.instrument import DEFAULT, Watcher
from depthlab.probes import PROBES

STEPS = 4
EVERY = 2
PARAMETER_PROBES = ("grad_norm", "weight_norm", "update_ratio")
OUTPUT_PROBES = ("backward_norm", "activation_mean", "activation_std", "dead_fraction")
SLOW = ("swin_t", "vgg11_bn", "vit_b_16")
ALL = tuple(name for name in PROBES if name != "grad_snr")
ACTIVATIONS = ("relu", "relu6", "gelu", "hardswish", "hardsigmoid", "silu")

pytestmark = pytest.mark.filterwarnings("ignore:depthlab cannot read outputs of .*computed inside one operation")

members = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in FLEET]
)


def watching(*probes: str) -> Callable[[nn.Module, Optimizer], Watcher]:
    return lambda model, optimizer: Watcher(model, optimizer, probes=probes or DEFAULT, every=EVERY, budget=None)


class Watched(NamedTuple):
    """What is left of a watched training once its network is forgotten."""

    training: Training
    table: pd.DataFrame
    layers: list[str]


@functools.cache
def watched(name: str) -> Watched:
    training, watcher = fleet.train(name, watching(), steps=STEPS)
    assert watcher is not None
    return Watched(training, watcher.table(), watcher.layers)


@functools.cache
def unwatched(name: str) -> Training:
    return fleet.train(name, steps=STEPS)[0]


@functools.cache
def expected_layers(name: str) -> list[str]:
    return FLEET[name].layers(fleet.build(name))


def values(table: pd.DataFrame, probe: str) -> dict[tuple[int, str], float]:
    rows = table[table.probe == probe]
    found = dict(zip(zip(rows.step, rows.layer, strict=True), rows.value, strict=True))
    assert len(found) == len(rows), "a layer was read twice at a step"
    return found


def readings(name: str, probe: str) -> dict[tuple[int, str], float]:
    return values(watched(name).table, probe)


class Twin:
    """The same training, watched by hooks on modules, plain autograd and float64: knows nothing of depthlab."""

    def __init__(self, name: str) -> None:
        self.values: dict[str, dict[tuple[int, str], float]] = defaultdict(dict)
        self.called: list[str] = []
        """Names of layers that are modules, in the order of their first call."""
        self.largest = 0
        self._step = 0
        self._last: str | None = None
        model = fleet.build(name)
        layers = expected_layers(name)  # builds a net too, which must not find torch's functions patched
        for module in model.modules():
            if getattr(module, "activation", None) in (F.relu, F.gelu):  # of torch's transformers
                module.activation = self._wrapped(module.activation)
        with fleet.patched(dict.fromkeys(ACTIVATIONS, self._wrapped)):
            self._train(name, model, layers)

    def _train(self, name: str, model: nn.Module, layers: list[str]) -> None:
        optimizer = fleet.optimizer_of(model)
        named = dict(model.named_parameters())
        weights = {layer: named.get(f"{layer}.weight", named.get(layer)) for layer in layers}
        torch.manual_seed(2)
        for self._step in range(STEPS):
            inputs, targets = fleet.batch(name, self._step)
            optimizer.zero_grad()
            with self._hooked(model):
                fleet.loss_of(model(*inputs), targets).backward()
            before = {layer: weight.detach().clone() for layer, weight in weights.items()}
            for layer, weight in weights.items():
                self._note("grad_norm", layer, weight.grad.double().norm())
                self._note("weight_norm", layer, weight.double().norm())
            optimizer.step()
            for layer, weight in weights.items():
                change = (weight.double() - before[layer].double()).norm() / before[layer].double().norm()
                self._note("update_ratio", layer, change)
            fleet.evaluate(name, model)

    def _note(self, probe: str, layer: str, value: Tensor) -> None:
        self.values[probe][self._step, layer] = value.item()

    @contextlib.contextmanager
    def _hooked(self, model: nn.Module) -> Iterator[None]:
        handles = []
        for name, module in model.named_modules():
            if isinstance(module, fleet.WEIGHTS):
                layer = name
            elif isinstance(module, nn.MultiheadAttention):
                layer = f"{name}.out_proj"
            elif isinstance(module, nn.LSTM):
                layer = f"{name}.weight_hh_l{module.num_layers - 1}"
            else:
                continue
            handles.append(module.register_forward_hook(functools.partial(self._output, layer)))
        yield
        for handle in handles:
            handle.remove()

    def _output(self, layer: str, module: nn.Module, _inputs: Any, result: Any) -> None:
        z = result if isinstance(result, Tensor) else result[0]
        if layer not in self.called:
            self.called.append(layer)
        self._last = layer
        self.largest = max(self.largest, z.numel())
        self._moments(layer, z)  # where no activation follows
        z.register_hook(lambda gradient: self._note("backward_norm", layer, gradient.double().norm()))

    def _moments(self, layer: str, tensor: Tensor) -> None:
        self._note("activation_mean", layer, tensor.detach().double().mean())
        self._note("activation_std", layer, tensor.detach().double().std(correction=0))

    def _wrapped(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def activation(*args: Any, **kwargs: Any) -> Tensor:
            layer, self._last = self._last, None
            after = function(*args, **kwargs)
            if torch.is_grad_enabled() and layer is not None:
                self._moments(layer, after)
                if function.__name__ in ("relu", "relu6"):
                    units = after.detach() if after.ndim == 2 else after.detach().movedim(1, -1)
                    units = units if after.ndim == 4 else after.detach()  # tokens have their units last
                    dead = (units.flatten(0, -2) == 0).all(0)
                    self._note("dead_fraction", layer, dead.double().mean())
            return after

        return activation


@functools.cache
def twin(name: str) -> Twin:
    return Twin(name)


@members
def test_every_weight_layer_is_read_once_a_step_in_the_order_in_which_data_flows(name: str) -> None:
    layers = expected_layers(name)
    assert watched(name).layers == layers
    for probe in PARAMETER_PROBES:
        table = watched(name).table
        rows = table[table.probe == probe]
        for step in range(STEPS):
            of_step = rows[rows.step == step]
            assert of_step.layer.tolist() == layers
            assert of_step.depth.tolist() == list(range(1, len(layers) + 1))


@members
def test_the_expected_order_is_that_of_the_modules_calls(name: str) -> None:
    called = twin(name).called
    assert [layer for layer in expected_layers(name) if layer in called] == called


def test_the_unet_registers_its_layers_in_another_order_than_it_uses_them() -> None:
    assert fleet.as_registered(fleet.build("unet"))[0] == "head"


@members
@pytest.mark.parametrize("probe", PARAMETER_PROBES)
def test_numbers_of_parameters_are_those_of_a_float64_twin(name: str, probe: str) -> None:
    expected = twin(name).values[probe]
    assert min(expected.values()) > 0
    assert readings(name, probe) == pytest.approx(expected, rel=2e-5)  # norms' own bound is 1e-5


@members
@pytest.mark.parametrize("probe", OUTPUT_PROBES)
def test_numbers_of_outputs_are_those_of_a_float64_twin(name: str, probe: str) -> None:
    found = readings(name, probe)
    assert {step for step, _ in found} <= {0, 2}
    of_modules = {key: value for key, value in twin(name).values[probe].items() if key[0] in (0, 2)}
    assert twin(name).largest <= 2**16, "the twin knows of no sampling"
    assert {key: found[key] for key in of_modules} == pytest.approx(of_modules, rel=1e-9, abs=1e-12)


@members
def test_all_layers_with_an_output_of_their_own_have_a_gradient_of_it(name: str) -> None:
    layers = [layer for layer in expected_layers(name) if not layer.endswith(FLEET[name].without_output or "-")]
    assert len(layers) < len(expected_layers(name)) or not FLEET[name].without_output
    for probe in ("backward_norm", "activation_mean", "activation_std"):
        assert sorted(readings(name, probe)) == sorted((step, layer) for step in (0, 2) for layer in layers)


def test_dead_fractions_are_those_of_relus() -> None:
    assert {layer for _, layer in readings("unet", "dead_fraction")} == {
        "first.0", "second.0", "bottleneck.0", "middle.0", "last.0"
    }  # fmt: skip
    assert readings("small vit", "dead_fraction") == {}
    fractions = readings("resnet18", "dead_fraction").values()
    assert min(fractions) < 0.1 < max(fractions) < 1  # both kinds are there, so that the twin compares something


@members
def test_losses_are_those_of_the_steps(name: str) -> None:
    rows = watched(name).table.query("probe == 'train_loss'")
    assert rows.layer.tolist() == ["network"] * STEPS
    assert rows.depth.tolist() == [0] * STEPS
    assert rows.value.tolist() == watched(name).training.losses


def assert_same(found: Training, expected: Training) -> None:
    assert found.losses == expected.losses
    assert found.bits.keys() == expected.bits.keys()
    assert [name for name in expected.bits if found.bits[name] != expected.bits[name]] == []


def test_evaluations_of_a_watched_transformer_take_its_fused_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their roundings differ from those of the layers one by one, so that bits could tell who watches."""
    calls = []
    fused = torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *inputs: calls.append(1) or fused(*inputs))
    fleet.train("translator", watching(), steps=STEPS)
    assert len(calls) == STEPS * len(fleet.build("translator").body.encoder.layers)


@members
def test_not_a_bit_of_the_training_changes(name: str) -> None:
    assert_same(watched(name).training, unwatched(name))


def test_the_comparison_of_bits_sees_a_change_of_one() -> None:
    def nudge(step: int, model: nn.Module) -> None:
        if step == STEPS - 1:
            weight = next(model.parameters())
            weight.grad.view(-1)[0] += 1e-6 * weight.grad.abs().max()

    changed, _ = fleet.train("tagger", before_update=nudge, steps=STEPS)
    assert changed.losses == unwatched("tagger").losses
    with pytest.raises(AssertionError, match=r"embedding\.weight"):
        assert_same(changed, unwatched("tagger"))


@pytest.mark.parametrize(
    "name",
    [*SMALL, pytest.param("mobilenet_v3_small", marks=pytest.mark.slow)],
)
def test_nor_with_all_probes(name: str) -> None:
    training, watcher = fleet.train(name, watching(*ALL), steps=STEPS)
    assert_same(training, unwatched(name))
    found = set(watcher.table()["probe"])
    never = set() if twin(name).values["dead_fraction"] else {"dead_fraction"}
    assert found == {*ALL, "train_loss"} - {"saturation"} - never


@pytest.mark.parametrize(
    "name", ["resnet18", "googlenet", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_nor_with_all_probes_but_ranks_in_larger_networks(name: str) -> None:
    probes = [probe for probe in ALL if "rank" not in probe]
    assert_same(fleet.train(name, watching(*probes), steps=2)[0], fleet.train(name, steps=2)[0])


class Trouble(Exception):  # noqa: N818
    """What goes wrong in a training."""


class FailingBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise Trouble


def plant_trouble(model: nn.Module, where: str) -> None:
    """A module in the middle of the network fails, in its forward pass or in its backward pass."""
    normalizations = (nn.LayerNorm, nn.BatchNorm2d, nn.LSTM)
    module = [module for module in model.modules() if isinstance(module, normalizations)][-1]
    forward = module.forward

    def fail(*inputs: Any) -> Any:
        if where == "forward":
            raise Trouble
        return forward(FailingBackward.apply(inputs[0]), *inputs[1:])

    module.forward = fail


@pytest.mark.parametrize("where", ["nowhere", "forward", "backward", "loop"])
@pytest.mark.parametrize("name", ["mobilenet_v3_small", *SMALL])
def test_no_hook_is_left(name: str, where: str) -> None:
    model = fleet.build(name)
    optimizer = fleet.optimizer_of(model)
    if where in ("forward", "backward"):
        plant_trouble(model, where)
    before = fleet.hooks_of(model, optimizer)
    inputs, targets = fleet.batch(name, 0)
    failing = contextlib.nullcontext() if where == "nowhere" else pytest.raises(Trouble)
    with failing, watching(*ALL)(model, optimizer) as watcher:
        for _ in range(3):
            loss = fleet.loss_of(model(*inputs), targets)
            if where == "loop":
                raise Trouble
            loss.backward()
            optimizer.step()
            watcher.step(loss)
    assert fleet.hooks_of(model, optimizer) == before


def test_while_watching_hooks_are_there_to_be_left() -> None:
    model = fleet.build("unet")
    optimizer = fleet.optimizer_of(model)
    before = fleet.hooks_of(model, optimizer)
    with watching()(model, optimizer):
        during = fleet.hooks_of(model, optimizer)
    differing = {key for key in before if during[key] != before[key]}
    assert "torch _global_forward_hooks" in differing
    assert "optimizer _optimizer_step_pre_hooks" in differing


@pytest.mark.parametrize("name", [name for name in SMALL if name != "unet"])  # batch norm counts the failed batch
def test_a_training_that_survives_a_failed_pass_is_read_as_if_there_had_been_none(name: str) -> None:
    """Some loops skip a batch that does not fit into memory."""

    def failing_first(step: int, model: nn.Module) -> contextlib.AbstractContextManager[Any]:
        if step == 2:
            random = torch.get_rng_state()
            with fleet.patched({"cross_entropy": lambda _: fail}), pytest.raises(Trouble):
                fleet.loss_of(model(*fleet.batch(name, 0)[0]), torch.zeros(1))
            torch.set_rng_state(random)
            assert torch._C._len_torch_function_stack() == 0
        return contextlib.nullcontext()

    def fail(*_: Any) -> Tensor:
        raise Trouble

    _, watcher = fleet.train(name, watching(), steps=STEPS, passing=failing_first)
    for probe in ("grad_norm", "backward_norm"):
        assert values(watcher.table(), probe) == readings(name, probe)


@pytest.mark.parametrize("name", SMALL)
def test_one_warning_names_what_cannot_be_read(name: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fleet.train(name, watching(), steps=2)
    expected = [layer for layer in expected_layers(name) if layer.endswith(FLEET[name].without_output or "-")]
    assert len(caught) == bool(expected)
    if expected:
        message = str(caught[0].message)
        assert message.startswith(f"depthlab cannot read outputs of {', '.join(expected[:3])}")
        assert "weights and gradients are read" in message
