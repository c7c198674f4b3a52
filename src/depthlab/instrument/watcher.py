"""Watching a training: anybody's network, optimiser and loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from depthlab.config import READ_BY_DEFAULT as DEFAULT
from depthlab.instrument.budget import Budget, least_intervals
from depthlab.instrument.checks import check
from depthlab.instrument.layers import Layers
from depthlab.instrument.records import Records
from depthlab.probes import Parameters, Readout, Signals, known, unwrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
        check(model, optimizer, probes := known(probes), every, examples)
        self._optimizer, self._scaler = optimizer, scaler
        self._layers = Layers(model, layers)
        parameters = self._layers.parameters
        self._is_compiled = unwrapped(model) is not model and hasattr(model, "_orig_mod")
        self._probes = probes
        self._parameters = Parameters(parameters, probes)
        wanted = set(self._layers.watched)
        self._signals = Signals(unwrapped(model), parameters, probes, examples=examples, wanted=wanted)
        self._budget = Budget(budget, least_intervals(probes, every))
        self._records = Records()
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
        watched = f"{self._step} steps, {len(self.layers)} weight layers"
        return f"{watched}; {self._budget}; {self.cost:.1%} of the training's time"

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
        if "gradients" not in self._due:
            self._parameters.drop_gradients()  # kept for this step before the intervals changed
        # the first pass also shows in which order data flows
        if ("outputs" in self._due or self._step == 0) and not self._is_compiled:
            self._signals.open()

    def _before_update(self, _optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        begin = time.perf_counter()
        self._readouts = []
        # a closure computes the gradients inside the step; torch counts the optimizer itself among the arguments
        self._gradients_later = (args[1] if len(args) > 1 else kwargs.get("closure")) is not None
        if not self._gradients_later:
            self._settle()
        if "weights" in self._due:
            self._readouts += self._parameters.read_weights(self._layers.targets)
            begin = self._spend("weights", begin)
        if not self._gradients_later:
            self._read_gradients()
        self._spend("gradients", begin)

    def _after_update(self, *_: Any) -> None:
        begin = time.perf_counter()
        if self._gradients_later:
            self._settle()
            self._read_gradients()
            begin = self._spend("gradients", begin)
        if "weights" in self._due:
            self._readouts += self._parameters.read_updates()
            begin = self._spend("weights", begin)
        self._read_signals()
        self._keep()
        if self._step == 0:
            self._layers.warn(self._signals, self._optimizer, reads_outputs="outputs" in self._budget.intervals)
        now = self._spend("outputs", begin)
        self._budget.step(None if self._ended is None else now - self._ended, looked="outputs" in self._due)
        self._ended = now
        self._step += 1
        self._prepare()  # after the budget, which may have changed the intervals
        self._spend("outputs", now)

    def _spend(self, group: str, begin: float) -> float:
        now = time.perf_counter()
        self._budget.spend(group, now - begin)
        return now

    def _read_gradients(self) -> None:
        if "gradients" in self._due:
            scale = getattr(self._optimizer, "grad_scale", None)  # of fused optimisers, which unscale inside their step
            unscale = None if scale is None else 1.0 / scale.double()
            self._readouts += self._parameters.read_gradients(self._layers.targets, unscale=unscale)
        if "grad_cosine" in self._probes and self._budget.is_due("gradients", self._step + 1):
            self._parameters.keep_gradients(self._layers.targets)

    def _read_signals(self) -> None:
        seconds = self._signals.seconds
        self._budget.spend("outputs", seconds - self._seconds_of_passes)
        self._seconds_of_passes = seconds
        if "outputs" in self._due:
            unscale: Tensor | float = 1.0
            if self._scaler is not None:
                unscale = 1.0 / self._scaler.scale(torch.ones((), device=self._layers.parameters[0].device)).double()
            self._readouts += self._signals.read(unscale)
        self._signals.close()

    def _settle(self) -> None:
        if self._layers.settle(self._signals):
            self._records.names = self._layers.names

    def _keep(self) -> None:
        """Hands over what the step has read."""
        for readout in self._readouts:
            places, values = self._layers.placed(readout)
            if places:
                self._records.add(self._step, readout.probe, places, values)
        self._readouts = []


watch = Watcher
"""Watches a training from now on."""
