"""What a run is: a value, checked when it is made, with a content key.

Names that appear here as choices (activations, norms, ...) are the keys of dict literals in the rooms that own
them; a test holds the two together.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from depthlab.config.fields import (
    ConfigError,
    about,
    build,
    check_fields,
    choice,
    differences,
    flag,
    flatten,
    number,
    text,
    to_mapping,
)

PROTOCOL = 1
"""Part of every key. Raise it whenever the numerics of training change, so that old runs are not taken for new ones."""

KEY_LENGTH = 16

ACTIVATIONS = (
    *("sigmoid", "tanh", "relu", "leaky_relu", "very_leaky_relu"),
    *("elu", "selu", "gelu", "silu", "identity"),
)
NORMS = ("none", "batch", "layer", "group", "rms")
SKIPS = ("none", "residual", "preactivation", "highway")
INITS = ("torch_default", "xavier", "he", "orthogonal", "delta_orthogonal", "gaussian", "lsuv")
FAMILIES = ("mlp", "cnn")
OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "step", "cosine")
LOSSES = ("cross_entropy", "mse", "brier")
PRECISIONS = ("float32", "bf16")
ENGINES = ("local", "joblib", "submitit_local", "submitit_slurm", "ray")
READ_BY_DEFAULT = (
    "grad_norm",
    "weight_norm",
    "update_ratio",
    "backward_norm",
    "activation_mean",
    "activation_std",
    "saturation",
    "dead_fraction",
)
"""Part of old runs' keys: a probe that is new is read when it is named, and never joins these."""
PROBES = (*READ_BY_DEFAULT, "activation_sparsity", "validation_inactive_fraction")


@dataclass(frozen=True)
class DatasetFacts:
    """What is known of a data set before it is loaded: counts of images, image shape and number of classes."""

    train: int
    test: int
    channels: int
    size: int
    classes: int


