from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from depthlab.config import ModelConfig, TrainConfig
from depthlab.data import Batches
from depthlab.nets import Net, build
from depthlab.training import evaluate, predictions, residuals

BatchesMaker = Callable[..., Batches]


def net(**config: Any) -> Net:
    return build(ModelConfig(depth=4, width=12, **config), channels=1, size=8, classes=10, seed=1)


def test_is_over_all_images_whatever_the_batches(batches: BatchesMaker) -> None:
    model, config = net(), TrainConfig(label_smoothing=0.1)
    inputs, labels = batches(batch_size=90)[0]
    whole = evaluate(model, [(inputs, labels)], config)
    uneven = evaluate(model, zip(torch.split(inputs, 37), torch.split(labels, 37), strict=True), config)
    assert uneven.loss == pytest.approx(whole.loss, rel=1e-6)
    assert uneven.error == whole.error
    with torch.no_grad():
        logits = model(inputs)
    assert whole.loss == pytest.approx(F.cross_entropy(logits, labels, label_smoothing=0.1).item(), rel=1e-6)
    assert whole.error == pytest.approx((logits.argmax(dim=1) != labels).double().mean().item())


@pytest.mark.parametrize("training", [True, False])
def test_leaves_everything_as_it_was(training: bool, batches: BatchesMaker) -> None:
    model, other = net(norm="batch", dropout=0.5).train(training), net(norm="batch", dropout=0.5)
    state = torch.get_rng_state()
    first, second = (evaluate(model, [batches()[0]], TrainConfig()) for _ in range(2))
    assert first == second
    assert model.training is training
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(dict(model.state_dict()), dict(other.state_dict()), rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_in_bf16(batches: BatchesMaker) -> None:
    exact = evaluate(net(), [batches()[0]], TrainConfig())
    rounded = evaluate(net(), [batches()[0]], TrainConfig(precision="bf16"))
    assert rounded.loss == pytest.approx(exact.loss, rel=0.02)
    assert rounded.loss != exact.loss


@pytest.mark.parametrize("loss", ["mse", "brier", "cross_entropy"])
def test_residuals_are_outputs_minus_labels_in_evaluation_mode(loss: str, batches: BatchesMaker) -> None:
    model, (inputs, labels) = net(norm="batch", dropout=0.5).train(), batches(batch_size=30)[0]
    state = torch.get_rng_state()
    found = residuals(model, inputs, labels, TrainConfig(loss=loss))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    with torch.no_grad():
        logits = model.eval()(inputs)
    outputs = logits if loss == "mse" else logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    expected = [[outputs[i, k].item() - (k == labels[i].item()) for k in range(10)] for i in range(30)]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-6)
    if loss != "cross_entropy":  # mse is a mean over classes, brier a sum
        squared_error = (10 if loss == "mse" else 1) * evaluate(model, [(inputs, labels)], TrainConfig(loss=loss)).loss
        assert found.square().sum(dim=1).mean().item() == pytest.approx(squared_error, rel=1e-5)


def test_predictions_are_the_largest_logits_in_evaluation_mode(batches: BatchesMaker) -> None:
    model, (inputs, _) = net(norm="batch", dropout=0.5).train(), batches(batch_size=30)[0]
    state = torch.get_rng_state()
    found = predictions(model, inputs, TrainConfig())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    with torch.no_grad():
        assert found.tolist() == [max(range(10), key=row.__getitem__) for row in model.eval()(inputs).tolist()]
    assert len(set(found.tolist())) > 1
