"""DropConnect against masks drawn by hand, and against the mean and variance of the paper."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from depthlab.config import SKIPS, ModelConfig
from depthlab.nets import build, weight_layers
from depthlab.nets.dropconnect import DropConnectConv2d, DropConnectLinear

P = 0.3


def layer(family):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DropConnectLinear(12, 7, p=P) if family == "mlp" else DropConnectConv2d(3, 4, p=P, stride=2)


def examples(family):
    shape = (5, 12) if family == "mlp" else (5, 3, 6, 6)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def bare(family, weight, bias, x):
    if family == "mlp":
        return x @ weight.T + bias
    return torch.conv2d(x, weight, bias, stride=2, padding=1)


@pytest.mark.parametrize("family", ["mlp", "cnn"])
def test_in_training_one_mask_drops_weights_for_the_whole_batch(family):
    dropping, x = layer(family), examples(family)
    torch.manual_seed(5)
    found = dropping(x)
    found.sum().backward()
    torch.manual_seed(5)
    mask = (torch.empty_like(dropping.weight).bernoulli_(1 - P)).detach()
    assert 0 < mask.mean() < 1
    torch.testing.assert_close(found, bare(family, dropping.weight * mask / (1 - P), dropping.bias, x))
    assert (dropping.weight.grad[mask == 0] == 0).all()  # what is dropped does not learn
    assert (dropping.weight.grad[mask == 1] != 0).all()
    assert not torch.equal(found, dropping(x))  # the next mask


@pytest.mark.parametrize("family", ["mlp", "cnn"])
def test_in_evaluation_all_weights_are_there_and_nothing_is_drawn(family):
    dropping, x = layer(family).eval(), examples(family)
    state = torch.get_rng_state()
    torch.testing.assert_close(dropping(x), bare(family, dropping.weight, dropping.bias, x))
    assert torch.equal(torch.get_rng_state(), state)


def test_mean_and_variance_over_masks_are_those_of_the_paper():
    dropping, x = layer("mlp").double(), examples("mlp").double()
    torch.manual_seed(2)
    with torch.no_grad():
        draws = torch.stack([dropping(x) for _ in range(20_000)])
        mean = x @ dropping.weight.T + dropping.bias
        variance = P / (1 - P) * x.square() @ dropping.weight.square().T
    standard_error = (variance / len(draws)).sqrt()
    assert ((draws.mean(0) - mean).abs() < 5 * standard_error).all()
    torch.testing.assert_close(draws.var(0), variance, rtol=0.06, atol=0)


@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("family", ["mlp", "cnn"])
def test_all_layers_but_head_and_gates_drop_and_start_like_those_that_do_not(family, skip):
    def net(**factors):
        config = ModelConfig(family=family, depth=8, width=4, skip=skip, **factors)
        return build(config, channels=3, size=8, classes=5, seed=0)

    model, plain = net(dropconnect=P), net()
    kinds = (DropConnectLinear, DropConnectConv2d)
    assert [isinstance(each, kinds) for _, each in weight_layers(model)] == [True] * 7 + [False]
    assert all(each.p == P for each in model.modules() if isinstance(each, kinds))
    assert sum(isinstance(each, kinds) for each in model.modules()) == 7  # gates of highways are left alone
    assert [name for name, _ in weight_layers(model)] == [name for name, _ in weight_layers(plain)]
    torch.testing.assert_close(dict(model.state_dict()), dict(plain.state_dict()), rtol=0, atol=0)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.eval()(x), plain.eval()(x))
    assert not torch.equal(model.train()(x), plain.train()(x))
    assert not any(isinstance(each, nn.Dropout) for each in model.modules())
