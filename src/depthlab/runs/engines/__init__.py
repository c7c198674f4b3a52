"""What trains the runs of a sweep: the pool of this machine, joblib, submitit for Slurm, Ray.

Each is an `Engine`: one job for each run, which goes on from the run's checkpoint whenever it is started again. What
became of a run is in its directory, whichever engine it was.
"""

from __future__ import annotations

import importlib
import typing

from depthlab.config import ConfigError, SweepConfig
from depthlab.runs.engines.engine import Engine
from depthlab.training import available_cores

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

NO_LIMIT = 10_000
"""Runs at once where a cluster says how many it takes."""


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


def count_of(launch: SweepConfig, device: str) -> int:
    """How many runs are trained at once, at most."""
    if launch.workers:
        return launch.workers
    if launch.engine == "submitit_slurm" or (launch.engine == "ray" and launch.ray.address):
        return NO_LIMIT
    return 1 if device.startswith("cuda") or launch.gpus else available_cores()
