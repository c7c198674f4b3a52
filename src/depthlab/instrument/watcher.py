"""Watching a training: anybody's network, optimiser and loop."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.utils.hooks import RemovableHandle

from depthlab.instrument.budget import Budget
from depthlab.instrument.records import Records
from depthlab.probes import (
    PROBES,
    Measured,
    Parameters,
    Readout,
    Signals,
    candidate_weights,
    in_order_of_data,
    known,
    unwrapped,
)
from depthlab.probes import measure as read_once

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULT = (
    "grad_norm",
    "weight_norm",
    "update_ratio",
    "backward_norm",
    "activation_mean",
    "activation_std",
    "saturation",
    "dead_fraction",
)

GROUPS = {
    "gradient": "gradients",
    "weight": "weights",
    "update": "weights",
    "output": "outputs",
    "activation": "outputs",
    "output_gradient": "outputs",
}
"""Which probes are read together, by site."""


def watch(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    probes: Iterable[str] = DEFAULT,
    every: int = 10,
    budget: float | None = 0.03,
    examples: int = 32,
    layers: Callable[[str], bool] | Container[str] | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> Watcher:
    """Watches a training from now on; see `Watcher`."""
    return Watcher(
        model, optimizer, probes=probes, every=every, budget=budget, examples=examples, layers=layers, scaler=scaler
    )


def measure(
    model: nn.Module,
    closure: Callable[[], Tensor] | Sequence[Callable[[], Tensor]],
    probes: Iterable[str] = ("grad_norm", "weight_norm", "backward_norm", "activation_mean", "activation_std"),
    *,
    examples: int | None = None,
) -> pd.DataFrame:
    """What `depthlab.probes.measure` reads, as a table: columns layer, depth, probe, value, at_floor.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    >>> measure(model, lambda: model(torch.ones(5, 3)).square().mean(), probes=["grad_norm"]).columns.tolist()
    ['layer', 'depth', 'probe', 'value', 'at_floor']
    """
    columns = [field.name for field in dataclasses.fields(Measured)]
    return pd.DataFrame(read_once(model, closure, probes, examples=examples), columns=columns)


class Watcher:
    """Reads a network's weight layers while it is trained, without changing a bit of the training.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with Watcher(model, optimizer) as watcher:
    ...     for _ in range(3):
    ...         loss = model(torch.ones(5, 4)).square().mean()
    ...         loss.backward()
    ...         optimizer.step()
    ...         optimizer.zero_grad()
    ...         watcher.step(loss)
    >>> watcher.table().query("probe == 'grad_norm'")[["step", "layer", "depth"]].values.tolist()
    [[0, '0', 1], [0, '2', 2], [1, '0', 1], [1, '2', 2], [2, '0', 1], [2, '2', 2]]

    model: any module. Its weight layers are the operations that contract a parameter with data, wherever in the code
        they stand; each has its module's name, and as depth its place in the order in which data flows, from 1.
    optimizer: the one that updates the model. A step is one call of `optimizer.step()`, counted from 0; readings at
        step t are of the weights after t updates.
    probes: names out of `depthlab.probes.PROBES`.
    every: number of steps from one reading of outputs, activations and their gradients to the next; gradients,
        weights and updates are read at every step.
    budget: share of the training's own time that watching may take. Intervals grow until it is kept; None: they stay.
    examples: how many examples of a batch are sampled for outputs and activations (dead units: always all).
    layers: which layers to watch: names, or a function that says so of a name; all if not given.
    scaler: the GradScaler, if there is one: gradients of outputs are then those of the unscaled loss.

    Gradients are those that the optimiser receives: unscaled, accumulated and clipped. What cannot be read is named in
    one warning. Raises TypeError on LBFGS and on what is no optimiser, ValueError on unknown probes.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        probes: Iterable[str] = DEFAULT,
        every: int = 10,
        budget: float | None = 0.03,
        examples: int = 32,
        layers: Callable[[str], bool] | Container[str] | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        _check(model, optimizer, probes := known(probes), every, examples)
        self._optimizer, self._scaler = optimizer, scaler
        self._weights = candidate_weights(model)
        chosen = layers if callable(layers) or layers is None else layers.__contains__
        self._all = [p for p, weight in enumerate(self._weights) if chosen is None or chosen(weight.layer)]
        if not self._all:
            of_name = "" if layers is None else " and a name that `layers` has"
            raise ValueError(f"there is no weight to watch: no parameter of two dimensions or more{of_name}")
        self._is_compiled = unwrapped(model) is not model and hasattr(model, "_orig_mod")
        parameters = [weight.parameter for weight in self._weights]
        self._probes = probes
        self._parameters = Parameters(parameters, probes)
        self._signals = Signals(unwrapped(model), parameters, probes, examples=examples, wanted=set(self._all))
        groups = {GROUPS[PROBES[name].site] for name in probes}
        self._budget = Budget(budget, {group: every if group == "outputs" else 1 for group in sorted(groups)})
        self._records = Records()
        self._order: Sequence[int] = ()
        self._places: dict[int, int] = {}
        self._all_places: Sequence[int] = ()
        self._unseen: list[int] = []
        self._readouts: list[Readout] = []
        self._gradients_later = False
        self._step = 0
        self._losses: list[Tensor] = []
        self._steps_with_loss = 0
        self._ended: float | None = None
        self._seconds_of_passes = 0.0
        self._due: frozenset[str] = frozenset()
        self._handles: list[RemovableHandle] = [
            optimizer.register_step_pre_hook(self._before_update),
            optimizer.register_step_post_hook(self._after_update),
        ]
        self._prepare()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops watching: no hook is left. Tables and figures can still be had."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._signals.close()
        self._parameters.forget()
        self._records.fetch()

    def step(self, loss: Tensor | float) -> None:
        """Notes the loss of a step, as `train_loss` of the whole network. To be called once after every update.

        Where no update came before it, it is averaged into that of the next (accumulation of gradients). Raises
        ValueError if it is not one number.
        """
        begin = time.perf_counter()
        value = loss.detach() if isinstance(loss, Tensor) else torch.tensor(loss, device="cpu")
        if value.numel() != 1:
            raise ValueError(f"loss must be one number, given a tensor of shape {tuple(value.shape)}; reduce it first")
        self._losses.append(value.reshape(1))
        if self._step > self._steps_with_loss:
            losses = self._losses
            mean = losses[0] if len(losses) == 1 else torch.cat(losses).mean(dtype=torch.float64)[None]
            self._records.add(self._step - 1, "train_loss", (-1,), mean)
            self._losses = []
            self._steps_with_loss = self._step
        elif self._scaler is not None and not self._parameters.accumulate():
            self._signals.forget()  # the scaler skipped an update whose gradients overflowed
            self._losses.clear()
        self._spend("loss", begin)

    def __str__(self) -> str:
        """What was watched, how often, and what it cost."""
        names = {"gradients": "gradients", "weights": "weights and updates", "outputs": "outputs"}
        often = ", ".join(
            f"{names[group]} every {f'{interval} steps' if interval > 1 else 'step'}"
            for group, interval in sorted(self.intervals.items())
        )
        return f"{self._step} steps, {len(self._order)} weight layers; {often}; {self.cost:.1%} of the training's time"

    def table(self) -> pd.DataFrame:
        """All readings so far: columns step, layer, depth (from 1; 0 for the whole network), probe, value."""
        return self._records.table()

    def blocks(self, start: int = 0) -> Iterator[pd.DataFrame]:
        """The table in the parts in which it was read, from part `start` on; all that was read so far is in them."""
        return self._records.blocks(start)

    def save(self, path: Path | str) -> None:
        """Writes the table as a Parquet file; it never is in memory as a whole."""
        self._records.save(Path(path))

    def plot(self, probe: str = "grad_norm") -> Figure:
        """A probe (by default the norm of the weights' gradients) by depth at four steps, and over layers and steps."""
        from depthlab.figures import flow  # noqa: PLC0415  (matplotlib, only when something is drawn)

        return flow(self.table(), probe)

    @property
    def layers(self) -> list[str]:
        """Names of the weight layers in the order in which data flows; empty before the first update."""
        return list(self._records.names)

    @property
    def cost(self) -> float:
        """Share of the training's own time that watching has taken so far; nan before the second update."""
        return self._budget.cost

    @property
    def intervals(self) -> dict[str, int]:
        """Steps from one reading to the next: of gradients, of weights and updates, of outputs."""
        return dict(self._budget.intervals)

    def _prepare(self) -> None:
        """Decides what the next step reads."""
        self._due = frozenset(group for group in self._budget.intervals if self._budget.is_due(group, self._step))
        # the first pass also shows in which order data flows
        if ("outputs" in self._due or self._step == 0) and not self._is_compiled:
            self._signals.open()

    def _before_update(self, _optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        begin = time.perf_counter()
        self._readouts = []
        # a closure computes the gradients inside the step; torch counts the optimizer itself among the arguments
        self._gradients_later = (args[1] if len(args) > 1 else kwargs.get("closure")) is not None
        if not self._gradients_later:
            self._settle_layers()
        if "weights" in self._due:
            self._readouts += self._parameters.read_weights(self._targets())
            begin = self._spend("weights", begin)
        if not self._gradients_later:
            self._read_gradients()
        self._spend("gradients", begin)

    def _after_update(self, *_: Any) -> None:
        begin = time.perf_counter()
        if self._gradients_later:
            self._settle_layers()
            self._read_gradients()
            begin = self._spend("gradients", begin)
        if "weights" in self._due:
            self._readouts += self._parameters.read_updates()
            begin = self._spend("weights", begin)
        self._read_signals()
        self._keep()
        if self._step == 0:
            self._tell()
        self._step += 1
        due = self._due
        self._prepare()
        now = self._spend("outputs", begin)
        self._budget.step(None if self._ended is None else now - self._ended, looked="outputs" in due)
        self._ended = now

    def _spend(self, group: str, begin: float) -> float:
        now = time.perf_counter()
        self._budget.spend(group, now - begin)
        return now

    def _targets(self) -> Sequence[int]:
        """Weights to read: those of layers, or, before a first pass has shown which these are, all."""
        return self._order or self._all

    def _read_gradients(self) -> None:
        if "gradients" in self._due:
            scale = getattr(self._optimizer, "grad_scale", None)  # of fused optimisers, which unscale inside their step
            unscale = None if scale is None else 1.0 / scale.double()
            self._readouts += self._parameters.read_gradients(self._targets(), unscale=unscale)
        if "grad_cosine" in self._probes and self._budget.is_due("gradients", self._step + 1):
            self._parameters.keep_gradients(self._targets())

    def _read_signals(self) -> None:
        seconds = self._signals.seconds
        self._budget.spend("outputs", seconds - self._seconds_of_passes)
        self._seconds_of_passes = seconds
        if "outputs" in self._due:
            unscale: Tensor | float = 1.0
            if self._scaler is not None:
                unscale = 1.0 / self._scaler.scale(torch.ones((), device=self._weights[0].parameter.device)).double()
            self._readouts += self._signals.read(unscale)
        self._signals.close()

    def _keep(self) -> None:
        """Hands over what the step has read; what turned out to be no layer is dropped."""
        for probe, positions, values in self._readouts:
            if positions is self._order:
                self._records.add(self._step, probe, self._all_places, values)
                continue
            known = [index for index, position in enumerate(positions) if position in self._places]
            if known:
                places = [self._places[positions[index]] for index in known]
                self._records.add(self._step, probe, places, values[known] if len(known) < len(positions) else values)
        self._readouts = []

    def _settle_layers(self) -> None:
        """Which weights are those of layers, and in which order, as the passes have shown so far.

        A layer that comes into play later than others stands behind them, so that no depth ever changes.
        """
        if len(self._places) == len(self._all):
            return
        if self._order:
            new = [position for position in self._signals.order if position not in self._places]
            new += [position for position in self._all if position not in new and self._is_trained_unseen(position)]
        else:
            new, self._unseen = in_order_of_data(self._weights, self._signals.order, self._signals.parts)
        new = [position for position in new if position in self._all]
        if not new:
            return
        self._order = [*self._order, *new]
        self._records.names = [self._weights[position].layer for position in self._order]
        self._places = {position: place for place, position in enumerate(self._order)}
        self._all_places = range(len(self._order))

    def _is_trained_unseen(self, position: int) -> bool:
        """Of a layer that is used now and then, and was not while passes were looked at."""
        weight = self._weights[position]
        is_new = position not in self._places and position not in self._signals.parts
        return is_new and weight.is_named_so and weight.parameter.grad is not None

    def _tell(self) -> None:
        """One warning of all that cannot be read."""
        names = [weight.layer for weight in self._weights]
        reads_outputs = "outputs" in self._budget.intervals
        parameters = {self._weights[position].layer: self._weights[position].parameter for position in self._all}
        idle = [name for name, weight in parameters.items() if weight.requires_grad and weight.grad is None]
        missing = []
        if self._unseen and reads_outputs:
            missing.append(
                f"outputs of {_listed([names[position] for position in self._unseen])}: no forward pass through them "
                f"was seen (it may be inside torch.compile or TorchScript); weights and gradients are read"
            )
        if self._signals.inner and reads_outputs:
            missing.append(
                f"outputs of {_listed([names[position] for position in sorted(self._signals.inner)])}: computed inside "
                f"one operation together with others; weights and gradients are read"
            )
        if idle:
            missing.append(f"gradients of {_listed(idle)}: none has reached them in the first step")
        owned = {id(parameter) for group in self._optimizer.param_groups for parameter in group["params"]}
        foreign = [name for name, weight in parameters.items() if weight.requires_grad and id(weight) not in owned]
        if foreign:
            missing.append(
                f"updates of {_listed(foreign)}: the optimizer does not have them, nor resets their gradients"
            )
        if missing:
            warnings.warn("depthlab cannot read " + "; ".join(missing), stacklevel=2)


def _check(model: nn.Module, optimizer: Optimizer, probes: tuple[str, ...], every: int, examples: int) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, given {type(model).__name__}")
    if not isinstance(optimizer, Optimizer):
        several = "; with several, watch once for each, with `layers`" if isinstance(optimizer, (list, tuple)) else ""
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, given {type(optimizer).__name__}{several}")
    if isinstance(optimizer, LBFGS):
        raise TypeError(
            "LBFGS evaluates the loss many times within a step, so that no one gradient belongs to it; "
            "look at a model that it trains with depthlab.measure, between its steps"
        )
    if "grad_snr" in probes:
        raise ValueError("grad_snr needs the gradients of several micro-batches: give them to depthlab.measure")
    for name, value in (("every", every), ("examples", examples)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value} must be a whole number, 1 or more")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
