"""Every way in which people use a weight: one layer each, with the right numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from loop import (
    ALL,
    BATCH,
    IN,
    OUT,
    STEPS,
    WIDTH,
    Recurrent,
    assert_equal,
    batch,
    bits,
    layers,
    mlp,
    output_gradients,
    train,
    values,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.optim import SGD


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


def test_a_layer_that_is_parametrized_while_it_is_watched_is_still_one() -> None:
    """Its mask comes in a module of its own, which was not there when watching began, and is known from then on."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.ones(WIDTH, WIDTH))

        def forward(self, weight: Tensor) -> Tensor:
            return weight * self.mask

    def inputs(step: int) -> tuple[Tensor, Tensor]:
        if step == 1:
            parametrize.register_parametrization(model[2], "weight", Masked())
        return batch(step)

    model = mlp()
    found, expected = train(model, inputs=inputs), train(mlp())
    assert parametrize.is_parametrized(model[2])
    assert_equal(*(table[table.step == 2].reset_index(drop=True) for table in (found, expected)))


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


class LowRank(nn.Module):
    """A weight to which a product of two smaller ones is added."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_in, self.weight_out = nn.Parameter(torch.randn(2, IN)), nn.Parameter(torch.randn(WIDTH, 2))
        self.weight = nn.Parameter(torch.randn(WIDTH, IN))
        self.head = nn.Linear(WIDTH, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.linear(x, self.weight + self.weight_out @ self.weight_in))


def test_a_low_rank_sum_is_one_layer_at_every_step() -> None:
    """Its parts have gradients, and names like those of layers."""
    table = train(LowRank())
    assert sorted(values(table, "grad_norm")) == [(step, name) for step in range(STEPS) for name in ("head", "weight")]


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


def test_a_buffer_that_another_one_replaces_between_updates_is_one_still() -> None:
    """A mask that is drawn anew: the masked weight is computed of a parameter and a buffer, at every step."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(WIDTH, IN))
            self.register_buffer("mask", torch.ones(WIDTH, IN))
            self.head = nn.Linear(WIDTH, OUT)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.linear(x, self.weight * self.mask))

    def draw() -> None:
        model.mask = (torch.rand(WIDTH, IN) < 0.5).float()

    model = Masked()
    table = train(model, before_update=draw)
    assert set(values(table, "backward_norm")) == {(step, name) for step in range(STEPS) for name in ("weight", "head")}


def test_what_also_has_an_output_of_its_own_is_not_among_what_cannot_be_seen() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.RNN(IN, WIDTH, batch_first=True), nn.Linear(WIDTH, OUT)

        def forward(self, x: Tensor) -> Tensor:
            states, _ = self.cell(x[:, None])
            return self.head(states[:, 0] + F.linear(x, self.cell.weight_ih_l0))

    table = train(Twice())  # a warning would be an error
    assert {layer for _, layer in values(table, "backward_norm")} == {"cell.weight_ih_l0", "cell.weight_hh_l0", "head"}


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


def test_the_order_of_data_is_seen_although_no_outputs_are_read() -> None:
    table = train(Recurrent(), probes=("weight_norm",))
    assert layers(table) == ["stem", "cell", "head"]
