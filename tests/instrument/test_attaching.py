"""Attaching to trainings as people write them: every way to use a weight, to step, to wrap, and to get it wrong."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import multiprocessing
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fleet
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop
from torch.utils.checkpoint import checkpoint

import depthlab
from depthlab.instrument import Watcher
from depthlab.probes import PROBES

IN, WIDTH, OUT, BATCH = 4, 6, 3, 8
GRADIENTS = ("grad_norm", "backward_norm")
ALL = tuple(name for name in PROBES if name != "grad_snr")
STEPS = 3


def batch(step: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, IN, generator=generator), torch.randn(BATCH, OUT, generator=generator)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(IN, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, OUT))


def watching(model: nn.Module, optimizer: Optimizer | None = None, **options: Any) -> Watcher:
    """Everything at every step."""
    options = {"every": 1, "budget": None, **options}
    return Watcher(model, optimizer or SGD(model.parameters(), lr=0.1), **options)


def train(
    model: nn.Module,
    optimizer: Optimizer | None = None,
    *,
    steps: int = STEPS,
    watched: bool = True,
    inputs: Callable[[int], tuple[Tensor, Tensor]] = batch,
    before_update: Callable[[], Any] = lambda: None,
    call: Callable[[Tensor], Tensor] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Readings of a few updates; `call` is the model's own call if it is not given."""
    optimizer = optimizer or SGD(model.parameters(), lr=0.1)
    with watching(model, optimizer, **options) if watched else contextlib.nullcontext() as watcher:
        for step in range(steps):
            x, y = inputs(step)
            optimizer.zero_grad()
            loss = F.mse_loss((call or model)(x), y)
            loss.backward()
            before_update()
            optimizer.step()
            if watcher:
                watcher.step(loss)
    return watcher.table() if watcher else pd.DataFrame()


def values(table: pd.DataFrame, probe: str) -> dict[tuple[int, str], float]:
    """(step, layer) -> value; fails if a layer was read twice."""
    rows = table[table.probe == probe]
    found = dict(zip(zip(rows.step, rows.layer, strict=True), rows.value, strict=True))
    assert len(found) == len(rows)
    return found


def layers(table: pd.DataFrame) -> list[str]:
    """Names of layers by depth."""
    rows = table[(table.probe == "weight_norm") & (table.step == 0)].sort_values("depth")
    return rows.layer.tolist()


def assert_equal(found: pd.DataFrame, expected: pd.DataFrame, rel: float = 1e-6) -> None:
    """Equal tables, up to the names of layers."""
    assert len(expected)
    columns = ["step", "depth", "probe"]
    pd.testing.assert_frame_equal(found[columns], expected[columns])
    assert found.value.tolist() == pytest.approx(expected.value.tolist(), rel=rel, abs=1e-12, nan_ok=True)


def bits(model: nn.Module, optimizer: Optimizer) -> dict[str, str]:
    training = fleet.Training()
    training.note_all(model, optimizer)
    return training.bits


def output_gradients(model: nn.Module, modules: dict[str, nn.Module], x: Tensor, y: Tensor) -> dict[str, float]:
    """Norms of the gradients of all outputs of modules together, from one's own hooks."""
    found: dict[str, list[Tensor]] = {name: [] for name in modules}

    def note(name: str, result: Tensor) -> None:
        result.register_hook(lambda gradient: found[name].append(gradient.double().flatten()))

    handles = [
        module.register_forward_hook(lambda _m, _i, result, name=name: note(name, result))
        for name, module in modules.items()
    ]
    F.mse_loss(model(x), y).backward()
    for handle in handles:
        handle.remove()
    model.zero_grad()
    return {name: torch.cat(gradients).norm().item() for name, gradients in found.items()}


# ---- how weights are used -------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """y = x + F(x), with operations in place or not."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Linear(IN, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, OUT)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.tanh(x) if not self.in_place else x.tanh_()
        y = F.relu(self.first(x), inplace=self.in_place)
        y = self.second(y)
        if self.in_place:
            y += x
            y.relu_()
        else:
            y = (y + x).relu()
        return self.head(y)


