"""The watcher itself: misuse, closing, several of them, and what is read how often."""

from __future__ import annotations

import copy
from typing import Any

import fleet
import pandas as pd
import pytest
import torch
from loop import ALL, STEPS, Recurrent, assert_equal, batch, mlp, train, values, watching
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD

import depthlab
from depthlab.instrument import Watcher
from depthlab.instrument.layers import Layers
from depthlab.probes import Signals


def test_a_loss_that_is_not_one_number_is_named() -> None:
    model = mlp()
    with (
        depthlab.watch(model, SGD(model.parameters(), lr=0.1)) as watcher,
        pytest.raises(ValueError, match=r"loss must be one number, given a tensor of shape \(4,\)"),
    ):
        watcher.step(torch.zeros(4))


@pytest.mark.parametrize(
    ("error", "match", "wrong"),
    [
        (TypeError, "must be a torch.nn.Module, given dict", {"model": {}}),
        (TypeError, "must be a torch.optim.Optimizer, given float", {"optimizer": 0.1}),
        (TypeError, "LBFGS evaluates the loss many times", {"optimizer": torch.optim.LBFGS(mlp().parameters())}),
        (ValueError, "'grad_nrom' must be one of .*; did you mean grad_norm", {"probes": ("grad_nrom",)}),
        (ValueError, "grad_snr needs the gradients of several", {"probes": ("grad_snr",)}),
        (ValueError, "every=0 must be a whole number, 1 or more", {"every": 0}),
        (ValueError, "examples=0 must be a whole number, 1 or more", {"examples": 0}),
        (ValueError, "budget=2 must be a share", {"budget": 2}),
        (ValueError, "no weight to watch", {"model": nn.ReLU()}),
    ],
)
def test_misuse_is_refused_before_anything_is_attached(error: type, match: str, wrong: dict[str, Any]) -> None:
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    before = fleet.hooks_of(model, optimizer)
    with pytest.raises(error, match=match):
        Watcher(**{"model": model, "optimizer": optimizer, **wrong})
    assert fleet.hooks_of(model, optimizer) == before


def test_without_with_one_closes_it_and_may_do_so_twice() -> None:
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    before = fleet.hooks_of(model, optimizer)
    watcher = depthlab.watch(model, optimizer, every=1, budget=None)
    F.mse_loss(model(batch()[0]), batch()[1]).backward()
    optimizer.step()
    watcher.step(1.5)
    watcher.close()
    assert fleet.hooks_of(model, optimizer) == before
    table = watcher.table()
    watcher.close()
    optimizer.step()
    assert fleet.hooks_of(model, optimizer) == before
    pd.testing.assert_frame_equal(watcher.table(), table)
    assert values(table, "train_loss") == {(0, "network"): 1.5}


def test_what_is_closed_holds_nothing_on_the_device() -> None:
    """Readings are fetched when it is closed, not when somebody asks for the table."""
    model = mlp()
    with watching(model) as watcher:
        optimizer = watcher._optimizer
        F.mse_loss(model(batch()[0]), batch()[1]).backward()
        optimizer.step()
        assert watcher._records._pending
    assert not watcher._records._pending
    assert len(watcher.table())


def test_layers_that_are_all_known_cost_nothing_at_a_step() -> None:
    model = mlp()
    layers = Layers(model, None)
    signals = Signals(model, layers.parameters, ("output_std",), examples=1)
    signals.open()
    model(batch()[0])
    signals.close()
    assert layers.settle(signals)
    assert layers.names == ["0", "2", "4"]
    nobody: Any = None
    assert not layers.settle(nobody), "signals are not even asked"


def test_two_watchers_of_one_model_read_the_same() -> None:
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    with watching(model, optimizer, probes=ALL) as outer, watching(model, optimizer, every=2) as inner:
        for step in range(STEPS):
            optimizer.zero_grad()
            loss = F.mse_loss(model(batch(step)[0]), batch(step)[1])
            loss.backward()
            optimizer.step()
            outer.step(loss)
            inner.step(loss)
    assert_equal(outer.table(), train(mlp(), probes=ALL))
    assert_equal(inner.table(), train(mlp(), every=2))


def test_watchers_of_two_models_see_each_its_own() -> None:
    """A hook for all modules is no reason to read another network's."""
    student, teacher = mlp(), Recurrent()
    optimizers = [SGD(model.parameters(), lr=0.1) for model in (student, teacher)]
    with watching(student, optimizers[0]) as of_student, watching(teacher, optimizers[1]) as of_teacher:
        for step in range(STEPS):
            x, y = batch(step)
            for model, optimizer, watcher in zip((student, teacher), optimizers, (of_student, of_teacher), strict=True):
                optimizer.zero_grad()
                loss = F.mse_loss(model(x), y)
                loss.backward()
                optimizer.step()
                watcher.step(loss)
    assert_equal(of_student.table(), train(mlp()))
    assert set(of_teacher.layers) == {"stem", "cell", "head"}


@pytest.mark.parametrize("probes", [(), ("grad_norm",), ("backward_norm",), ("update_ratio",)])
def test_only_what_is_asked_for_is_read(probes: tuple[str, ...]) -> None:
    table = train(mlp(), probes=probes)
    assert set(table.probe) == {*probes, "train_loss"}
    everything = train(mlp())
    assert_equal(table, everything[everything.probe.isin(table.probe)].reset_index(drop=True))


def test_readings_come_at_their_intervals() -> None:
    table = train(mlp(), every=2, steps=5)
    assert sorted({step for step, _ in values(table, "backward_norm")}) == [0, 2, 4]
    assert sorted({step for step, _ in values(table, "grad_norm")}) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_gradients_of_large_maps_have_the_norm_that_float64_gives(layout: torch.memory_format, scale: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3)).to(memory_format=layout)
    images = torch.randn(16, 3, 30, 30).to(memory_format=layout)  # the first layer gives 100,352 numbers
    optimizer, twin = SGD(model.parameters(), lr=0.1), copy.deepcopy(model).double()
    hidden = twin[0](images.double())
    (expected,) = torch.autograd.grad(scale * twin[2](hidden.relu()).square().mean(), hidden)
    with watching(model, optimizer, probes=("backward_norm",)) as watcher:
        (scale * model(images).square().mean()).backward()
        optimizer.step()
    norm = values(watcher.table(), "backward_norm")[0, "0"]
    assert norm == pytest.approx(expected.norm().item(), rel=1e-6, abs=0)
