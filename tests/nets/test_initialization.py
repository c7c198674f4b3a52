import copy
import math

import pytest
import torch
from torch import nn

from depthlab import config as names
from depthlab.config import ModelConfig, stream_seed
from depthlab.nets import NormNoise, build, critical_gain, rescale, scales, weight_layers
from depthlab.nets.dropconnect import DropConnectLinear
from depthlab.nets.ensemble import CRITICAL_GAINS
from depthlab.nets.initialization import INITS

IMAGES = {"channels": 3, "size": 8, "classes": 10}


def make(seed=0, **factors):
    return build(ModelConfig(**factors), **IMAGES, seed=seed)


def layers(model):
    return [layer for _, layer in weight_layers(model)]


def test_names_are_those_of_the_configuration():
    assert tuple(INITS) == names.INITS
    assert tuple(CRITICAL_GAINS) == names.ACTIVATIONS


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ({"init": "torch_default", "width": 48}, (math.sqrt(1 / 3), 1 / 12)),
        ({"init": "torch_default", "width": 48, "bias": False}, (math.sqrt(1 / 3), 0.0)),
        ({"init": "torch_default", "width": 16, "family": "cnn"}, (math.sqrt(1 / 3), 1 / math.sqrt(432))),
        ({"init": "xavier"}, (1.0, 0.0)),
        ({"init": "he", "activation": "tanh"}, (math.sqrt(2), 0.0)),
        ({"init": "gaussian", "sigma_w": 1.3, "sigma_b": 0.2}, (1.3, 0.2)),
        ({"init": "gaussian", "sigma_w": 0.0}, (0.0, 0.0)),
        ({"init": "lsuv", "activation": "relu"}, (math.sqrt(2), 0.0)),
        ({"init": "lsuv", "activation": "identity"}, (1.0, 0.0)),
        ({"init": "lsuv", "activation": "selu"}, (1.0, 0.0)),  # whose constants keep variance 1 and mean 0
        ({"init": "orthogonal", "activation": "relu"}, (math.sqrt(2), 0.0)),
        ({"init": "orthogonal", "activation": "tanh", "sigma_b": 0.1}, (1.0, 0.1)),
        ({"init": "delta_orthogonal", "family": "cnn", "activation": "leaky_relu"}, (math.sqrt(2 / 1.0001), 0.0)),
    ],
)
def test_scales(factors, expected):
    assert scales(ModelConfig(depth=8, **factors)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("family", "width", "init"),
    [("mlp", 96, init) for init in names.INITS if init != "delta_orthogonal"]  # which is for convolutions
    + [("cnn", 32, init) for init in names.INITS],
)
def test_hidden_square_layers_are_drawn_from_the_ensemble_that_scales_names(family, width, init, bias):
    free = init in ("gaussian", "orthogonal", "delta_orthogonal")
    set_by_hand = {"sigma_w": 1.7, "sigma_b": 0.4 if bias else 0.0} if free else {}
    config = ModelConfig(family=family, depth=12, width=width, stages=1, init=init, bias=bias, **set_by_hand)
    sigma_w, sigma_b = scales(config)
    hidden = layers(build(config, **IMAGES, seed=1))[1:-1]
    for layer in hidden:
        fan_in = layer.weight[0].numel()
        square = layer.weight.double().square()
        # Five standard errors; 2/n is a normal's, and larger than a uniform's.
        margin = 5 * math.sqrt(2 / square.numel())
        assert square.mean().item() * fan_in == pytest.approx(sigma_w**2, rel=margin)
        assert abs(layer.weight.double().mean().item()) < 5 * sigma_w / math.sqrt(fan_in * square.numel())
    if not bias:
        assert all(layer.bias is None for layer in hidden)
        return
    biases = torch.cat([layer.bias for layer in hidden]).double()
    assert biases.square().mean().item() == pytest.approx(sigma_b**2, rel=5 * math.sqrt(2 / len(biases)))


