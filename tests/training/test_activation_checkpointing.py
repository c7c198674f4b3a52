"""A training that computes activations again is, bit for bit, the one that keeps them, and holds fewer of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from depthlab.config import NORMS, SKIPS, ModelConfig, ProbesConfig, TrainConfig
from depthlab.data import Batches
from depthlab.nets import Net, allocate_gradients, build, weight_layers
from depthlab.nets.recomputation import segment_sizes
from depthlab.probes import Row
from depthlab.training import build_optimizer, train

STEPS = 4

BatchesMaker = Callable[..., Batches]


def net(**config: Any) -> Net:
    return build(ModelConfig(**{"depth": 14, "width": 4, **config}), channels=1, size=8, classes=10, seed=2)


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def outcome(model: Net, batches: Batches, *, checkpointing: bool, every: int = 1, **config: Any) -> dict[str, Any]:
    """All that a training leaves, as bytes: nothing is compared up to a tolerance."""
    settings = TrainConfig(steps=STEPS, batch_size=16, activation_checkpointing=checkpointing, **config)
    optimizer = build_optimizer(model, settings)
    torch.manual_seed(11)
    updates = list(
        train(model, weight_layers(model), batches, settings, ProbesConfig(every=every), seed=0, optimizer=optimizer)
    )
    found: dict[str, Any] = {name: bits(tensor) for name, tensor in model.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        found |= {f"{number}.{name}": bits(tensor) for name, tensor in state.items() if isinstance(tensor, Tensor)}
    found["losses"] = [bits(value) for update in updates for value in (update.loss, update.error)]
    found["readings"] = [exact(row) for update in updates for row in update.rows]
    found["random state"] = bits(torch.get_rng_state())
    return found


def exact(row: Row) -> tuple[str, int, str, str]:
    return row.layer, row.depth, row.probe, row.value.hex()


def assert_same(batches: Batches, model: dict[str, Any], **config: Any) -> None:
    kept = outcome(net(**model), batches, checkpointing=False, **config)
    again = outcome(net(**model), batches, checkpointing=True, **config)
    assert again.keys() == kept.keys()
    for name, value in kept.items():
        assert again[name] == value, name
    assert len(kept["readings"]) >= STEPS * 14 * 6


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("family", ["mlp", "cnn"])
def test_for_every_family_and_norm(family: str, norm: str, dropout: float, batches: BatchesMaker) -> None:
    assert_same(batches(), {"family": family, "norm": norm, "dropout": dropout})


@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "gelu"])
def test_for_every_skip(skip: str, activation: str, batches: BatchesMaker) -> None:
    model = {"depth": 26, "skip": skip, "activation": activation, "norm": "batch", "dropout": 0.2}
    assert_same(batches(flip=True, crop_padding=1), model)


@pytest.mark.parametrize(
    "config", [{"precision": "bf16"}, {"optimizer": "adam", "l1": 1e-3, "clip_norm": 0.5}, {"lr": 1e20}]
)
def test_for_other_trainings(config: dict[str, Any], batches: BatchesMaker) -> None:
    assert_same(batches(), {"norm": "batch"}, **config)
    assert_same(batches(), {"family": "cnn", "norm": "batch", "stages": 1}, **config)


def test_for_noise_after_norms(batches: BatchesMaker) -> None:
    assert_same(batches(), {"norm": "batch", "norm_noise": 0.5})
    assert_same(batches(), {"norm": "batch", "dropconnect": 0.5})


def test_where_the_loss_is_not_a_number(batches: BatchesMaker) -> None:
    assert_same(batches(), {}, lr=1e20)


@pytest.mark.parametrize("depth", [2, 3, 4, 5, 11, 12])
def test_for_every_number_of_blocks(depth: int, batches: BatchesMaker) -> None:
    kept, again = (
        outcome(net(depth=depth, norm="batch"), batches(), checkpointing=checkpointing)
        for checkpointing in (False, True)
    )
    assert kept == again


def held(model: Net, *, activation_checkpointing: bool) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights left out, each once."""
    weights = {weight.data_ptr() for weight in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.randn(16, 1, 8, 8), activation_checkpointing=activation_checkpointing)
    return sum(tensor.nbytes for tensor in kept.values())


@pytest.mark.parametrize("family", ["mlp", "cnn"])
def test_what_is_kept_grows_as_the_root_of_depth(family: str) -> None:
    width = {"mlp": 64, "cnn": 4}[family]
    few, many = (net(family=family, depth=depth, width=width, stages=1) for depth in (102, 1602))
    all_of_few, all_of_many = (held(model, activation_checkpointing=False) for model in (few, many))
    some_of_few, some_of_many = (held(model, activation_checkpointing=True) for model in (few, many))
    assert all_of_many == pytest.approx(16 * all_of_few, rel=0.1)
    assert some_of_many == pytest.approx(4 * some_of_few, rel=0.1)
    assert some_of_many < 0.06 * all_of_many  # what enters 40 segments, and the whole of the last one


@pytest.mark.parametrize("blocks", [*range(60), 98, 298, 998, 2998, 9998])
def test_segments_hold_all_blocks_in_the_room_of_twice_the_root(blocks: int) -> None:
    sizes = segment_sizes(blocks)
    assert sum(sizes) == blocks
    assert all(sizes) or blocks == 0
    held = [before + size for before, size in enumerate(sizes)]
    assert max(held) <= math.ceil(2 * math.sqrt(blocks))
    assert sizes[-1] >= math.isqrt(2 * blocks)


