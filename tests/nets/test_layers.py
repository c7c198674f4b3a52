import math

import pytest
import torch
from torch import nn

from depthlab import config as names
from depthlab.config import ModelConfig
from depthlab.nets import build, weight_layers
from depthlab.nets.layers import ACTIVATIONS, NORMS, Parts, RMSNorm2d


def test_names_are_those_of_the_configuration():
    assert tuple(ACTIVATIONS) == names.ACTIVATIONS
    assert tuple(NORMS) == names.NORMS
    assert all(tuple(by_family) == names.FAMILIES for by_family in NORMS.values())


FORMULAS = {
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "tanh": math.tanh,
    "relu": lambda x: max(x, 0.0),
    "leaky_relu": lambda x: x if x > 0 else 0.01 * x,
    "very_leaky_relu": lambda x: x if x > 0 else x / 5.5,
    "elu": lambda x: x if x > 0 else math.expm1(x),
    "selu": lambda x: 1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * math.expm1(x)),
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "silu": lambda x: x / (1 + math.exp(-x)),
    "identity": lambda x: x,
}


@pytest.mark.parametrize("name", names.ACTIVATIONS)
def test_activation_follows_its_formula(name):
    x = torch.linspace(-4, 4, 81, dtype=torch.float64)
    before = x.clone()
    expected = torch.tensor([FORMULAS[name](value) for value in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(ACTIVATIONS[name]()(x), expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(x, before)  # nothing in place


def test_rms_norm_of_feature_maps_against_loops():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 5, 2, generator=generator, dtype=torch.float64) * torch.tensor([1e-3, 1.0, 50.0]).view(
        3, 1, 1, 1
    )
    norm = RMSNorm2d(4).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5, 3.0]))
    expected = torch.empty_like(x)
    for i in range(3):
        values = x[i].flatten().tolist()
        root = math.sqrt(sum(value * value for value in values) / len(values) + 1e-5)
        for c, scale in enumerate((1.0, -2.0, 0.5, 3.0)):
            expected[i, c] = x[i, c] / root * scale
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(norm, x.requires_grad_())


def reference_norm(name, x, groups):
    """Of (b, c, positions): batch over b and positions, layer and rms over c and positions, group over parts of c."""
    if name == "batch":
        return (x - x.mean((0, 2), keepdim=True)) / (x.var((0, 2), keepdim=True, unbiased=False) + 1e-5).sqrt()
    if name == "rms":
        return x / (x.square().mean((1, 2), keepdim=True) + 1e-5).sqrt()
    parts = groups if name == "group" else 1
    y = x.reshape(len(x), parts, -1)
    y = (y - y.mean(2, keepdim=True)) / (y.var(2, keepdim=True, unbiased=False) + 1e-5).sqrt()
    return y.reshape(x.shape)


@pytest.mark.parametrize("scale", [1e-3, 1.0])  # the small one shows EPS, which is the same for all
@pytest.mark.parametrize("name", ["batch", "layer", "group", "rms"])
@pytest.mark.parametrize(("family", "shape"), [("mlp", (6, 8)), ("cnn", (6, 8, 3, 3))])
def test_norm_takes_its_statistics_over_the_right_axes(name, family, shape, scale):
    x = scale * (torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5)
    norm = Parts(ModelConfig(family=family, depth=8, norm=name, norm_groups=4, width=8)).norm(8)
    assert norm is not None
    expected = reference_norm(name, x.reshape(6, 8, -1), 4).reshape(shape)
    torch.testing.assert_close(norm.double()(x), expected, rtol=1e-9, atol=1e-12)
    assert sum(p.numel() for p in norm.parameters()) == (8 if name == "rms" else 16)


def test_no_norm_and_no_dropout_leave_no_module():
    model = build(ModelConfig(depth=5, width=6), channels=1, size=4, classes=3, seed=0)
    leaves = {type(module) for module in model.modules() if not list(module.children())}
    assert leaves == {nn.Flatten, nn.Linear, nn.ReLU}


def test_weight_layers_leave_gates_out_and_keep_the_order():
    model = build(ModelConfig(depth=6, width=6, skip="highway"), channels=1, size=4, classes=3, seed=0)
    assert [name for name, _ in weight_layers(model)] == [
        "stem.linear",
        "blocks.0.first.linear",
        "blocks.0.second.linear",
        "blocks.1.first.linear",
        "blocks.1.second.linear",
        "head.linear",
    ]
    assert sum(isinstance(module, nn.Linear) for module in model.modules()) == 8
