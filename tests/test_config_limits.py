"""Every field's own limits, against a table that is written apart from their declarations."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from depthlab.config import ConfigError, RunConfig, SweepConfig, build_sweep, from_mapping

LIMITS = {
    "data.train_size": "[1, inf) null",
    "data.validation_fraction": "[0, 1)",
    "data.pool_size": "[1, inf) null",
    "data.folds": "[2, inf) null",
    "data.fold": "[0, inf)",
    "data.split_seed": "[0, inf)",
    "data.part": "[0, inf)",
    "data.crop_padding": "[0, inf)",
    "data.cutout": "[0, inf)",
    "data.label_noise": "[0, 1]",
    "model.image_size": "[1, inf) null",
    "model.depth": "[2, inf)",
    "model.width": "[1, inf)",
    "model.forget_bias": "[0, inf)",
    "model.stages": "[1, inf)",
    "model.norm_groups": "[1, inf)",
    "model.norm_noise": "[0, 2]",
    "model.gate_bias": "[-100, 100]",
    "model.sigma_w": "[0, inf) null",
    "model.sigma_b": "[0, inf)",
    "model.head_gain": "[0, inf)",
    "model.head_bias": "[0, inf)",
    "model.dropout": "[0, 1)",
    "model.dropconnect": "[0, 1)",
    "train.steps": "[1, inf)",
    "train.batch_size": "[1, inf)",
    "train.label_smoothing": "[0, 1)",
    "train.lr": "[0, inf)",
    "train.momentum": "[0, 1)",
    "train.weight_decay": "[0, inf)",
    "train.l1": "[0, inf)",
    "train.clip_norm": "[0, inf) null",
    "train.lr_decay": "[0, 1]",
    "train.warmup_steps": "[0, inf)",
    "train.eval_every": "[1, inf)",
    "train.early_stopping": "[1, inf) null",
    "train.pretraining_steps": "[0, inf)",
    "train.pretraining_lr": "[0, inf)",
    "train.corruption": "[0, 1)",
    "probes.every": "[0, inf)",
    "transfer.copied": "[1, inf) null",
    "transfer.trained": "[0, inf) null",
    "transfer.backbone_lr_factor": "[0, inf)",
    "seed": "[0, inf)",
    "sweep.workers": "[1, inf) null",
    "sweep.threads": "[1, inf) null",
    "sweep.gpus": "[0, inf)",
    "sweep.checkpoint_seconds": "[0, inf)",
    "sweep.slurm.timeout_min": "[1, inf)",
    "sweep.slurm.max_num_timeout": "[0, inf)",
    "sweep.slurm.mem_gb": "[0, inf) null",
    "sweep.ray.max_retries": "[0, inf)",
}

WORDS = (
    *("data.name", "model.family", "model.cell", "model.activation", "model.norm", "model.skip", "model.branch"),
    *("model.init", "train.loss", "train.optimizer", "train.l1_step", "train.schedule", "train.precision"),
    *("probes.names", "transfer.head", "sweep.engine"),
)
"""Fields that hold one of some words, or a list of these."""


def declared(config: type[Any], prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """Dotted names, types and metadata of all fields."""
    hints = typing.get_type_hints(config)
    for item in dataclasses.fields(config):
        if dataclasses.is_dataclass(kind := hints[item.name]):
            yield from declared(typing.cast("type[Any]", kind), f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, kind, item.metadata


FIELDS = {name: (kind, about) for name, kind, about in (*declared(RunConfig, ""), *declared(SweepConfig, "sweep."))}


def refusal(name: str, value: Any) -> str:
    """What is said of a value, other settings having their defaults; "" if it is taken."""
    nested = value
    for part in reversed(name.split(".")):
        nested = {part: nested}
    try:
        build_sweep(nested["sweep"]) if name.startswith("sweep.") else from_mapping(nested)
    except ConfigError as error:
        return str(error)
    return ""


def is_beyond(name: str, value: Any) -> bool:
    """Whether a value is refused for the limits of its own field, not for what other settings are."""
    return refusal(name, value).startswith(f"{name}={value} must be at least ")


def test_every_field_of_a_number_or_of_words_is_in_the_table() -> None:
    numbers = (int, float, int | None, float | None)
    assert set(LIMITS) == {name for name, (kind, _) in FIELDS.items() if kind in numbers}
    assert set(WORDS) == {name for name, (_, about) in FIELDS.items() if "choices" in about}


@pytest.mark.parametrize("name", LIMITS)
def test_a_number_is_taken_up_to_its_limits_and_not_beyond(name: str) -> None:
    interval, null, _ = LIMITS[name].partition(" null")
    low, high = (float(end) for end in interval.strip("[])").split(", "))
    if FIELDS[name][0] in (int, int | None):
        assert not is_beyond(name, int(low))
        assert is_beyond(name, int(low) - 1)
        assert not is_beyond(name, 10**9)
    else:
        last = high if interval.endswith("]") else math.nextafter(high, low)
        assert not is_beyond(name, low)
        assert not is_beyond(name, last)
        for beyond in (math.nextafter(low, -math.inf), math.nextafter(last, math.inf), -1e9, math.inf, math.nan):
            assert is_beyond(name, beyond), beyond
    assert refusal(name, None).startswith(f"{name}=null must be a ") is not bool(null)


@pytest.mark.parametrize("name", WORDS)
def test_a_word_is_one_of_those_that_are_listed(name: str) -> None:
    is_list = name == "probes.names"
    for word in FIELDS[name][1]["choices"]:
        assert " must be one of " not in refusal(name, [word] if is_list else word)
    for word in ("nothing_of_the_kind", ""):
        assert refusal(name, [word] if is_list else word).startswith(f"{name}={word} must be one of ")