@pytest.mark.parametrize("shape", [(BATCH,), (2, BATCH // 2)])
def test_operations_in_place_are_read_as_those_that_are_not(shape: tuple[int, ...]) -> None:
    def inputs(step: int) -> tuple[Tensor, Tensor]:
        x, y = batch(step)
        return x.view(*shape, IN), y.view(*shape, OUT)

    in_place, twin = Residual(True), Residual(False)
    in_place.load_state_dict(twin.state_dict())
    expected = train(twin, probes=ALL, inputs=inputs)
    assert_equal(train(in_place, probes=ALL, inputs=inputs), expected)
    assert set(expected.probe) == {*ALL, "train_loss"}


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, WIDTH)
        self.body = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(self.embedding(words))))


def test_a_weight_that_two_modules_share_is_one_layer() -> None:
    model = Tied()
    words, targets = torch.tensor([[1, 2, 3], [3, 3, 6]]), torch.randn(2, 3, 7)
    modules = {"embedding": model.embedding, "body": model.body, "head": model.head}
    expected = output_gradients(model, modules, words, targets)
    table = train(model, inputs=lambda _: (words, targets), steps=1)
    assert layers(table) == ["embedding", "body"]
    both = (expected["embedding"] ** 2 + expected["head"] ** 2) ** 0.5
    assert expected["embedding"] > 0.01 * expected["head"] > 0
    assert values(table, "backward_norm") == pytest.approx({(0, "embedding"): both, (0, "body"): expected["body"]})
    assert values(table, "grad_norm")[0, "embedding"] == pytest.approx(model.embedding.weight.grad.norm().item())


class Recurrent(nn.Module):
    """A layer that is called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, OUT)
        self.cell = nn.Linear(WIDTH, WIDTH)
        self.stem = nn.Linear(IN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = torch.tanh(self.cell(x))
        return self.head(x)


def test_a_layer_that_is_called_three_times_has_one_reading_of_all_calls() -> None:
    model = Recurrent()
    expected = output_gradients(model, dict(model.named_children()), *batch())
    activations: list[Tensor] = []
    handle = model.cell.register_forward_hook(lambda _m, _i, z: activations.append(z.detach().tanh()))
    model(batch()[0])
    handle.remove()
    table = train(model, steps=1)
    assert layers(table) == ["stem", "cell", "head"]
    assert values(table, "backward_norm") == pytest.approx({(0, name): value for name, value in expected.items()})
    of_all = torch.cat(activations).double().std(correction=0).item()
    assert values(table, "activation_std")[0, "cell"] == pytest.approx(of_all)


class ByHand(nn.Module):
    """An MLP of bare parameters."""

    def __init__(self, twin: nn.Sequential, product: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterList([layer.weight.detach().clone() for layer in twin if hasattr(layer, "weight")])
        self.offsets = nn.ParameterList([layer.bias.detach().clone() for layer in twin if hasattr(layer, "weight")])
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        x = F.tanh(self.product(x, self.weights[0], self.offsets[0]))
        x = F.relu(self.product(x, self.weights[1], self.offsets[1]))
        return self.product(x, self.weights[2], self.offsets[2])


PRODUCTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "F.linear": F.linear,
    "x @ W.t()": lambda x, w, b: x @ w.t() + b,
    "x @ W.T": lambda x, w, b: x @ w.T + b,
    "(W @ x.T).T": lambda x, w, b: (w @ x.T).T + b,
    "matmul": lambda x, w, b: torch.matmul(x, w.transpose(0, 1)) + b,
    "mm": lambda x, w, b: x.mm(w.mT) + b,
    "addmm": lambda x, w, b: torch.addmm(b, x, w.t()),
    "einsum": lambda x, w, b: torch.einsum("ni,oi->no", x, w) + b,
    "tensordot": lambda x, w, b: torch.tensordot(x, w, dims=([1], [1])) + b,
    "bmm": lambda x, w, b: torch.bmm(x[None], w.t()[None])[0] + b,
}


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_weight_layer_is_an_operation_not_a_module(product: str) -> None:
    table = train(ByHand(mlp(), PRODUCTS[product]))
    assert layers(table) == ["weights.0", "weights.1", "weights.2"]
    expected = train(mlp())
    # where the bias comes after the product, z has none, but the same gradient, and the same activation
    assert_equal(table[table.layer != "weights.2"], expected[expected.layer != "4"], rel=1e-5)
    for probe in ("grad_norm", "weight_norm", "update_ratio", "backward_norm"):
        of_last = [values(table, probe)[step, "weights.2"] for step in range(STEPS)]
        assert of_last == pytest.approx([values(expected, probe)[step, "4"] for step in range(STEPS)], rel=1e-5)


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "orthogonal"])
def test_a_parametrized_layer_is_one_layer_under_its_modules_name(kind: str) -> None:
    model = mlp()
    getattr(parametrizations, kind)(model[2])
    unwatched = copy.deepcopy(model)
    weights = {"0": model[0], "2": model[2], "4": model[4]}
    optimizer, its_twin = SGD(model.parameters(), lr=0.1), SGD(unwatched.parameters(), lr=0.1)
    state = copy.deepcopy(model.state_dict())
    table = train(model, optimizer)
    train(unwatched, its_twin, watched=False)
    assert bits(model, optimizer) == bits(unwatched, its_twin)
    assert layers(table) == ["0", "2", "4"]
    assert len(values(table, "backward_norm")) == 3 * STEPS
    model.load_state_dict(state)
    expected = output_gradients(model, weights, *batch())
    assert {name: values(table, "backward_norm")[0, name] for name in expected} == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch prefers its parametrizations
@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm"])
def test_the_older_weight_norm_and_spectral_norm_are_one_layer_too(kind: str) -> None:
    model = mlp()
    getattr(nn.utils, kind)(model[2])
    table = train(model)
    assert len(layers(table)) == 3
    assert len(values(table, "backward_norm")) == 3 * STEPS


class WithPositions(nn.Module):
    """A positional embedding, a class token and a gain: parameters of two dimensions or more that are no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(3, WIDTH))
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.gain = nn.Parameter(torch.ones(3, WIDTH))
        self.stem = nn.Linear(IN, WIDTH)
        self.head = nn.Linear(WIDTH, OUT)

    def forward(self, x: Tensor) -> Tensor:
        words = torch.stack([self.stem(x), self.stem(x + 1)], 1)
        words = torch.cat([self.token.expand(len(x), -1, -1), words], 1)
        return self.head((words + self.position) * self.gain).mean(1)


