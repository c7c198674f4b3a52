"""Seeing weight layers at work in anybody's network: what each gives out, in which order, and with which gradient.

Modules' forward hooks would see neither `F.linear(x, self.attention.qkv.weight)` nor `F.relu(x)`, and a hook on a
module of a transformer changes which kernels torch picks for its evaluation. So nothing is attached to the network:
while a forward pass runs, torch's own function mode shows every operation, and a weight layer is an operation that
contracts a parameter with data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from depthlab.probes.passes import Passes

LAYERS = {
    name: inputs
    for inputs, names in {
        1: "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d embedding embedding_bag "
        "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell",
        2: "bilinear",
        3: "multi_head_attention_forward",
    }.items()
    for name in names.split()
}
"""torch's operations that are a weight layer, and how many tensors they take before the weights."""

PRODUCTS = {
    *("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv"),
    *("addmm", "addmv", "baddbmm", "addbmm", "einsum", "tensordot"),
}
"""torch's operations that are a weight layer if they contract a parameter with data. A parameter that is only added, or
multiplied entry by entry (a positional embedding, a gain), makes none."""

ACTIVATIONS = {
    name: kind
    for kind, names in {
        "relu": "relu relu_ relu6",
        "sigmoid": "sigmoid sigmoid_ logsigmoid",
        "tanh": "tanh tanh_",
        "other": "leaky_relu leaky_relu_ elu elu_ selu selu_ celu celu_ gelu silu mish softplus hardtanh hardtanh_ "
        "hardswish hardsigmoid softsign prelu rrelu",
    }.items()
    for name in names.split()
}
"""Names of torch's activation functions, by how they can fail: relus die, sigmoid and tanh saturate."""


class Observer(Protocol):
    """What a trace calls, in the order of data. Tensors are detached, and may be changed later: copy what you keep."""

    def begin(self) -> object:
        """A forward pass begins; what is returned stands for it in `output_gradient` and `reached`."""

    def reached(self, forward: Any) -> None:
        """The backward pass has come to what a forward pass gave out, or cannot be told to come there."""

    def output(self, weight: int, tensor: Tensor, *, channels: int, inner: Sequence[int]) -> None:
        """A weight layer gave out a tensor whose units are along dimension `channels`.

        `inner` weights are of the same operation, and have no output to be seen.
        """

    def activation(self, weight: int, kind: str, before: Tensor, apply: Callable[[], Any]) -> Any:
        """An activation is about to be applied to what came of a weight layer; returns what `apply` returns."""

    def output_gradient(self, forward: Any, weight: int, gradient: Tensor) -> None:
        """The gradient of the loss with respect to an output of a weight layer in a forward pass."""


