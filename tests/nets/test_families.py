import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from depthlab import config as names
from depthlab.config import ConfigError, ModelConfig
from depthlab.nets import Net, build, weight_layers
from depthlab.nets.families import FAMILIES
from depthlab.nets.layers import ACTIVATIONS

NORM_MODULES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def batch(seed=0, channels=3, size=8, examples=4):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(examples, channels, size, size, generator=generator)
    return images, torch.arange(examples) % 3


def step(model, images, targets):
    """One update by plain gradient descent; the loss before it."""
    loss = F.cross_entropy(model(images), targets)
    grads = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        for parameter, grad in zip(model.parameters(), grads, strict=True):
            parameter.sub_(0.01 * grad)
    return loss.item(), grads


def test_names_are_those_of_the_configuration():
    assert tuple(FAMILIES) == names.FAMILIES


@pytest.mark.parametrize("skip", names.SKIPS)
@pytest.mark.parametrize("norm", names.NORMS)
@pytest.mark.parametrize("family", ["mlp", "cnn"])
def test_every_combination_takes_a_training_step_or_is_refused(family, norm, skip):
    images, targets = batch(size=4)
    for activation, init in product(names.ACTIVATIONS, names.INITS):
        factors = {"activation": activation, "norm": norm, "norm_groups": 2, "skip": skip, "init": init}
        if family == "mlp" and init == "delta_orthogonal":
            with pytest.raises(ConfigError):
                ModelConfig(family=family, depth=8, width=4, **factors)
            continue
        config = ModelConfig(family=family, depth=8, width=4, stages=3, **factors)
        model = build(config, channels=3, size=4, classes=3, seed=0)
        assert len(weight_layers(model)) == config.depth
        kind = type(ACTIVATIONS[activation]())
        assert sum(type(module) is kind for module in model.modules()) == config.depth - 1
        before = [parameter.clone() for parameter in model.parameters()]
        loss, grads = step(model, images, targets)
        assert math.isfinite(loss), factors
        assert all(grad.isfinite().all() for grad in grads), factors
        assert not torch.equal(before[-1], list(model.parameters())[-1]), factors


@pytest.mark.parametrize("depth", [2, 3, 4, 5, 9])
def test_plain_mlps_have_any_depth(depth):
    model = build(ModelConfig(depth=depth, width=5), channels=1, size=4, classes=3, seed=0)
    assert len(weight_layers(model)) == depth
    assert len(model.blocks) == depth - 2
    assert model(torch.zeros(2, 1, 4, 4)).shape == (2, 3)


@pytest.mark.parametrize("skip", names.SKIPS)
@pytest.mark.parametrize("norm", names.NORMS)
@pytest.mark.parametrize("bias", [True, False])
def test_parameters_of_mlps(skip, norm, bias):
    n, width, depth, classes = 2 * 5 * 5, 12, 8, 7
    config = ModelConfig(depth=depth, width=width, skip=skip, norm=norm, bias=bias)
    expected = n * width + (depth - 2) * width**2 + bias * (depth - 1) * width + (width + 1) * classes
    expected += (depth - 1) * width * {"none": 0, "rms": 1}.get(norm, 2)
    if skip == "highway":
        expected += (depth - 2) // 2 * width * (width + 1)
    assert count(build(config, channels=2, size=5, classes=classes, seed=0)) == expected


# 6n + 2 layers: stem 3*16*9 = 432; stage 1 2n convolutions of 16*16*9 = 2304; stage 2 one of 16*32*9 = 4608 and 2n - 1
# of 9216; stage 3 one of 32*64*9 = 18432 and 2n - 1 of 36864; batch norm two for each of 16 (1 + 2n) + 32*2n + 64*2n
# channels; head 64*10 + 10 = 650. Together 97,216 n - 21,926, and He et al.'s 0.27, 0.46, 0.66, 0.85 and 1.7 million.
@pytest.mark.parametrize(
    ("depth", "parameters"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)]
)
@pytest.mark.parametrize("skip", ["none", "residual", "preactivation"])
def test_parameters_of_the_cifar_nets(depth, parameters, skip):
    config = ModelConfig(family="cnn", depth=depth, width=16, norm="batch", skip=skip, bias=False)
    model = build(config, channels=3, size=32, classes=10, seed=0)
    # A pre-activation block norms what enters it: 16 where a stage of 32, 32 where one of 64 begins, and 64 at the end.
    assert count(model) == parameters
    assert parameters == 97_216 * (depth - 2) // 6 - 21_926


