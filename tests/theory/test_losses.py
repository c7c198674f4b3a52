"""Gradients of losses in closed form, against autograd through the losses that are trained with."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from depthlab import theory
from depthlab.config import LOSSES, TrainConfig
from depthlab.theory.losses import GRADIENTS
from depthlab.training.loop import criterion

SOFTMAX = [loss for loss in LOSSES if loss != "mse"]


def test_names_are_those_of_the_configuration() -> None:
    assert tuple(sorted(GRADIENTS)) == tuple(sorted(LOSSES))
    with pytest.raises(ValueError, match="loss='hinge' must be one of cross_entropy, mse, brier"):
        theory.logit_gradient(np.zeros((1, 2)), np.array([0]), loss="hinge")


@pytest.mark.parametrize("loss", LOSSES)
@settings(deadline=None, max_examples=20)
@given(scale=st.sampled_from([0.0, 0.3, 3.0, 30.0]), seed=st.integers(0, 1000))
def test_against_autograd(loss: str, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(7, 5, generator=generator, dtype=torch.float64)).requires_grad_()
    labels = torch.randint(5, (7,), generator=generator)
    criterion(logits, labels, TrainConfig(loss=loss)).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    found = theory.logit_gradient(logits.detach().numpy(), labels.numpy(), loss=loss) / 7
    np.testing.assert_allclose(found, logits.grad.numpy(), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("loss", SOFTMAX)
def test_softmax_does_not_see_a_common_offset(loss: str) -> None:
    logits = np.random.default_rng(0).normal(size=(6, 4))
    labels = np.array([0, 1, 2, 3, 0, 1])
    found = theory.logit_gradient(logits, labels, loss=loss)
    np.testing.assert_allclose(found.sum(axis=1), 0, atol=1e-15)
    np.testing.assert_allclose(theory.logit_gradient(logits + 50, labels, loss=loss), found, atol=1e-12)


def test_two_classes_have_the_derivative_of_the_sigmoid_as_a_factor() -> None:
    z = np.linspace(-30, 30, 61)
    found = theory.logit_gradient(np.stack([z, np.zeros(61)], axis=1), np.zeros(61, dtype=int), loss="brier")[:, 0]
    p = special.expit(z)
    np.testing.assert_allclose(found, -4 * special.expit(-z) * p * special.expit(-z), rtol=1e-9, atol=1e-16)


@pytest.mark.parametrize(("loss", "rate"), [("cross_entropy", 0.0), ("brier", -1.0)])
def test_how_fast_a_sure_wrong_answer_loses_its_gradient(loss: str, rate: float) -> None:
    """d ln|dL/dz| / d logit, of the class that the output is sure of."""
    logs = []
    for logit in (20.0, 21.0):
        logits = np.zeros((1, 10))
        logits[0, 0] = logit
        logs.append(math.log(float(np.linalg.norm(theory.logit_gradient(logits, np.array([3]), loss=loss)))))
    assert logs[1] - logs[0] == pytest.approx(rate, abs=1e-6)