class Trace:
    """Shows an observer the forward passes of a model, and their backward passes, from `open` to `close`.

    weights: parameters that may turn out to be those of weight layers. What is not among them is not seen.
    gradients: whether the observer is told of gradients as well.

    Passes without gradients (an evaluation between two updates) are not shown. Passes that activation checkpointing
    repeats during backward show gradients only. Weights computed from others (weight norm, a transpose, a low-rank
    sum) count as the largest that they come from. An operation of several weights (LSTM, attention) has the output of
    its last one. Nothing inside torch.compile is shown.
    """

    def __init__(
        self, model: nn.Module, weights: Iterable[Tensor], observer: Observer, *, gradients: bool = True
    ) -> None:
        self._positions = {id(weight): position for position, weight in enumerate(weights)}
        self._sizes = [weight.numel() for weight in weights]
        self._observer = observer
        self._shows_gradients = gradients
        self._model = model
        self._constant: dict[int, Tensor] = {}  # by id, which stays theirs as long as they are held here
        self._derived: dict[int, int | None] = {}
        self._held: list[Tensor] = []  # keeps their ids from being used again while the pass runs
        self._last: int | None = None
        self._passes = Passes(model, _Mode(self), begun=self._begin, ended=self._end, gave_out=self._watch_for_backward)
        self._pass: Any = None
        self.parts: set[int] = set()
        """Weights that, so far, were seen only as parts of larger ones."""
        self.seconds = 0.0
        """Spent on looking, the operations themselves left out."""

    def open(self, *, alone: bool = False) -> None:
        """Begins to show passes; alone: no other trace is shown any until this one is closed."""
        if not self._passes.are_shown:
            # of the modules that are there now: a mask or a parametrization may have come since
            held = (held for module in self._model.modules() for held in (module._parameters, module._buffers))
            self._constant = {id(tensor): tensor for each in held for tensor in each.values() if tensor is not None}
        self._passes.open(alone=alone)

    def close(self) -> None:
        """Ends it. Gradients of passes that were shown are still shown if their backward comes later."""
        self._passes.close()

    def _begin(self) -> None:
        if not in_backward():
            self._pass = self._observer.begin()

    def _end(self) -> None:
        self._last = None
        self._derived.clear()
        self._held.clear()

    def _watch_for_backward(self, output: Any) -> None:
        """Tells a pass that is trained from one whose outputs come to no loss: an evaluation, a skipped batch."""
        if in_backward():
            return
        forward = self._pass
        held = _tensors((output,)) or _held_by_object(output)
        # a hook on a leaf, such as a weight that is given out, would stay after the pass
        given = [tensor for tensor in held if tensor.requires_grad and not tensor.is_leaf]
        for tensor in given:
            _whole(tensor).register_hook(lambda _: self._reach(forward))  # type: ignore[no-untyped-call]
        if not given:
            self._observer.reached(forward)

    def _reach(self, forward: Any) -> None:
        self._pass = forward  # of which checkpointing now repeats parts, whatever other passes there were since
        self._observer.reached(forward)

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Runs one of torch's operations and tells the observer what it was."""
        begin = time.perf_counter()
        own = 0.0

        def apply() -> Any:
            nonlocal own
            before = time.perf_counter()
            result = func(*args, **kwargs)
            own = time.perf_counter() - before
            return result

        try:
            return self._show(getattr(func, "__name__", ""), apply, args, kwargs)
        finally:
            self.seconds += time.perf_counter() - begin - own

    def _show(self, name: str, apply: Callable[[], Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        tensors = _tensors((*args, *kwargs.values()) if kwargs else args)
        kind = ACTIVATIONS.get(name)
        if kind and self._last is not None and tensors and not in_backward():
            weight, self._last = self._last, None  # only the first activation after a layer is its own
            return self._observer.activation(weight, kind, tensors[0].detach(), apply)
        result = apply()
        if name in LAYERS:
            used = self._weights_of(tensors[LAYERS[name] :])
            if not used:
                self._last = None  # of a layer whose weight is none of ours: what follows it is its own
            if name == "multi_head_attention_forward":
                used = self._with_last(used, kwargs.get("out_proj_weight", args[11] if len(args) > 11 else None))
        else:
            used = self._weights_of(tensors)
            if tensors and all(id(tensor) in self._constant or id(tensor) in self._derived for tensor in tensors):
                self._derive(used, result)
                return result
            if name not in PRODUCTS:
                return result
        if used:
            self._give_out(used, next(iter(_tensors((result,))), None), channels=_channels(name))
        return result

    def _weights_of(self, tensors: Iterable[Tensor]) -> list[int]:
        return [position for tensor in tensors if (position := self._weight(tensor)) is not None]

    def _with_last(self, used: list[int], tensor: Tensor | None) -> list[int]:
        last = None if tensor is None else self._weight(tensor)
        return used if last is None else [*(position for position in used if position != last), last]

    def _weight(self, tensor: Tensor) -> int | None:
        found = self._positions.get(id(tensor))
        return self._derived.get(id(tensor)) if found is None else found

    def _derive(self, used: list[int], result: Any) -> None:
        """What is computed of parameters and buffers alone stands for the largest parameter among them."""
        largest = max(used, key=self._sizes.__getitem__, default=None)
        self.parts.update(position for position in used if position != largest)
        for tensor in _tensors((result,)):
            if id(tensor) not in self._constant:
                self._derived[id(tensor)] = largest
                self._held.append(tensor)

    def _give_out(self, used: list[int], output: Tensor | None, *, channels: int) -> None:
        if output is None or not (output.is_floating_point() or output.is_complex()):
            return
        weight = used[-1]
        if output.requires_grad and self._shows_gradients:
            # on the tensor, not a module: a module's backward hook breaks in-place operations that follow
            forward = self._pass
            _whole(output).register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: self._gradient(forward, weight, gradient)
            )
        if not in_backward():
            self._last = weight
            self._observer.output(weight, output.detach(), channels=channels, inner=used[:-1])

    def _gradient(self, forward: Any, weight: int, gradient: Tensor) -> None:
        begin = time.perf_counter()
        self._observer.output_gradient(forward, weight, gradient.detach())
        self.seconds += time.perf_counter() - begin


class _Mode(TorchFunctionMode):
    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
            return func(*args, **(kwargs or {}))
        return self._trace.call(func, args, kwargs or {})


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += _tensors(value)
        elif isinstance(value, Mapping):
            found += _tensors(value.values())
    return found


def _held_by_object(output: Any) -> list[Tensor]:
    """By one like a dataclass; none if it holds other objects, since a loss may come to tensors of these alone."""
    held = getattr(output, "__dict__", {}).values()
    is_plain = all(isinstance(each, Tensor) or not hasattr(each, "__dict__") for each in held)
    return _tensors(held) if is_plain else []


def _whole(tensor: Tensor) -> Tensor:
    """What a tensor is a view of, if that is all of it (tokens of a matrix): changed in place, views lose hooks."""
    base = tensor._base
    return tensor if base is None or base.is_leaf or base.numel() != tensor.numel() else base


def _channels(name: str) -> int:
    """The dimension along which an operation's output has its units: conv2d's third from the end, else the last."""
    return -1 - int(name[-2]) if name.startswith("conv") else -1


def in_backward() -> bool:
    """Whether a backward pass is running: then a forward pass is one that checkpointing repeats."""
    return torch._C._current_graph_task_id() != -1
