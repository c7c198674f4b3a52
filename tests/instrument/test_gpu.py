"""On a GPU nothing waits for the device within a step, and readings are those of the CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import depthlab

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(288, 16), nn.Tanh(),
        nn.Linear(16, 5),
    )  # fmt: skip


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 3, 8, 8, generator=generator), torch.randint(5, (16,), generator=generator)


def train(model: nn.Module, device: str, watcher: depthlab.Watcher, optimizer: torch.optim.Optimizer) -> None:
    batches = [(x.to(device), y.to(device)) for x, y in map(batch, range(30))]
    for x, y in batches:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        watcher.step(loss)


def test_no_step_waits_for_the_device() -> None:
    model = net().cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    watcher = depthlab.watch(model, optimizer, every=3, budget=None)
    torch.cuda.set_sync_debug_mode("error")
    try:
        train(model, "cuda", watcher, optimizer)  # fewer steps than a block
    finally:
        torch.cuda.set_sync_debug_mode("default")
        watcher.close()
    assert len(watcher.table()) > 0


def test_reads_what_the_cpu_reads() -> None:
    tables = {}
    for device in ("cpu", "cuda"):
        model = copy.deepcopy(net()).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with depthlab.watch(model, optimizer, every=3, budget=None) as watcher:
            train(model, device, watcher, optimizer)
        tables[device] = watcher.table()
    assert tables["cuda"]["layer"].tolist() == tables["cpu"]["layer"].tolist()
    assert tables["cuda"]["value"].tolist() == pytest.approx(tables["cpu"]["value"].tolist(), rel=1e-2, abs=1e-6)