def test_xavier_of_rectangular_layers():
    stem, *_, head = layers(make(depth=4, width=100, init="xavier"))
    assert stem.weight.var().item() == pytest.approx(2 / (192 + 100), rel=0.05)
    assert head.weight.var().item() == pytest.approx(2 / (100 + 10), rel=0.2)
    convolution = layers(make(family="cnn", depth=8, width=32, init="xavier"))[3]  # 32 -> 64, at the second stage
    assert convolution.weight.shape == (64, 32, 3, 3)
    assert convolution.weight.var().item() == pytest.approx(2 / (9 * (32 + 64)), rel=0.05)


@pytest.mark.parametrize("init", ["he", "gaussian"])
def test_he_and_the_critical_gaussian_take_the_variance_from_fan_in(init):
    convolution = layers(make(family="cnn", depth=8, width=32, init=init))[3]
    assert convolution.weight.var().item() == pytest.approx(2 / (9 * 32), rel=0.05)


@pytest.mark.parametrize("init", ["xavier", "he", "gaussian"])
def test_weights_are_normal(init):
    weight = layers(make(depth=4, width=200, init=init))[1].weight.double()
    standardized = weight / weight.std()
    assert standardized.pow(4).mean().item() == pytest.approx(3, rel=0.05)  # 1.8 for a uniform distribution


@pytest.mark.parametrize("family", ["mlp", "cnn"])
@pytest.mark.parametrize("init", ["he", "torch_default"])
def test_head_gain_and_bias_change_the_head_alone(family, init):
    usual, changed = (
        layers(make(family=family, depth=8, width=12, init=init, **head))
        for head in ({}, {"head_gain": 0.25, "head_bias": 3.0})
    )
    for layer, other in zip(usual[:-1], changed[:-1], strict=True):
        assert torch.equal(layer.weight, other.weight)
        assert torch.equal(layer.bias, other.bias)
    assert torch.equal(changed[-1].weight, 0.25 * usual[-1].weight)  # a power of two, exactly
    assert torch.equal(changed[-1].bias[1:], usual[-1].bias[1:])
    assert changed[-1].bias[0].item() == pytest.approx(usual[-1].bias[0].item() + 3, rel=1e-6)


@pytest.mark.parametrize("init", ["xavier", "he"])
def test_xavier_and_he_have_zero_biases(init):
    assert all(not layer.bias.any() for layer in layers(make(depth=6, init=init)))


@pytest.mark.parametrize("family", ["mlp", "cnn"])
def test_orthogonal_layers(family):
    for layer in layers(make(family=family, depth=8, width=12, stages=3, init="orthogonal", sigma_w=1.5)):
        flat = layer.weight.double().flatten(1)
        out, fan_in = flat.shape
        gram = flat @ flat.T if out <= fan_in else flat.T @ flat
        torch.testing.assert_close(gram, 2.25 * torch.eye(min(out, fan_in), dtype=torch.float64), rtol=0, atol=2e-5)