DATASETS = {
    "digits": DatasetFacts(train=1438, test=359, channels=1, size=8, classes=10),
    "mnist": DatasetFacts(train=60_000, test=10_000, channels=1, size=28, classes=10),
    "fashion_mnist": DatasetFacts(train=60_000, test=10_000, channels=1, size=28, classes=10),
    "cifar10": DatasetFacts(train=50_000, test=10_000, channels=3, size=32, classes=10),
    "cifar100": DatasetFacts(train=50_000, test=10_000, channels=3, size=32, classes=100),
    "synthetic": DatasetFacts(train=1_000, test=200, channels=3, size=8, classes=10),
}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, cut how, augmented how."""

    name: str = choice("digits", tuple(DATASETS), "data set")
    train_size: int | None = number(None, "class-balanced subset of the training part (null: all)", low=1)
    validation_fraction: float = number(0.1, "share of the training data cut off to choose models on", below=1)
    split_seed: int = number(0, "which validation split and subset; apart from seed, so that seeds share them")
    crop_padding: int = number(0, "pad by this many pixels, then crop at random to the old size")
    flip: bool = flag(False, "mirror left to right at random")
    cutout: int = number(0, "side of a random square set to the mean colour")
    label_noise: float = number(0.0, "share of training labels replaced by another class", high=1)

    def __post_init__(self) -> None:
        check_fields(self, "data")
        facts = DATASETS[self.name]
        if self.crop_padding >= facts.size:
            raise ConfigError(
                f"data.crop_padding={self.crop_padding} is too large for {self.name} images of {facts.size} pixels; "
                f"choose less than {facts.size}"
            )
        if self.cutout > facts.size:
            raise ConfigError(
                f"data.cutout={self.cutout} is larger than {self.name} images; choose at most {facts.size}"
            )
        validation = round(self.validation_fraction * facts.train)
        left = facts.train - validation
        if left < facts.classes or validation < 1:
            raise ConfigError(
                f"data.validation_fraction={self.validation_fraction} leaves {left} images of {self.name} to train on "
                f"and {validation} to validate on; choose it so that both hold some, such as 0.1"
            )
        if self.train_size is not None and not facts.classes <= self.train_size <= left:
            raise ConfigError(
                f"data.train_size={self.train_size} must be between {facts.classes} (one image a class) and {left} "
                f"(what the validation split leaves of {self.name})"
            )

    @property
    def training_images(self) -> int:
        """How many images are trained on."""
        facts = DATASETS[self.name]
        return self.train_size or facts.train - round(self.validation_fraction * facts.train)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A point of skip x norm x init x activation, at a depth and a width."""

    family: str = choice("mlp", FAMILIES, "fully connected, or He et al.'s CIFAR convolutional family")
    depth: int = number(20, "number of weight layers from input to logits (gates and shortcuts not counted)", low=2)
    width: int = number(100, "units of an MLP's hidden layers; channels of a CNN's first stage", low=1)
    stages: int = number(3, "CNN: stages; each but the first halves the resolution and doubles the width", low=1)
    activation: str = choice("relu", ACTIVATIONS, "nonlinearity")
    norm: str = choice("none", NORMS, "normalization after each hidden weight layer")
    norm_groups: int = number(4, "groups of norm=group", low=1)
    norm_affine: bool = flag(True, "learned scale and shift after the normalization (norm=rms: scale)")
    norm_noise: float = number(0.0, "strength of noise after the normalization, new at every update", high=2)
    skip: str = choice("none", SKIPS, "what bypasses a block of two weight layers")
    init: str = choice("he", INITS, "initialization of the weights")
    sigma_w: float | None = number(None, "gain of init=gaussian, orthogonal, delta_orthogonal (null: critical gain)")
    sigma_b: float = number(0.0, "standard deviation of the biases of the same three")
    bias: bool = flag(True, "biases in the hidden weight layers (the head always has one)")
    head_gain: float = number(1.0, "factor of the head's initial weights")
    head_bias: float = number(0.0, "initial bias of the head's first class: a net that begins sure of one answer")
    dropout: float = number(0.0, "probability of dropping a hidden activation", below=1)

    def __post_init__(self) -> None:
        check_fields(self, "model")
        if self.family == "cnn":
            self._check_cnn_depth()
        elif self.skip != "none" and (self.depth - 2) % 2:
            raise ConfigError(
                f"model.depth={self.depth} does not fit model.skip={self.skip}: blocks hold two weight layers between "
                f"stem and head, so depth is even; choose {self.depth - 1} or {self.depth + 1}"
            )
        if self.norm == "group" and self.width % self.norm_groups:
            raise ConfigError(
                f"model.width={self.width} does not divide into model.norm_groups={self.norm_groups} groups; "
                f"change either"
            )
        if self.norm == "none" and (self.norm_noise or not self.norm_affine):
            raise ConfigError(
                f"model.norm_affine={str(self.norm_affine).lower()} and model.norm_noise={self.norm_noise} have no "
                f"effect with model.norm=none; choose a norm, or leave them at true and 0"
            )
        if self.init == "delta_orthogonal" and self.family == "mlp":
            raise ConfigError(
                "model.init=delta_orthogonal is for convolutions; with model.family=mlp choose model.init=orthogonal"
            )
        if self.init not in ("gaussian", "orthogonal", "delta_orthogonal"):
            for name, unset in (("sigma_w", None), ("sigma_b", 0.0)):
                if getattr(self, name) != unset:
                    raise ConfigError(
                        f"model.{name}={getattr(self, name)} has no effect with model.init={self.init}; "
                        f"use it with model.init=gaussian, orthogonal or delta_orthogonal"
                    )
        if self.init == "lsuv" and (self.head_gain != 1 or self.head_bias):
            raise ConfigError(
                f"model.head_gain={self.head_gain} and model.head_bias={self.head_bias} would be undone by "
                f"model.init=lsuv, which rescales the head as well; choose another init, or leave them at 1 and 0"
            )
        if self.sigma_b > 0 and not self.bias:
            raise ConfigError(f"model.sigma_b={self.sigma_b} needs biases; set model.bias=true or model.sigma_b=0")

    def _check_cnn_depth(self) -> None:
        period = 2 * self.stages
        if (self.depth - 2) % period or self.depth < period + 2:
            lower = max(1, (self.depth - 2) // period) * period + 2
            raise ConfigError(
                f"model.depth={self.depth} does not fit model.stages={self.stages}: a CNN of this family has "
                f"{period}n + 2 weight layers; choose {lower} or {lower + period}"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the weights are changed, and for how long."""

    steps: int = number(600, "number of updates", low=1)
    batch_size: int = number(128, "images in a batch", low=1)
    loss: str = choice("cross_entropy", LOSSES, "loss; mse is of logits, brier the squared error of softmax")
    label_smoothing: float = number(0.0, "share of the target spread over all classes", below=1)
    optimizer: str = choice("sgd", OPTIMIZERS, "optimiser")
    lr: float = number(0.05, "peak learning rate")
    momentum: float = number(0.9, "momentum of sgd, beta1 of adam and adamw", below=1)
    nesterov: bool = flag(False, "Nesterov's form of momentum")
    weight_decay: float = number(0.0, "L2 penalty of sgd and adam, decoupled decay of adamw")
    l1: float = number(0.0, "factor of the L1 penalty on the weights")
    clip_norm: float | None = number(None, "largest norm of the whole gradient (null: no clipping)")
    schedule: str = choice("constant", SCHEDULES, "how the learning rate falls")
    milestones: tuple[float, ...] = field(
        default=(0.5, 0.75), metadata={"about": "schedule=step: parts of the training after which the rate falls"}
    )
    lr_decay: float = number(0.1, "schedule=step: the factor by which it falls", high=1)
    warmup_steps: int = number(0, "steps over which the learning rate rises linearly to its peak")
    eval_every: int = number(100, "steps between evaluations on the validation split", low=1)
    early_stopping: int | None = number(None, "stop after this many evaluations without a better one", low=1)
    precision: str = choice("float32", PRECISIONS, "arithmetic of the forward and backward pass")
    activation_checkpointing: bool = flag(False, "compute activations again in the backward pass, to save memory")

    def __post_init__(self) -> None:
        check_fields(self, "train")
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ConfigError(
                f"train.nesterov=true needs train.optimizer=sgd with momentum; given {self.optimizer} with "
                f"train.momentum={self.momentum}"
            )
        if self.warmup_steps >= self.steps:
            raise ConfigError(f"train.warmup_steps={self.warmup_steps} must be less than train.steps={self.steps}")
        if list(self.milestones) != sorted(set(self.milestones)) or not all(0 < part < 1 for part in self.milestones):
            raise ConfigError(
                f"train.milestones={list(self.milestones)} must rise and lie between 0 and 1, such as [0.5,0.75]"
            )


@dataclass(frozen=True, kw_only=True)
class ProbesConfig:
    """Which per-layer numbers are read, and when. The first and the last update are always read."""

    every: int = number(100, "updates from one reading to the next (0: only the first and the last)")
    names: tuple[str, ...] = field(
        default=READ_BY_DEFAULT, metadata={"choices": PROBES, "about": "which probes are read"}
    )

    def __post_init__(self) -> None:
        check_fields(self, "probes")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run. Equal values have equal keys; where and how it is launched is not part of it."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    probes: ProbesConfig = field(default_factory=ProbesConfig)
    seed: int = number(0, "seed of the named random streams")

    def __post_init__(self) -> None:
        check_fields(self, "")
        facts = DATASETS[self.data.name]
        if self.train.batch_size > self.data.training_images:
            raise ConfigError(
                f"train.batch_size={self.train.batch_size} is more than the {self.data.training_images} images that "
                f"are trained on; choose a smaller train.batch_size or a larger data.train_size"
            )
        if self.model.family == "cnn" and facts.size < 2 ** (self.model.stages - 1):
            raise ConfigError(
                f"model.stages={self.model.stages} halves {self.data.name} images of {facts.size} pixels to nothing; "
                f"choose at most {facts.size.bit_length()} stages"
            )

    def key(self) -> str:
        """The run's name: a hash of the protocol number and of every field that differs from its default."""
        content = {"protocol": PROTOCOL, **differences(to_mapping(self), to_mapping(RunConfig()))}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


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
        None, "runs trained at once (null: one for each core; on a GPU, one; on a cluster, as many as it takes)", low=1
    )
    threads: int | None = number(None, "threads of each run (null: one in a sweep or for an MLP, else all)", low=1)
    gpus: int = number(0, "GPUs of each run, where the engine hands them out (submitit, ray)")

    checkpoint_seconds: float = number(
        60.0, "seconds from one checkpoint of a run to the next (0: only when stopped)", low=0
    )
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        check_fields(self, "sweep")


def from_mapping(mapping: Mapping[str, Any]) -> RunConfig:
    """The run that nested mappings describe, as read from YAML or JSON: lists become tuples, whole floats floats.

    Raises ConfigError on an unknown key, a wrong type or an impossible value.
    """
    return typing.cast("RunConfig", build(RunConfig, mapping, ""))


def build_sweep(mapping: Mapping[str, Any]) -> SweepConfig:
    """The same for the launch section."""
    return typing.cast("SweepConfig", build(SweepConfig, mapping, "sweep"))


def flat(config: RunConfig) -> dict[str, Any]:
    """The same with dotted names: {"data.name": "digits", ..., "seed": 0}."""
    return dict(flatten(to_mapping(config), ""))


def stream_seed(seed: int, name: str) -> int:
    """Seed of a named random stream, below 2**63.

    Each use of randomness draws from a stream of its own ("init", "order", "augment", "dropout", "label_noise",
    "split"), so that a deeper net, which draws more initial weights, does not change the order of the data: runs of
    equal seed are paired.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def describe_fields() -> Iterator[tuple[str, Any, str]]:
    """Every override: its dotted name, its default, and a line about it with what is allowed."""
    run = RunConfig()
    for section in (run.data, run.model, run.train, run.probes):
        prefix = type(section).__name__.removesuffix("Config").lower()
        for item in dataclasses.fields(section):
            yield f"{prefix}.{item.name}", getattr(section, item.name), about(item)
    yield "seed", run.seed, "seed of the named random streams"
    launch = SweepConfig()
    for path, part in (("sweep", launch), ("sweep.slurm", launch.slurm), ("sweep.ray", launch.ray)):
        for item in dataclasses.fields(part):
            if not dataclasses.is_dataclass(value := getattr(part, item.name)):
                yield f"{path}.{item.name}", value, about(item)
