"""Readings of a recurrent net's states against backpropagation through time, written by hand in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import depthlab
from depthlab.config import ModelConfig
from depthlab.nets import Net, build, time_steps, weight_layers
from depthlab.probes import Reading

Array = np.ndarray[Any, np.dtype[np.float64]]
STEPS, INPUTS, WIDTH, CLASSES, EXAMPLES = 6, 12, 7, 3, 5


def make(**factors: Any) -> Net:
    given = {"family": "rnn", "depth": 2, "width": WIDTH, "activation": "tanh", "init": "gaussian", "sigma_b": 0.3}
    config = ModelConfig(**{**given, **factors})
    return build(config, channels=2, size=STEPS, classes=CLASSES, seed=0).double()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(EXAMPLES, 2, STEPS, STEPS, dtype=torch.float64, generator=generator)
    return images, torch.arange(EXAMPLES) % CLASSES


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def back_through_time(model: Net, cell: str) -> tuple[list[Array], list[Array]]:
    """h_t and dL/dh_t, each (examples, width), for t = 1..T, by each cell's own formulas, without autograd."""
    images, labels = batch()
    rows = [np.stack([np.concatenate([image[0, t], image[1, t]]) for image in images.numpy()]) for t in range(STEPS)]
    u, w, b, d = (
        model.get_parameter(f"blocks.0.cell.{name}").detach().numpy()
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    head, offset = (model.get_parameter(f"head.linear.{name}").detach().numpy() for name in ("weight", "bias"))
    h, c = np.zeros((EXAMPLES, WIDTH)), np.zeros((EXAMPLES, WIDTH))
    states, memory = [], []
    for x in rows:
        if cell == "rnn":
            h_next = np.tanh(x @ u.T + h @ w.T + b + d)
            memory.append((h_next,))
        elif cell == "lstm":
            i, f, g, o = np.split(x @ u.T + h @ w.T + b + d, 4, axis=1)
            i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
            c_next = f * c + i * g
            h_next = o * np.tanh(c_next)
            memory.append((i, f, g, o, c, c_next))
            c = c_next
        else:
            (ri, zi, ni), (rh, zh, nh) = np.split(x @ u.T + b, 3, axis=1), np.split(h @ w.T + d, 3, axis=1)
            r, z = sigmoid(ri + rh), sigmoid(zi + zh)
            n = np.tanh(ni + r * nh)
            h_next = (1 - z) * n + z * h
            memory.append((r, z, n, nh, h))
        h = h_next
        states.append(h)
    logits = h @ head.T + offset
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    dh = (p - np.eye(CLASSES)[labels.numpy()]) / EXAMPLES @ head
    dc = np.zeros_like(dh)
    gradients = []
    for kept in reversed(memory):
        gradients.append(dh)
        if cell == "rnn":
            dh = (dh * (1 - kept[0] ** 2)) @ w
        elif cell == "lstm":
            i, f, g, o, c, c_next = kept
            dc = dc + dh * o * (1 - np.tanh(c_next) ** 2)
            do = dh * np.tanh(c_next) * o * (1 - o)
            di, df, dg = dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g**2)
            dh, dc = np.concatenate([di, df, dg, do], axis=1) @ w, dc * f
        else:
            r, z, n, nh, before = kept
            dn = dh * (1 - z) * (1 - n**2)
            dz = dh * (before - n) * z * (1 - z)
            dr = dn * nh * r * (1 - r)
            dh = dh * z + np.concatenate([dr, dz, dn * r], axis=1) @ w
    return states, gradients[::-1]


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("sigma_w", [0.3, 1.0, 3.0])
def test_every_step_reads_what_backpropagation_through_time_gives(cell: str, sigma_w: float) -> None:
    model = make(cell=cell, sigma_w=sigma_w)
    inputs, labels = batch()
    names = ["backward_norm", "activation_mean", "activation_std"]
    with Reading(model, weight_layers(model), names, time_steps(model)) as reading:
        F.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
    states, gradients = back_through_time(model, cell)
    rows = {(row.layer, row.depth, row.probe): row.value for row in reading.rows()}
    for t, (h, gradient) in enumerate(zip(states, gradients, strict=True), 1):
        expected = {
            "backward_norm": math.sqrt((gradient**2).sum()),
            "activation_mean": h.mean(),
            "activation_std": h.std(),
        }
        for probe, value in expected.items():
            assert rows.pop((f"step_{t}", t, probe)) == pytest.approx(value, rel=1e-10, abs=1e-15), (t, probe)
    assert {(layer, depth) for layer, depth, _ in rows} == {("head.linear", 2)}


def test_weights_and_gradients_of_the_recurrent_matrix_are_read() -> None:
    model = make()
    inputs, labels = batch()
    names = ["grad_norm", "weight_norm", "update_ratio"]
    with Reading(model, weight_layers(model), names, time_steps(model)) as reading:
        F.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
    weight = model.get_parameter("blocks.0.cell.weight_hh")
    assert weight.grad is not None
    gradient, size = weight.grad.norm().item(), weight.norm().item()
    reading.before_update()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    rows = {row.probe: row.value for row in reading.rows() if row.layer == "blocks.0.cell"}
    assert rows == pytest.approx(
        {"grad_norm": gradient, "weight_norm": size, "update_ratio": 0.1 * gradient / size}, rel=1e-10
    )


def test_reading_changes_nothing() -> None:
    plain, read = make(cell="lstm"), make(cell="lstm")
    inputs, labels = batch()
    F.cross_entropy(plain(inputs), labels).backward()  # type: ignore[no-untyped-call]
    names = ["backward_norm", "grad_norm", "activation_std"]
    with Reading(read, weight_layers(read), names, time_steps(read)):
        F.cross_entropy(read(inputs), labels).backward()  # type: ignore[no-untyped-call]
    for one, other in zip(plain.parameters(), read.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)


def test_a_state_that_is_no_part_of_the_model_is_refused() -> None:
    model = make()
    with pytest.raises(ValueError, match=r"layer 'step_1' is no part of the model"):
        Reading(model, weight_layers(model), ["backward_norm"], [("step_1", nn.Identity())])


def test_prediction_from_one_pass_says_that_it_has_too_few_layers() -> None:
    with pytest.raises(ValueError, match=r"the model has 2 weight layers; a slope over layers needs 4 or more"):
        depthlab.predict(make(), batch()[0])


def test_measuring_sees_the_head_and_the_cells_weights() -> None:
    model = make()
    inputs, labels = batch()
    rows = depthlab.measure(model, lambda: F.cross_entropy(model(inputs), labels), ["grad_norm", "weight_norm"])
    assert set(rows["layer"]) == {"blocks.0.cell.weight_ih", "blocks.0.cell.weight_hh", "head.linear"}
