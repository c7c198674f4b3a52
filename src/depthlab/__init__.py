"""A PyTorch laboratory for the pathologies of deep networks."""

import importlib
from typing import TYPE_CHECKING, Any

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

LATER = {
    **dict.fromkeys(("Watcher", "measure", "predict", "watch"), "depthlab.instrument"),
    "import_torchvision": "depthlab._torchvision",
}


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is asked for: `import depthlab` alone loads no torch."""
    if name in LATER:
        return getattr(importlib.import_module(LATER[name]), name)
    if name in ("probes", "theory"):
        return importlib.import_module(f"depthlab.{name}")
    raise AttributeError(f"module 'depthlab' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Completion finds what is imported late."""
    return __all__
