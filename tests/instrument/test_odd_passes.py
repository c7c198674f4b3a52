"""Passes and updates of odd kinds: in pairs, within themselves, giving out anything, or failing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest
import torch
from loop import STEPS, assert_equal, batch, mlp, train, values, watching
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from depthlab.probes import trace


def stack() -> int:
    return torch._C._len_torch_function_stack()  # type: ignore[attr-defined]


def train_with(
    loss_of: Callable[[nn.Module, int], Tensor], model: nn.Module, *, parts: int = 1, **options: Any
) -> pd.DataFrame:
    """Updates of so many backward passes each, of a loss that a test makes of the model and the number of the pass."""
    optimizer = SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    with watching(model, optimizer, **options) as watcher:
        for step in range(STEPS):
            for part in range(parts):
                loss_of(model, parts * step + part).backward()
            optimizer.step()
            optimizer.zero_grad()
    return watcher.table()


def error_of(model: nn.Module, number: int) -> Tensor:
    return F.mse_loss(model(batch(number)[0]), batch(number)[1])


def test_two_passes_before_one_backward_pass_are_read_together() -> None:
    """A siamese network, or a discriminator's real and false batch."""
    in_pairs = train_with(lambda model, step: error_of(model, 2 * step) + error_of(model, 2 * step + 1), mlp())
    one_by_one = train_with(error_of, mlp(), parts=2)
    assert len(values(in_pairs, "backward_norm")) == 3 * STEPS
    assert_equal(in_pairs, one_by_one, rel=1e-5)


def test_micro_batches_of_a_network_with_a_frozen_layer_are_read_together() -> None:
    """One weight without a gradient is not all of them."""

    def frozen() -> nn.Module:
        model = mlp()
        model[0].requires_grad_(False)
        return model

    in_parts = train_with(error_of, frozen(), parts=2)
    at_once = train_with(lambda model, step: error_of(model, 2 * step) + error_of(model, 2 * step + 1), frozen())
    assert len(values(in_parts, "backward_norm")) == 2 * STEPS
    assert_equal(in_parts, at_once, rel=1e-5)


@dataclass
class Output:
    logits: Tensor


@dataclass(slots=True)
class Hidden:
    logits: Tensor


class Wrapped(nn.Module):
    """Gives out an object that holds its tensors."""

    def __init__(self, kind: type[Output | Hidden]) -> None:
        super().__init__()
        self.net, self.kind = mlp(), kind

    def forward(self, x: Tensor) -> Output | Hidden:
        return self.kind(self.net(x))


@pytest.mark.parametrize("kind", [Output, Hidden])
def test_a_pass_may_give_out_an_object(kind: type[Output | Hidden]) -> None:
    """One that shows its tensors, or one in which none is found."""
    found = train_with(lambda model, step: F.mse_loss(model(batch(step)[0]).logits, batch(step)[1]), Wrapped(kind))
    assert_equal(found, train_with(error_of, mlp()))


def test_a_pass_may_give_out_an_object_whose_loss_is_that_of_another_inside_it() -> None:
    @dataclass
    class Outer:
        auxiliary: Tensor
        inner: Output

    class Nested(Wrapped):
        def forward(self, x: Tensor) -> Outer:
            y = self.net(x)
            return Outer(2 * y, Output(y))

    def error(model: nn.Module, step: int) -> Tensor:
        return F.mse_loss(model(batch(step)[0]).inner.logits, batch(step)[1])

    assert_equal(train_with(error, Nested(Output)), train_with(error_of, mlp()))


def test_passes_that_give_out_objects_are_read_where_they_are_trained() -> None:
    """Two before one backward pass, and one that is never trained."""

    def error(model: nn.Module, number: int) -> Tensor:
        return F.mse_loss(model(batch(number)[0]).logits, batch(number)[1])

    def errors(model: nn.Module, step: int) -> Tensor:
        both = error(model, 2 * step) + error(model, 2 * step + 1)
        model(10 * batch(50)[0])
        return both

    in_pairs = train_with(errors, Wrapped(Output))
    assert_equal(in_pairs, train_with(error_of, mlp(), parts=2), rel=1e-5)


def test_a_network_that_gives_out_its_own_weights_has_no_hook_left_on_them() -> None:
    """Tensors of a pass end with it; a parameter would gather a hook in every pass."""

    class Open(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return self.net(x), self.net[0].weight, self.net[2].weight.view(-1)

    model = Open()
    found = train_with(lambda _, step: F.mse_loss(model(batch(step)[0])[0], batch(step)[1]), model)
    assert_equal(found, train_with(error_of, mlp()))
    assert not any(parameter._backward_hooks for parameter in model.parameters())


def test_a_hook_for_a_part_of_a_tensor_sees_the_gradient_of_that_part() -> None:
    """A view of all of a tensor that is changed in place loses its hooks, so that these are put on the whole."""
    leaf = torch.ones(4, 3, requires_grad=True)
    whole = 2 * leaf
    part, reshaped = whole[:2], whole.view(12)
    assert trace._whole(part) is part
    assert trace._whole(reshaped) is whole
    assert trace._whole(of_leaf := leaf.view(12)) is of_leaf
    seen: list[Tensor] = []
    trace._whole(part).register_hook(seen.append)
    (part.sum() + 5 * whole.sum()).backward()
    assert seen[0].tolist() == torch.ones(2, 3).tolist()


def test_a_module_that_calls_itself_is_seen_to_its_end() -> None:
    class Recursive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor, level: int = 0) -> Tensor:
            if level == 2:
                return self.stem(x).tanh()
            h = self.body(self(x, level + 1)).tanh()
            return h if level else self.head(h)

    class Unrolled(Recursive):
        def forward(self, x: Tensor, level: int = 0) -> Tensor:
            return self.head(self.body(self.body(self.stem(x).tanh()).tanh()).tanh())

    model, twin = Recursive(), Unrolled()
    twin.load_state_dict(model.state_dict())
    found = train_with(error_of, model)
    assert {layer for _, layer in values(found, "backward_norm")} == {"stem", "body", "head"}
    assert_equal(found, train_with(error_of, twin))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_failed_pass_ends_at_once(compiled: bool) -> None:
    """Not only when the watcher is closed: what runs between would be taken for a part of it."""

    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.head, self.fails = mlp(), nn.Linear(3, 3), False
            if compiled:
                self.head = torch.compile(self.head, backend="eager")

        def forward(self, x: Tensor) -> Tensor:
            x = self.net(x)
            if self.fails:
                raise MemoryError
            return self.head(x)

    model = Failing()
    with watching(model):
        model.fails = True
        with pytest.raises(MemoryError):
            model(batch()[0])
        assert stack() == 0
    torch._dynamo.reset()


def test_an_update_that_failed_leaves_no_reading() -> None:
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    fails = False

    def fail(_optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        if fails:
            raise MemoryError

    with watching(model, optimizer) as watcher:
        optimizer.register_step_pre_hook(fail)  # after the watcher's own
        for step in range(STEPS):
            optimizer.zero_grad()
            loss = error_of(model, step)
            loss.backward()
            fails = step == 1
            if fails:
                with pytest.raises(MemoryError):
                    optimizer.step()
                fails = False
            optimizer.step()
            watcher.step(loss)
    assert_equal(watcher.table(), train(mlp()))
