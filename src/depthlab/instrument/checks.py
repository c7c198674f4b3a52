"""What cannot be watched, refused before anything is attached."""

from __future__ import annotations

from torch import nn
from torch.optim import LBFGS, Optimizer


def check(model: nn.Module, optimizer: Optimizer, probes: tuple[str, ...], every: int, examples: int) -> None:
    """Raises TypeError or ValueError if a watcher cannot be made of these."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, given {type(model).__name__}")
    if not isinstance(optimizer, Optimizer):
        several = "; with several, watch once for each, with `layers`" if isinstance(optimizer, (list, tuple)) else ""
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, given {type(optimizer).__name__}{several}")
    if isinstance(optimizer, LBFGS):
        raise TypeError(
            "LBFGS evaluates the loss many times within a step, so that no one gradient belongs to it; "
            "look at a model that it trains with depthlab.measure, between its steps"
        )
    if "grad_snr" in probes:
        raise ValueError("grad_snr needs the gradients of several micro-batches: give them to depthlab.measure")
    for name, value in (("every", every), ("examples", examples)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value} must be a whole number, 1 or more")
