"""The command line."""

from depthlab.cli.main import main

__all__ = ["main"]
