"""A compiled training is the plain one up to rounding, the same every time, and nothing of it is written over."""

from __future__ import annotations

import math
import shutil
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn

from depthlab.config import ConfigError, ModelConfig, ProbesConfig, TrainConfig
from depthlab.data import Batches
from depthlab.nets import Net, build, weight_layers
from depthlab.probes import InactiveUnits
from depthlab.training import Update, build_optimizer, check_compiler, train

STEPS = 8
EVERY = 3
READ = [0, 3, 6, 7]
UNIT_ROUNDOFF = 2.0**-24
"""Of float32: the relative error of one operation."""

BatchesMaker = Callable[..., Batches]
Outcome = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
pytestmark = [  # torch's own, when it imports its compiler and when it traces
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
]
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"norm": "batch"},
    "cnn": {"family": "cnn", "depth": 6, "stages": 2, "norm": "batch", "skip": "residual"},
    "dropout": {"dropout": 0.3},
    "dropconnect": {"dropconnect": 0.3, "norm": "batch", "norm_noise": 0.2},
    "recurrent": {"family": "rnn", "depth": 2, "cell": "lstm", "activation": "tanh"},
}


def net(**config: Any) -> Net:
    return build(ModelConfig(**{"depth": 4, "width": 12, **config}), channels=1, size=8, classes=10, seed=1)


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def run(model: nn.Module, batches: Batches, **config: Any) -> list[Update]:
    settings = TrainConfig(**{"steps": STEPS, "batch_size": 16, "lr": 0.01, **config})
    return list(train(model, weight_layers(model), batches, settings, ProbesConfig(every=EVERY), seed=0))


def outcome(model: Net, batches: Batches, **config: Any) -> dict[str, Any]:
    """All that a training leaves, as bytes."""
    updates = run(model, batches, **config)
    return {
        "weights": {name: bits(tensor) for name, tensor in model.state_dict().items()},
        "losses": [bits(value) for update in updates for value in (update.loss, update.error)],
        "readings": [(row.layer, row.probe, row.value.hex()) for update in updates for row in update.rows],
        "random state": bits(torch.get_rng_state()),
    }


class Overwritten:
    """Stands for torch.compile: as a CUDA graph does, each call writes over what the one before gave."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.given, self.calls = model, list[Tensor](), 0
        self.how: dict[str, Any] = {}
        self.holds_back: list[bool] = []

    def __call__(self, function: Outcome, **how: Any) -> Outcome:
        self.how = how

        def replay(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            for tensor in self.given:
                tensor.fill_(math.nan)
            self.calls += 1
            self.holds_back.append(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))
            loss, error = function(inputs, labels)
            for parameter in self.model.parameters():
                assert parameter.grad is None
            self.given = [loss.detach(), error]
            return loss, error

        return replay


def test_what_is_read_is_not_compiled_and_what_is_kept_is_not_written_over(
    batches: BatchesMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = outcome(net(norm="batch"), batches())
    model = net(norm="batch")
    fake = Overwritten(model)
    monkeypatch.setattr(torch, "compile", fake)
    assert outcome(model, batches(), compile=True) == expected
    assert fake.calls == STEPS - len(READ)
    assert fake.holds_back == [True, False, False, False]  # Ctrl-C would end the compiler's own processes as well
    assert fake.how == {"fullgraph": True, "dynamic": False, "mode": "default"}


def test_more_networks_than_torch_compiles_one_function_for(
    batches: BatchesMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its kernels, which would take minutes; of torch's limit only the capturing of graphs knows."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    for width in range(4, 4 + torch._dynamo.config.recompile_limit + 2):
        assert len(run(net(depth=3, width=width), batches(), compile=True, steps=3)) == 3


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_captured_graphs_are_the_plain_pass(
    precision: str, batches: BatchesMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = outcome(net(norm="batch"), batches(), precision=precision, label_smoothing=0.1)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    found = outcome(net(norm="batch"), batches(), precision=precision, label_smoothing=0.1, compile=True)
    assert found == expected


def test_it_is_compiled_once_in_this_process_whatever_is_read_and_evaluated(
    batches: BatchesMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config

    processes, usual = [], config.compile_threads

    def counting(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        processes.append(config.compile_threads)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    model, settings = net(norm="batch", dropout=0.1), TrainConfig(steps=STEPS, batch_size=16, compile=True)
    for update in train(model, weight_layers(model), batches(), settings, ProbesConfig(every=EVERY), seed=0):
        model.eval()
        with torch.no_grad(), InactiveUnits(model, weight_layers(model)):
            model(batches()[update.step][0])
        model.train()
    assert processes == [1]  # one graph, and no pool of processes for it
    assert config.compile_threads == usual


class Branching(nn.Module):
    """Goes by the content of a tensor, which no graph can."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.flatten(1))
        return -logits if logits.sum() > 0 else logits