def test_delta_orthogonal_convolutions_preserve_the_norm_of_every_signal():
    model = make(family="cnn", depth=8, width=4, stages=3, init="delta_orthogonal", sigma_w=1.5, bias=False).double()
    convolutions = [layer for layer in layers(model) if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 7
    for layer in convolutions:
        out, into = layer.weight.shape[:2]
        assert out >= into
        off_centre = layer.weight.clone()
        off_centre[:, :, 1, 1] = 0
        assert not off_centre.any()
        x = torch.randn(3, into, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        seen = x[:, :, :: layer.stride[0], :: layer.stride[1]]
        torch.testing.assert_close(
            layer(x).square().sum((1, 2, 3)), 2.25 * seen.square().sum((1, 2, 3)), rtol=1e-5, atol=0
        )
    head = layers(model)[-1].weight
    torch.testing.assert_close(head @ head.T, 2.25 * torch.eye(10, dtype=torch.float64), rtol=0, atol=2e-5)


def test_delta_orthogonal_where_channels_are_lost_has_orthogonal_rows():
    stem = layers(make(family="cnn", depth=8, width=2, init="delta_orthogonal", sigma_w=1.0))[0]
    centre = stem.weight[:, :, 1, 1].double()
    assert centre.shape == (2, 3)
    torch.testing.assert_close(centre @ centre.T, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_torch_default_is_what_torch_itself_draws(bias):
    ours = layers(make(seed=7, depth=5, width=20, init="torch_default", bias=bias))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(7, "init"))
        theirs = [nn.Linear(i, 20, bias=bias) for i in (192, 20, 20, 20)] + [nn.Linear(20, 10)]
    for mine, torchs in zip(ours, theirs, strict=True):
        assert torch.equal(mine.weight, torchs.weight)
        assert mine.bias is torchs.bias is None or torch.equal(mine.bias, torchs.bias)


@pytest.mark.parametrize("init", [name for name in names.INITS if name != "delta_orthogonal"])
@pytest.mark.parametrize("bias", [True, False])
def test_gates_start_below_zero_with_weights_of_the_same_kind(init, bias):
    sigma_b = 0.5 if init in ("gaussian", "orthogonal") and bias else 0.0
    model = make(depth=6, width=60, skip="highway", init=init, bias=bias, sigma_b=sigma_b)
    for block in model.blocks:
        assert torch.equal(block.gate.bias, torch.full((60,), -2.0))
        ratio = block.gate.weight.var() / block.first.linear.weight.var()
        assert ratio.item() == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize("family", ["mlp", "cnn"])
def test_gates_start_where_they_are_told(family):
    usual, closed = (
        make(family=family, depth=8, width=6, skip="highway", **gate) for gate in ({}, {"gate_bias": -6.5})
    )
    for name, parameter in closed.named_parameters():
        expected = usual.get_parameter(name)
        assert torch.equal(parameter, torch.full_like(expected, -6.5) if name.endswith("gate.bias") else expected), name


def test_critical_gains_of_scale_free_activations_keep_the_size_of_signals():
    z = torch.linspace(-12, 12, 240_001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    for name, phi in (
        ("relu", torch.relu),
        ("leaky_relu", nn.LeakyReLU(0.01)),
        ("very_leaky_relu", nn.LeakyReLU(1 / 5.5)),
        ("identity", lambda x: x),
    ):
        mean_square = torch.trapezoid(phi(z).square() * density, z).item()
        assert critical_gain(name) ** 2 * mean_square == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("init", ["torch_default", "he", "orthogonal"])
def test_seed_decides_the_weights_and_nothing_else_does(init):
    torch.manual_seed(1)
    first = make(depth=6, skip="highway", init=init).state_dict()
    torch.manual_seed(2)
    again = make(depth=6, skip="highway", init=init).state_dict()
    other = make(seed=1, depth=6, skip="highway", init=init).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(not torch.equal(first[name], other[name]) for name in first if name.endswith("weight"))


@pytest.mark.parametrize("init", names.INITS)
def test_building_leaves_the_random_state_of_torch_as_it_was(init):
    before = torch.get_rng_state()
    make(family="cnn", depth=8, width=4, skip="highway", init=init)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("init", ["torch_default", "xavier", "he", "orthogonal", "gaussian"])
def test_depth_and_skip_do_not_change_the_first_weights(init):
    short = layers(make(depth=6, init=init))
    for factors in ({"depth": 12}, *({"depth": 6, "skip": skip, "norm": "batch"} for skip in names.SKIPS[1:])):
        other = layers(make(init=init, **factors))
        assert all(torch.equal(a.weight, b.weight) for a, b in zip(short[:-1], other, strict=False))


@pytest.mark.parametrize(
    ("init", "norm", "growth"), [("he", "none", 1.0), ("torch_default", "none", 6**-0.5), ("he", "batch", 1.21)]
)
def test_backward_signal_of_plain_relu_nets_grows_per_layer_as_theory_says(init, norm, growth):
    """chi = sigma_w^2 / 2 without norm; with batch norm gradients explode: sqrt(pi / (pi - 1)) (Yang et al. 2019)."""
    model = make(depth=32, width=300, init=init, norm=norm)
    h = model.stem(torch.randn(128, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    outputs = [h := block(h) for block in model.blocks]
    grads = torch.autograd.grad(model.head(h).square().mean(), outputs)
    early, late = (grads[i].double().norm().item() for i in (2, 27))
    assert (early / late) ** (1 / 25) == pytest.approx(growth, rel=0.03)


def outputs(model, inputs):
    """Output of every weight layer, in double precision, of a training pass whose batch norm leaves no trace."""
    twin = copy.deepcopy(model).double().train()
    for module in twin.modules():
        if isinstance(module, (nn.Dropout, NormNoise, DropConnectLinear)):
            module.eval()
    found = []
    for _, layer in weight_layers(twin):
        layer.register_forward_hook(lambda _module, _inputs, output: found.append(output.detach()))
    twin(inputs.double())
    return found


def images(count=40):
    return 0.3 + torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(3))


FACTORS = [
    {"activation": "relu"},
    {"activation": "sigmoid", "bias": False},
    {"activation": "tanh", "depth": 30},
    {"norm": "batch", "skip": "residual", "dropout": 0.3, "norm_noise": 0.5},
    {"norm": "layer", "skip": "preactivation"},
    {"dropconnect": 0.3},
    {"skip": "highway"},
    {"family": "cnn", "width": 6, "stages": 3, "activation": "gelu"},
    {"family": "cnn", "width": 6, "stages": 3, "norm": "batch", "skip": "residual"},
]


@pytest.mark.parametrize("factors", FACTORS)
def test_rescaling_gives_every_layer_outputs_of_variance_one(factors):
    model = make(**{"depth": 8, "width": 24, **factors}, init="lsuv")
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rescale(model, images())
    for output in outputs(model, images()):
        assert output.var(correction=0).item() == pytest.approx(1, rel=1e-4)
    rescaled = {f"{name}.weight" for name, _ in weight_layers(model)}
    for name, value in model.state_dict().items():
        if name in rescaled:  # a direction is kept, and its length only is chosen
            torch.testing.assert_close(value / value.norm(), before[name] / before[name].norm(), rtol=1e-4, atol=1e-6)
        else:
            assert torch.equal(value, before[name]), name
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("factors", FACTORS)
def test_rescaling_is_algorithm_1_of_mishkin_and_matas(factors):
    """Layer after layer, each with passes of its own, until its output has variance 1."""
    fast = make(**{"depth": 8, "width": 24, **factors}, init="lsuv")
    slow = copy.deepcopy(fast)
    rescale(fast, images())
    for position, layer in enumerate(layers(slow)):
        for _ in range(10):
            variance = outputs(slow, images())[position].var(correction=0).item()
            if abs(variance - 1) < 1e-9:
                break
            with torch.no_grad():
                layer.weight /= math.sqrt(variance)
    for mine, theirs in zip(layers(fast), layers(slow), strict=True):
        torch.testing.assert_close(mine.weight, theirs.weight, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu", "elu", "gelu"])
def test_rescaling_comes_to_the_ensemble_that_scales_names(activation):
    """Wide layers and independent inputs: the weights hardly change."""
    config = ModelConfig(depth=6, width=600, activation=activation, init="lsuv")
    model = build(config, channels=3, size=8, classes=10, seed=0)
    rescale(model, images(200) - 0.3)
    for layer in layers(model)[2:-1]:
        assert layer.weight.square().mean().item() * 600 == pytest.approx(scales(config)[0] ** 2, rel=0.1)


def test_rescaling_is_refused_where_it_cannot_do_what_it_says():
    biased = make(depth=4, width=8, init="orthogonal", sigma_b=0.3)
    with pytest.raises(ValueError, match=r"layer stem\.linear has biases"):
        rescale(biased, images())
    dead = make(depth=4, width=8, init="lsuv")
    with pytest.raises(ValueError, match=r"layer stem\.linear have standard deviation 0\.0"):
        rescale(dead, torch.zeros(5, 3, 8, 8))
