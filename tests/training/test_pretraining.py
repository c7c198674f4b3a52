"""Pre-training against formulas by hand, against principal components, and against what it must leave alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depthlab.config import ModelConfig, TrainConfig
from depthlab.data import Batches
from depthlab.nets import Net, build
from depthlab.probes import Row
from depthlab.training import Autoencoder, Pretraining, pretraining, reconstruction_error

BatchesMaker = Callable[..., Batches]
STEPS, HIDDEN = 3, 3


def net(**config: Any) -> Net:
    settings = {"depth": HIDDEN + 1, "width": 12, "activation": "sigmoid", "init": "xavier", **config}
    return build(ModelConfig(**settings), channels=1, size=8, classes=10, seed=1)


def phase(model: Net, batches: Batches, seed: int = 0, **config: Any) -> Pretraining:
    settings = TrainConfig(**{"batch_size": 16, "pretraining_steps": STEPS, "pretraining_lr": 0.01, **config})
    return Pretraining(model, batches, settings, seed=seed)


def finished(model: Net, batches: Batches, **config: Any) -> list[tuple[int, Row]]:
    return [row for rows in phase(model, batches, **config).updates() for row in rows]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("in_unit_interval", [False, True])
@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_loss_and_gradient_are_those_by_hand(in_unit_interval: bool, activation: str) -> None:
    """In float64 numpy: the weights are used twice, and what is reconstructed is not what went in."""
    draw = np.random.default_rng(3)
    x = draw.uniform(0.05, 0.95, (7, 5))
    corrupted = x * (draw.uniform(size=x.shape) > 0.4)
    W, b, c = draw.normal(size=(4, 5)), draw.normal(size=4), draw.normal(size=5)

    z = corrupted @ W.T + b
    h = 1 / (1 + np.exp(-z)) if activation == "sigmoid" else np.tanh(z)
    slope = h * (1 - h) if activation == "sigmoid" else 1 - h**2
    u = h @ W + c
    if in_unit_interval:
        r = 1 / (1 + np.exp(-u))
        loss = -(x * np.log(r) + (1 - x) * np.log(1 - r)).sum() / 7
        into_u = (r - x) / 7
    else:
        loss, into_u = ((u - x) ** 2).sum() / 7, 2 * (u - x) / 7
    into_z = into_u @ W.T * slope
    expected = {"linear.weight": into_z.T @ corrupted + h.T @ into_u, "linear.bias": into_z.sum(axis=0)}

    linear = nn.Linear(5, 4).double()
    module = nn.Sigmoid() if activation == "sigmoid" else nn.Tanh()
    autoencoder = Autoencoder(linear, module, in_unit_interval=in_unit_interval)
    values = {"linear.weight": W, "linear.bias": b, "offset": c}
    autoencoder.load_state_dict({name: torch.from_numpy(value) for name, value in values.items()})
    found = autoencoder.loss(torch.from_numpy(corrupted), torch.from_numpy(x))
    found.backward()  # type: ignore[no-untyped-call]
    assert found.item() == pytest.approx(loss, rel=1e-12)
    gradients = {name: value.grad for name, value in autoencoder.named_parameters()}
    for name, value in {**expected, "offset": into_u.sum(axis=0)}.items():
        np.testing.assert_allclose(gradients[name], value, rtol=1e-11, atol=1e-13)
    reconstruction = autoencoder(torch.from_numpy(corrupted)).detach()
    np.testing.assert_allclose(reconstruction, r if in_unit_interval else u, rtol=1e-12)


def test_a_linear_autoencoder_finds_the_principal_components() -> None:
    """Its rows come to span them, and what it loses is the variance of all others (Baldi & Hornik 1989)."""
    generator = torch.Generator().manual_seed(5)
    spread = torch.tensor([4.0, 3.0, 2.0, 0.7, 0.5, 0.2], dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    x = torch.randn(200, 6, generator=generator, dtype=torch.float64) * spread @ turn + 1.5
    autoencoder = Autoencoder(nn.Linear(6, 3).double(), nn.Identity(), in_unit_interval=False)
    with torch.no_grad():
        autoencoder.linear.weight.copy_(0.1 * torch.randn(3, 6, generator=generator, dtype=torch.float64))
        autoencoder.linear.bias.zero_()
    optimizer = torch.optim.LBFGS(
        autoencoder.parameters(), max_iter=500, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = autoencoder.loss(x, x)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    optimizer.step(closure)
    _, values, components = torch.linalg.svd(x - x.mean(dim=0), full_matrices=False)
    rows = torch.linalg.qr(autoencoder.linear.weight.detach().t()).Q
    cosines = torch.linalg.svdvals(components[:3] @ rows)
    torch.testing.assert_close(cosines, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-8)
    left = values[3:].square().sum() / values.square().sum()
    assert reconstruction_error(autoencoder, x) == pytest.approx(left.item(), rel=1e-6)


def test_an_error_of_1_is_that_of_the_mean() -> None:
    x = torch.rand(40, 6, generator=torch.Generator().manual_seed(2))
    autoencoder = Autoencoder(nn.Linear(6, 3), nn.Identity(), in_unit_interval=False)
    with torch.no_grad():
        autoencoder.linear.weight.zero_()
        autoencoder.offset.copy_(x.mean(dim=0))
    assert reconstruction_error(autoencoder, x) == pytest.approx(1, abs=1e-6)
    with torch.no_grad():
        autoencoder.offset.add_(2.0)
    variance = x.var(dim=0, unbiased=False).sum().item()
    assert reconstruction_error(autoencoder, x) == pytest.approx(1 + 6 * 4 / variance, rel=1e-5)


def test_every_hidden_layer_changes_and_the_head_does_not(batches: BatchesMaker) -> None:
    model = net()
    before = weights(model)
    finished(model, batches())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("head."), name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_layers_are_trained_one_after_the_other(batches: BatchesMaker) -> None:
    """While one is, those below it stay as they have become and those above it as they were drawn."""
    model = net()
    changed = []
    before = weights(model)
    for _ in phase(model, batches()).updates():
        after = weights(model)
        changed.append(
            [name for name in after if name.endswith("weight") and not torch.equal(after[name], before[name])]
        )
        before = after
    assert changed == [[f"{name}.linear.weight"] for name in ("stem", "blocks.0", "blocks.1") for _ in range(STEPS)]


def test_an_update_is_adams_on_what_the_layers_below_give_on(batches: BatchesMaker) -> None:
    """The second layer's first update, by a loss written out here, of whole activations without dropout."""
    model = net(dropout=0.5)
    before, stream = weights(model), batches()
    training = phase(model, stream)
    updates = training.updates()
    for _ in range(STEPS):
        next(updates)
    weight, bias = (model.blocks[0].get_submodule("linear").get_parameter(name) for name in ("weight", "bias"))
    W = weight.detach().clone().requires_grad_()
    images, _ = stream[0]
    stem = model.stem.get_submodule("linear")
    x = torch.sigmoid(F.linear(images.flatten(1), stem.get_parameter("weight"), stem.get_parameter("bias"))).detach()
    code = torch.sigmoid(x @ W.t() + bias.detach())
    loss = F.binary_cross_entropy(torch.sigmoid(code @ W), x, reduction="sum") / 16
    loss.backward()  # type: ignore[no-untyped-call]
    assert W.grad is not None
    assert torch.equal(W.detach(), before["blocks.0.linear.weight"])
    next(updates)
    # Adam's first step is lr g / (|g| + eps)
    expected = -0.01 * W.grad / (W.grad.abs() + 1e-8)
    torch.testing.assert_close(weight.detach() - W.detach(), expected, rtol=1e-3, atol=1e-6)


