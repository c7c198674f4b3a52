"""What trains the runs of a sweep: the pool of this machine, joblib, submitit for Slurm, Ray.

Each is an `Engine`: one job for each run, which goes on from the run's checkpoint whenever it is started again. What
became of a run is in its directory, whichever engine it was.
"""

from __future__ import annotations

import importlib
import typing

from depthlab.config import ConfigError
from depthlab.runs.engines.engine import Engine

PLACES = {
    "local": ("depthlab.runs.workers", "Workers"),
    "joblib": ("depthlab.runs.engines.joblib", "Joblib"),
    "submitit_local": ("depthlab.runs.engines.submitit", "SubmititLocal"),
    "submitit_slurm": ("depthlab.runs.engines.submitit", "SubmititSlurm"),
    "ray": ("depthlab.runs.engines.ray", "Ray"),
}
"""Module and class of each engine; it is imported when it is asked for, with the package that it needs."""

EXTRAS = {"joblib": "joblib", "submitit": "slurm", "ray": "ray"}
"""By package: the extra of depthlab that installs it."""

ELSEWHERE = ("submitit_local", "submitit_slurm", "ray")
"""Engines whose jobs see other devices than this process does."""


def engine_of(name: str) -> type[Engine]:
    """The engine of that name. Raises ConfigError if its package is not installed."""
    module, kind = PLACES[name]
    try:
        return typing.cast("type[Engine]", getattr(importlib.import_module(module), kind))
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        raise ConfigError(
            f"hydra/launcher={name} needs {error.name}, which is not installed; "
            f"install it with: pip install 'depthlab[{EXTRAS[error.name]}]'"
        ) from None
