"""What reaches no update is in no reading, whatever passes a user makes between two updates."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

import depthlab
from depthlab.probes import PROBES

PROBE_NAMES = ("grad_norm", "backward_norm", "activation_mean", "dead_fraction", "output_std")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def batch(step: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return scale * torch.randn(12, 6, generator=generator), torch.randint(3, (12,), generator=generator)


Intruder = Callable[[nn.Module, torch.optim.Optimizer], None]


def train(intruder: Intruder | None = None, steps: int = 3, **options: Any) -> pd.DataFrame:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with depthlab.watch(model, optimizer, probes=PROBE_NAMES, every=1, budget=None, **options) as watcher:
        for step in range(steps):
            if intruder:
                intruder(model, optimizer)
            loss = F.cross_entropy(model(batch(step)[0]), batch(step)[1])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            watcher.step(loss)
    return watcher.table()


def measures(model: nn.Module, _optimizer: torch.optim.Optimizer) -> None:
    depthlab.measure(model, lambda: model(batch(50)[0]).square().mean(), ["grad_norm", "backward_norm"])


def validates_with_gradients(model: nn.Module, _optimizer: torch.optim.Optimizer) -> None:
    model.eval()
    model(batch(51, scale=10)[0])
    model.train()


def skips_a_batch(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.eval()  # no statistics of batch norm change, so that the run without it is the same
    F.cross_entropy(model(batch(52, scale=100)[0]), batch(52)[1]).backward()
    optimizer.zero_grad()
    model.train()


@pytest.mark.parametrize("intruder", [measures, validates_with_gradients, skips_a_batch])
def test_intruders_leave_no_trace(intruder: Intruder) -> None:
    pd.testing.assert_frame_equal(train(intruder), train())


def test_a_discriminator_is_read_in_its_own_updates() -> None:
    """What the generator's loss sends through it is thrown away with its gradients."""

    def trained(with_generator: bool) -> pd.DataFrame:
        model, generator = net(), nn.Linear(4, 6)
        optimizer, other = SGD(model.parameters(), lr=0.1), SGD(generator.parameters(), lr=0.0)
        with depthlab.watch(model, optimizer, probes=PROBE_NAMES, every=1, budget=None) as watcher:
            for step in range(3):
                loss = F.cross_entropy(model(batch(step)[0]), batch(step)[1])
                loss.backward()
                optimizer.step()
                watcher.step(loss)
                if with_generator:
                    model.eval()
                    model(generator(torch.ones(12, 4))).sum().backward()
                    other.step()
                    model.train()
                optimizer.zero_grad()
        return watcher.table()

    pd.testing.assert_frame_equal(trained(True), trained(False))


def test_accumulated_micro_batches_are_read_together() -> None:
    """The guard against what leads to no update does not drop what does."""
    model, twin = net(), net()
    optimizer = SGD(model.parameters(), lr=0.1)
    norms = []
    for part in range(3):
        logits = twin(batch(part)[0])
        loss = F.cross_entropy(logits, batch(part)[1]) / 3
        norms.append(torch.autograd.grad(loss, logits)[0].double().norm().item())
    with depthlab.watch(model, optimizer, probes=("backward_norm",), every=1, budget=None) as watcher:
        for part in range(3):
            (F.cross_entropy(model(batch(part)[0]), batch(part)[1]) / 3).backward()
        optimizer.step()
    head = watcher.table().query("layer == '5'")["value"].item()
    assert head == pytest.approx(sum(norm**2 for norm in norms) ** 0.5, rel=1e-5)


def stack() -> int:
    return torch._C._len_torch_function_stack()  # type: ignore[attr-defined]


class Interrupted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.error = nn.Linear(6, 8), nn.Linear(8, 3), None

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.error is not None:
            raise self.error
        return self.second(x)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), ValueError()])
def test_an_interrupted_pass_leaves_no_mode_behind(error: BaseException) -> None:
    model = Interrupted()
    optimizer = SGD(model.parameters(), lr=0.1)
    model.error = error
    with pytest.raises(type(error)), depthlab.watch(model, optimizer):
        model(batch(0)[0])
    assert stack() == 0


def test_a_training_goes_on_after_an_interrupted_pass() -> None:
    model = Interrupted()
    optimizer = SGD(model.parameters(), lr=0.1)
    with depthlab.watch(model, optimizer, every=1, budget=None) as watcher:
        for step in range(4):
            model.error = KeyboardInterrupt() if step == 1 else None
            try:
                F.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
            except KeyboardInterrupt:
                continue
            optimizer.step()
            optimizer.zero_grad()
            assert stack() == 0
    assert watcher.layers == ["first", "second"]


