"""Losses that are scaled, and updates that a scaler skips."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from loop import OPTIMIZERS, assert_equal, batch, mlp, values, watching
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer


def train_scaled(
    scale: float | None,
    dtype: torch.dtype | None,
    optimizer_of: Callable[[Any], Optimizer],
    *,
    batches: list[int],
    clip: bool = False,
    set_to_none: bool = True,
) -> pd.DataFrame:
    """Batch -1 overflows."""
    model = mlp()
    optimizer = optimizer_of(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    with watching(model, optimizer, scaler=scaler) as watcher:
        for number in batches:
            x, y = batch(number)
            optimizer.zero_grad(set_to_none=set_to_none)
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
@pytest.mark.parametrize("set_to_none", [True, False])
def test_an_update_that_the_scaler_skips_gives_no_reading_and_disturbs_none(
    batches: list[int], set_to_none: bool
) -> None:
    found = train_scaled(256.0, None, plain, batches=batches, set_to_none=set_to_none)
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
