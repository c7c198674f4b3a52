import pytest
import torch
import torch.nn.functional as F
from torch import nn

from depthlab import config as names
from depthlab.config import ModelConfig
from depthlab.nets import build
from depthlab.nets.blocks import BLOCKS, Shortcut
from depthlab.nets.layers import Hop, Parts


def test_names_are_those_of_the_configuration():
    assert ("none", *BLOCKS) == names.SKIPS


@pytest.mark.parametrize(("hop", "side"), [(Hop(3, 6, 2), 8), (Hop(2, 4, 2), 5), (Hop(3, 3), 4), (Hop(1, 2, 2), 1)])
def test_shortcut_is_option_a(hop, side):
    x = torch.randn(2, hop.inputs, side, side, generator=torch.Generator().manual_seed(0))
    half = (side + hop.stride - 1) // hop.stride
    expected = torch.zeros(2, hop.outputs, half, half)
    for c in range(hop.inputs):
        for i in range(half):
            for j in range(half):
                expected[:, c, i, j] = x[:, c, hop.stride * i, hop.stride * j]
    assert torch.equal(Shortcut(hop)(x), expected)
    assert list(Shortcut(hop).parameters()) == []


def silence(branch):
    """Zeroes what a branch gives: the weights and bias of its last affine module."""
    last = [module for module in branch.modules() if list(module.parameters(recurse=False))][-1]
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.zero_()


@pytest.mark.parametrize("norm", ["none", "batch", "rms"])
@pytest.mark.parametrize("family", ["mlp", "cnn"])
@pytest.mark.parametrize("skip", ["residual", "preactivation"])
def test_a_net_whose_branches_give_zero_is_its_shortcut_path(family, skip, norm):
    config = ModelConfig(family=family, depth=14, width=4, skip=skip, norm=norm, stages=3)
    model = build(config, channels=3, size=8, classes=5, seed=0)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    h = model.stem(x)
    assert not torch.allclose(model.blocks[0](h), torch.relu(model.blocks[0].shortcut(h)))
    for block in model.blocks:
        silence(block.second)
        h_next = block(h)
        expected = block.shortcut(h)
        assert torch.equal(h_next, torch.relu(expected) if skip == "residual" else expected)
        h = h_next
    assert torch.equal(model(x), model.head(h))
    if family == "mlp":
        assert torch.equal(h, model.stem(x))  # relu of what went through relu is the same


def layer_norm(x):
    return (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()


def mlp_by_hand(skip, x, weights, gates):
    """The formulas of the papers with tanh and layer norm (scale 1, shift 0), from lists of (weight, bias)."""
    weights = [lambda h, wb=wb: h @ wb[0].T + wb[1] for wb in weights]
    gates = [lambda h, wb=wb: 1 / (1 + torch.exp(-(h @ wb[0].T + wb[1]))) for wb in gates]
    act, norm = torch.tanh, layer_norm
    h = weights[0](x)
    h = h if skip == "preactivation" else act(norm(h))
    if skip == "none":
        for w in weights[1:-1]:
            h = act(norm(w(h)))
    for block in range((len(weights) - 2) // 2 if skip != "none" else 0):
        w1, w2 = weights[1 + 2 * block], weights[2 + 2 * block]
        if skip == "residual":
            h = act(h + norm(w2(act(norm(w1(h))))))
        elif skip == "preactivation":
            h = h + w2(act(norm(w1(act(norm(h))))))
        elif skip == "highway":
            t = gates[block](h)
            h = act(norm(w2(act(norm(w1(h)))))) * t + h * (1 - t)
    h = act(norm(h)) if skip == "preactivation" else h
    return weights[-1](h)


@pytest.mark.parametrize("skip", names.SKIPS)
def test_mlp_against_the_formulas_of_the_papers(skip):
    config = ModelConfig(depth=8, width=7, skip=skip, norm="layer", activation="tanh", init="gaussian", sigma_b=0.3)
    model = build(config, channels=2, size=3, classes=4, seed=3).double()
    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    weights = [(m.weight, m.bias) for name, m in linears if "gate" not in name]
    gates = [(m.weight, m.bias) for name, m in linears if "gate" in name]
    assert (len(weights), len(gates)) == (8, 3 if skip == "highway" else 0)
    x = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = mlp_by_hand(skip, x.flatten(1), weights, gates)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-12)


def test_a_highway_that_starts_a_stage_gates_at_the_new_resolution():
    block = BLOCKS["highway"](Parts(ModelConfig(family="cnn", depth=8, width=3, skip="highway")), Hop(3, 6, 2))
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    t = torch.sigmoid(F.conv2d(x, block.gate.weight, block.gate.bias, stride=2, padding=1))
    passed = torch.cat([x[:, :, ::2, ::2], torch.zeros(2, 3, 3, 3)], dim=1)
    expected = t * block.second(block.first(x)) + (1 - t) * passed
    torch.testing.assert_close(block(x), expected)


def layout(module):
    return [name for name, child in module.named_children()]


def test_dropout_follows_activations_in_plain_nets_and_sits_between_the_layers_of_a_block():
    def net(**factors):
        return build(
            ModelConfig(depth=6, width=4, dropout=0.25, norm="batch", **factors), channels=1, size=4, classes=3, seed=0
        )

    plain = net()
    assert layout(plain.stem) == ["flatten", "linear", "norm", "activation", "dropout"]
    assert all(layout(block) == ["linear", "norm", "activation", "dropout"] for block in plain.blocks)
    residual = net(skip="residual")
    assert layout(residual.stem) == ["flatten", "linear", "norm", "activation"]
    assert layout(residual.blocks[0].first) == ["linear", "norm", "activation", "dropout"]
    assert layout(residual.blocks[0].second) == ["linear", "norm"]
    preactivation = net(skip="preactivation")
    assert layout(preactivation.stem) == ["flatten", "linear"]
    assert layout(preactivation.blocks[0].first) == ["norm", "activation", "linear"]
    assert layout(preactivation.blocks[0].second) == ["norm", "activation", "dropout", "linear"]
    assert layout(preactivation.head) == ["norm", "activation", "linear"]
    highway = net(skip="highway")
    assert layout(highway.blocks[0].first) == ["linear", "norm", "activation", "dropout"]
    assert layout(highway.blocks[0].second) == ["linear", "norm", "activation"]
    for model, count in ((plain, 5), (residual, 2), (preactivation, 2), (highway, 2)):
        dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
        assert len(dropouts) == count
        assert all(module.p == 0.25 and not module.inplace for module in dropouts)
