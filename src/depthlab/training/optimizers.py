"""Optimisers and learning-rate schedules."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn

from depthlab.config import TrainConfig

LR_FACTOR = "lr_factor"
"""Name of what a parameter group's learning rate is multiplied by, 1 where it is not there."""


MARKED = ("add_param_group", "load_state_dict", "state_dict", "step", "zero_grad")
"""Methods of torch's optimisers that import its compiler."""


def build_optimizer(
    model: nn.Module, config: TrainConfig, slow: Sequence[nn.Parameter] = (), factor: float = 1.0
) -> torch.optim.Optimizer:
    """The optimiser of a configuration, in torch's fused form (one kernel for all parameters).

    Parameters without requires_grad are left out, weight decay and all. slow: those whose learning rate is `factor`
    times that of the others; `set_learning_rate` keeps it so.
    """
    return _built(_groups(model, slow, factor), config)


def _built(parameters: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    betas = (config.momentum, 0.999)
    match config.optimizer:
        case "sgd":
            return uncompiled(torch.optim.SGD)(
                parameters,
                lr=config.lr,
                momentum=config.momentum,
                nesterov=config.nesterov,
                weight_decay=config.weight_decay,
                fused=True,
            )
        case "adam":
            return uncompiled(torch.optim.Adam)(
                parameters, lr=config.lr, betas=betas, weight_decay=config.weight_decay, fused=True
            )
        case "adamw":
            return uncompiled(torch.optim.AdamW)(
                parameters, lr=config.lr, betas=betas, weight_decay=config.weight_decay, fused=True
            )
        case name:
            raise AssertionError(f"no optimiser {name}")


@cache
def uncompiled(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """One of torch's classes without the marks by which its compiler would know what not to compile in there.

    Nobody compiles it here, and for the marks torch imports the compiler when it makes an optimiser: a second and 70
    MiB of each process that trains. Hooks of steps are called as ever, and no bit of an update differs.
    """
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in MARKED}
    return type(kind.__name__, (kind,), methods | {"step": torch.no_grad()(methods["step"])})


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int) -> None:
    """Gives each group of parameters its learning rate of an update."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step) * group.get(LR_FACTOR, 1.0)


def _groups(model: nn.Module, slow: Sequence[nn.Parameter], factor: float) -> list[dict[str, Any]]:
    """One group where nothing is slower: its state is that of all runs before there were two."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not slow or factor == 1:
        return [{"params": trained}]
    known = {id(parameter) for parameter in slow}
    others = [parameter for parameter in trained if id(parameter) not in known]
    return [{"params": list(slow), LR_FACTOR: factor}, {"params": others}]


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of an update, steps counted from 0.

    Warm-up rises linearly and reaches the peak with its last step. Then `constant` stays; `step` multiplies by
    lr_decay when each milestone's share of all steps is over (He et al. 2015: 0.1 after 1/2 and 3/4); `cosine` falls
    to 0 by lr (1 + cos(pi t)) / 2 over what is left, without restarts (Loshchilov & Hutter 2017, eq. 5).
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    match config.schedule:
        case "constant":
            return config.lr
        case "step":
            passed = sum(step >= round(part * config.steps) for part in config.milestones)
            return config.lr * config.lr_decay**passed
        case "cosine":
            part = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
            return config.lr * (1 + math.cos(math.pi * part)) / 2
        case name:
            raise AssertionError(f"no schedule {name}")