def test_what_is_only_added_or_multiplied_entry_by_entry_is_no_layer() -> None:
    table = train(WithPositions())
    assert set(table.layer) == {"stem", "head", "network"}


class Rebinding(nn.Module):
    """Replaces a buffer in every pass, and goes on with a tensor that Python puts in the old one's place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.zeros(BATCH, WIDTH))
        self.first = nn.Parameter(torch.randn(IN, WIDTH))
        self.second = nn.Parameter(torch.randn(WIDTH, OUT))
        self.hits = 0

    def forward(self, x: Tensor) -> Tensor:
        h = x @ self.first
        place, self.state = id(self.state), h.detach()
        tried = [h]
        while id(tried[-1]) != place and len(tried) < 1000:
            tried.append(h + 0)
        self.hits += id(tried[-1]) == place
        return tried[-1] @ self.second


def test_data_is_not_mistaken_for_a_buffer_in_whose_place_in_memory_it_is() -> None:
    train(model := Rebinding(), steps=10, watched=False)
    assert model.hits > 0
    table = train(Rebinding(), steps=10)
    assert set(values(table, "backward_norm")) == {(step, name) for step in range(10) for name in ("first", "second")}


# ---- which weights are trained --------------------------------------------------------------------------------------


def test_frozen_layers_have_a_norm_and_no_gradient() -> None:
    model = mlp()
    model[0].requires_grad_(False)
    table = train(model, SGD([p for p in model.parameters() if p.requires_grad], lr=0.1))
    assert layers(table) == ["0", "2", "4"]
    assert {layer for _, layer in values(table, "grad_norm")} == {"2", "4"}
    assert {value for (_, layer), value in values(table, "update_ratio").items() if layer == "0"} == {0.0}
    assert {layer for _, layer in values(table, "backward_norm")} == {"2", "4"}
    assert {layer for _, layer in values(table, "activation_std")} == {"0", "2", "4"}


def test_a_frozen_layer_in_the_middle_still_passes_a_gradient_on() -> None:
    model = mlp()
    model[2].requires_grad_(False)
    table = train(model)
    assert {layer for _, layer in values(table, "grad_norm")} == {"0", "4"}
    assert {layer for _, layer in values(table, "backward_norm")} == {"0", "2", "4"}


def test_one_warning_names_the_weights_that_are_not_used() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare, self.other = nn.Linear(IN, OUT), nn.Linear(IN, OUT), nn.Linear(IN, OUT)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    with pytest.warns(UserWarning, match="gradients of spare, other: none has reached") as caught:
        table = train(Half())
    assert len(caught) == 1
    assert set(table.layer) == {"used", "network"}


def test_layers_chooses_by_name() -> None:
    table = train(mlp(), layers=lambda name: name != "2")
    assert layers(table) == ["0", "4"]
    with pytest.raises(ValueError, match="no weight to watch"):
        watching(mlp(), layers=lambda name: False)


def test_a_frozen_transformer_in_evaluation_mode_computes_the_same_bits() -> None:
    """A function mode keeps its layers from their fused kernels."""
    block = nn.TransformerEncoderLayer(IN, 2, 8, batch_first=True)
    body = nn.TransformerEncoder(block, 2).eval().requires_grad_(False)
    model = nn.Sequential(body, nn.Linear(IN, OUT))
    inputs = [(x.view(2, 4, IN), y.view(2, 4, OUT)) for x, y in map(batch, range(STEPS))]
    unwatched = copy.deepcopy(model)
    optimizer, its_twin = SGD(model[1].parameters(), lr=0.1), SGD(unwatched[1].parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "depthlab cannot read outputs")
        table = train(model, optimizer, inputs=lambda step: inputs[step])
    train(unwatched, its_twin, inputs=lambda step: inputs[step], watched=False)
    assert bits(model, optimizer) == bits(unwatched, its_twin)
    assert set(values(table, "grad_norm")) == {(step, "1") for step in range(STEPS)}


# ---- how updates are made -------------------------------------------------------------------------------------------


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
    table = train(model, before_update=lambda: nn.utils.clip_grad_norm_(model[0].parameters(), 1e-3), probes=GRADIENTS)
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


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "SGD nesterov foreach": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "SGD fused": lambda p: SGD(p, lr=0.1, momentum=0.9, fused=True),
    "SGD maximize foreach": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, maximize=True, foreach=True),
    "Adam": lambda p: Adam(p, lr=0.01),
    "Adam foreach": lambda p: Adam(p, lr=0.01, weight_decay=0.1, foreach=True),
    "Adam fused": lambda p: Adam(p, lr=0.01, fused=True),
    "AdamW": lambda p: AdamW(p, lr=0.01),
    "AdamW fused": lambda p: AdamW(p, lr=0.01, fused=True),
    "RMSprop": lambda p: RMSprop(p, lr=0.01),
    "Adagrad fused": lambda p: Adagrad(p, lr=0.01, fused=True),
}


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


# ---- mixed precision ------------------------------------------------------------------------------------------------


def train_scaled(
    scale: float | None,
    dtype: torch.dtype | None,
    optimizer_of: Callable[[Any], Optimizer],
    *,
    batches: list[int],
    clip: bool = False,
) -> pd.DataFrame:
    """Batch -1 overflows."""
    model = mlp()
    optimizer = optimizer_of(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    with watching(model, optimizer, scaler=scaler) as watcher:
        for number in batches:
            x, y = batch(number)
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                loss = F.mse_loss(model(x).float(), y * (1e38 if number == -1 else 1))
            scaler.scale(loss).backward()
            if clip:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
            watcher.step(loss)
    return watcher.table()


def plain(parameters: Any) -> Optimizer:
    return SGD(parameters, lr=0.1)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_gradients_of_a_scaled_loss_are_read_unscaled(dtype: torch.dtype | None, clip: bool) -> None:
    scaled = train_scaled(256.0, dtype, plain, batches=[0, 1, 2], clip=clip)
    # a power of two changes no rounding, except where float16 has none left
    tolerance = 1e-2 if dtype is torch.float16 else 1e-6
    assert_equal(scaled, train_scaled(None, dtype, plain, batches=[0, 1, 2], clip=clip), rel=tolerance)
    assert len(values(scaled, "backward_norm")) == 9


@pytest.mark.parametrize("batches", [[0, -1, 1, 2], [-1, 0, 1, 2], [0, -1, -1, 1, 2]])
def test_an_update_that_the_scaler_skips_gives_no_reading_and_disturbs_none(batches: list[int]) -> None:
    found = train_scaled(256.0, None, plain, batches=batches)
    assert_equal(found, train_scaled(None, None, plain, batches=[0, 1, 2]), rel=1e-6)


@pytest.mark.parametrize("name", ["SGD fused", "Adam fused", "AdamW fused"])
@pytest.mark.parametrize("clip", [False, True])
def test_fused_optimizers_unscale_inside_their_step(name: str, clip: bool) -> None:
    scaled = train_scaled(256.0, None, OPTIMIZERS[name], batches=[0, 1, 2], clip=clip)
    assert_equal(scaled, train_scaled(None, None, OPTIMIZERS[name], batches=[0, 1, 2], clip=clip), rel=1e-5)


def test_an_update_that_a_fused_optimizer_skips_is_read_as_one_that_changes_nothing() -> None:
    """It skips inside of its own step, and to look whether it does would wait for a GPU."""
    found = train_scaled(256.0, None, OPTIMIZERS["SGD fused"], batches=[0, -1, 1])
    skipped = found[found.step == 1]
    assert not any(math.isfinite(value) for value in skipped[skipped.probe == "grad_norm"].value)
    assert set(skipped[skipped.probe == "update_ratio"].value) == {0.0}
    others = found[found.step != 1].assign(step=lambda rows: rows.step.clip(upper=1))
    expected = train_scaled(None, None, OPTIMIZERS["SGD fused"], batches=[0, 1])
    assert_equal(others.reset_index(drop=True), expected, rel=1e-5)


# ---- checkpointing, compiling, several processes --------------------------------------------------------------------


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


# ---- the watcher itself ---------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_one_number_is_named() -> None:
    model = mlp()
    with (
        depthlab.watch(model, SGD(model.parameters(), lr=0.1)) as watcher,
        pytest.raises(ValueError, match=r"loss must be one number, given a tensor of shape \(4,\)"),
    ):
        watcher.step(torch.zeros(4))


def test_attention_of_different_sizes_has_its_three_projections() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(WIDTH, 2, kdim=IN, vdim=OUT, batch_first=True)
            self.query = nn.Linear(IN, WIDTH)
            self.head = nn.Linear(WIDTH, OUT)

        def forward(self, x: Tensor) -> Tensor:
            query = self.query(x)[:, None]
            found, shares = self.attention(query, x[:, None], x[:, None, :OUT])
            assert shares.shape == (BATCH, 1, 1)
            return self.head(found[:, 0])

    model = Attending()
    with pytest.warns(UserWarning, match=r"outputs of attention\.q_proj_weight.*inside one operation"):
        table = train(model)
    inner = ["attention.q_proj_weight", "attention.k_proj_weight", "attention.v_proj_weight"]
    assert layers(table) == ["query", *inner, "attention.out_proj", "head"]
    assert {layer for _, layer in values(table, "grad_norm")} == set(layers(table))
    assert {layer for _, layer in values(table, "backward_norm")} == {"query", "attention.out_proj", "head"}


def test_bounded_activations_are_seen_to_saturate() -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight *= 20
    table = train(model, steps=1)
    z = F.linear(batch()[0].double(), 20 * mlp()[0].weight.double(), mlp()[0].bias.double())
    expected = (z.tanh().abs() > 0.95).double().mean().item()
    assert 0 < expected < 1
    assert values(table, "saturation") == {(0, "0"): pytest.approx(expected)}


def test_only_the_first_activation_after_a_layer_is_its_own() -> None:
    model = nn.Sequential(nn.Linear(IN, WIDTH), nn.Tanh(), nn.ReLU(), nn.Linear(WIDTH, OUT))
    z = model[0](batch()[0]).detach().double()
    table = train(model, steps=1)
    assert values(table, "activation_std")[0, "0"] == pytest.approx(z.tanh().std(correction=0).item(), rel=1e-6)
    assert values(table, "dead_fraction") == {}


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
