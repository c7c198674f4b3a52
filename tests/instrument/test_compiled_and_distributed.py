"""Passes that are repeated, compiled, or spread over processes."""

from __future__ import annotations

import contextlib
import copy
import itertools
import multiprocessing
import shutil
from collections.abc import Iterator
from pathlib import Path

import fleet
import pandas as pd
import pytest
import torch
from loop import ALL, IN, OUT, STEPS, WIDTH, assert_equal, batch, bits, layers, mlp, train, values, watching
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint


class Checkpointed(nn.Module):
    """Blocks with dropout whose activations are computed again in the backward pass, or not."""

    def __init__(self, use_reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(IN, WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.2), nn.Linear(WIDTH, WIDTH), nn.Tanh())
            for _ in range(3)
        )
        self.head = nn.Linear(WIDTH, OUT)
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x) if self.use_reentrant is None else checkpoint(block, x, use_reentrant=self.use_reentrant)
        return self.head(x)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_layers_are_read_once_and_as_if_they_were_not(use_reentrant: bool) -> None:
    trained = {}
    for kind, reentrant, watched in (
        ("plain", None, True),
        ("found", use_reentrant, True),
        ("bare", use_reentrant, False),
    ):
        model = Checkpointed(reentrant)
        optimizer = SGD(model.parameters(), lr=0.1)
        torch.manual_seed(5)
        trained[kind] = train(model, optimizer, probes=ALL, watched=watched), bits(model, optimizer)
    table, expected = trained["found"][0], trained["plain"][0]
    assert trained["found"][1] == trained["bare"][1]
    assert_equal(table, expected)
    assert layers(table) == ["stem", *(f"blocks.{k}.{i}" for k in range(3) for i in (0, 3)), "head"]


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_what_is_repeated_belongs_to_the_pass_that_is_trained(use_reentrant: bool) -> None:
    """Not to the last one, which here is an evaluation with gradients on."""

    def trained(evaluates: bool) -> pd.DataFrame:
        model = Checkpointed(use_reentrant)

        def call(x: Tensor) -> Tensor:
            outputs = model(x)
            if evaluates:
                model.eval()
                model(10 * x)
                model.train()
            return outputs

        torch.manual_seed(5)
        return train(model, probes=ALL, call=call)

    expected = trained(evaluates=False)
    assert_equal(trained(evaluates=True), expected)
    assert len(values(expected, "backward_norm")) == 8 * STEPS


def test_what_is_repeated_makes_no_pass_one_that_is_trained() -> None:
    """Where an object without tensors is given out, nothing tells whose pass is repeated: not an evaluation's."""

    class Opaque:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Checkpointed(use_reentrant=True)

        def forward(self, x: Tensor) -> Opaque:
            return Opaque(self.net(x))

    def trained(evaluates: bool) -> pd.DataFrame:
        model = Wrapped()
        optimizer = SGD(model.parameters(), lr=0.1)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)  # as after a micro-batch
        torch.manual_seed(5)
        with watching(model, optimizer, probes=("activation_std", "output_std")) as watcher:
            outputs: Opaque = model(batch()[0])
            if evaluates:
                model.eval()
                model.net(10 * batch()[0])  # which gives out a tensor
                model.train()
            F.mse_loss(outputs.logits, batch()[1]).backward()
            optimizer.step()
        return watcher.table()

    assert_equal(trained(evaluates=True), trained(evaluates=False))


def test_what_is_repeated_of_a_pass_before_the_watching_is_of_no_pass() -> None:
    model = Checkpointed(use_reentrant=True)
    optimizer = SGD(model.parameters(), lr=0.1)
    loss = F.mse_loss(model(batch()[0]), batch()[1])
    with (  # noqa: PT031
        pytest.warns(UserWarning, match="no forward pass through them was seen"),
        watching(model, optimizer, probes=("grad_norm", "backward_norm")) as watcher,
    ):
        loss.backward()
        optimizer.step()
    table = watcher.table()
    assert set(table.probe) == {"grad_norm"}
    assert len(values(table, "grad_norm")) == 8


COMPILED = "outputs of .*may be inside torch.compile.* weights and gradients are read"


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled_training(when: str, backend: str, watched: bool) -> tuple[pd.DataFrame, dict[str, str]]:
    torch._dynamo.reset()
    model = Checkpointed(None)
    optimizer = SGD(model.parameters(), lr=0.1)
    torch.manual_seed(4)
    called: nn.Module = model
    if when == "before":
        called = torch.compile(model, backend=backend)
    elif when == "in place":
        model.compile(backend=backend)
    elif when == "a submodule":
        model.blocks[1] = torch.compile(model.blocks[1], backend=backend)
    elif when == "a submodule in place":
        model.blocks[1].compile(backend=backend)
    with watching(called, optimizer, every=2) if watched else contextlib.nullcontext() as watcher:
        if when == "after":
            called = torch.compile(model, backend=backend)
        for step in range(4):
            optimizer.zero_grad()
            loss = F.mse_loss(called(batch(step)[0]), batch(step)[1])
            loss.backward()
            optimizer.step()
            if watcher:
                watcher.step(loss)
    return watcher.table() if watcher else pd.DataFrame(), bits(model, optimizer)


