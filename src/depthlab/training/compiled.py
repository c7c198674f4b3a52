"""Forward and backward passes through torch.compile: whether this machine can make them, and making them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache

import torch
from torch import Tensor

from depthlab._processes import signals_deferred
from depthlab.config import ConfigError

Outcome = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""A forward pass: from inputs and labels of a batch to loss, of which gradients are taken, and error."""

MODES = {"cpu": "default", "cuda": "reduce-overhead"}
"""torch.compile's mode by device. The second captures CUDA graphs: one launch instead of one for each kernel."""

NEEDED = {"cpu": "a C++ compiler, such as g++", "cuda": "Triton, a C compiler and a GPU of compute capability 7.0"}
"""What torch.compile needs by device, beside Python's header files."""


def passes(outcome: Outcome, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and error of a batch, detached; gradients have been added to the parameters'."""
    loss, error = outcome(inputs, labels)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), error


@contextmanager
def compiled(outcome: Outcome, device: torch.device) -> Iterator[Outcome]:
    """`passes` of a forward pass and its backward pass, compiled at the first call, and dropped at the end.

    outcome: for batches of one shape; what it captures, such as a network, the compiled one shares. ConfigError at the
        first call where torch.compile cannot make one graph of it.

    What the passes return is the caller's: a CUDA graph writes its outputs anew at each replay, so they are cloned.
    Gradients lie in its memory too, and must be gone (None) by the next call.

    Everything is compiled in this process: torch's pool of compiling processes would outlive the training, and a sweep
    would have one for each of its own. At the end all that this process has compiled is forgotten, since there is a
    limit to how often torch compiles a function, of 8 networks.
    """
    from torch._inductor import config  # noqa: PLC0415 - takes a second, and few need it

    with config.patch(compile_threads=1):
        try:
            yield _Compiled(outcome, device)
        finally:
            if not sys.is_finalizing():  # a training that nobody ended, at the end of its process
                torch.compiler.reset()


class _Compiled:
    def __init__(self, outcome: Outcome, device: torch.device) -> None:
        self._device, self._is_ready = device, False
        self._outcome = torch.compile(outcome, fullgraph=True, dynamic=False, mode=MODES[device.type])

    def __call__(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        # Ctrl-C reaches the compiler's own processes as well, which would end with an error
        with nullcontext() if self._is_ready else signals_deferred():
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            try:
                loss, error = passes(self._outcome, inputs, labels)
            except torch._dynamo.exc.TorchDynamoException as failure:
                raise ConfigError(_told(failure, self._device, "this network")) from failure
        self._is_ready = True
        return loss.clone(), error.clone()


@lru_cache(maxsize=1)
def check_compiler(device: torch.device) -> None:
    """Raises ConfigError, which says what is missing, if torch.compile makes nothing that runs on the device.

    It compiles one kernel, since only that tells whether compilers, their header files and a folder for what they make
    are all there. A few seconds; less when torch's cache on disk has it.
    """

    def kernel(x: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        return x.sum(), x.sum()

    x = torch.ones(8, device=device, requires_grad=True)
    try:
        with compiled(kernel, device) as run:
            run(x, x)
    except ConfigError as error:
        reason = error.__cause__
        raise ConfigError(_told(reason, device, "anything") if reason else str(error)) from None
    except (RuntimeError, OSError) as error:  # a version of Python that torch does not know; nowhere to write
        raise ConfigError(_told(error, device, "anything")) from None


def _told(failure: BaseException, device: torch.device, what: str) -> str:
    """One line: what a compiler said, and what to do."""
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()] or [type(failure).__name__]
    reason = next((line for line in lines if "error:" in line), lines[0])
    is_network = isinstance(failure, torch._dynamo.exc.TorchDynamoException) and not isinstance(
        failure, torch._dynamo.exc.BackendCompilerFailed
    )
    needs = "" if is_network else f"it needs {NEEDED[device.type]}; install what is missing, or "
    return (
        f"train.compile=true, and torch.compile cannot compile {what} for {device.type}: {reason}; "
        f"{needs}set train.compile=false"
    )
