"""Recurrent nets against torch's own sequence modules, what their weights are drawn from, and what is refused."""

import math

import pytest
import torch
from torch import nn

from depthlab import config as names
from depthlab.config import ModelConfig
from depthlab.nets import build, rescale, scales, time_steps, weight_layers
from depthlab.nets.recurrence import CELLS, Rows

IMAGES = {"channels": 2, "size": 6, "classes": 3}
GATES = {"rnn": 1, "lstm": 4, "gru": 3}
SEQUENCES = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


def make(seed=0, **factors):
    given = {"family": "rnn", "depth": 2, "width": 7, "activation": "tanh", "init": "orthogonal", **factors}
    return build(ModelConfig(**given), **IMAGES, seed=seed)


def cell_of(model):
    return model.get_submodule("blocks.0.cell")


def test_names_are_those_of_the_configuration():
    assert tuple(CELLS) == names.CELLS


def test_rows_come_from_top_to_bottom_with_all_channels():
    images = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    rows = Rows()(images)
    assert rows.shape == (2, 4, 12)
    for t in range(4):
        assert torch.equal(rows[1, t], torch.cat([images[1, c, t] for c in range(3)]))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("cell", "activation"), [("rnn", "tanh"), ("rnn", "relu"), ("lstm", "tanh"), ("gru", "tanh")])
def test_the_logits_are_those_of_torchs_own_sequence_modules(cell, activation, bias):
    factors = {"forget_bias": 1.0} if cell != "rnn" and bias else {}
    model = make(
        cell=cell, activation=activation, bias=bias, init="gaussian", sigma_b=0.3 if bias else 0.0, **factors
    ).double()
    extra = {"nonlinearity": activation} if cell == "rnn" else {}
    sequence = SEQUENCES[cell](12, 7, bias=bias, batch_first=True, **extra).double()
    sequence.load_state_dict({f"{name}_l0": value for name, value in cell_of(model).state_dict().items()})
    images = torch.randn(5, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    outputs, _ = sequence(Rows()(images))
    head = model.get_submodule("head.linear")
    torch.testing.assert_close(model(images), outputs[:, -1] @ head.weight.T + head.bias, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("cell", CELLS)
def test_states_are_those_of_every_step(cell):
    model = make(cell=cell).double()
    extra = {} if cell != "rnn" else {"nonlinearity": "tanh"}
    sequence = SEQUENCES[cell](12, 7, batch_first=True, **extra).double()
    sequence.load_state_dict({f"{name}_l0": value for name, value in cell_of(model).state_dict().items()})
    seen = {}
    for name, state in time_steps(model):
        state.register_forward_hook(lambda _module, _inputs, output, name=name: seen.update({name: output}))
    images = torch.randn(5, 2, 6, 6, dtype=torch.float64)
    model(images)
    outputs, _ = sequence(Rows()(images))
    assert list(seen) == [f"step_{t}" for t in range(1, 7)]
    torch.testing.assert_close(torch.stack(list(seen.values()), dim=1), outputs, rtol=1e-12, atol=1e-14)


def test_other_nets_have_no_time_steps():
    assert time_steps(build(ModelConfig(depth=4), **IMAGES, seed=0)) == []


@pytest.mark.parametrize("cell", CELLS)
def test_two_weight_layers_and_as_many_parameters_as_gates_ask_for(cell):
    model = make(cell=cell)
    assert [name for name, _ in weight_layers(model)] == ["blocks.0.cell", "head.linear"]
    gates = GATES[cell]
    expected = gates * 7 * (12 + 7 + 2) + 3 * (7 + 1)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize("cell", CELLS)
def test_each_gate_of_an_orthogonal_cell_is_orthogonal(cell):
    cell = cell_of(make(cell=cell, sigma_w=1.5))
    for gate in cell.weight_hh.double().split(7):
        torch.testing.assert_close(gate @ gate.T, 2.25 * torch.eye(7, dtype=torch.float64), rtol=0, atol=2e-5)
    for gate in cell.weight_ih.double().split(7):
        torch.testing.assert_close(gate @ gate.T, torch.eye(7, dtype=torch.float64), rtol=0, atol=2e-5)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("init", "factors", "recurrent", "inputs"),
    [
        ("gaussian", {"sigma_w": 1.7, "sigma_b": 0.4}, 1.7, 1.0),
        ("he", {}, math.sqrt(2), 1.0),
        ("xavier", {}, 1.0, math.sqrt(2 * 12 / (12 + 200))),
        ("torch_default", {}, math.sqrt(1 / 3), math.sqrt(12 / (3 * 200))),
    ],
)
def test_weights_are_drawn_with_the_gains_that_are_promised(cell, init, factors, recurrent, inputs):
    config = {"cell": cell, "init": init, "width": 200, **factors}
    cell = cell_of(make(**config))
    for gate in cell.weight_hh.double().split(200):
        assert (200 * gate.square().mean()).sqrt().item() == pytest.approx(recurrent, rel=0.02)
    for gate in cell.weight_ih.double().split(200):
        assert (12 * gate.square().mean()).sqrt().item() == pytest.approx(inputs, rel=0.06)
    found = scales(ModelConfig(family="rnn", depth=2, activation="tanh", **config))
    bias = (cell.bias_ih + cell.bias_hh).double().square().mean().sqrt().item()
    assert found == pytest.approx((recurrent, bias), rel=0.2)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("init", ["gaussian", "torch_default"])
def test_forget_bias_is_added_to_the_gate_that_keeps_the_state_and_to_nothing_else(cell, init):
    usual, changed = cell_of(make(cell=cell, init=init)), cell_of(make(cell=cell, init=init, forget_bias=3.0))
    for name, value in usual.named_parameters():
        difference = (changed.get_parameter(name) - value).view(GATES[cell], -1)
        expected = torch.zeros_like(difference)
        if name == "bias_ih":
            expected[1] = 3.0
        torch.testing.assert_close(difference, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("forget_bias", [0.0, 2.0])
def test_the_state_keeps_the_share_of_itself_that_the_forget_bias_says(cell, forget_bias):
    """Inputs are blank and nothing comes from the state: c of an lstm, h of a gru, decay by sigmoid(b) each step."""
    layer = cell_of(make(cell=cell, forget_bias=forget_bias, init="gaussian", sigma_w=0.0)).double()
    held = torch.ones(1, 7, dtype=torch.float64)
    state = (0 * held, held) if cell == "lstm" else held
    for _ in range(5):
        state = layer(torch.zeros(1, 12, dtype=torch.float64), state)
    left = state[1] if cell == "lstm" else state
    torch.testing.assert_close(left, held / (1 + math.exp(-forget_bias)) ** 5, rtol=1e-6, atol=0)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("init", [init for init in names.INITS if init not in ("delta_orthogonal", "lsuv")])
def test_every_cell_and_init_takes_a_training_step(cell, init):
    model = make(cell=cell, init=init)
    before = [parameter.clone() for parameter in model.parameters()]
    loss = nn.functional.cross_entropy(model(torch.randn(4, 2, 6, 6)), torch.arange(4) % 3)
    for parameter, gradient in zip(
        model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
    ):
        assert gradient.isfinite().all()
        with torch.no_grad():
            parameter.sub_(0.1 * gradient)
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_rescaling_by_data_is_refused():
    with pytest.raises(ValueError, match=r"layer blocks\.0\.cell passes a batch at every time step"):
        rescale(make(), torch.randn(4, 2, 6, 6))
