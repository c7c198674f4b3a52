"""Everything random in a training is a function of (seed, step), and of nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depthlab.config import ModelConfig, ProbesConfig, TrainConfig, stream_seed
from depthlab.data import Batches
from depthlab.nets import Net, build, weight_layers
from depthlab.training import Update, train

STEPS = 20
SILENT = ProbesConfig(every=0, names=())

BatchesMaker = Callable[..., Batches]


def net(**config: Any) -> Net:
    return build(ModelConfig(**{"depth": 4, "width": 12, **config}), channels=1, size=8, classes=10, seed=1)


def run(
    model: Net, batches: Batches, probes: ProbesConfig = SILENT, start: int = 0, seed: int = 0, **config: Any
) -> list[Update]:
    settings = TrainConfig(steps=STEPS, batch_size=16, **config)
    return list(train(model, weight_layers(model), batches, settings, probes, seed=seed, start=start))


def losses(updates: list[Update]) -> list[float]:
    return [update.loss.item() for update in updates]


def assert_same_weights(model: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(dict(model.state_dict()), dict(other.state_dict()), rtol=0, atol=0)


RANDOM: list[dict[str, Any]] = [{"dropout": 0.4}, {"norm": "batch", "norm_noise": 0.5}, {"dropconnect": 0.4}]


@pytest.mark.parametrize("factors", RANDOM)
def test_dropout_and_noise_depend_on_the_seed_alone(batches: BatchesMaker, factors: dict[str, Any]) -> None:
    def final(seed: int, disturbance: int) -> tuple[list[float], Net]:
        torch.manual_seed(disturbance)
        model = net(**factors)
        return losses(run(model, batches(), seed=seed)), model

    (first, model), (second, other) = final(0, 1), final(0, 2)
    assert first == second
    assert_same_weights(model, other)
    assert final(1, 1)[0] != first
    assert first[0] != losses(run(net(norm=factors.get("norm", "none")), batches()))[0]  # it is on


def test_masks_differ_from_step_to_step(batches: BatchesMaker) -> None:
    model, masks = net(dropout=0.5, activation="sigmoid"), list[Tensor]()
    model.get_submodule("blocks.0.dropout").register_forward_hook(lambda _m, _i, output: masks.append(output == 0))
    run(model, batches())
    assert all(0.2 < mask.float().mean() < 0.8 for mask in masks)
    assert not any(torch.equal(mask, masks[0]) for mask in masks[1:])


def test_dropout_draws_from_its_named_stream(batches: BatchesMaker) -> None:
    model, other = net(dropout=0.5), net(dropout=0.5)
    found = run(model, batches(), seed=5)[0].loss
    inputs, labels = batches()[0]
    torch.manual_seed(stream_seed(5, "dropout/0"))
    assert torch.equal(found, F.cross_entropy(other(inputs), labels).detach())


@pytest.mark.parametrize("factors", RANDOM)
def test_run_cut_in_two_is_the_same_run(batches: BatchesMaker, factors: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"momentum": 0.0, "schedule": "cosine", "warmup_steps": 3}
    whole, halves = net(**factors), net(**factors)
    probes = ProbesConfig(every=3)
    expected = run(whole, batches(flip=True, crop_padding=1), probes, **settings)
    config = TrainConfig(steps=STEPS, batch_size=16, **settings)
    first = train(halves, weight_layers(halves), batches(flip=True, crop_padding=1), config, probes, seed=0)
    found = [next(first) for _ in range(8)]
    del first
    torch.manual_seed(99)
    found += run(halves, batches(flip=True, crop_padding=1), probes, start=8, **settings)
    assert losses(found) == losses(expected)
    assert [update.rows for update in found] == [update.rows for update in expected]
    assert_same_weights(halves, whole)


def test_nets_of_any_depth_see_the_same_data(batches: BatchesMaker) -> None:
    def seen(**config: Any) -> list[Tensor]:
        found: list[Tensor] = []
        model = net(**config)
        model.register_forward_pre_hook(lambda _module, inputs: found.append(inputs[0].clone()))
        run(model, batches(flip=True, cutout=2), ProbesConfig(every=2))
        return found

    shallow = seen(depth=2)
    for other in (seen(depth=10), seen(depth=10, dropout=0.5), seen(depth=6, skip="highway", norm="batch")):
        assert len(other) == len(shallow) == STEPS
        assert all(torch.equal(one, two) for one, two in zip(shallow, other, strict=True))
