"""Networks: one block for both families, every combination of skip, norm, activation and initialization."""

from depthlab.nets.families import Net, build
from depthlab.nets.initialization import critical_gain, rescale, scales
from depthlab.nets.layers import STOCHASTIC, NormNoise, weight_layers
from depthlab.nets.recomputation import allocate_gradients

__all__ = [
    "STOCHASTIC",
    "Net",
    "NormNoise",
    "allocate_gradients",
    "build",
    "critical_gain",
    "rescale",
    "scales",
    "weight_layers",
]