def test_readings_are_before_and_after_each_layers_phase(batches: BatchesMaker) -> None:
    rows = finished(net(), batches())
    at = [(step, row.layer, row.depth, row.probe) for step, row in rows]
    names = [("stem.linear", 1), ("blocks.0.linear", 2), ("blocks.1.linear", 3)]
    assert at == [
        (step, *name, "reconstruction_error")
        for index, name in enumerate(names)
        for step in ((index - HIDDEN) * STEPS, (index - HIDDEN + 1) * STEPS)
    ]


def test_longer_phases_reconstruct_better(batches: BatchesMaker) -> None:
    rows = finished(net(), batches(), pretraining_steps=150)
    errors = np.array([row.value for _, row in rows]).reshape(HIDDEN, 2)
    assert (errors[:, 1] < 0.8 * errors[:, 0]).all()
    assert (errors[:, 1] < 1).all()


def test_what_is_read_is_of_a_batch_that_the_layer_has_not_seen(batches: BatchesMaker) -> None:
    model, stream = net(), batches()
    value = finished(model, stream)[1][1].value
    images, _ = stream[STEPS]
    # the decoder's bias is gone with the phase: a second one that stops after the first layer still has it
    again = phase(net(), stream)
    updates = again.updates()
    for _ in range(STEPS - 1):
        next(updates)
    autoencoder = again._autoencoder
    next(updates)
    assert value == reconstruction_error(autoencoder, images.flatten(1))


