"""Reading a model once, at any moment, without leaving a trace: a pass of its own, after which all is as it was."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depthlab.probes.catalogue import PROBES, SCALE_WITH_LOSS, Readout, known
from depthlab.probes.parameters import Parameters, candidate_weights, in_order_of_data, unwrapped
from depthlab.probes.signals import Signals
from depthlab.probes.statistics import signal_to_noise

HEADROOM = 0.22
"""The loss is scaled so that the largest gradient keeps this share of the type's exponents free above it: in float32
it comes to 2^100 of 2^128. Sums within the backward pass may be larger than what goes in and out."""

SIZES = {
    "gradient": "grad_rms",
    "output_gradient": "backward_rms",
    "output": "output_rms",
}
"""The probe that tells, for each site, how large the entries are that other probes of the site read."""

OF_ACTIVATIONS = ("activation_mean", "activation_std")
"""How large activations are: the root of the sum of their squares."""

LARGEST = ("grad_norm", "backward_norm")

NOT_MEASURED = {
    "update_norm": "it changes nothing, so that there is no update to read; use depthlab.watch",
    "update_ratio": "it changes nothing, so that there is no update to read; use depthlab.watch",
    "grad_cosine": "it sees one gradient and not its successor; use depthlab.watch",
}

Closure = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Measured:
    """One number: which probe, of which weight layer; depth counts weight layers in the order of data, from 1.

    at_floor: the number is at the lower end of what floating point could hold in the pass, so that digits of it, or
    all of it, are lost: the true one may be larger than 0 where it reads 0.
    """

    layer: str
    depth: int
    probe: str
    value: float
    at_floor: bool


def measure(
    model: nn.Module, closure: Closure | Sequence[Closure], probes: Iterable[str], *, examples: int | None = None
) -> list[Measured]:
    """All numbers of one forward and backward pass, layer by layer in the order in which data flows.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> rows = measure(model, lambda: model(torch.ones(5, 3)).square().mean(), ["grad_norm", "output_rms"])
    >>> [(row.layer, row.depth, row.probe) for row in rows]
    [('0', 1, 'grad_norm'), ('0', 1, 'output_rms'), ('2', 2, 'grad_norm'), ('2', 2, 'output_rms')]

    closure: runs the model and returns its loss, a scalar; or several closures, one for each micro-batch, whose mean
        loss is measured. It is called with gradients on, and in the mode (train or eval) the model is in.
    probes: names out of `PROBES`; those of updates need `depthlab.watch`, `grad_snr` needs several closures.
    examples: how many examples of a batch are sampled for outputs and activations; all by default.

    Gradients, buffers, random state and the model's mode are afterwards as they were before, also after an exception.
    Where gradients leave float32 at its lower end, the pass is repeated with a loss that is about 2^100 times as
    large: a power of two changes exponents and no digits, and is divided out again in float64. Raises ValueError on
    probes that are unknown or need something else, and on a loss that is no scalar or does not depend on the model.
    """
    closures = [closure] if callable(closure) else list(closure)
    names = _checked(probes, closures)
    one = _Pass(model, closures, names, examples)
    rows = one.rows(shift=0)
    shift = one.shift_that_fits() if one.is_at_floor else 0
    while shift > 0:
        shifted = one.rows(shift=shift)
        # digits lost in one layer are missing in all before it, at the floor or not: the rows change together
        if all(
            math.isfinite(new.value) or not math.isfinite(old.value) for old, new in zip(rows, shifted, strict=True)
        ):
            return shifted
        shift //= 2
    return rows


class _Pass:
    """Forward and backward passes of all closures, as often as they are asked for."""

    def __init__(
        self, model: nn.Module, closures: Sequence[Closure], probes: Sequence[str], examples: int | None
    ) -> None:
        self._closures, self._probes, self._model = closures, probes, model
        self.is_at_floor = False
        self._weights = candidate_weights(model)
        parameters = [weight.parameter for weight in self._weights]
        self._trained = [parameter for parameter in parameters if parameter.requires_grad]
        if not self._trained:
            raise ValueError("no weight of the model requires a gradient; there is nothing to measure")
        self._read_too = list(dict.fromkeys([*probes, *SIZES.values(), *LARGEST, *OF_ACTIVATIONS]))
        self._devices = list({parameter.device for parameter in model.parameters() if parameter.is_cuda})
        self._limits = torch.finfo(self._trained[0].dtype)
        self._parameters = Parameters(parameters, [name for name in self._read_too if name != "grad_snr"])
        self._signals = Signals(unwrapped(model), parameters, self._read_too, examples=examples)
        self._largest = 0.0

    def shift_that_fits(self) -> int:
        """The exponent of the power of two that brings the largest gradient close to the end of its type's range."""
        if not 0.0 < self._largest < math.inf:
            return 0
        exponents = math.log2(self._limits.max)
        room = math.floor((1 - HEADROOM) * exponents) - math.ceil(math.log2(self._largest))
        return min(room, math.floor(exponents) - 1)  # the factor is of that type itself

    def rows(self, *, shift: int) -> list[Measured]:
        """The numbers of a loss 2^shift times as large, divided by that again where they scale with it."""
        with _untouched(self._model):
            readouts = self._read(shift)
            order, _ = in_order_of_data(self._weights, self._signals.order, self._signals.parts)
        values = {
            (position, probe): value
            for probe, positions, numbers in readouts
            for position, value in zip(positions, numbers.tolist(), strict=True)
        }
        if shift == 0:
            self.is_at_floor = any(
                values.get((position, name), math.inf) < self._limits.tiny
                for position in order
                for name in ("grad_rms", "backward_rms")
            )
        found = []
        for depth, position in enumerate(order, 1):
            for name in self._probes:
                value = values.get((position, name))
                if value is not None:
                    site = PROBES[name].site
                    size = values.get((position, SIZES.get(site, "")), math.inf)
                    if site == "activation":
                        size = math.hypot(*(values.get((position, each), math.inf) for each in OF_ACTIVATIONS))
                    at_floor = size < self._limits.tiny
                    if name in SCALE_WITH_LOSS:
                        value = math.ldexp(value, -shift)
                    found.append(Measured(self._weights[position].layer, depth, name, value, at_floor))
        return found

    def _read(self, shift: int) -> list[Readout]:
        everything = range(len(self._weights))
        for one in self._weights:
            one.parameter.grad = None  # what was left from before it was frozen
        self._signals.open(alone=True)
        try:
            with torch.random.fork_rng(devices=self._devices):  # every pass draws the same
                gradients = self._gradients(shift)
            signals = self._signals.read()
        finally:
            self._signals.close()
        for weight, parts in zip(self._trained, zip(*gradients, strict=True), strict=True):
            there = [part for part in parts if part is not None]
            weight.grad = torch.stack(there).sum(dim=0) if len(there) > 1 else there[0] if there else None
        readouts = [
            *signals,
            *self._parameters.read_weights(everything),
            *self._parameters.read_gradients(everything),
        ]
        if "grad_snr" in self._probes:
            readouts += self._signal_to_noise(gradients)
        if shift == 0:
            largest = [values.max().item() for probe, _, values in readouts if probe in LARGEST]
            self._largest = max(largest, default=0.0)
        return readouts

    def _gradients(self, shift: int) -> list[Sequence[Tensor | None]]:
        """For each closure the gradients of its part in the mean loss, scaled."""
        found: list[Sequence[Tensor | None]] = []
        for closure in self._closures:
            loss = closure()
            if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
                raise ValueError(
                    f"the closure must return the loss of the model, one number that depends on its weights; "
                    f"given {_described(loss)}"
                )
            factor = torch.full_like(loss, math.ldexp(1.0 / len(self._closures), shift))
            parts = torch.autograd.grad(loss, self._trained, factor, allow_unused=True)
            if all(part is None for part in parts):
                raise ValueError("the closure must return a loss that depends on the model's weights; it does not")
            found.append(parts)
        return found

    def _signal_to_noise(self, gradients: Sequence[Sequence[Tensor | None]]) -> list[Readout]:
        positions = {id(weight.parameter): position for position, weight in enumerate(self._weights)}
        found = {
            positions[id(weight)]: signal_to_noise(torch.stack([part.to_dense() for part in parts if part is not None]))
            for weight, parts in zip(self._trained, zip(*gradients, strict=True), strict=True)
            if all(part is not None for part in parts)
        }
        return [Readout("grad_snr", list(found), torch.stack(list(found.values())))] if found else []


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Puts gradients and buffers back."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    buffers = [(module, name, buffer) for module in model.modules() for name, buffer in module._buffers.items()]
    contents = [None if buffer is None else buffer.detach().clone() for _, _, buffer in buffers]
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.enable_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for (module, name, buffer), content in zip(buffers, contents, strict=True):
            module._buffers[name] = buffer
            if buffer is not None and content is not None:
                buffer.data.copy_(content)  # not `buffer.copy_`: passes whose backward is still to come have saved it


def _checked(probes: Iterable[str], closures: Sequence[Closure]) -> Sequence[str]:
    names = known(probes)
    for name in names:
        if name in NOT_MEASURED:
            raise ValueError(f"measure cannot read {name}: {NOT_MEASURED[name]}")
    if not closures:
        raise ValueError("measure needs a closure that returns the loss of the model; given an empty sequence")
    if "grad_snr" in names and len(closures) < 2:
        raise ValueError("grad_snr needs the gradients of several micro-batches: give a sequence of closures")
    return names


def _described(loss: object) -> str:
    if not isinstance(loss, Tensor):
        return type(loss).__name__
    return f"a tensor of shape {tuple(loss.shape)}" + ("" if loss.requires_grad else " without a gradient")
