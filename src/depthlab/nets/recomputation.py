"""Activation checkpointing: most activations are computed a second time instead of being kept for the backward pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import get_device_states, set_device_states


def apply_in_segments(blocks: nn.Sequential, x: Tensor, *, have_buffers: bool, draw: bool) -> Tensor:
    """blocks(x), to the bit, in the memory of about 2 sqrt(L) of its L blocks and for less than one more forward pass.

    Only what enters a segment of blocks is kept; the backward pass computes the rest again, one segment at a time, from
    the last one, whose activations are still there (Chen et al. 2016, section 4.2, whose segments are equally long).
    Random masks are drawn the same again, and buffers such as the running statistics of batch norm are updated once.
    Hooks of modules run a second time, while the backward pass runs. The backward pass must be one that adds to the
    `grad` of all weights: RuntimeError where torch.autograd.grad, or backward(inputs=...), comes to a segment.

    have_buffers, draw: whether any block has buffers, or random numbers of its own in training; looking for them in a
    thousand blocks takes a hundredth of a training step.
    """
    if not x.requires_grad:  # nothing before x is trained, and then torch would not train what comes after it either
        return cast("Tensor", blocks(x))
    modules = list(blocks)
    start = 0
    *repeated, _ = segment_sizes(len(modules))
    for size in repeated:
        segment = _Segment(modules[start : start + size], have_buffers, draw)
        x = cast("Tensor", _Recomputed.apply(x, segment))  # type: ignore[no-untyped-call]
        start += size
    for block in modules[start:]:
        x = block(x)
    return x


def segment_sizes(blocks: int) -> list[int]:
    """How many of so many blocks are in each segment, from the input; the activations of the last one are kept.

    No more is held at once than 2 sqrt(blocks), rounded up: what entered the segments before one, and the activations
    of that one. What has entered a segment is let go of when its gradients are known; so the one before it can be a
    block longer, and the last one, of which nothing is computed again, have about sqrt(2 blocks) blocks instead of the
    sqrt(blocks) of equal segments in the same memory.

    >>> segment_sizes(8), segment_sizes(100)
    ([3, 5], [15, 19, 18, 17, 16, 15])
    """
    room = math.isqrt(4 * blocks - 1) + 1 if blocks else 0
    repeated = 0
    while (repeated + 1) * (2 * room - repeated) < 2 * blocks:  # that many are in room + (room - 1) + ...
        repeated += 1
    sizes = list(range(room, room - repeated - 1, -1))
    sizes[0] -= sum(sizes) - blocks
    return sizes


@dataclass(frozen=True)
class _Segment:
    """Some blocks in a row."""

    blocks: list[nn.Module]
    have_buffers: bool
    draw: bool

    def __call__(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x

    def again(self, x: Tensor) -> Tensor:
        """The same; what it does to its buffers is done to copies."""
        if not self.have_buffers:
            return self(x)
        whole = nn.Sequential(*self.blocks)
        copies = {name: buffer.clone() for name, buffer in whole.named_buffers()}
        return cast("Tensor", functional_call(whole, copies, x))


class _Recomputed(torch.autograd.Function):
    """A segment of which only its input is kept.

    torch.utils.checkpoint does this for functions of anything, at the cost of 60 to 150 microseconds more for each: two
    layers of width 100. Its other variant hooks every tensor that an operation saves, and is slower still.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, segment: _Segment) -> Tensor:
        """What the segment makes of x."""
        ctx.segment = segment
        ctx.save_for_backward(x)
        kind = x.device.type
        ctx.precision = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        ctx.random = (torch.get_rng_state(), *get_device_states(x)) if segment.draw else None
        return segment(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        """The gradient with respect to x; those of weights are added to their `grad`."""
        if not torch.autograd._is_checkpoint_valid():  # type: ignore[no-untyped-call]
            raise RuntimeError(
                "activation_checkpointing=True adds the gradients of blocks to the grad of their weights, and "
                "torch.autograd.grad and backward(inputs=...) ask for others; call backward() without inputs, or the "
                "network with activation_checkpointing=False"
            )
        (x,) = ctx.saved_tensors
        x = x.detach().requires_grad_()
        with torch.enable_grad(), torch.autocast(*ctx.precision), _random_numbers(ctx.random):
            y = ctx.segment.again(x)
        torch.autograd.backward(y, gradient)
        return x.grad, None


@contextmanager
def _random_numbers(states: tuple[Tensor, list[int], list[Tensor]] | None) -> Iterator[None]:
    """Those that were drawn from the states of the generators, on the CPU and on devices; None: whatever they are."""
    if states is None:
        yield
        return
    on_cpu, devices, on_devices = states
    with torch.random.fork_rng(devices):
        torch.set_rng_state(on_cpu)
        set_device_states(devices, on_devices)
        yield


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
