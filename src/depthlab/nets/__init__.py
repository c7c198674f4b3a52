"""Networks: MLPs and CNNs of one block, of every combination of skip, norm, activation and init; recurrent nets of
cells; torchvision's models.
"""

from depthlab.nets.families import Net, build
from depthlab.nets.initialization import critical_gain, rescale, scales
from depthlab.nets.layers import NormNoise, weight_layers
from depthlab.nets.network import Network, WeightsError
from depthlab.nets.recomputation import allocate_gradients
from depthlab.nets.recurrence import time_steps
from depthlab.nets.torchvision_models import check_architecture, weights_url
from depthlab.nets.torchvision_nets import TorchvisionNet, is_random
from depthlab.nets.transferring import copied_parameters, copy_blocks, freeze

__all__ = [
    "Net",
    "Network",
    "NormNoise",
    "TorchvisionNet",
    "WeightsError",
    "allocate_gradients",
    "build",
    "check_architecture",
    "copied_parameters",
    "copy_blocks",
    "critical_gain",
    "freeze",
    "is_random",
    "rescale",
    "scales",
    "time_steps",
    "weight_layers",
    "weights_url",
]