def test_a_module_that_updates_itself() -> None:
    class SelfTaught(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()
            self.optimizer = SGD(self.net.parameters(), lr=0.1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            loss = F.cross_entropy(self.net(x), y)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            return self.net(x)

    model = SelfTaught()
    with depthlab.watch(model, model.optimizer, every=1, budget=None) as watcher:
        for step in range(3):
            model(*batch(step))
    assert stack() == 0
    assert watcher.layers == ["net.0", "net.2", "net.5"]


def test_measure_between_a_forward_and_its_backward() -> None:
    model = net()
    loss = F.cross_entropy(model(batch(0)[0]), batch(0)[1])
    measures(model, SGD(model.parameters(), lr=0.1))
    loss.backward()  # batch norm's statistics are saved for it, and were not changed


def test_an_evaluation_in_another_thread() -> None:
    model = net()
    started, go_on = threading.Event(), threading.Event()

    class Slow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if threading.current_thread() is threading.main_thread():
                started.set()
                go_on.wait(10)
            return x

    model.insert(1, Slow())
    errors: list[BaseException] = []

    def evaluate() -> None:
        started.wait(10)
        try:
            model(batch(1)[0])
        except BaseException as error:
            errors.append(error)
        go_on.set()

    optimizer = SGD(model.parameters(), lr=0.1)
    with depthlab.watch(model, optimizer, every=1):
        other = threading.Thread(target=evaluate)
        other.start()
        F.cross_entropy(model(batch(0)[0]), batch(0)[1]).backward()
        other.join()
        optimizer.step()
    assert errors == []
    assert stack() == 0


def test_vmap_in_the_forward() -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.func.vmap(self.first)(x).relu())

    model = Mapped()
    optimizer = SGD(model.parameters(), lr=0.1)
    with (  # noqa: PT031
        pytest.warns(UserWarning, match="outputs of first: no forward pass"),
        depthlab.watch(model, optimizer, every=1) as watcher,
    ):
        F.cross_entropy(model(batch(0)[0]), batch(0)[1]).backward()
        optimizer.step()
    assert watcher.layers == ["first", "second"]


def test_experts_that_are_used_in_turn_are_all_read() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts, self.step = nn.ModuleList(nn.Linear(6, 3) for _ in range(4)), 0

        def forward(self, x: Tensor) -> Tensor:
            self.step += 1
            return self.experts[(self.step - 1) % 4](x)

    model = Experts()
    optimizer = SGD(model.parameters(), lr=0.1)
    with (  # noqa: PT031
        pytest.warns(UserWarning, match="none has reached"),
        depthlab.watch(model, optimizer, every=10, budget=None) as watcher,
    ):
        for step in range(8):
            F.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
            optimizer.step()
            optimizer.zero_grad()
    rows = watcher.table().query("probe == 'grad_norm'")
    assert rows["layer"].tolist() == [f"experts.{step % 4}" for step in range(8)]
    assert rows.groupby("layer")["depth"].nunique().eq(1).all()


@pytest.mark.parametrize("layers", [["0"], lambda name: name == "0"])
def test_choosing_layers_changes_no_reading_of_theirs(layers: Any) -> None:
    whole = train()
    of_layer = whole[whole["layer"] == "0"].reset_index(drop=True)
    chosen = train(layers=layers)
    pd.testing.assert_frame_equal(chosen[chosen["layer"] == "0"].reset_index(drop=True), of_layer)
    assert set(chosen["layer"]) == {"0", "network"}


def test_parameters_that_the_optimizer_does_not_have_are_named() -> None:
    model = net()
    optimizer = SGD(model[5].parameters(), lr=0.1)
    with (  # noqa: PT031
        pytest.warns(UserWarning, match="updates of 0, 2: the optimizer does not have them"),
        depthlab.watch(model, optimizer),
    ):
        F.cross_entropy(model(batch(0)[0]), batch(0)[1]).backward()
        optimizer.step()


def test_another_default_device_than_the_models() -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    inputs, targets = batch(0)
    with torch.device("meta"), depthlab.watch(model, optimizer, every=1) as watcher:
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        watcher.step(loss)
        watcher.step(0.5)
    assert watcher.table()["value"].notna().all()


def test_dead_units_of_what_is_no_number() -> None:
    model = net()
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    table = depthlab.measure(model, lambda: model(batch(0)[0]).sum(), ["dead_fraction"])
    assert table["value"].isna().all()


def test_completion_finds_the_instrument() -> None:
    assert {"watch", "measure", "predict"} <= set(dir(depthlab))


def test_one_probe_may_be_given_by_its_name() -> None:
    model = net()
    table = depthlab.measure(model, lambda: model(batch(0)[0]).sum(), "grad_norm")
    assert set(table["probe"]) == {"grad_norm"} <= set(PROBES)