def test_blocks_are_applied_less_than_twice(batches: BatchesMaker) -> None:
    model, calls = net(depth=102), list[nn.Module]()
    for block in model.blocks:
        block.register_forward_hook(lambda module, *_: calls.append(module))
    outcome(model, batches(), checkpointing=True, every=0)
    assert len(calls) == STEPS * (100 + 100 - 15)


def test_a_net_whose_stem_is_frozen_is_trained_all_the_same(batches: BatchesMaker) -> None:
    def trained(*, checkpointing: bool) -> dict[str, Any]:
        model = net()
        model.stem.requires_grad_(False)
        return outcome(model, batches(), checkpointing=checkpointing)

    assert trained(checkpointing=True) == trained(checkpointing=False)
    assert trained(checkpointing=True)["blocks.0.linear.weight"] != bits(net().get_parameter("blocks.0.linear.weight"))


def test_running_statistics_are_those_of_the_forward_pass() -> None:
    images = torch.randn(16, 1, 8, 8)
    model, other = net(norm="batch"), net(norm="batch")
    other(images)
    logits = model(images, activation_checkpointing=True)
    for when in ("after the forward pass", "after the backward pass"):
        for (name, buffer), expected in zip(model.named_buffers(), other.buffers(), strict=True):
            assert torch.equal(buffer, expected), f"{name} {when}"
        if when == "after the forward pass":
            logits.sum().backward()


def test_gradients_that_it_would_leave_out_are_an_error() -> None:
    """A segment has no inputs but x: torch.autograd.grad would say of its weights that they are unused."""
    model = net()
    loss = model(torch.randn(16, 1, 8, 8), activation_checkpointing=True).sum()
    with pytest.raises(
        RuntimeError, match=r"call backward\(\) without inputs, or the network with activation_ch.*=False"
    ):
        torch.autograd.grad(loss, list(model.stem.parameters()))


class Breaks(nn.Module):
    """Fails when it is applied a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 2:
            raise ArithmeticError("out of order")
        return x


def test_what_breaks_while_it_is_computed_again_changes_no_state() -> None:
    model, images = net(dropout=0.5, norm="batch"), torch.randn(16, 1, 8, 8)
    model.blocks[2].append(Breaks())
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images, activation_checkpointing=True).float().sum()
    random, buffers = bits(torch.get_rng_state()), [bits(buffer) for buffer in model.buffers()]
    with torch.no_grad(), pytest.raises(ArithmeticError, match="out of order"):
        loss.backward()
    assert bits(torch.get_rng_state()) == random
    assert [bits(buffer) for buffer in model.buffers()] == buffers
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_passes_of_several_threads_do_not_mix() -> None:
    images = torch.randn(16, 1, 8, 8)

    def gradients(model: Net, *, activation_checkpointing: bool = True) -> list[bytes]:
        for _ in range(5):
            model(images, activation_checkpointing=activation_checkpointing).square().sum().backward()
        return [bits(weight.grad) for weight in model.parameters() if weight.grad is not None]

    expected = gradients(net(depth=40), activation_checkpointing=False)
    assert len(expected) == 80
    with ThreadPoolExecutor(3) as threads:
        for found in threads.map(gradients, [net(depth=40) for _ in range(6)]):
            assert found == expected


def test_gradients_lie_in_one_piece_and_begin_each_step_at_minus_zero(batches: BatchesMaker) -> None:
    model = net(family="cnn", norm="batch").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    settings = TrainConfig(steps=2, batch_size=16, activation_checkpointing=True)
    assert allocate_gradients(model).signbit().all()
    for _ in train(model, weight_layers(model), batches(), settings, ProbesConfig(), seed=0):
        gradients = [weight.grad for weight in model.parameters()]
        assert len({gradient.untyped_storage().data_ptr() for gradient in gradients}) == 1
        for weight, gradient in zip(model.parameters(), gradients, strict=True):
            assert gradient.stride() == weight.stride()
            assert (gradient == 0).all()
            assert gradient.signbit().all()


@pytest.mark.slow
def test_a_plain_cnn_of_10000_layers_takes_training_steps(batches: BatchesMaker) -> None:
    """Delta-orthogonal on the edge of chaos (Xiao et al. 2018): the gradient is there from the first layer on."""
    model = net(family="cnn", depth=10_000, width=16, stages=1, activation="tanh", init="delta_orthogonal", bias=False)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    settings = TrainConfig(steps=2, batch_size=16, lr=1e-4, activation_checkpointing=True)
    probes = ProbesConfig(every=1, names=("backward_norm", "update_ratio"))
    layers = weight_layers(model)
    first, second = train(model, layers[::1000], batches(), settings, probes, seed=0)
    assert len(layers) == 10_000
    for update in (first, second):
        assert len(update.rows) == 20
        assert update.loss.isfinite()
        norms = [row.value for row in update.rows if row.probe == "backward_norm"]
        assert max(norms) < 10 * min(norms)
        assert all(row.value > 0 for row in update.rows)
    assert second.loss != first.loss
