"""Activation checkpointing: most activations are computed a second time instead of being kept for the backward pass."""

from __future__ import annotations

import math
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


def apply_in_segments(blocks: nn.Sequential, x: Tensor) -> Tensor:
    """blocks(x), to the bit, in the memory of about 2 sqrt(L) of its L blocks and for one more forward pass.

    Only what enters a segment of sqrt(L) blocks is kept; the backward pass computes the rest again, one segment at a
    time, from the last one, whose activations are still there (Chen et al. 2016, section 4.2). Random masks are
    drawn the same again, and buffers such as the running statistics of batch norm are updated once. Hooks of modules
    run a second time, while the backward pass runs.
    """
    if not x.requires_grad:  # nothing before x is trained, and then torch would not train what comes after it either
        return cast("Tensor", blocks(x))
    size = math.isqrt(max(len(blocks) - 1, 0)) + 1
    segments = [blocks[start : start + size] for start in range(0, len(blocks), size)]
    for segment in segments[:-1]:
        # The other variant hooks every tensor that an operation saves: half as slow again on thin layers.
        x = cast("Tensor", checkpoint(partial(_apply, segment), x, use_reentrant=True))
    return cast("Tensor", segments[-1](x)) if segments else x


def _apply(segment: nn.Module, x: Tensor) -> Tensor:
    """segment(x); with gradients on, which is the second time, what it does to its buffers is done to copies."""
    buffers = {name: buffer.clone() for name, buffer in segment.named_buffers()} if torch.is_grad_enabled() else {}
    return cast("Tensor", functional_call(segment, buffers, x) if buffers else segment(x))


def allocate_gradients(model: nn.Module) -> Tensor:
    """Makes the gradients of all weights parts of one tensor, (weights in all,), which is returned, full of -0.

    The backward pass adds to them, and -0 + g is g to the bit, where 0 + g would turn a g of -0 into 0: fill it with -0
    again before the next one. A gradient that is allocated between activations parts the room that they leave, and
    the system's allocator does not find all of it again: of 512 examples in 1,000 layers it kept 200 MiB.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    whole = weights[0].new_full((sum(weight.numel() for weight in weights),), -0.0, requires_grad=False)
    start = 0
    for weight in weights:
        weight.grad = whole.as_strided(weight.shape, weight.stride(), start)
        start += weight.numel()
    return whole
