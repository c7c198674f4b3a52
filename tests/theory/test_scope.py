"""Where the theory of plain nets ends; batch norm."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from depthlab import theory
from depthlab.config import ACTIVATIONS as NAMES
from depthlab.config import NORMS, SKIPS

WIDTH, BATCH, DEPTH, SEEDS = 400, 100, 16, 6


def test_it_applies_to_plain_nets_only() -> None:
    theory.check_applies(norm="none", skip="none")
    for norm in NORMS[1:]:
        with pytest.raises(ValueError, match=f"norm='{norm}'"):
            theory.check_applies(norm=norm, skip="none")
    for skip in SKIPS[1:]:
        with pytest.raises(ValueError, match=f"skip='{skip}' has no prediction here"):
            theory.check_applies(norm="none", skip=skip)
    with pytest.raises(ValueError, match="family='torchvision' has no prediction here"):
        theory.check_applies(norm="none", skip="none", family="torchvision")
    with pytest.raises(ValueError, match=r"dropout=0\.1 has no prediction here"):
        theory.check_applies(norm="none", skip="none", dropout=0.1)


def test_batch_norm_is_pointed_to_its_own_prediction() -> None:
    with pytest.raises(ValueError, match="batch_norm_backward_slope"):
        theory.check_applies(norm="batch", skip="none")


def test_batch_norm_explodes_by_the_cited_rate_with_relu() -> None:
    slope = theory.batch_norm_backward_slope(activation="relu")
    assert math.exp(-slope) == pytest.approx(math.sqrt(math.pi / (math.pi - 1.0)), rel=1e-14)


@pytest.mark.parametrize("activation", NAMES)
def test_batch_norm_never_lets_gradients_vanish(activation: str) -> None:
    slope = theory.batch_norm_backward_slope(activation=activation)
    assert slope == 0.0 if activation == "identity" else slope < -0.01


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_batch_norm_slopes_of_real_nets(activation: str) -> None:
    phi = getattr(torch, activation, None) or getattr(torch.nn.functional, activation)
    samples = np.array([measured_slope(phi, seed) for seed in range(SEEDS)])
    noise = stats.t.ppf(0.995, SEEDS - 1) * samples.std(ddof=1) / math.sqrt(SEEDS)
    finite_batch = 0.5 * math.log((BATCH - 2) / (BATCH - 3))
    deviation = samples.mean() - theory.batch_norm_backward_slope(activation=activation)
    assert -noise - finite_batch <= deviation <= noise


def measured_slope(phi: torch.nn.Module, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    h, layers = torch.randn(BATCH, WIDTH, generator=generator), []
    for _ in range(DEPTH):
        weight = torch.randn(WIDTH, WIDTH, generator=generator) / math.sqrt(WIDTH)
        layers.append((h @ weight).requires_grad_())
        h = phi(torch.nn.functional.batch_norm(layers[-1], None, None, training=True, eps=1e-12))
    readout = torch.randn(h.shape, generator=generator)
    norms = [grad.norm().item() for grad in torch.autograd.grad((h * readout).sum(), layers)]
    return float(np.polyfit(np.arange(2, DEPTH), np.log(norms[2:]), 1)[0])
