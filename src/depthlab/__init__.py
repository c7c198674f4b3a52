"""A PyTorch laboratory for the pathologies of deep networks."""

from typing import TYPE_CHECKING

from depthlab._later import later
from depthlab.config import ConfigError, RunConfig

if TYPE_CHECKING:
    from depthlab import probes, theory
    from depthlab._torchvision import import_torchvision
    from depthlab.instrument import Watcher, measure, predict, watch

__all__ = [
    "ConfigError",
    "RunConfig",
    "Watcher",
    "import_torchvision",
    "measure",
    "predict",
    "probes",
    "theory",
    "watch",
]

__getattr__ = later(
    __name__,
    {
        **{name: f"depthlab.instrument:{name}" for name in ("Watcher", "measure", "predict", "watch")},
        "import_torchvision": "depthlab._torchvision:import_torchvision",
        "probes": "depthlab.probes",
        "theory": "depthlab.theory",
    },
)


def __dir__() -> list[str]:
    """Completion finds what is imported late."""
    return __all__
