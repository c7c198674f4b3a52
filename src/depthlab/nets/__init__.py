"""Networks: MLPs and CNNs of one block, of every combination of skip, norm, activation and init; recurrent nets of
cells; torchvision's models.

Which ensemble a net is drawn from is told without torch; what builds nets is imported when it is asked for.
"""

from typing import TYPE_CHECKING

from depthlab._later import later
from depthlab.nets.ensemble import critical_gain, scales

if TYPE_CHECKING:
    from depthlab.nets.families import Net, build
    from depthlab.nets.initialization import rescale
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

MODULES = {
    "families": ("Net", "build"),
    "initialization": ("rescale",),
    "layers": ("NormNoise", "weight_layers"),
    "network": ("Network", "WeightsError"),
    "recomputation": ("allocate_gradients",),
    "recurrence": ("time_steps",),
    "torchvision_models": ("check_architecture", "weights_url"),
    "torchvision_nets": ("TorchvisionNet", "is_random"),
    "transferring": ("copied_parameters", "copy_blocks", "freeze"),
}
__getattr__ = later(
    __name__, {name: f"depthlab.nets.{module}:{name}" for module, names in MODULES.items() for name in names}
)


def __dir__() -> list[str]:
    """Completion finds what is imported late."""
    return __all__
