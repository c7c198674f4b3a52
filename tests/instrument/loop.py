"""One small network, one plain loop that may be watched, and how the tables of it are compared."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import fleet
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from depthlab.instrument import Watcher
from depthlab.probes import PROBES

IN, WIDTH, OUT, BATCH = 4, 6, 3, 8
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
