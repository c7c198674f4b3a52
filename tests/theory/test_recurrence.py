"""The profile in time against closed forms, feedforward theory and random cells; where growing signals overflow."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from depthlab import theory


def test_linear_cells_have_a_closed_form() -> None:
    profile = theory.time_profile([0.5, 2.0, 0.25], activation="identity", sigma_w=3.0)
    assert profile.step.tolist() == [1.0, 2.0, 3.0]
    assert profile.variance.tolist() == pytest.approx([0.5, 9 * 0.5 + 2, 9 * 6.5 + 0.25])
    assert profile.log_backward_norm.tolist() == pytest.approx([2 * math.log(3), math.log(3), 0.0])


@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid"])
@pytest.mark.parametrize("sigma_w", [0.5, 1.0, 1.2])
def test_a_constant_drive_is_the_bias_of_a_feedforward_net(activation: str, sigma_w: float) -> None:
    drive = 0.7
    profile = theory.time_profile([drive] * 200, activation=activation, sigma_w=sigma_w)
    slope = profile.log_backward_norm[80] - profile.log_backward_norm[79]
    expected = theory.backward_slope(activation=activation, sigma_w=sigma_w, sigma_b=math.sqrt(drive))
    assert slope == pytest.approx(expected, rel=1e-6)


def test_the_state_begins_at_zero_and_not_at_the_activation_of_zero() -> None:
    assert theory.time_profile([0.3], activation="sigmoid", sigma_w=2.0).variance.tolist() == [0.3]


def test_without_recurrent_weights_no_gradient_comes_back() -> None:
    profile = theory.time_profile([1.0, 1.0], activation="tanh", sigma_w=0.0)
    assert profile.log_backward_norm.tolist() == [-math.inf, 0.0]


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"drive=\[\] has no time steps"):
        theory.time_profile([], activation="tanh", sigma_w=1.0)
    with pytest.raises(ValueError, match=r"q=-1.0 must be a variance"):
        theory.time_profile([1.0, -1.0], activation="tanh", sigma_w=1.0)
    with pytest.raises(ValueError, match=r"family='rnn' is deep in time.*time_profile"):
        theory.check_applies(norm="none", skip="none", family="rnn")


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("sigma_w", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("orthogonal", [True, False])
def test_wide_random_cells_follow_the_drive_of_each_example(activation: str, sigma_w: float, orthogonal: bool) -> None:
    """Rows of unlike size, so that a mean drive would be far off."""
    steps, inputs, width, examples = 12, 40, 500, 4
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    rows = normal(steps, examples, inputs) * 10 ** torch.linspace(-1, 0, examples, dtype=torch.float64)[:, None]
    rows *= 1 + torch.arange(steps, dtype=torch.float64)[:, None, None] % 2
    measured = []
    for _ in range(4):
        w, u = normal(width, width) / math.sqrt(width), normal(inputs, width) / math.sqrt(inputs)
        w = sigma_w * (torch.linalg.qr(w)[0] if orthogonal else w)
        phi = getattr(torch, activation)
        states = [phi(rows[0] @ u).requires_grad_()]
        for row in rows[1:]:
            states.append(phi(states[-1] @ w + row @ u))
        loss = (states[-1] * normal(1, width)).sum()  # per example: all have a random gradient of one size
        gradients = torch.stack(torch.autograd.grad(loss, states))
        measured.append(gradients.square().sum(dim=2).numpy())
    mean = 0.5 * np.log(np.mean(measured, axis=0))  # theory is of means of squares
    for example in range(examples):
        drive = rows[:, example].square().mean(dim=1).tolist()
        expected = theory.time_profile(drive, activation=activation, sigma_w=sigma_w).log_backward_norm
        found = mean[:, example] - mean[-1, example]
        assert np.abs(found - expected).max() < 0.25
        assert (found[0] - expected[0]) / (steps - 1) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize(("sigma_w", "layer"), [(2.0, 255.0), (4.0, 85.0)])
def test_overflow_of_relu_in_powers_of_two(sigma_w: float, layer: float) -> None:
    """sigma_w = 2: q doubles a layer from 4, and float32 ends at 2^128 = sqrt(2^256); sigma_w = 4: times 8 from 16."""
    assert theory.overflow_depth(activation="relu", sigma_w=sigma_w) == pytest.approx(layer, abs=1e-5)


def test_what_does_not_grow_does_not_overflow() -> None:
    assert theory.overflow_depth(activation="relu", sigma_w=math.sqrt(2)) == math.inf
    assert theory.overflow_depth(activation="tanh", sigma_w=3.0) == math.inf


@pytest.mark.parametrize("sigma_w", [3.0, 4.0, 6.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_relu_net_overflows_where_it_is_predicted(sigma_w: float, dtype: torch.dtype) -> None:
    width = 300
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, width, generator=generator)
    x = x / x.square().mean().sqrt()
    predicted = theory.overflow_depth(activation="relu", sigma_w=sigma_w, largest=torch.finfo(dtype).max)
    largest = torch.tensor(torch.finfo(dtype).max, dtype=torch.float64)
    x, layer = x.double(), 0
    while True:  # in float64, where nothing overflows, against the end of the type
        layer += 1
        x = x @ torch.randn(width, width, generator=generator, dtype=torch.float64) * sigma_w / math.sqrt(width)
        if x.std() > largest:
            break
        x = x.relu()
    assert layer == pytest.approx(predicted, abs=1.5 + 0.01 * predicted)