def cifar_net_by_hand(x, skip, weights, norms, head):
    """Plain and residual nets from lists of weights, two blocks a stage, with batch norm of the batch."""
    weights, norms = iter(weights), iter(norms)

    def conv_norm(h, stride):
        h = F.conv2d(h, next(weights), None, stride, padding=1)
        scale, shift = next(norms)
        mean, var = h.mean((0, 2, 3), keepdim=True), h.var((0, 2, 3), keepdim=True, unbiased=False)
        return (h - mean) / (var + 1e-5).sqrt() * scale[:, None, None] + shift[:, None, None]

    h = conv_norm(x, 1).clamp(min=0)
    for stage in range(3):
        for block in range(2):
            stride = 2 if stage > 0 and block == 0 else 1
            branch = conv_norm(conv_norm(h, stride).clamp(min=0), 1)
            if skip == "residual":
                for channel in range(h.shape[1]):
                    branch[:, channel] += h[:, channel, ::stride, ::stride]
            h = branch.clamp(min=0)
    assert next(weights, None) is None
    assert next(norms, None) is None
    return h.mean((2, 3)) @ head.weight.T + head.bias


@pytest.mark.parametrize("skip", ["none", "residual"])
def test_cifar_net_against_one_written_by_hand(skip):
    config = ModelConfig(family="cnn", depth=14, width=4, norm="batch", skip=skip, bias=False)
    model = build(config, channels=3, size=12, classes=5, seed=0).double()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5, generator=generator)
            norm.bias.normal_(0, 0.2, generator=generator)
    *convolutions, head = [layer for _, layer in weight_layers(model)]
    images = batch(size=12)[0].double()
    expected = cifar_net_by_hand(
        images, skip, [layer.weight for layer in convolutions], [(n.weight, n.bias) for n in norms], head
    )
    torch.testing.assert_close(model(images), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_each_further_stage_halves_the_resolution_and_doubles_the_width(stages):
    config = ModelConfig(family="cnn", depth=2 + 4 * stages, width=3, stages=stages)
    model = build(config, channels=1, size=8, classes=2, seed=0)
    h = model.stem(torch.zeros(1, 1, 8, 8))
    shapes = []
    for block in model.blocks:
        h = block(h)
        shapes.append(tuple(h.shape[1:]))
    assert shapes == [(3 * 2**s, 8 // 2**s, 8 // 2**s) for s in range(stages) for _ in range(4)]


@pytest.mark.parametrize("skip", names.SKIPS)
@pytest.mark.parametrize("family", ["mlp", "cnn"])
def test_modules_are_registered_in_the_order_in_which_data_flows(family, skip):
    config = ModelConfig(family=family, depth=8, width=4, norm="batch", skip=skip, dropout=0.1, activation="tanh")
    model = build(config, channels=3, size=8, classes=3, seed=0)
    kinds = (nn.Linear, nn.Conv2d, nn.Tanh, nn.Dropout, *NORM_MODULES)
    watched = [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]
    called = []
    for name, module in watched:
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    model(batch()[0])
    assert called == [name for name, _ in watched]
    assert isinstance(model, Net)
    assert [name for name, _ in model.named_children()] == ["stem", "blocks", "head"]


@pytest.mark.parametrize("init", ["he", "orthogonal"])
def test_a_thousand_layers_build_and_step(init):
    model = build(ModelConfig(depth=1000, width=30, init=init), channels=1, size=8, classes=3, seed=0)
    images, targets = batch(channels=1)
    loss, grads = step(model, images, targets)
    assert len(weight_layers(model)) == 1000
    assert math.isfinite(loss)
    assert all(grad.isfinite().all() for grad in grads)
    assert grads[-2].any()


def test_weights_are_drawn_on_the_cpu_in_float32_whatever_the_default_device():
    config = ModelConfig(depth=4, width=5, init="orthogonal")
    expected = build(config, channels=1, size=4, classes=3, seed=0).state_dict()
    with torch.device("meta"):
        model = build(config, channels=1, size=4, classes=3, seed=0)
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, expected[name])
