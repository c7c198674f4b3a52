"""Every way in which people make an update: accumulating, clipping, with a closure, with any optimizer."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest
import torch
from loop import OPTIMIZERS, STEPS, Recurrent, assert_equal, batch, layers, mlp, train, values, watching
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from depthlab.instrument import Watcher
from depthlab.probes import Parameters


def train_in_pieces(pieces: int, scale: float | None = None) -> pd.DataFrame:
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    with watching(model, optimizer, scaler=scaler) as watcher:
        for step, piece in itertools.product(range(STEPS), range(pieces)):
            x, y = (tensor.chunk(pieces)[piece] for tensor in batch(step))
            loss = F.mse_loss(model(x), y)
            (scaler.scale(loss / pieces) if scaler else loss / pieces).backward()
            if piece == pieces - 1:
                if scaler:
                    scaler.step(optimizer)
                    scaler.update()
                else:
                    optimizer.step()
                optimizer.zero_grad()
            watcher.step(loss)
    return watcher.table()


def test_accumulated_gradients_are_read_once_an_update() -> None:
    assert_equal(train_in_pieces(4), train_in_pieces(1), rel=1e-5)


def test_scaled_gradients_are_accumulated_too() -> None:
    assert_equal(train_in_pieces(4, scale=64.0), train_in_pieces(1), rel=1e-5)


def test_clipped_gradients_are_read_as_clipped() -> None:
    model = mlp()
    probes = ("grad_norm", "backward_norm")
    table = train(model, before_update=lambda: nn.utils.clip_grad_norm_(model[0].parameters(), 1e-3), probes=probes)
    clipped = [values(table, "grad_norm")[step, "0"] for step in range(STEPS)]
    assert max(clipped) <= 1e-3  # the bound of weight and bias together
    assert min(clipped) > 1e-4
    assert min(values(table, "grad_norm")[step, "4"] for step in range(STEPS)) > 1e-2


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("midway", [True, False])
def test_a_closure_computes_the_gradients_that_are_read(by_name: bool, midway: bool) -> None:
    def run(with_closure: bool) -> pd.DataFrame:
        model = Recurrent()  # registered in another order than data flows
        model.load_state_dict(state)
        optimizer = SGD(model.parameters(), lr=0.1)

        def once(step: int, watcher: Watcher | None) -> None:
            x, y = batch(step)

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = F.mse_loss(model(x), y)
                loss.backward()
                return loss

            if with_closure:
                loss = optimizer.step(closure=closure) if by_name else optimizer.step(closure)
            else:
                loss = closure()
                optimizer.step()
            if watcher:
                watcher.step(loss)

        if midway:
            once(7, None)
        with watching(model, optimizer) as watcher:
            for step in range(STEPS):
                once(step, watcher)
        return watcher.table()

    state = Recurrent().state_dict()
    expected, found = run(False), run(True)
    assert layers(expected) == ["stem", "cell", "head"]
    assert_equal(found, expected)
    assert found.layer.tolist() == expected.layer.tolist()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_read_as_a_twin_sees_it(name: str) -> None:
    model, twin = mlp(), mlp()
    table = train(model, OPTIMIZERS[name](model.parameters()))
    optimizer = OPTIMIZERS[name](twin.parameters())
    expected: dict[str, dict[tuple[int, str], float]] = {"grad_norm": {}, "update_ratio": {}}
    for step in range(STEPS):
        optimizer.zero_grad()
        F.mse_loss(twin(batch(step)[0]), batch(step)[1]).backward()
        before = {layer: twin.get_submodule(layer).weight.detach().double() for layer in ("0", "2", "4")}
        for layer in before:
            expected["grad_norm"][step, layer] = twin.get_submodule(layer).weight.grad.double().norm().item()
        optimizer.step()
        for layer, weight in before.items():
            change = twin.get_submodule(layer).weight.detach().double() - weight
            expected["update_ratio"][step, layer] = (change.norm() / weight.norm()).item()
    for probe, numbers in expected.items():
        assert values(table, probe) == pytest.approx(numbers, rel=1e-5)
    for parameter, of_twin in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(parameter, of_twin)


def test_copies_of_weights_follow_them_to_another_type() -> None:
    """In float32 the weight before the last update, 1 + 1e-12, would be 1."""
    weight = nn.Parameter(torch.ones(3, 2))
    parameters = Parameters([weight], ("update_norm",))
    parameters.read_weights([0])
    parameters.read_updates()
    weight.data = weight.data.double() + 1e-12
    parameters.read_weights([0])
    weight.data += 1e-12
    (update,) = parameters.read_updates()
    assert update.values.item() == pytest.approx(1e-12 * 6**0.5, rel=1e-3)  # 1 itself is rounded to 1e-16


def test_copies_of_weights_follow_them_to_another_device() -> None:
    """Seen on the device that every machine has, and that holds no numbers."""
    weights = [nn.Parameter(torch.ones(3, 2))]
    parameters = Parameters(weights, ("update_norm",))
    for weight in (weights[0], nn.Parameter(torch.ones(3, 2, device="meta"))):
        weights[0] = weight
        parameters.read_weights([0])
        (update,) = parameters.read_updates()
        assert update.values.device == weight.device


def test_a_gradient_that_was_kept_is_compared_once_and_then_let_go() -> None:
    """It is as large as the weights: the next copy is made when this one is gone."""
    weight = nn.Parameter(torch.ones(3, 2))
    parameters = Parameters([weight], ("grad_cosine",))
    weight.grad = torch.ones(3, 2)
    parameters.keep_gradients([0])
    (cosine,) = parameters.read_gradients([0])
    assert cosine.values.item() == pytest.approx(1.0)
    assert parameters.read_gradients([0]) == []