def test_corruption_is_a_share_of_zeros_anew_each_time_and_the_target_is_whole(
    batches: BatchesMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    loss = Autoencoder.loss

    def spy(self: Autoencoder, corrupted: Tensor, x: Tensor) -> Tensor:
        seen.append((corrupted, x))
        return loss(self, corrupted, x)

    monkeypatch.setattr(pretraining.Autoencoder, "loss", spy)
    finished(net(), batches(), corruption=0.3)
    masks = []
    for corrupted, x in seen:
        is_zero = corrupted == 0
        assert (x != 0).all()
        assert torch.equal(corrupted, x * ~is_zero)
        masks.append(is_zero)
    shares = [mask.float().mean().item() for mask in masks]
    assert np.mean(shares[:STEPS]) == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / (STEPS * 16 * 64)) ** 0.5)
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[STEPS], masks[2 * STEPS])  # equal steps of two layers of equal width


def test_no_corruption_is_none(batches: BatchesMaker) -> None:
    plain, whole = net(), net()
    finished(plain, batches())
    finished(whole, batches(), corruption=0.0)
    assert equal(weights(plain), weights(whole))
    finished(noisy := net(), batches(), corruption=0.3)
    assert not equal(weights(plain), weights(noisy))
    finished(other := net(), batches(), corruption=0.3, seed=1)
    assert not equal(weights(noisy), weights(other))


@pytest.mark.parametrize("stop", range(1, STEPS * HIDDEN + 1))
def test_it_goes_on_from_any_update_to_the_same_bits(batches: BatchesMaker, stop: int) -> None:
    """With another random state, and a decoder and an optimiser that are new."""
    whole = net()
    expected = finished(whole, batches(), corruption=0.3)

    model = net()
    first = phase(model, batches(), corruption=0.3)
    updates = first.updates()
    rows = [row for _ in range(stop) for row in next(updates)]
    state, saved = copy.deepcopy(first.state_dict()), weights(model)

    torch.rand(5)
    model = net()
    second = phase(model, batches(), corruption=0.3)
    model.load_state_dict(saved)
    second.load_state_dict(state)
    rows += [row for rows in second.updates() for row in rows]
    assert rows == expected
    assert equal(weights(model), weights(whole))
    assert second.is_over


def test_torchs_random_state_is_left_alone(batches: BatchesMaker) -> None:
    before = torch.get_rng_state()
    finished(net(), batches(), corruption=0.3)
    assert torch.equal(torch.get_rng_state(), before)


def test_layers_without_bias_are_trained_too(batches: BatchesMaker) -> None:
    rows = finished(net(bias=False, activation="relu"), batches(), pretraining_steps=60)
    assert rows[1][1].value < rows[0][1].value
