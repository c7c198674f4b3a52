"""Networks: MLPs and CNNs of one block, recurrent nets of cells; every combination of skip, norm, activation, init."""

from depthlab.nets.families import Net, build
from depthlab.nets.initialization import critical_gain, rescale, scales
from depthlab.nets.layers import STOCHASTIC, NormNoise, weight_layers
from depthlab.nets.recomputation import allocate_gradients
from depthlab.nets.recurrence import time_steps
from depthlab.nets.transferring import WeightsError, copied_parameters, copy_blocks, freeze

__all__ = [
    "STOCHASTIC",
    "Net",
    "NormNoise",
    "WeightsError",
    "allocate_gradients",
    "build",
    "copied_parameters",
    "copy_blocks",
    "critical_gain",
    "freeze",
    "rescale",
    "scales",
    "time_steps",
    "weight_layers",
]
