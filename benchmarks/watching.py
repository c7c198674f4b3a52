"""How each tool is attached to a training, and where it keeps the gradient norms that it reads.

A tool is a context manager from a training to the same training watched. Tools of others are imported when they are
attached, so that those that are not installed are missed in their own rows only.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trainings import BATCH, Training

from depthlab.instrument import watch
from depthlab.probes import PROBES

BARE = "bare"
PACKAGES = {"cockpit": "cockpit-for-pytorch", "torchmortem": "torchmortem", "torch_audit": "torch-audit"}
"""Tools of others, by module: the names to install them by."""

EVERY_PROBE = tuple(name for name in PROBES if name != "grad_snr")
"""All that can be read while a training goes on; grad_snr wants gradients of several batches."""


@dataclass(frozen=True)
class Watched:
    """A training with a tool attached: one update, and all gradient norms of weight layers that the tool has kept."""

    update: Callable[[], object]
    norms: Callable[[], Sequence[float]] | None = None


Attach = Callable[[Training], AbstractContextManager[Watched]]


@contextmanager
def bare(training: Training) -> Iterator[Watched]:
    """Nothing attached."""
    yield Watched(training.update)


def depthlab_watch(**settings: Any) -> Attach:
    """`depthlab.watch` with these settings."""

    @contextmanager
    def attach(training: Training) -> Iterator[Watched]:
        with watch(training.model, training.optimizer, **settings) as watcher:

            def norms() -> list[float]:
                table = watcher.table()
                return list(table.loc[table["probe"] == "grad_norm", "value"])

            yield Watched(lambda: training.update(done=watcher.step), norms)

    return attach


@contextmanager
def items(training: Training) -> Iterator[Watched]:
    """What one writes first: norms of gradient, weight and update of each parameter, fetched by `.item()`."""
    parameters = list(training.model.parameters())
    before: list[Tensor] = []
    norms: dict[str, list[float]] = {"gradient": [], "weight": [], "update": [], "loss": []}

    def gradients() -> None:
        before[:] = [p.detach().clone() for p in parameters]
        for p in parameters:
            norms["gradient"].append(p.grad.norm().item())
            norms["weight"].append(p.detach().norm().item())

    def done(loss: Tensor) -> None:
        norms["loss"].append(loss.item())
        for p, old in zip(parameters, before, strict=True):
            norms["update"].append((p.detach() - old).norm().item())

    is_weight = [p.ndim > 1 for p in parameters]
    yield Watched(
        lambda: training.update(gradients, done),
        lambda: [norm for norm, weight in zip(norms["gradient"], cycle(is_weight)) if weight],
    )


@contextmanager
def histograms(training: Training) -> Iterator[Watched]:
    """64 bins of every gradient tensor, computed as wandb.watch(log="gradients") does in its hooks, logged nowhere."""
    rows: list[tuple[list[float], list[float]]] = []

    def hook(gradient: Tensor) -> None:
        flat = gradient.detach().reshape(-1)
        if not torch.isfinite(flat).any().item() or not torch.isfinite(flat).all():
            return
        low, high = flat.min().item(), flat.max().item()
        if low == high:
            rows.append(([flat.numel()], [low, high]))
            return
        counts = flat.histc(bins=64, min=low, max=high).cpu()
        rows.append((counts.tolist(), torch.linspace(low, high, steps=65).tolist()))

    handles = [p.register_hook(hook) for p in training.model.parameters()]
    try:
        yield Watched(training.update)
    finally:
        for handle in handles:
            handle.remove()


def cockpit(*, economy: bool) -> Attach:
    """Cockpit at every step: its gradient norms alone, which need no BackPACK; or its smallest set, which does."""

    @contextmanager
    def attach(training: Training) -> Iterator[Watched]:
        package = importlib.import_module("cockpit")
        loss_of = nn.CrossEntropyLoss()
        if economy:
            extend = importlib.import_module("backpack").extend
            extend(training.model)
            extend(loss_of)
            quantities = importlib.import_module("cockpit.utils.configuration").configuration("economy")
        else:
            quantities = [package.quantities.GradNorm(importlib.import_module("cockpit.utils.schedules").linear(1))]
        instrument = package.Cockpit(training.model.parameters(), quantities=quantities)
        kept = next(quantity.output for quantity in quantities if isinstance(quantity, package.quantities.GradNorm))
        is_weight = [p.ndim > 1 for p in training.model.parameters()]

        def update() -> None:
            step = len(kept)
            logits = training.model(training.images)
            loss = loss_of(logits, training.labels)
            info = {"batch_size": BATCH, "optimizer": training.optimizer, "loss": loss}
            if economy:
                info["individual_losses"] = F.cross_entropy(logits, training.labels, reduction="none")
            with instrument(step, info=info):
                loss.backward(create_graph=instrument.create_graph(step))
            training.optimizer.step()
            training.optimizer.zero_grad()

        yield Watched(
            update, lambda: [x for row in kept.values() for x, weight in zip(row, is_weight, strict=True) if weight]
        )

    return attach


@contextmanager
def torchmortem(training: Training) -> Iterator[Watched]:
    """As its documentation attaches it. Its gradient norms are those of outputs, dL/dz."""
    package = importlib.import_module("torchmortem")
    with package.Autopsy(training.model, optimizer=training.optimizer) as autopsy:
        # there is no public way to the readings before the training has ended
        gradients = next(collector for collector in autopsy._collectors if collector.name == "gradient")
        yield Watched(
            lambda: training.update(done=lambda loss: autopsy.step(loss=loss.item())),
            lambda: gradients.state().series["grad_norm"].ravel().tolist(),
        )


@contextmanager
def torch_audit(training: Training) -> Iterator[Watched]:
    """At every step instead of every 1000th. It computes each gradient's norm, and keeps none."""
    package = importlib.import_module("torch_audit")
    auditor = package.Auditor(training.model, optimizer=training.optimizer, every_n_steps=1).autopatch()
    try:
        yield Watched(training.update)
    finally:
        auditor.unpatch()


TOOLS: dict[str, Attach] = {
    BARE: bare,
    "depthlab": depthlab_watch(),
    "depthlab, no budget": depthlab_watch(budget=None),
    "depthlab, all probes at every step": depthlab_watch(probes=EVERY_PROBE, every=1, budget=None),
    "norms by `.item()`": items,
    "histograms of 64 bins": histograms,
    "cockpit, gradient norms": cockpit(economy=False),
    "cockpit, economy": cockpit(economy=True),
    "torchmortem": torchmortem,
    "torch-audit": torch_audit,
}
