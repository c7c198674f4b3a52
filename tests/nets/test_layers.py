import math

import pytest
import torch
from torch import nn

from depthlab import config as names
from depthlab.config import ModelConfig
from depthlab.nets import build, weight_layers
from depthlab.nets.layers import ACTIVATIONS, NORMS, NormNoise, Parts, RMSNorm2d


def test_names_are_those_of_the_configuration():
    assert tuple(ACTIVATIONS) == names.ACTIVATIONS
    assert tuple(NORMS) == names.NORMS
    assert all(tuple(by_family) == ("mlp", "cnn") for by_family in NORMS.values())  # rnn has none


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
    bare = Parts(ModelConfig(family=family, depth=8, norm=name, norm_groups=4, width=8, norm_affine=False)).norm(8)
    assert bare is not None
    assert not list(bare.parameters())
    torch.testing.assert_close(bare.double()(x), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(4000, 3), (40, 3, 10, 10)])
def test_noise_has_the_moments_it_names(shape):
    """y = (s_j + u e) x + m_j + u d at x = 0 and at x = 1: each unit has a mean and a spread of its own."""
    noise, generator = NormNoise(0.5), torch.random.get_rng_state()
    units = {}
    for value in (0.0, 1.0):
        torch.manual_seed(3)
        units[value] = torch.stack([noise(torch.full(shape, value)).transpose(0, 1).flatten(1) for _ in range(300)])
    torch.random.set_rng_state(generator)
    shift, both = units[0.0].double(), units[1.0].double()
    scale = both - shift
    m, s = shift.mean(2), scale.mean(2)  # (draws, units), up to 0.1 / sqrt(4000)
    assert -0.51 < m.min() < -0.45
    assert 0.45 < m.max() < 0.51
    assert 0.99 < s.min() < 1.01
    assert 1.24 < s.max() < 1.26
    assert m.mean().item() == pytest.approx(0, abs=4 * 0.5 / math.sqrt(3 * m.numel()))
    assert s.mean().item() == pytest.approx(1.125, abs=4 * 0.25 / math.sqrt(12 * s.numel()))
    assert shift.std(2).mean().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.01)
    assert scale.std(2).mean().item() == pytest.approx(0.1, rel=0.01)
    assert abs(torch.corrcoef(m.T)[0, 1]) < 0.25  # units are independent


def test_noise_is_off_in_evaluation_and_stands_after_the_norm():
    model = build(ModelConfig(depth=4, width=6, norm="batch", norm_noise=0.5), channels=1, size=4, classes=3, seed=0)
    quiet = build(ModelConfig(depth=4, width=6, norm="batch"), channels=1, size=4, classes=3, seed=0)
    x = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.eval()(x), quiet.eval()(x))
    assert not torch.equal(model.train()(x), quiet.train()(x))
    assert [type(module) for module in model.stem] == [nn.Flatten, nn.Linear, nn.Sequential, nn.ReLU]
    assert [type(module) for module in model.stem.norm] == [nn.BatchNorm1d, NormNoise]


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
