"""Residual branches that start from 0: ReZero's and Fixup's formulas, their initial weights, and what they are for."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from depthlab import config as names
from depthlab.config import ConfigError, ModelConfig
from depthlab.nets import build, weight_layers
from depthlab.nets.layers import MULTIPLIERS, Multiplier, ScalarBias

SKIPS = ("residual", "preactivation")
STARTING_FROM_0 = ("rezero", "fixup")


def make(seed=0, **factors):
    return build(ModelConfig(**factors), channels=3, size=8, classes=5, seed=seed)


def images(count=6, dtype=torch.float32):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=dtype)


def scalars(model):
    return [module for module in model.modules() if isinstance(module, (Multiplier, ScalarBias))]


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_names_are_those_of_the_configuration():
    assert tuple(MULTIPLIERS) == names.BRANCHES


def by_hand(skip, branch, x, weights, numbers):
    """The formulas of the papers with tanh, from lists of weights without biases and of scalars in the order of use."""
    weights, numbers = iter(weights), iter(numbers)

    def linear(h):
        return h @ next(weights).T

    def shift(h):
        return h + next(numbers) if branch == "fixup" else h

    def act(h):
        return torch.tanh(shift(h))

    h = linear(x)
    h = act(h) if skip == "residual" else h
    for _ in range(2):
        if skip == "residual":
            h = act(h + linear(shift(act(linear(shift(h))))) * next(numbers))
        else:
            h = h + linear(shift(act(linear(shift(act(h)))))) * next(numbers)
    h = act(h) if skip == "preactivation" else h
    return h, shift(h)


@pytest.mark.parametrize("branch", STARTING_FROM_0)
@pytest.mark.parametrize("skip", SKIPS)
def test_branches_against_the_formulas_of_the_papers(skip, branch):
    model = make(depth=6, width=7, skip=skip, branch=branch, activation="tanh", bias=False).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.3, 0.5, generator=generator)
    values = [next(module.parameters()) for module in scalars(model)]
    assert len(values) == {"rezero": 2, "fixup": 2 * 5 + 2}[branch]
    weights = [layer.weight for _, layer in weight_layers(model)]
    x = images(dtype=torch.float64)
    _, into_head = by_hand(skip, branch, x.flatten(1), weights, values)
    expected = into_head @ weights[-1].T + weight_layers(model)[-1][1].bias
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("family", ["mlp", "cnn"])
@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("branch", STARTING_FROM_0)
def test_at_first_a_net_is_its_shortcut_path(family, skip, branch):
    model = make(family=family, depth=14, width=4, skip=skip, branch=branch)
    h = model.stem(images())
    for block in model.blocks:
        bypass = block.shortcut(h)
        h = block(h)
        assert torch.equal(h, bypass)  # relu of what went through relu is the same


@pytest.mark.parametrize("init", ["torch_default", "he", "orthogonal"])
@pytest.mark.parametrize("family", ["mlp", "cnn"])
@pytest.mark.parametrize("skip", SKIPS)
def test_fixup_scales_the_usual_initial_weights(family, skip, init):
    factors = {"family": family, "depth": 20, "width": 8, "skip": skip, "init": init}
    usual, ours = (weight_layers(make(**factors, branch=branch)) for branch in ("standard", "fixup"))
    for (name, layer), (_, other) in zip(usual, ours, strict=True):
        if ".second." in name or name == "head.linear":
            assert not other.weight.any(), name
            assert not other.bias.any(), name
            continue
        factor = 9 ** (-1 / (2 * 2 - 2)) if ".first." in name else 1.0  # 9 branches of m = 2 layers
        torch.testing.assert_close(other.weight, factor * layer.weight, rtol=1e-6, atol=0)
        assert torch.equal(other.bias, layer.bias), name


@pytest.mark.parametrize("branch", names.BRANCHES)
def test_rezero_and_standard_draw_the_same_weights(branch):
    drawn = [layer.weight for _, layer in weight_layers(make(depth=8, width=6, skip="residual", branch=branch))]
    usual = [layer.weight for _, layer in weight_layers(make(depth=8, width=6, skip="residual"))]
    equal = [torch.equal(one, other) for one, other in zip(drawn, usual, strict=True)]
    assert equal == [True] + [branch != "fixup"] * 7


@pytest.mark.parametrize("skip", SKIPS)
def test_fixup_begins_by_guessing_and_its_scalars_at_one_and_zero(skip):
    model = make(depth=12, width=8, skip=skip, branch="fixup")
    assert F.cross_entropy(model(images(5)), torch.arange(5)).item() == pytest.approx(math.log(5), rel=1e-6)
    for module in scalars(model):
        assert next(module.parameters()).item() == (1.0 if isinstance(module, Multiplier) else 0.0)
    for module in scalars(make(depth=12, width=8, skip=skip, branch="rezero")):
        assert isinstance(module, Multiplier)
        assert module.factor.item() == 0.0


@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize(("branch", "each", "once"), [("standard", 0, 0), ("rezero", 1, 0), ("fixup", 5, 2)])
def test_parameters(skip, branch, each, once):
    """Fixup: a multiplier and four biases a block, and two where no block is: before an activation and the head."""
    factors = {"family": "cnn", "depth": 20, "width": 16, "bias": False, "skip": skip}
    assert count(make(**factors, branch=branch)) == count(make(**factors)) + 9 * each + once


@pytest.mark.parametrize("family", ["mlp", "cnn"])
@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("branch", STARTING_FROM_0)
def test_every_combination_takes_training_steps_or_is_refused(family, skip, branch):
    x, targets = images(4), torch.arange(4)
    combinations = [*product(names.ACTIVATIONS, names.NORMS, ["he"]), *product(["tanh"], ["none", "rms"], names.INITS)]
    for activation, norm, init in combinations:
        factors = {"activation": activation, "norm": norm, "norm_groups": 2, "init": init}
        try:
            config = ModelConfig(family=family, depth=8, width=4, skip=skip, branch=branch, **factors)
        except ConfigError:
            assert init in ("delta_orthogonal", "lsuv") or (branch == "fixup" and norm != "none")
            continue
        model = build(config, channels=3, size=8, classes=5, seed=0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=True)
        for _ in range(3):  # the second backward pass reaches the last layers of branches, the third all others
            optimizer.zero_grad()
            F.cross_entropy(model(x), targets).backward()
            optimizer.step()
        assert all(parameter.isfinite().all() for parameter in model.parameters()), factors
        if norm == "none" and activation in ("tanh", "identity"):  # no unit is dead, and no norm takes out a bias
            assert all(parameter.grad.any() for parameter in model.parameters()), factors


@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("family", ["mlp", "cnn"])
def test_scalars_are_registered_in_the_order_in_which_data_flows(family, skip):
    model = make(family=family, depth=8, width=4, skip=skip, branch="fixup", dropout=0.1)
    kinds = (nn.Linear, nn.Conv2d, nn.ReLU, nn.Dropout, Multiplier, ScalarBias)
    watched = [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]
    called = []
    for name, module in watched:
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    model(images())
    assert called == [name for name, _ in watched]


def change_by_branches(branch, depth, *, of_scalars):
    """How far gradient descent on the scalars or the weights of branches moves what enters the head; float64."""
    model = make(depth=depth, width=64, skip="residual", branch=branch, bias=False).double()
    x = images(16, dtype=torch.float64)
    before = model.blocks(model.stem(x))
    direction = torch.randn(before.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    updated = [parameter for parameter in model.blocks.parameters() if (parameter.dim() == 0) == of_scalars]
    grads = torch.autograd.grad((before * direction).mean(), updated)
    with torch.no_grad():
        for parameter, grad in zip(updated, grads, strict=True):
            parameter.sub_(1e-6 * grad)
        return (model.blocks(model.stem(x)) - before).norm().item()


@pytest.mark.parametrize(
    ("branch", "of_scalars", "low", "high"),
    [("fixup", False, 0.8, 1.25), ("fixup", True, 3, 12), ("rezero", True, 3, 12)],
)
def test_how_much_an_update_changes_the_function_of_ten_times_as_many_blocks(branch, of_scalars, low, high):
    """By as much, if it is of Fixup's weights, which is what the exponent is for: Zhang et al. 2019, section 3.

    By scalars it changes more, so that deep nets want smaller rates for them.
    """
    small, large = (change_by_branches(branch, depth, of_scalars=of_scalars) for depth in (22, 202))
    assert low < large / small < high
