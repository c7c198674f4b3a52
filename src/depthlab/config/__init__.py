"""What a run is. Standard library only, so that naming, checking and comparing runs costs no import of torch."""

from depthlab.config.data import DATASETS, DataConfig, DatasetFacts
from depthlab.config.fields import ConfigError, suggest, to_mapping
from depthlab.config.launch import ENGINES, RayConfig, SlurmConfig, SweepConfig, build_sweep
from depthlab.config.model import ACTIVATIONS, BRANCHES, CELLS, FAMILIES, INITS, NORMS, SKIPS, ModelConfig
from depthlab.config.ranges import PRUNERS, Choice, Interval, Range, Value, WholeInterval, declared, typed
from depthlab.config.schema import PROTOCOL, RunConfig, describe_fields, differing, flat, from_mapping, stream_seed
from depthlab.config.train import (
    L1_STEPS,
    LOSSES,
    OPTIMIZERS,
    PLANE_PROBES,
    PRECISIONS,
    PROBES,
    READ_BY_DEFAULT,
    SCHEDULES,
    ProbesConfig,
    TrainConfig,
)
from depthlab.config.transfer import HEADS, TransferConfig

__all__ = [
    "ACTIVATIONS",
    "BRANCHES",
    "CELLS",
    "DATASETS",
    "ENGINES",
    "FAMILIES",
    "HEADS",
    "INITS",
    "L1_STEPS",
    "LOSSES",
    "NORMS",
    "OPTIMIZERS",
    "PLANE_PROBES",
    "PRECISIONS",
    "PROBES",
    "PROTOCOL",
    "PRUNERS",
    "READ_BY_DEFAULT",
    "SCHEDULES",
    "SKIPS",
    "Choice",
    "ConfigError",
    "DataConfig",
    "DatasetFacts",
    "Interval",
    "ModelConfig",
    "ProbesConfig",
    "Range",
    "RayConfig",
    "RunConfig",
    "SlurmConfig",
    "SweepConfig",
    "TrainConfig",
    "TransferConfig",
    "Value",
    "WholeInterval",
    "build_sweep",
    "declared",
    "describe_fields",
    "differing",
    "flat",
    "from_mapping",
    "stream_seed",
    "suggest",
    "to_mapping",
    "typed",
]
