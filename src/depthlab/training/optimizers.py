"""Optimisers and learning-rate schedules."""

from __future__ import annotations

import math

import torch
from torch import nn

from depthlab.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of a configuration, in torch's fused form (one kernel for all parameters)."""
    betas = (config.momentum, 0.999)
    parameters = list(model.parameters())
    match config.optimizer:
        case "sgd":
            return torch.optim.SGD(
                parameters,
                lr=config.lr,
                momentum=config.momentum,
                nesterov=config.nesterov,
                weight_decay=config.weight_decay,
                fused=True,
            )
        case "adam":
            return torch.optim.Adam(parameters, lr=config.lr, betas=betas, weight_decay=config.weight_decay, fused=True)
        case "adamw":
            return torch.optim.AdamW(
                parameters, lr=config.lr, betas=betas, weight_decay=config.weight_decay, fused=True
            )
        case name:
            raise AssertionError(f"no optimiser {name}")


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
