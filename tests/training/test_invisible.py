"""Measuring is invisible: a training that is read at every update is, bit for bit, the one that is never read."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depthlab.config import CELLS, NORMS, PROBES, SKIPS, ModelConfig, ProbesConfig, TrainConfig
from depthlab.data import Batches
from depthlab.nets import build, time_steps, weight_layers
from depthlab.probes import Reading
from depthlab.training import build_optimizer, loop, train

STEPS = 4
TRAINING: dict[str, dict[str, Any]] = {
    "sgd": {"nesterov": True, "weight_decay": 1e-3},
    "adam": {"optimizer": "adam", "lr": 0.01, "l1": 1e-3},
    "adamw": {"optimizer": "adamw", "lr": 0.01, "clip_norm": 0.5},
    "bf16": {"precision": "bf16", "label_smoothing": 0.1},
    "brier": {"loss": "brier"},
    "mse": {"loss": "mse", "clip_norm": 0.1, "l1": 1e-3},
}

BatchesMaker = Callable[..., Batches]


@dataclass(frozen=True)
class Outcome:
    """All that a training leaves, as bytes: nothing is compared up to a tolerance, nor -0 taken for 0."""

    weights_and_buffers: dict[str, bytes]
    optimizer: dict[str, bytes]
    gradients: list[bytes]
    losses: list[bytes]
    random_states: tuple[bytes, Any, Any]
    rows: int


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def flatten(prefix: str, value: Any) -> dict[str, bytes]:
    if isinstance(value, Tensor):
        return {prefix: bits(value)}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found: dict[str, bytes] = {}
    for name, item in items:
        found |= flatten(f"{prefix}.{name}", item)
    return found


def random_states() -> tuple[bytes, Any, Any]:
    return bits(torch.get_rng_state()), random.getstate(), repr(np.random.get_state())


def outcome(
    monkeypatch: pytest.MonkeyPatch, batches: Batches, model: ModelConfig, *, measured: bool, **config: Any
) -> Outcome:
    """Trains, and watches the gradients that the optimiser is given."""
    seed_all()
    net = build(model, channels=1, size=8, classes=10, seed=2)
    gradients: list[bytes] = []
    optimizers: list[torch.optim.Optimizer] = []

    def build_watched(which: nn.Module, settings: TrainConfig) -> torch.optim.Optimizer:
        optimizer = build_optimizer(which, settings)
        optimizer.register_step_pre_hook(
            lambda *_: gradients.extend(bits(p.grad) for p in which.parameters() if p.grad is not None)
        )
        optimizers.append(optimizer)
        return optimizer

    with monkeypatch.context() as patch:
        patch.setattr(loop, "build_optimizer", build_watched)
        patch.setattr(loop, "is_read", lambda *_: measured)
        settings = TrainConfig(steps=STEPS, batch_size=16, **config)
        probes, states = ProbesConfig(every=1), time_steps(net)
        updates = list(train(net, weight_layers(net), batches, settings, probes, seed=0, states=states))
    assert len(gradients) == STEPS * len(list(net.parameters()))
    return Outcome(
        weights_and_buffers=flatten("", dict(net.state_dict())),
        optimizer=flatten("", optimizers[0].state_dict()["state"]),
        gradients=gradients,
        losses=[bits(value) for update in updates for value in (update.loss, update.error)],
        random_states=random_states(),
        rows=sum(len(update.rows) for update in updates),
    )


def seed_all() -> None:
    torch.manual_seed(11)
    random.seed(11)
    np.random.seed(11)


def assert_invisible(monkeypatch: pytest.MonkeyPatch, batches: Batches, model: ModelConfig, **config: Any) -> None:
    never = outcome(monkeypatch, batches, model, measured=False, **config)
    always = outcome(monkeypatch, batches, model, measured=True, **config)
    assert never.rows == 0
    assert always.rows >= STEPS * model.depth * 6
    assert always.weights_and_buffers == never.weights_and_buffers
    assert always.optimizer == never.optimizer
    assert always.gradients == never.gradients
    assert always.losses == never.losses
    assert always.random_states == never.random_states


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("family", ["mlp", "cnn"])
def test_for_every_family_and_norm(
    family: str, norm: str, dropout: float, monkeypatch: pytest.MonkeyPatch, batches: BatchesMaker
) -> None:
    model = ModelConfig(family=family, depth=8, width=4, norm=norm, dropout=dropout)
    assert_invisible(monkeypatch, batches(), model)


@pytest.mark.parametrize("cell", CELLS)
def test_for_every_cell(cell: str, monkeypatch: pytest.MonkeyPatch, batches: BatchesMaker) -> None:
    model = ModelConfig(family="rnn", depth=2, width=6, activation="tanh", cell=cell)
    assert_invisible(monkeypatch, batches(), model, clip_norm=0.1)


@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "gelu"])
def test_for_every_skip(skip: str, activation: str, monkeypatch: pytest.MonkeyPatch, batches: BatchesMaker) -> None:
    model = ModelConfig(depth=8, width=6, skip=skip, activation=activation, norm="batch", dropout=0.2)
    assert_invisible(monkeypatch, batches(flip=True, crop_padding=1), model)


@pytest.mark.parametrize("name", TRAINING)
def test_for_every_way_of_training(name: str, monkeypatch: pytest.MonkeyPatch, batches: BatchesMaker) -> None:
    model = ModelConfig(depth=6, width=8, norm="batch", dropout=0.1)
    assert_invisible(monkeypatch, batches(), model, **TRAINING[name])


def test_where_the_loss_is_not_a_number(monkeypatch: pytest.MonkeyPatch, batches: BatchesMaker) -> None:
    model = ModelConfig(depth=6, width=8)
    assert_invisible(monkeypatch, batches(), model, lr=1e20)


def test_update_without_loop_leaves_hooks_gradients_and_modes() -> None:
    """One update by hand: gradients before the optimiser, what the model returns, training modes, no leftovers."""

    def update(measured: bool) -> tuple[list[bytes], bytes, bytes]:
        seed_all()
        model = build(ModelConfig(depth=6, width=8, norm="batch", dropout=0.5), channels=1, size=8, classes=10, seed=0)
        model.get_submodule("blocks.1.norm").eval()
        modes = [module.training for module in model.modules()]
        inputs = torch.randn(16, 1, 8, 8, requires_grad=True)
        with Reading(model, weight_layers(model), PROBES if measured else ()) as reading:
            logits = model(inputs)
            F.cross_entropy(logits, torch.arange(16) % 10).backward()  # type: ignore[no-untyped-call]
        reading.before_update()
        assert [module.training for module in model.modules()] == modes
        assert bool(reading.rows()) is measured
        assert inputs.grad is not None
        return [bits(p.grad) for p in model.parameters() if p.grad is not None], bits(logits), bits(inputs.grad)

    assert update(True) == update(False)