def test_a_network_that_is_no_graph_is_told_in_one_line(batches: BatchesMaker) -> None:
    with pytest.raises(ConfigError, match=r"this network .*ranching; set train\.compile=false$") as caught:
        run(Branching(), batches(), compile=True)
    assert "\n" not in str(caught.value)


CANNOT = r"torch\.compile cannot compile {} for cpu: .*no-such-compiler.* set train\.compile=false$"


@pytest.mark.usefixtures("without_compiler")
def test_a_missing_compiler_is_told_in_one_line(batches: BatchesMaker) -> None:
    with pytest.raises(ConfigError, match=CANNOT.format("anything")) as caught:
        check_compiler(torch.device("cpu"))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=CANNOT.format("this network")) as caught:
        run(net(depth=3, width=5), batches(), compile=True)
    assert "\n" not in str(caught.value)


def gap(found: list[Update], expected: list[Update], steps: range) -> float:
    """The largest relative difference of losses."""
    return max(abs(found[step].loss.item() / expected[step].loss.item() - 1) for step in steps)


@pytest.mark.slow
@needs_compiler
class TestInductor:
    @pytest.mark.parametrize("name", MODELS)
    def test_compiled_twice_it_is_the_same_to_the_bit(self, name: str, batches: BatchesMaker) -> None:
        first, second = (outcome(net(**MODELS[name]), batches(), compile=True) for _ in range(2))
        assert first == second

    @pytest.mark.parametrize("name", ["mlp", "cnn", "recurrent"])
    def test_the_first_updates_are_the_plain_ones_up_to_rounding(self, name: str, batches: BatchesMaker) -> None:
        """Updates 1 and 2 are compiled.

        A sum of n terms in another order is off by n roundings at most, and n is below 200 in the layers of these nets.
        The roundings of bf16 are 2^16 times larger: it is not so near.
        """
        model = MODELS[name]
        plain = run(net(**model), batches())
        tolerance = 200 * UNIT_ROUNDOFF
        assert gap(run(net(**model), batches(), compile=True), plain, range(1, 3)) < tolerance
        assert gap(run(net(**model), batches(), precision="bf16"), plain, range(1, 3)) > tolerance

    def test_what_was_read_first_is_read_of_the_plain_pass(self, batches: BatchesMaker) -> None:
        """At update 0 nothing compiled has run yet, at update 3 two updates have."""
        found, expected = (run(net(norm="batch"), batches(), compile=compiled) for compiled in (True, False))
        assert found[0].rows == expected[0].rows
        assert [update.step for update in found if update.rows] == READ
        for row, other in zip(found[3].rows, expected[3].rows, strict=True):
            assert row.value == pytest.approx(other.value, rel=1e-4, abs=1e-6), row

    def test_no_process_or_thread_is_left_behind(self, batches: BatchesMaker) -> None:
        before = set(psutil.Process().children(recursive=True))
        updates = train(
            model := net(width=11), weight_layers(model), batches(), TrainConfig(steps=4, batch_size=16, compile=True),
            ProbesConfig(every=0), seed=0, optimizer=build_optimizer(model, TrainConfig()),
        )  # fmt: skip
        for _ in updates:
            assert set(psutil.Process().children(recursive=True)) <= before
            assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]
