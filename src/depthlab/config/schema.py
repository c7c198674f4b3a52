"""What a run is: a value, checked when it is made, with a content key."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from depthlab.config.data import DATASETS, DataConfig
from depthlab.config.fields import (
    ConfigError,
    about,
    build,
    check_fields,
    differences,
    flatten,
    number,
    to_mapping,
)
from depthlab.config.launch import SweepConfig
from depthlab.config.model import PIECEWISE_LINEAR, ModelConfig
from depthlab.config.train import PLANE_PROBES, ProbesConfig, TrainConfig
from depthlab.config.transfer import TransferConfig

PROTOCOL = 1
"""Part of every key. Raise it whenever the numerics of training change, so that old runs are not taken for new ones."""

KEY_LENGTH = 16


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run. Equal values have equal keys; where and how it is launched is not part of it."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    probes: ProbesConfig = field(default_factory=ProbesConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    seed: int = number(0, "seed of the named random streams")

    def __post_init__(self) -> None:
        check_fields(self, "")
        facts = DATASETS[self.data.name]
        self._check_pretraining()
        if self.train.batch_size > self.data.training_images:
            raise ConfigError(
                f"train.batch_size={self.train.batch_size} is more than the {self.data.training_images} images that "
                f"are trained on; choose a smaller train.batch_size or a larger data.train_size"
            )
        if self.model.family != "mlp" and facts.size == 1:
            raise ConfigError(
                f"model.family={self.model.family} has nothing to go along in {self.data.name}, images of one pixel; "
                f"choose model.family=mlp"
            )
        if self.model.family == "cnn" and facts.size < 2 ** (self.model.stages - 1):
            raise ConfigError(
                f"model.stages={self.model.stages} halves {self.data.name} images of {facts.size} pixels to nothing; "
                f"choose at most {facts.size.bit_length()} stages"
            )
        if self.model.family in ("rnn", "torchvision") and self.train.activation_checkpointing:
            raise ConfigError(
                f"train.activation_checkpointing=true keeps what enters segments of blocks that are called one by one, "
                f"and model.family={self.model.family} has none; set it to false"
            )
        if self.model.family == "rnn" and "validation_inactive_fraction" in self.probes.names:
            raise ConfigError(
                "probes.names=validation_inactive_fraction is of layers with an activation after them, and those of "
                "model.family=rnn have theirs inside; leave it out"
            )
        if self.train.compile and self.probes.every == 1:
            raise ConfigError(
                "train.compile=true is of updates that are not read, and probes.every=1 reads all; set probes.every to "
                "more, such as 100, or train.compile=false"
            )
        self._check_plane()
        self._check_transfer()

    def _check_transfer(self) -> None:
        transfer, blocks = self.transfer, self.model.blocks
        if blocks is not None:
            transfer.check_blocks(blocks)
        if "torchvision" in transfer.parts and self.model.family != "torchvision":
            raise ConfigError(
                f"transfer.source={list(transfer.source)} holds weights of a model of torchvision, and the network is "
                f"model.family={self.model.family}; set model.family=torchvision and model.architecture"
            )
        if transfer.source and self.model.init == "lsuv":
            raise ConfigError(
                "model.init=lsuv rescales all layers and would undo transfer.source; choose model.init=orthogonal, and "
                "for the source, if you like, model.init:lsuv"
            )
        try:
            self.source()
        except ConfigError as error:
            raise ConfigError(f"transfer.source describes no run: {error}") from None

    def source(self) -> RunConfig | None:
        """The run whose last weights are taken, where transfer.source holds settings: of the same model and seed.

        What is neither that nor in transfer.source has its default, whatever this run has.
        """
        settings = self.transfer.settings
        if settings is None:
            return None
        model = {**to_mapping(self.model), **settings.get("model", {})}
        return from_mapping({"seed": self.seed, **settings, "model": model})

    def _check_pretraining(self) -> None:
        """Autoencoders are made of layers that are W x + b and an activation, and nothing else."""
        if self.train.pretraining_steps == 0:
            return
        for name, only in (("family", "mlp"), ("skip", "none"), ("norm", "none"), ("dropconnect", 0.0)):
            if (given := getattr(self.model, name)) != only:
                raise ConfigError(
                    f"train.pretraining_steps={self.train.pretraining_steps} trains plain fully connected layers, and "
                    f"model.{name}={given} is none of these; choose model.{name}={only}, or train.pretraining_steps=0"
                )
        blocks = self.model.blocks
        if self.transfer.source or (blocks is not None and self.transfer.frozen_of(blocks)):
            raise ConfigError(
                f"train.pretraining_steps={self.train.pretraining_steps} would train blocks again that transfer.source "
                f"has copied or transfer.trained has frozen; leave both out, or pre-train the source: "
                f"transfer.source=[data.name:NAME,train.pretraining_steps:{self.train.pretraining_steps}]"
            )

    def _check_plane(self) -> None:
        """What can be counted and drawn on the plane of inputs."""
        facts = DATASETS[self.data.name]
        for name in set(PLANE_PROBES).intersection(self.probes.names):
            if facts.channels * facts.size**2 != 2:
                raise ConfigError(
                    f"probes.names={name} is read on a plane of inputs, and {self.data.name} has more than two; "
                    f"choose data.name=spirals, or leave it out"
                )
        model = self.model
        plain = (model.family, model.skip, model.norm) == ("mlp", "none", "none")
        if "linear_regions" in self.probes.names and not (plain and model.activation in PIECEWISE_LINEAR):
            raise ConfigError(
                f"probes.names=linear_regions is of plain nets of {', '.join(PIECEWISE_LINEAR)}, and the model has "
                f"model.family={model.family}, model.skip={model.skip}, model.norm={model.norm} and "
                f"model.activation={model.activation}; change these, or leave it out"
            )

    def key(self) -> str:
        """The run's name: a hash of the protocol number and of every field that differs from its default.

        Of a source that is a file its content counts, whose checksum is there, and not where it lies.
        """
        return _key(self, PROTOCOL)


@functools.lru_cache(maxsize=10_000)
def _key(config: RunConfig, protocol: int) -> str:
    content = {"protocol": protocol, **_changed(config)}
    if "file" in (parts := config.transfer.parts):
        content["transfer"] = {**content["transfer"], "source": [f"sha256:{parts['sha256']}"]}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def _changed(config: RunConfig) -> dict[str, Any]:
    """What of it differs from the defaults, as nested mappings of which those of sections may not be changed."""
    sections: dict[str, Any] = {name: value for name, value in vars(config).items() if dataclasses.is_dataclass(value)}
    changed = {name: found for name, section in sections.items() if (found := _changed_section(section))}
    return {**changed, "seed": config.seed} if config.seed != RunConfig.seed else changed


@functools.lru_cache(maxsize=10_000)
def _changed_section(section: Any) -> dict[str, Any]:
    """The same of a section, which a thousand runs may share; what equal ones hold, checks have made the same."""
    return differences(to_mapping(section), to_mapping(type(section)()))


def build_section(name: str, mapping: Mapping[str, Any]) -> Any:
    """The part of a run of that name, such as "model", as `from_mapping` makes it and then takes it in its place."""
    return build(typing.get_type_hints(RunConfig)[name], mapping, name)


def from_mapping(mapping: Mapping[str, Any]) -> RunConfig:
    """The run that nested mappings describe, as read from YAML or JSON: lists become tuples, whole floats floats.

    Raises ConfigError on an unknown key, a wrong type or an impossible value.
    """
    return typing.cast("RunConfig", build(RunConfig, mapping, ""))


def flat(config: RunConfig) -> dict[str, Any]:
    """The same with dotted names: {"data.name": "digits", ..., "seed": 0}."""
    return dict(flatten(to_mapping(config), ""))


def differing(config: RunConfig) -> dict[str, Any]:
    """What of it differs from the defaults, with dotted names: {"model.depth": 50, "seed": 1}."""
    found = flatten(_changed(config), "")
    return {name: list(value) if isinstance(value, list) else value for name, value in found}  # key() has the others


def stream_seed(seed: int, name: str) -> int:
    """Seed of a named random stream, below 2**63.

    Each use of randomness draws from a stream of its own ("init", "order", "augment", "dropout", "label_noise",
    "split", "corruption"), so that a deeper net, which draws more initial weights, does not change the order of the
    data: runs of equal seed are paired.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def describe_fields() -> Iterator[tuple[str, Any, str]]:
    """Every override: its dotted name, its default, and a line about it with what is allowed."""
    run = RunConfig()
    for section in (run.data, run.model, run.train, run.probes, run.transfer):
        prefix = type(section).__name__.removesuffix("Config").lower()
        for item in dataclasses.fields(section):
            yield f"{prefix}.{item.name}", getattr(section, item.name), about(item)
    yield "seed", run.seed, "seed of the named random streams"
    launch = SweepConfig()
    for path, part in (("sweep", launch), ("sweep.slurm", launch.slurm), ("sweep.ray", launch.ray)):
        for item in dataclasses.fields(part):
            if not dataclasses.is_dataclass(value := getattr(part, item.name)):
                yield f"{path}.{item.name}", value, about(item)