EVERYTHING = ["stem", *(f"blocks.{k}.{i}" for k in range(3) for i in (0, 3)), "head"]
WHEN = ["before", "after", "in place", "a submodule", "a submodule in place"]
INDUCTOR = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a compiler"),
]


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # inductor's own
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's own, watched or not
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(
    ("when", "backend"),
    [
        *itertools.product(WHEN, ["eager"]),
        *(pytest.param(when, "inductor", marks=INDUCTOR) for when in WHEN),
    ],
)
def test_compiled_networks_are_read_as_far_as_they_can_be(when: str, backend: str) -> None:
    with pytest.warns(UserWarning, match=COMPILED) as caught:
        table, found = compiled_training(when, backend, watched=True)
    assert sum(str(each.message).startswith("depthlab") for each in caught) == 1
    assert found == compiled_training(when, backend, watched=False)[1]
    assert layers(table) == EVERYTHING
    unwatched = Checkpointed(None)
    torch.manual_seed(4)
    expected = train(unwatched, steps=4, every=2)
    if backend == "eager":  # inductor draws other dropout masks
        for probe in ("grad_norm", "weight_norm", "update_ratio"):
            assert values(table, probe) == pytest.approx(values(expected, probe), rel=1e-5)
    seen = {layer for step, layer in values(table, "backward_norm")}
    assert seen == ({layer for layer in EVERYTHING if "blocks.1" not in layer} if "submodule" in when else set())


@pytest.mark.usefixtures("_fresh_compiler")
def test_torch_itself_has_nothing_to_warn_of() -> None:
    model = mlp()
    train(torch.compile(model, backend="eager"), SGD(model.parameters(), lr=0.1), probes=("grad_norm",))


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
@pytest.mark.filterwarnings("ignore:depthlab cannot read outputs")
@pytest.mark.usefixtures("_fresh_compiler")
def test_a_network_compiled_in_place_has_its_own_call_again_afterwards() -> None:
    model = mlp()
    model[2].compile(backend="eager")
    call = model[2]._compiled_call_impl
    with watching(model) as watcher:
        assert model[2]._compiled_call_impl is not call
    assert model[2]._compiled_call_impl is call
    with watching(model):
        watcher.close()  # of one that is closed already: the other's stays
        assert model[2]._compiled_call_impl is not call
    assert model[2]._compiled_call_impl is call


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's own, watched or not
@pytest.mark.usefixtures("_fresh_compiler")
def test_a_compiled_function_within_a_pass_is_compiled_as_a_whole() -> None:
    """Watching breaks no graph, which `fullgraph` would not allow."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(IN, WIDTH), nn.Linear(WIDTH, OUT)
            self.squash = torch.compile(lambda x: torch.tanh(2 * x), backend="eager", fullgraph=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.squash(self.first(x)))

    model = Mixed()
    twin = copy.deepcopy(model)
    twin.squash = lambda x: torch.tanh(2 * x)
    probes = ("weight_norm", "grad_norm", "backward_norm")
    assert_equal(train(model, probes=probes), train(twin, probes=probes))


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
@pytest.mark.usefixtures("_fresh_compiler")
def test_no_warning_where_outputs_of_a_compiled_network_are_not_asked_for() -> None:
    model = mlp()
    table = train(torch.compile(model, backend="eager"), SGD(model.parameters(), lr=0.1), probes=("grad_norm",))
    assert_equal(table, train(mlp(), probes=("grad_norm",)))


def test_two_processes_read_what_one_reads_of_the_whole_batch(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=fleet.train_distributed, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    first, second = (pd.read_parquet(tmp_path / f"{rank}.parquet") for rank in range(2))
    model = fleet.small_mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    whole = train(model, optimizer, inputs=lambda step: fleet.halves(step)[2], steps=2)
    assert sorted(set(first.layer)) == ["0", "2", "4", "network"]
    for probe in ("grad_norm", "weight_norm", "update_ratio"):
        assert values(first, probe) == values(second, probe)
        assert values(first, probe) == pytest.approx(values(whole, probe), rel=1e-5)
    # the output gradient of the mean over the whole batch: each process has that of its own half
    both = {key: (value, values(second, "backward_norm")[key]) for key, value in values(first, "backward_norm").items()}
    joined = {key: (a**2 + b**2) ** 0.5 / 2 for key, (a, b) in both.items()}
    assert joined == pytest.approx(values(whole, "backward_norm"), rel=1e-5)
