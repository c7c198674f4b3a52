"""Where the runs of a sweep are trained. Not part of a run's key."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from depthlab.config.fields import build, check_fields, choice, flag, number, text

ENGINES = ("local", "joblib", "submitit_local", "submitit_slurm", "ray")


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """What a run's job asks of Slurm."""

    partition: str | None = text(None, "where the jobs of a sweep wait (null: the cluster's default)")
    timeout_min: int = number(60, "minutes after which a job is saved, queued again, and goes on", low=1)
    max_num_timeout: int = number(100, "how often it may be queued again for that reason")
    mem_gb: float | None = number(None, "memory of a job (null: the cluster's default)")
    parameters: tuple[str, ...] = field(
        default=(), metadata={"about": "any others of sbatch, such as [account:mine,qos:low,exclusive]"}
    )

    def __post_init__(self) -> None:
        check_fields(self, "sweep.slurm")


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """Which Ray, and how patient it is."""

    address: str | None = text(None, "a Ray cluster to join, such as auto or HOST:6379 (null: one of this sweep's own)")
    max_retries: int = number(3, "how often a run whose process or node is lost is trained on elsewhere")

    def __post_init__(self) -> None:
        check_fields(self, "sweep.ray")


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Where runs are trained, how they share it, and how often they are saved. Not part of a run's key."""

    engine: str = choice("local", ENGINES, "what trains the runs of a sweep; hydra/launcher=NAME is the same")
    workers: int | None = number(
        None,
        "runs trained at once (null: one for each core, fewer where memory, or that of a GPU, is short; on a cluster "
        "as many as it takes)",
        low=1,
    )
    threads: int | None = number(
        None,
        "threads of each run (null: one; of a CNN or a model of torchvision all cores when it is trained alone, and in "
        "a sweep those that are idle where memory is short)",
        low=1,
    )
    gpus: int = number(0, "GPUs of each run, where the engine hands them out (submitit, ray)")

    checkpoint_seconds: float = number(
        60.0, "seconds from one checkpoint of a run to the next (0: only when stopped)", low=0
    )
    keep_weights: bool = flag(False, "write the last weights of each run beside its readings")
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        check_fields(self, "sweep")


def build_sweep(mapping: Mapping[str, Any]) -> SweepConfig:
    """The same for the launch section."""
    return typing.cast("SweepConfig", build(SweepConfig, mapping, "sweep"))
