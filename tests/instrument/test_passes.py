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
from torch.overrides import BaseTorchFunctionMode

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


def train(
    intruder: Intruder | None = None, steps: int = 3, *, before_update: Intruder | None = None, **options: Any
) -> pd.DataFrame:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with depthlab.watch(model, optimizer, probes=PROBE_NAMES, every=1, budget=None, **options) as watcher:
        for step in range(steps):
            if intruder:
                intruder(model, optimizer)
            loss = F.cross_entropy(model(batch(step)[0]), batch(step)[1])
            loss.backward()
            if before_update:
                before_update(model, optimizer)
            optimizer.step()
            optimizer.zero_grad()
            watcher.step(loss)
    return watcher.table()


def measures(model: nn.Module, _optimizer: torch.optim.Optimizer) -> None:
    depthlab.measure(model, lambda: model(batch(50)[0]).square().mean(), ["grad_norm", "backward_norm"])


def measures_while_another_watcher_ends(model: nn.Module, _optimizer: torch.optim.Optimizer) -> None:
    other = nn.Linear(6, 3)

    def closure() -> Tensor:
        with depthlab.watch(other, SGD(other.parameters(), lr=0.1)):
            other(batch(50)[0])
        return model(batch(50)[0]).square().mean()

    depthlab.measure(model, closure, ["grad_norm", "backward_norm"])


def validates_with_gradients(model: nn.Module, _optimizer: torch.optim.Optimizer) -> None:
    model.eval()
    model(batch(51, scale=10)[0])
    model.train()


def validates_without_gradients(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    with torch.no_grad():
        validates_with_gradients(model, optimizer)


def skips_a_batch(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.eval()  # no statistics of batch norm change, so that the run without it is the same
    F.cross_entropy(model(batch(52, scale=100)[0]), batch(52)[1]).backward()
    optimizer.zero_grad()
    model.train()


@pytest.mark.parametrize("intruder", [measures, validates_with_gradients, validates_without_gradients, skips_a_batch])
def test_intruders_leave_no_trace(intruder: Intruder) -> None:
    pd.testing.assert_frame_equal(train(intruder), train())


@pytest.mark.parametrize(
    "intruder",
    [measures, measures_while_another_watcher_ends, validates_with_gradients, validates_without_gradients],
)
def test_intruders_where_gradients_are_there_leave_no_trace(intruder: Intruder) -> None:
    """Between backward and update nothing is thrown away that could tell whose gradients they are."""
    pd.testing.assert_frame_equal(train(before_update=intruder), train())


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


def test_what_a_module_around_the_network_applies_is_no_activation_of_its_last_layer() -> None:
    def trained(around: Callable[[nn.Module], Callable[[Tensor], Tensor]]) -> pd.DataFrame:
        model = net()
        optimizer, call = SGD(model.parameters(), lr=0.1), around(model)
        with depthlab.watch(model, optimizer, probes=PROBE_NAMES, every=1, budget=None) as watcher:
            F.cross_entropy(call(batch(0)[0]), batch(0)[1]).backward()
            optimizer.step()
        return watcher.table()

    by_module = trained(lambda model: nn.Sequential(model, nn.ReLU()))
    pd.testing.assert_frame_equal(by_module, trained(lambda model: lambda x: F.relu(model(x))))
    assert set(by_module.query("probe == 'dead_fraction'")["layer"]) == {"0", "2"}


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


def test_interrupted_where_the_mode_was_taken_off() -> None:
    """In a transformer in evaluation mode, which has kernels that a mode keeps it from: there is none to take off."""

    class InterruptedLayer(nn.TransformerEncoderLayer):
        def forward(self, *_args: Any, **_kwargs: Any) -> Tensor:
            raise KeyboardInterrupt

    model = nn.Sequential(nn.Linear(6, 8), InterruptedLayer(8, 2, batch_first=True).eval())
    with BaseTorchFunctionMode():
        with pytest.raises(KeyboardInterrupt), depthlab.watch(model, SGD(model.parameters(), lr=0.1)):
            model(batch(0)[0])
        assert stack() == 1


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


@pytest.mark.parametrize("outlasts", [False, True])
def test_an_evaluation_in_another_thread_is_no_part_of_a_pass(outlasts: bool) -> None:
    """It begins while a pass runs, and ends within it or after the update."""
    started, go_on, updated = threading.Event(), threading.Event(), threading.Event()

    class Slow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if threading.current_thread() is threading.main_thread():
                started.set()
                go_on.wait(10)
            elif outlasts:
                go_on.set()
                updated.wait(10)
            return x

    def evaluate(model: nn.Module, errors: list[BaseException]) -> None:
        started.wait(10)
        try:
            model(batch(1)[0])
        except BaseException as error:
            errors.append(error)
        go_on.set()

    def trained(with_evaluation: bool) -> pd.DataFrame:
        model, errors = net(), []  # type: ignore[var-annotated]
        model.insert(1, Slow())
        optimizer = SGD(model.parameters(), lr=0.1)
        other = threading.Thread(target=evaluate, args=(model, errors))
        with depthlab.watch(model, optimizer, probes=PROBE_NAMES, every=1) as watcher:
            if with_evaluation:
                other.start()
            else:
                go_on.set()
            F.cross_entropy(model(batch(0)[0]), batch(0)[1]).backward()
            assert stack() == 0
            optimizer.step()
            updated.set()
            if with_evaluation:
                other.join()
        assert errors == []
        assert stack() == 0
        return watcher.table()

    pd.testing.assert_frame_equal(trained(True), trained(False))


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


def test_layers_that_come_into_play_later_stand_behind_in_the_order_of_data() -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.fourth, self.third = nn.Linear(6, 6), nn.Linear(6, 3), nn.Linear(6, 6)
            self.second = nn.Parameter(torch.eye(6))  # whose name does not tell that it is a layer's
            self.step = 0

        def forward(self, x: Tensor) -> Tensor:
            self.step += 1
            x = self.first(x)
            return x[:, :3] if self.step == 1 else self.fourth(self.third(x @ self.second))

    model = Growing()
    optimizer = SGD(model.parameters(), lr=0.1)
    with (  # noqa: PT031
        pytest.warns(UserWarning, match="gradients of second, fourth, third: none has reached"),
        depthlab.watch(model, optimizer, probes=PROBE_NAMES, every=1, budget=None) as watcher,
    ):
        for step in range(3):
            F.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert watcher.layers == ["first", "second", "third", "fourth"]
    table = watcher.table()
    for probe in ("grad_norm", "backward_norm"):
        rows = table[table["probe"] == probe]
        assert rows["depth"].tolist() == [1, 1, 2, 3, 4, 1, 2, 3, 4]


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


def test_parameters_in_several_groups_are_all_the_optimizers() -> None:
    model = net()
    optimizer = SGD([{"params": model[:3].parameters()}, {"params": model[3:].parameters(), "lr": 0.2}], lr=0.1)
    with depthlab.watch(model, optimizer):  # a warning would be an error
        F.cross_entropy(model(batch(0)[0]), batch(0)[1]).backward()
        optimizer.step()


def test_another_default_device_than_the_models() -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    batches = [batch(step) for step in range(2)]
    with torch.device("meta"), depthlab.watch(model, optimizer, every=1, budget=None) as watcher:
        for inputs, targets in batches:
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            watcher.step(loss if inputs is batches[0][0] else 0.5)
    table = watcher.table()
    assert table["value"].notna().all()
    assert table[table["probe"] == "train_loss"]["value"].tolist()[1] == 0.5


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
