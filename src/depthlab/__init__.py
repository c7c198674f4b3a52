"""A PyTorch laboratory for the pathologies of deep networks."""

from depthlab.config import ConfigError, RunConfig

__all__ = ["ConfigError", "RunConfig"]
