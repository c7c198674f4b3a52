"""The loop against a plain reference written out here: other optimiser kernels, losses and penalties by formula."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depthlab.config import LOSSES, ModelConfig, ProbesConfig, TrainConfig
from depthlab.data import Batches
from depthlab.nets import Net, build, weight_layers
from depthlab.probes import norm
from depthlab.training import Update, loop, train
from depthlab.training.loop import criterion, is_read

STEPS = 20
MODEL: dict[str, Any] = {"depth": 4, "width": 12}
SILENT = ProbesConfig(every=0, names=())

CONFIGS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.0},
    "momentum": {"momentum": 0.8},
    "nesterov": {"nesterov": True},
    "adam": {"optimizer": "adam", "lr": 0.01, "momentum": 0.8},
    "adamw": {"optimizer": "adamw", "lr": 0.01},
    "sgd decay": {"weight_decay": 0.02},
    "adam decay": {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.02},
    "adamw decay": {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.2},
    "l1": {"l1": 0.003},
    "clip": {"clip_norm": 0.3},
    "clip and l1": {"clip_norm": 0.3, "l1": 0.003},
    "smoothing": {"label_smoothing": 0.2},
    "mse": {"loss": "mse"},
    "mse smoothing": {"loss": "mse", "label_smoothing": 0.2},
    "brier": {"loss": "brier"},
    "brier smoothing": {"loss": "brier", "label_smoothing": 0.2},
    "warmup": {"warmup_steps": 7, "lr": 0.1},
    "step": {"schedule": "step", "milestones": (0.3, 0.6), "lr_decay": 0.2},
    "cosine": {"schedule": "cosine", "warmup_steps": 4},
}

BatchesMaker = Callable[..., Batches]


def net(**config: Any) -> Net:
    return build(ModelConfig(**{**MODEL, **config}), channels=1, size=8, classes=10, seed=1)


def run(model: Net, batches: Batches, probes: ProbesConfig = SILENT, **config: Any) -> list[Update]:
    settings = TrainConfig(**{"steps": STEPS, "batch_size": 16, **config})
    return list(train(model, weight_layers(model), batches, settings, probes, seed=0))


def losses(updates: list[Update]) -> list[float]:
    return [update.loss.item() for update in updates]


def assert_same_weights(model: nn.Module, other: nn.Module, *, rtol: float, atol: float) -> None:
    torch.testing.assert_close(dict(model.state_dict()), dict(other.state_dict()), rtol=rtol, atol=atol)


def reference_rate(config: TrainConfig) -> Iterator[float]:
    for step in range(config.steps):
        if step < config.warmup_steps:
            yield config.lr * (step + 1) / config.warmup_steps
        elif config.schedule == "step":
            yield config.lr * math.prod(config.lr_decay for part in config.milestones if step >= part * config.steps)
        elif config.schedule == "cosine":
            done = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
            yield config.lr * math.cos(math.pi * done / 2) ** 2
        else:
            yield config.lr


def reference_loss(logits: Tensor, labels: Tensor, config: TrainConfig) -> Tensor:
    """-sum_k t_k ln p_k, mean_k (z_k - t_k)^2 or sum_k (p_k - t_k)^2, t = (1 - e) onehot + e / K; mean over a batch."""
    count = logits.shape[1]
    targets = torch.full_like(logits, config.label_smoothing / count)
    targets[torch.arange(len(labels)), labels] += 1 - config.label_smoothing
    if config.loss == "mse":
        return (logits - targets).square().sum() / logits.numel()
    if config.loss == "brier":
        shares = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
        return (shares - targets).square().sum() / len(labels)
    log_shares = logits - logits.exp().sum(dim=1, keepdim=True).log()
    return -(targets * log_shares).sum() / len(labels)


def reference_optimizer(model: nn.Module, config: TrainConfig, **kernel: bool) -> torch.optim.Optimizer:
    shared: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, **kernel}
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=config.momentum, nesterov=config.nesterov, **shared)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    optimizer: torch.optim.Optimizer = kind(model.parameters(), betas=(config.momentum, 0.999), **shared)
    return optimizer


def reference(model: Net, batches: Batches, config: TrainConfig) -> list[float]:
    """Trains by formula: penalties are part of the loss that autograd sees, clipping is written out."""
    optimizer = reference_optimizer(model, config, fused=False, foreach=False)
    found = []
    for step, rate in enumerate(reference_rate(config)):
        optimizer.param_groups[0]["lr"] = rate
        inputs, labels = batches[step]
        loss = reference_loss(model(inputs), labels, config)
        penalty = torch.stack([layer.weight.abs().sum() for _, layer in weight_layers(model)]).sum()
        (loss + config.l1 * penalty).backward()  # type: ignore[no-untyped-call]
        if config.clip_norm is not None:
            gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            total = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
            for gradient in gradients:
                gradient.mul_(min(1.0, config.clip_norm / total))
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_follows_the_reference(name: str, batches: BatchesMaker) -> None:
    config = TrainConfig(**{"steps": STEPS, "batch_size": 16, **CONFIGS[name]})
    model, other = net(activation="tanh"), net(activation="tanh")
    found, expected = losses(run(model, batches(), **CONFIGS[name])), reference(other, batches(), config)
    assert found == pytest.approx(expected, rel=1e-5)
    assert_same_weights(model, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("adamw", "mse", "brier")])
def test_reference_tells_settings_apart(name: str, batches: BatchesMaker) -> None:
    """So that the test above would notice a setting that is ignored."""
    base: dict[str, Any] = {
        setting: CONFIGS[name][setting] for setting in ("optimizer", "lr", "loss") if setting in CONFIGS[name]
    }
    found, expected = (
        reference(net(activation="tanh"), batches(), TrainConfig(steps=STEPS, batch_size=16, **config))
        for config in (CONFIGS[name], base)
    )
    assert max(abs(a / b - 1) for a, b in zip(found, expected, strict=True)) > 1e-3


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adam", "adamw", "adamw decay"])
def test_is_bit_for_bit_a_plain_loop_with_fused_kernels(name: str, batches: BatchesMaker) -> None:
    config = TrainConfig(**{"steps": STEPS, "batch_size": 16, **CONFIGS[name]})
    model, other = net(), net()
    found = losses(run(model, batches(), **CONFIGS[name]))
    optimizer, stream, expected = reference_optimizer(other, config, fused=True), batches(), []
    for step in range(STEPS):
        inputs, labels = stream[step]
        loss = F.cross_entropy(other(inputs), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert found == expected
    assert_same_weights(model, other, rtol=0, atol=0)


class TestCriterion:
    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
    def test_against_the_formula(self, loss: str, smoothing: float) -> None:
        logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
        labels = torch.tensor([0, 4, 2, 2, 1, 3, 0])
        config = TrainConfig(loss=loss, label_smoothing=smoothing)
        expected = reference_loss(logits, labels, config).item()
        assert criterion(logits, labels, config).item() == pytest.approx(expected, rel=1e-12)

    def test_of_ignorance_is_the_logarithm_of_the_classes(self) -> None:
        for smoothing in (0.0, 0.3):
            loss = criterion(torch.zeros(4, 10), torch.arange(4), TrainConfig(label_smoothing=smoothing))
            assert loss.item() == pytest.approx(math.log(10), rel=1e-6)

    def test_mse_of_zero_logits_is_one_over_the_classes(self) -> None:
        assert criterion(torch.zeros(4, 10), torch.arange(4), TrainConfig(loss="mse")).item() == pytest.approx(0.1)

    def test_brier_of_ignorance_and_of_a_sure_wrong_answer(self) -> None:
        config, labels = TrainConfig(loss="brier"), torch.arange(1, 5)
        assert criterion(torch.zeros(4, 10), labels, config).item() == pytest.approx(0.9)
        sure = torch.zeros(4, 10)
        sure[:, 0] = 100
        assert criterion(sure, labels, config).item() == pytest.approx(2)


class TestUpdates:
    def test_error_is_the_share_of_wrong_answers_before_the_update(self, batches: BatchesMaker) -> None:
        inputs, labels = batches()[0]
        wrong = (net()(inputs).argmax(dim=1) != labels).sum().item()
        assert wrong > 0
        assert run(net(), batches(), steps=1)[0].error.item() == pytest.approx(wrong / 16)

    def test_one_item_an_update_counted_from_zero_and_detached(self, batches: BatchesMaker) -> None:
        updates = run(net(), batches(), steps=3)
        assert [update.step for update in updates] == [0, 1, 2]
        assert not any(update.loss.requires_grad for update in updates)

    def test_nothing_happens_before_an_item_is_asked_for(self, batches: BatchesMaker) -> None:
        model, untouched = net(), net()
        updates = train(model, weight_layers(model), batches(), TrainConfig(), SILENT, seed=0)
        assert_same_weights(model, untouched, rtol=0, atol=0)
        next(updates)
        with pytest.raises(AssertionError):
            assert_same_weights(model, untouched, rtol=0, atol=0)

    def test_no_gradient_is_left_behind(self, batches: BatchesMaker) -> None:
        model = net()
        run(model, batches(), steps=2)
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_puts_the_model_in_training_mode(self, batches: BatchesMaker) -> None:
        model = net(norm="batch").eval()
        run(model, batches(), steps=2)
        assert model.training
        assert model.get_buffer("stem.norm.num_batches_tracked") == 2

    def test_readings_come_when_due_and_in_depth_order(self, batches: BatchesMaker) -> None:
        updates = run(net(), batches(), ProbesConfig(every=4, names=("grad_norm", "update_ratio")), steps=10)
        assert [update.step for update in updates if update.rows] == [0, 4, 8, 9]
        assert [(row.depth, row.probe) for row in updates[4].rows] == [
            (depth, probe) for depth in (1, 2, 3, 4) for probe in ("grad_norm", "update_ratio")
        ]

    @pytest.mark.parametrize(
        ("every", "steps", "expected"), [(0, 7, [0, 6]), (3, 8, [0, 3, 6, 7]), (1, 3, [0, 1, 2]), (100, 1, [0])]
    )
    def test_first_and_last_update_are_always_read(self, every: int, steps: int, expected: list[int]) -> None:
        config, probes = TrainConfig(steps=steps), ProbesConfig(every=every)
        assert [step for step in range(steps) if is_read(step, config, probes)] == expected


class TestGradients:
    def seen_by_optimizer(
        self, monkeypatch: pytest.MonkeyPatch, batches: Batches, **config: Any
    ) -> tuple[list[float], list[Update]]:
        """Norm of the whole gradient at each optimiser step."""
        seen: list[float] = []

        def build_watched(model: nn.Module, settings: TrainConfig) -> torch.optim.Optimizer:
            optimizer = reference_optimizer(model, settings, fused=True)
            parameters = list(model.parameters())
            optimizer.register_step_pre_hook(
                lambda *_: seen.append(math.hypot(*(float(norm(p.grad)) for p in parameters if p.grad is not None)))
            )
            return optimizer

        monkeypatch.setattr(loop, "build_optimizer", build_watched)
        updates = run(net(bias=False), batches, ProbesConfig(every=1, names=("grad_norm",)), **config)
        return seen, updates

    def test_clipped_norm_is_the_bound_or_less(self, monkeypatch: pytest.MonkeyPatch, batches: BatchesMaker) -> None:
        free, _ = self.seen_by_optimizer(monkeypatch, batches(), steps=6, lr=0.0)
        bound = sorted(free)[3]
        clipped, _ = self.seen_by_optimizer(monkeypatch, batches(), steps=6, lr=0.0, clip_norm=bound)
        assert clipped == pytest.approx([min(bound, total) for total in free], rel=1e-4)
        assert max(clipped) <= bound * (1 + 1e-6)
        assert max(free) > bound * 1.01

    def test_readings_are_of_the_loss_alone(self, monkeypatch: pytest.MonkeyPatch, batches: BatchesMaker) -> None:
        """Before the L1 penalty and before clipping, which the optimiser does see."""
        _, plain = self.seen_by_optimizer(monkeypatch, batches(), steps=3, lr=0.0)
        seen, changed = self.seen_by_optimizer(monkeypatch, batches(), steps=3, lr=0.0, clip_norm=1e-3, l1=0.1)
        assert [update.rows for update in changed] == [update.rows for update in plain]
        assert seen == pytest.approx([1e-3] * 3, rel=1e-3)

    def test_l1_alone_moves_each_weight_by_rate_times_factor(self, batches: BatchesMaker) -> None:
        model, before = net(bias=False), net(bias=False)
        with torch.no_grad():  # a head of zeros passes no gradient of the loss back
            for which in (model, before):
                which.get_parameter("head.linear.weight").zero_()
        run(model, batches(), steps=1, lr=0.5, momentum=0.0, l1=0.01)
        start = before.get_parameter("stem.linear.weight")
        expected = start - 0.5 * 0.01 * start.sign()
        torch.testing.assert_close(model.get_parameter("stem.linear.weight"), expected, rtol=0, atol=1e-7)

    def test_l1_spares_biases_norms_and_zeros(self, batches: BatchesMaker) -> None:
        model = net(norm="layer")
        with torch.no_grad():
            model.get_parameter("head.linear.weight").zero_()
            model.get_parameter("stem.linear.weight")[0, 0] = 0.0
        run(model, batches(), steps=1, lr=1.0, momentum=0.0, l1=0.1)
        assert model.get_parameter("stem.linear.weight")[0, 0] == 0
        assert (model.get_parameter("stem.norm.weight") == 1).all()
        assert (model.get_parameter("stem.linear.bias") == 0).all()

    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    def test_proximal_l1_ends_at_the_minimum_of_loss_and_penalty(self, batches: BatchesMaker, momentum: float) -> None:
        """Its conditions there: dL/dw = -l1 sign(w) where w is not 0, and |dL/dw| <= l1 where it is."""
        model, stream, l1 = net(depth=2, activation="tanh"), batches(batch_size=96), 0.02
        lr = 0.3 * (1 - momentum)
        config: dict[str, Any] = {"batch_size": 96, "lr": lr, "momentum": momentum, "l1": l1, "l1_step": "proximal"}
        run(model, stream, steps=4000, **config)
        inputs, labels = stream[0]
        F.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
        zeros = 0
        for _, layer in weight_layers(model):
            weight, gradient = layer.weight.detach(), layer.weight.grad
            assert gradient is not None
            held = weight != 0
            expected = -l1 * weight[held].sign()
            torch.testing.assert_close(gradient[held], expected, rtol=0, atol=l1 / 20)
            assert (gradient[~held].abs() <= l1 * 1.05).all()
            zeros += int((~held).sum())
        assert 100 < zeros < 12 * (64 + 10)

    def test_proximal_l1_follows_the_schedule_and_takes_no_weight_past_zero(self, batches: BatchesMaker) -> None:
        """A head of zeros that nothing moves off 0 keeps the loss out of the stem."""
        model = net(bias=False)
        with torch.no_grad():
            model.get_parameter("head.linear.weight").zero_()
        start = model.get_parameter("stem.linear.weight").detach().clone()
        run(model, batches(), steps=4, lr=0.02, momentum=0.5, schedule="cosine", l1=0.5, l1_step="proximal")
        total = sum(0.02 * (1 + math.cos(math.pi * step / 4)) / 2 * 0.5 / 0.5 for step in range(4))
        expected = start.sign() * (start.abs() - total).clamp(min=0)
        found = model.get_parameter("stem.linear.weight")
        assert (model.get_parameter("head.linear.weight") == 0).all()
        assert 0.05 < (found == 0).float().mean() < 0.95
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)

    def test_proximal_l1_leaves_what_is_no_number(self) -> None:
        weight = nn.Parameter(torch.tensor([math.nan, math.inf, -0.2, 0.05]))
        loop.soft_threshold([weight], 0.1)
        torch.testing.assert_close(weight.detach(), torch.tensor([math.nan, math.inf, -0.1, 0.0]), equal_nan=True)

    def test_subgradient_l1_makes_no_weight_zero(self, batches: BatchesMaker) -> None:
        model = net(depth=2)
        run(model, batches(), steps=200, lr=0.05, l1=0.02)
        sizes = torch.cat([layer.weight.detach().flatten().abs() for _, layer in weight_layers(model)])
        assert (sizes > 0).all()
        assert (sizes < 0.05).float().mean() > 0.5  # though it has made most of them small

    def test_l1_is_of_both_matrices_of_a_cell(self, batches: BatchesMaker) -> None:
        recurrent = {"family": "rnn", "depth": 2, "activation": "tanh", "cell": "gru"}
        model, before = net(**recurrent), net(**recurrent)
        with torch.no_grad():
            for which in (model, before):
                which.get_parameter("head.linear.weight").zero_()
        run(model, batches(), steps=1, lr=0.5, momentum=0.0, l1=0.01)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            start = before.get_parameter(f"blocks.0.cell.{name}")
            expected = start - 0.5 * 0.01 * start.sign() * name.startswith("weight")
            torch.testing.assert_close(model.get_parameter(f"blocks.0.cell.{name}"), expected, rtol=0, atol=1e-7)


class TestPrecision:
    @pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
    def test_recurrent_nets_train_in_bf16(self, cell: str, batches: BatchesMaker) -> None:
        recurrent = {"family": "rnn", "depth": 2, "activation": "tanh", "cell": cell}
        expected = losses(run(net(**recurrent), batches(), lr=0.01))
        found = losses(run(net(**recurrent), batches(), lr=0.01, precision="bf16"))
        assert found == pytest.approx(expected, rel=0.05)
        assert found != expected

    def test_bf16_runs_in_bf16_and_stays_near_float32(self, batches: BatchesMaker) -> None:
        exact, rounded = net(), net()
        seen: list[torch.dtype] = []
        rounded.get_submodule("blocks.0.linear").register_forward_hook(lambda _m, _i, output: seen.append(output.dtype))
        expected = losses(run(exact, batches()))
        updates = run(rounded, batches(), ProbesConfig(every=5), precision="bf16")
        assert set(seen) == {torch.bfloat16}
        assert losses(updates) != expected
        assert losses(updates) == pytest.approx(expected, rel=0.05)
        assert {parameter.dtype for parameter in rounded.parameters()} == {torch.float32}
        assert {update.loss.dtype for update in updates} == {torch.float32}
        assert all(math.isfinite(row.value) for update in updates for row in update.rows)

    def test_first_readings_of_bf16_are_near_those_of_float32(self, batches: BatchesMaker) -> None:
        probes = ProbesConfig(every=0, names=("grad_norm", "weight_norm", "backward_norm", "activation_std"))
        exact = run(net(), batches(), probes, steps=1)[0].rows
        rounded = run(net(), batches(), probes, steps=1, precision="bf16")[0].rows
        assert [row.value for row in rounded] == pytest.approx([row.value for row in exact], rel=0.02)
        assert [row.value for row in rounded] != [row.value for row in exact]
