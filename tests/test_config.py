"""A run is a value: what it accepts, what it refuses and in which words, and its key."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from depthlab import config as names
from depthlab.config import (
    DATASETS,
    PLANE_PROBES,
    PROBES,
    READ_BY_DEFAULT,
    ConfigError,
    DataConfig,
    ModelConfig,
    ProbesConfig,
    RunConfig,
    SweepConfig,
    TrainConfig,
    TransferConfig,
    build_section,
    describe_fields,
    differing,
    flat,
    from_mapping,
    stream_seed,
    to_mapping,
)
from depthlab.config import schema as module
from depthlab.config.fields import flatten

DEFAULTS = {
    "data.name": "digits",
    "data.classes": [],
    "data.train_size": None,
    "data.validation_fraction": 0.1,
    "data.pool_size": None,
    "data.folds": None,
    "data.fold": 0,
    "data.split_seed": 0,
    "data.part": 0,
    "data.crop_padding": 0,
    "data.flip": False,
    "data.cutout": 0,
    "data.label_noise": 0.0,
    "model.family": "mlp",
    "model.architecture": "resnet18",
    "model.image_size": None,
    "model.depth": 20,
    "model.width": 100,
    "model.cell": "rnn",
    "model.forget_bias": 0.0,
    "model.stages": 3,
    "model.activation": "relu",
    "model.norm": "none",
    "model.norm_groups": 4,
    "model.norm_affine": True,
    "model.norm_noise": 0.0,
    "model.skip": "none",
    "model.branch": "standard",
    "model.gate_bias": -2.0,
    "model.init": "he",
    "model.sigma_w": None,
    "model.sigma_b": 0.0,
    "model.bias": True,
    "model.head_gain": 1.0,
    "model.head_bias": 0.0,
    "model.dropout": 0.0,
    "model.dropconnect": 0.0,
    "train.steps": 600,
    "train.batch_size": 128,
    "train.loss": "cross_entropy",
    "train.label_smoothing": 0.0,
    "train.optimizer": "sgd",
    "train.lr": 0.05,
    "train.momentum": 0.9,
    "train.nesterov": False,
    "train.weight_decay": 0.0,
    "train.l1": 0.0,
    "train.l1_step": "subgradient",
    "train.clip_norm": None,
    "train.schedule": "constant",
    "train.milestones": [0.5, 0.75],
    "train.lr_decay": 0.1,
    "train.warmup_steps": 0,
    "train.eval_every": 100,
    "train.early_stopping": None,
    "train.precision": "float32",
    "train.activation_checkpointing": False,
    "train.compile": False,
    "train.pretraining_steps": 0,
    "train.pretraining_lr": 0.001,
    "train.corruption": 0.0,
    "probes.every": 100,
    "probes.names": [
        "grad_norm",
        "weight_norm",
        "update_ratio",
        "backward_norm",
        "activation_mean",
        "activation_std",
        "saturation",
        "dead_fraction",
    ],
    "transfer.source": [],
    "transfer.copied": None,
    "transfer.trained": None,
    "transfer.head": "linear",
    "transfer.backbone_lr_factor": 1.0,
    "seed": 0,
}
"""Frozen: a default that changes gives old runs a meaning that they did not have. A new field is added here."""

GOLDEN = {
    "6d76d6a408f17555": RunConfig(),
    "50066569d791b511": RunConfig(seed=1),
    "bcee0df990da2caf": RunConfig(
        data=DataConfig(name="cifar10", crop_padding=4, flip=True),
        model=ModelConfig(family="cnn", depth=56, width=16, norm="batch", skip="residual", bias=False),
        train=TrainConfig(steps=64000, lr=0.1, weight_decay=1e-4, schedule="step", eval_every=1000),
    ),
    "ce1ebe805bcccd15": RunConfig(
        model=ModelConfig(depth=50, activation="tanh", init="gaussian", sigma_w=1.3, sigma_b=0.1),
        probes=ProbesConfig(every=0, names=("grad_norm", "backward_norm")),
    ),
    "98cd43a061c2762a": RunConfig(
        data=DataConfig(name="mnist", train_size=5000, label_noise=0.2),
        train=TrainConfig(optimizer="adamw", lr=1e-3, clip_norm=1.0, early_stopping=5, milestones=(0.25,)),
    ),
}

OTHERS: dict[str, list[Any]] = {
    "data.name": list(DATASETS),
    "data.classes": [[], [0, 1, 2], [2, 1, 0]],
    "data.train_size": [None, 200, 300],
    "data.validation_fraction": [0.1, 0.25],
    "data.pool_size": [None, 600, 1000],
    "data.folds": [None, 2, 5],
    "data.fold": [0, 1],
    "data.split_seed": [0, 1],
    "data.part": [0, 1, 2],
    "data.crop_padding": [0, 4],
    "data.flip": [False, True],
    "data.cutout": [0, 8],
    "data.label_noise": [0.0, 0.5],
    "model.family": list(names.FAMILIES),
    "model.architecture": ["resnet18", "vgg11"],
    "model.image_size": [None, 32, 224],
    "model.depth": [20, 8, 14],
    "model.width": [100, 16],
    "model.cell": list(names.CELLS),
    "model.forget_bias": [0.0, 1],
    "model.stages": [3, 1],
    "model.activation": list(names.ACTIVATIONS),
    "model.norm": list(names.NORMS),
    "model.norm_groups": [4, 2],
    "model.norm_affine": [True, False],
    "model.norm_noise": [0.0, 0.5],
    "model.skip": list(names.SKIPS),
    "model.branch": list(names.BRANCHES),
    "model.gate_bias": [-2.0, -6.0, 0.0],
    "model.init": list(names.INITS),
    "model.sigma_w": [None, 0.0, 1.5],
    "model.sigma_b": [0.0, 0.1],
    "model.bias": [True, False],
    "model.head_gain": [1.0, 0.0],
    "model.head_bias": [0.0, 5],
    "model.dropout": [0.0, 0.5],
    "model.dropconnect": [0.0, 0.5],
    "train.steps": [600, 601],
    "train.batch_size": [128, 64],
    "train.loss": list(names.LOSSES),
    "train.label_smoothing": [0.0, 0.1],
    "train.optimizer": list(names.OPTIMIZERS),
    "train.lr": [0.05, 0.0, 1],
    "train.momentum": [0.9, 0.0],
    "train.nesterov": [False, True],
    "train.weight_decay": [0.0, 1e-4],
    "train.l1": [0.0, 1e-4],
    "train.l1_step": list(names.L1_STEPS),
    "train.clip_norm": [None, 1.0],
    "train.schedule": list(names.SCHEDULES),
    "train.milestones": [[0.5, 0.75], [0.5], []],
    "train.lr_decay": [0.1, 1.0],
    "train.warmup_steps": [0, 10],
    "train.eval_every": [100, 50],
    "train.early_stopping": [None, 3],
    "train.precision": list(names.PRECISIONS),
    "train.activation_checkpointing": [False, True],
    "train.compile": [False, True],
    "train.pretraining_steps": [0, 50],
    "train.pretraining_lr": [0.001, 0.01],
    "train.corruption": [0.0, 0.25],
    "probes.every": [100, 0],
    "probes.names": [list(READ_BY_DEFAULT), [name for name in PROBES if name not in PLANE_PROBES], ["grad_norm"], []],
    "transfer.source": [[], ["data.name:mnist"], ["run:6d76d6a408f17555"], ["file:weights.pt", f"sha256:{'0' * 64}"]],
    "transfer.copied": [None, 3],
    "transfer.trained": [None, 0, 2],
    "transfer.head": list(names.HEADS),
    "transfer.backbone_lr_factor": [1.0, 0.1],
    "seed": [0, 1, 2**40],
}


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """{"data.name": "digits"} -> {"data": {"name": "digits"}}."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        section, _, field = name.rpartition(".")
        (found.setdefault(section, {}) if section else found)[field] = value
    return found


def test_defaults_are_frozen() -> None:
    assert flat(RunConfig()) == DEFAULTS


@pytest.mark.parametrize("key", GOLDEN)
def test_keys_are_frozen(key: str) -> None:
    assert GOLDEN[key].key() == key


def test_the_protocol_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROTOCOL", module.PROTOCOL + 1)
    assert RunConfig().key() != "6d76d6a408f17555"


def test_every_field_is_varied_here() -> None:
    assert set(OTHERS) == set(DEFAULTS)


@settings(max_examples=50)
@given(st.fixed_dictionaries({}, optional={name: st.sampled_from(OTHERS[name]) for name in OTHERS}), st.data())
def test_key_is_that_of_the_value(given_values: dict[str, Any], data: st.DataObject) -> None:
    """Stable under every way of writing the configuration down, and another one as soon as one field differs."""
    run = built(nested(given_values))
    assert from_mapping(to_mapping(run)) == run
    assert from_mapping(yaml.safe_load(yaml.safe_dump(to_mapping(run)))).key() == run.key()
    backwards = dict(reversed(json.loads(json.dumps(to_mapping(run))).items()))
    assert from_mapping(backwards).key() == run.key()
    changed = differing(run)
    assert from_mapping(nested(changed)) == run
    assert changed == {name: value for name, value in flat(run).items() if value != DEFAULTS[name]}
    name = data.draw(st.sampled_from(sorted(OTHERS)))
    value = data.draw(st.sampled_from([value for value in OTHERS[name] if value != flat(run)[name]]))
    assert built(nested({**flat(run), name: value})).key() != run.key()


def built(mapping: dict[str, Any]) -> RunConfig:
    try:
        return from_mapping(mapping)
    except ConfigError:
        assume(False)
        raise


@pytest.mark.parametrize("name", OTHERS)
def test_each_field_enters_the_key(name: str) -> None:
    """Alone, beside the settings that it needs to have an effect at all."""
    gaussian, normalized = {"model.init": "gaussian"}, {"model.norm": "batch"}
    of_torchvision = {"model.family": "torchvision"}
    recurrent_net = {"model.family": "rnn", "model.depth": 2, "model.activation": "tanh"}
    needed = {
        "data.part": {"data.train_size": 200},
        "model.sigma_w": gaussian,
        "model.sigma_b": gaussian,
        "model.norm_affine": normalized,
        "model.norm_noise": normalized,
        "train.l1_step": {"train.l1": 1e-4},
        "train.pretraining_lr": {"train.pretraining_steps": 50},
        "train.corruption": {"train.pretraining_steps": 50},
        "data.fold": {"data.folds": 5},
        "model.branch": {"model.skip": "residual"},
        "model.architecture": of_torchvision,
        "model.image_size": of_torchvision,
        "model.cell": recurrent_net,
        "model.forget_bias": {**recurrent_net, "model.cell": "gru"},
        "model.gate_bias": {"model.skip": "highway"},
        "transfer.copied": {"transfer.trained": 1},
    }.get(name, {})
    keys = set()
    for value in OTHERS[name]:
        fitting = {"model.width": 16, "model.family": "cnn"} if value == "delta_orthogonal" else {}
        fitting = recurrent_net if value == "rnn" else fitting
        keys.add(from_mapping(nested({"model.depth": 20, **needed, **fitting, name: value})).key())
    assert len(keys) == len(OTHERS[name])


def test_whole_numbers_are_floats_where_floats_are_wanted() -> None:
    whole, real = RunConfig(train=TrainConfig(lr=1, clip_norm=2)), RunConfig(train=TrainConfig(lr=1.0, clip_norm=2.0))
    assert whole.key() == real.key()
    assert isinstance(whole.train.lr, float)
    assert isinstance(whole.train.clip_norm, float)


def test_sections_that_are_made_already_are_those_of_their_mappings() -> None:
    mapping = to_mapping(GOLDEN["6d76d6a408f17555"])
    for name in ("data", "model", "train", "probes", "transfer"):
        part = build_section(name, mapping[name])
        assert from_mapping({**mapping, name: part}) == from_mapping(mapping)
    with pytest.raises(ConfigError, match=r"train=ModelConfig.* must hold settings"):
        from_mapping({**mapping, "train": build_section("model", mapping["model"])})


def test_equal_configurations_have_equal_keys_at_minus_zero() -> None:
    assert RunConfig(train=TrainConfig(lr=-0.0)).key() == RunConfig(train=TrainConfig(lr=0.0)).key()


def test_sections_default_each_to_itself() -> None:
    assert from_mapping({}) == RunConfig()
    assert from_mapping({"model": {}}).key() == RunConfig().key()


def test_configurations_cannot_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().seed = 1  # type: ignore[misc]


def recurrent(**factors: Any) -> ModelConfig:
    return ModelConfig(**{"family": "rnn", "depth": 2, "activation": "tanh", **factors})


def pretrained_again(**transfer: Any) -> RunConfig:
    return RunConfig(train=TrainConfig(pretraining_steps=5), transfer=TransferConfig(**transfer))


def pretrained(**factors: Any) -> RunConfig:
    return RunConfig(model=ModelConfig(**factors), train=TrainConfig(pretraining_steps=5))


def points(*probes: str, model: ModelConfig | None = None) -> RunConfig:
    """A run on points of a plane."""
    return RunConfig(data=DataConfig(name="spirals"), model=model or ModelConfig(), probes=ProbesConfig(names=probes))


def of_torchvision(**factors: Any) -> ModelConfig:
    return ModelConfig(**{"family": "torchvision", **factors})


def from_torchvision(*source: str, family: str = "torchvision", **settings: Any) -> RunConfig:
    return RunConfig(model=ModelConfig(family=family), transfer=TransferConfig(source=source, **settings))


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: ModelConfig(architecture="vgg11"),
        r"architecture=vgg11 has no effect with model\.family=mlp; leave it at r",
    ),
    (
        lambda: ModelConfig(image_size=32),
        r"image_size=32 has no effect .* leave it at null, or choose model\.family=torc",
    ),
    (
        lambda: of_torchvision(depth=8),
        r"model\.depth=8 has no effect with model\.family=torchvision; leave it at 20, or",
    ),
    (
        lambda: of_torchvision(bias=False),
        r"model\.bias=false has no effect .* leave it at true, or choose another family",
    ),
    (lambda: of_torchvision(sigma_w=1.5), r"model\.sigma_w=1\.5 has no effect .* leave it at null"),
    (lambda: of_torchvision(init="lsuv"), r"model\.init=lsuv has no effect with model\.family=torchvision"),
    (lambda: of_torchvision(image_size=0), r"model\.image_size=0 must be at least 1"),
    (
        lambda: TrainConfig(compile=True, activation_checkpointing=True),
        r"train\.compile=true .* train\.activation_checkpointing=true; set one of them to false",
    ),
    (
        lambda: RunConfig(train=TrainConfig(compile=True), probes=ProbesConfig(every=1)),
        r"train\.compile=true .* probes\.every=1 reads all; set probes\.every to more",
    ),
    (
        lambda: RunConfig(model=of_torchvision(), train=TrainConfig(activation_checkpointing=True)),
        r"train\.activation_checkpointing=true .* model\.family=torchvision has none; set it to false",
    ),
    (
        lambda: from_torchvision("torchvision:IMAGENET1K_V1", family="mlp"),
        r"holds weights of a model of torchvision, and the network is model\.family=mlp; set model\.family=torchvision",
    ),
    (lambda: from_torchvision("torchvision:DEFAULT"), r"means other weights in other versions .*; name them, such as"),
    (lambda: from_torchvision("torchvision:imagenet"), r"torchvision:imagenet and 0 other parts; give torchvision:WEI"),
    (
        lambda: from_torchvision("torchvision:IMAGENET1K_V1", "data.name:mnist"),
        r"torchvision:IMAGENET1K_V1 and 1 other parts; give torchvision:WEIGHTS alone",
    ),
    (
        lambda: RunConfig(data=DataConfig(name="spirals"), model=of_torchvision()),
        r"model\.family=torchvision has nothing to go along in spirals",
    ),
    (lambda: from_mapping({"modle": {}}), r"modle is not a setting; did you mean model\?"),
    (lambda: from_mapping({"model": {"dept": 3}}), r"model\.dept is not a setting; did you mean model\.depth\?"),
    (lambda: from_mapping({"zzz": 3}), r"^zzz is not a setting$"),
    (lambda: from_mapping({"model": 5}), r"model=5 must hold settings, such as model\.NAME=VALUE"),
    (lambda: from_mapping({"model": {"depth": "deep"}}), r"model\.depth='deep' must be a whole number"),
    (lambda: from_mapping({"model": {"depth": 20.0}}), r"model\.depth=20\.0 must be a whole number"),
    (lambda: from_mapping({"model": {"depth": True}}), r"model\.depth=True must be a whole number"),
    (lambda: from_mapping({"model": {"bias": 1}}), r"model\.bias=1 must be true or false"),
    (lambda: from_mapping({"train": {"lr": "0.1"}}), r"train\.lr='0\.1' must be a number"),
    (lambda: from_mapping({"train": {"clip_norm": "x"}}), r"train\.clip_norm='x' must be a number or null"),
    (lambda: from_mapping({"seed": None}), r"seed=null must be a whole number"),
    (lambda: from_mapping({"train": {"milestones": 0.5}}), r"train\.milestones=0\.5 must be a list"),
    (lambda: RunConfig(model={"depth": 3}), r"model=\{'depth': 3\} must be a ModelConfig"),  # type: ignore[arg-type]
    (lambda: ModelConfig(activation="rleu"), r"model\.activation=rleu must be one of sigmoid, .*; did you mean relu\?"),
    (lambda: ProbesConfig(names=("grad",)), r"probes\.names=grad must be one of grad_norm, .*"),
    (lambda: ModelConfig(dropout=1.2), r"model\.dropout=1\.2 must be at least 0 and less than 1$"),
    (lambda: ModelConfig(dropout=1.0), r"model\.dropout=1\.0 must be at least 0 and less than 1$"),
    (lambda: ModelConfig(norm_affine=False), r"model\.norm_affine=false and .* have no effect with model\.norm=none"),
    (lambda: ModelConfig(init="lsuv", head_gain=2.0), r"model\.head_gain=2\.0 .* undone by model\.init=lsuv"),
    (lambda: ModelConfig(init="lsuv", head_bias=1.0), r"model\.head_bias=1\.0 would be undone by model\.init=lsuv"),
    (
        lambda: ModelConfig(branch="rezero"),
        r"model\.branch=rezero has no effect with model\.skip=none.*; choose .*=residual",
    ),
    (
        lambda: ModelConfig(gate_bias=-4.0, skip="residual"),
        r"model\.gate_bias=-4\.0 has no effect with model\.skip=residual, which has no gates; .* leave it at -2\.0",
    ),
    (lambda: ModelConfig(gate_bias=-101.0, skip="highway"), r"model\.gate_bias=-101\.0 must be at least -100"),
    (
        lambda: ModelConfig(branch="fixup", skip="highway"),
        r"model\.branch=fixup has no effect with model\.skip=highway",
    ),
    (
        lambda: ModelConfig(branch="fixup", skip="residual", norm="batch"),
        r"model\.branch=fixup scales branches .* model\.norm=batch, .*; choose model\.norm=none, an init other",
    ),
    (lambda: ModelConfig(branch="fixup", skip="residual", init="lsuv"), r"which .* model\.init=lsuv and .* must leave"),
    (lambda: ModelConfig(branch="fixup", skip="residual", head_gain=2.0), r"model\.head_gain=2\.0 must leave as it is"),
    (lambda: ModelConfig(norm_noise=0.5), r"model\.norm_noise=0\.5 have no effect with model\.norm=none"),
    (lambda: ModelConfig(dropconnect=1.0), r"model\.dropconnect=1\.0 must be at least 0 and less than 1$"),
    (lambda: TrainConfig(l1_step="proximal"), r"train\.l1_step=proximal needs .*; given train\.l1=0\.0 and sgd"),
    (
        lambda: TrainConfig(l1_step="proximal", l1=0.1, optimizer="adam"),
        r"train\.l1_step=proximal needs .* train\.optimizer=sgd; given train\.l1=0\.1 and adam",
    ),
    (lambda: ModelConfig(depth=1), r"model\.depth=1 must be at least 2"),
    (lambda: DataConfig(label_noise=1.1), r"data\.label_noise=1\.1 must be at least 0 and at most 1"),
    (lambda: TrainConfig(lr=-1.0), r"train\.lr=-1\.0 must be at least 0"),
    (lambda: TrainConfig(lr=float("nan")), r"train\.lr=nan must be at least 0"),
    (lambda: TrainConfig(lr=float("inf")), r"train\.lr=inf must be at least 0 and finite"),
    (lambda: TrainConfig(lr=10**400), r"train\.lr=inf must be at least 0 and finite"),
    (lambda: SweepConfig(workers=0), r"sweep\.workers=0 must be at least 1"),
    (lambda: DataConfig(crop_padding=8), r"data\.crop_padding=8 is too large for digits.* choose less than 8"),
    (lambda: DataConfig(cutout=9), r"data\.cutout=9 is larger than digits images; choose at most 8"),
    (
        lambda: DataConfig(validation_fraction=0.999),
        r"data\.validation_fraction=0\.999 leaves 1 images of digits to train on and 1437 to validate on; .* 0\.1",
    ),
    (lambda: DataConfig(validation_fraction=0.0), r"data\.validation_fraction=0\.0 leaves .* and 0 to validate on"),
    (lambda: DataConfig(pool_size=9), r"data\.pool_size=9 must be between 10 .* and 1438"),
    (lambda: DataConfig(pool_size=1439), r"data\.pool_size=1439 must be between 10 .* and 1438"),
    (lambda: DataConfig(pool_size=100, train_size=91), r"data\.train_size=91 must be between 10 .* and 90"),
    (lambda: DataConfig(fold=1), r"data\.fold=1 has no effect without data\.folds; set both"),
    (lambda: DataConfig(folds=1), r"data\.folds=1 must be at least 2"),
    (lambda: DataConfig(folds=5, fold=5), r"data\.fold=5 must be less than data\.folds=5"),
    (lambda: DataConfig(folds=1429), r"data\.folds=1429 is too many for 1438 images; choose at most 1428"),
    (lambda: DataConfig(pool_size=12, folds=3), r"data\.folds=3 is too many for 12 images; choose at most 2"),
    (
        lambda: DataConfig(folds=5, validation_fraction=0.2),
        r"validation_fraction=0\.2 and data\.folds=5 both say .*; leave validation_fraction at 0\.1 or folds at null",
    ),
    (lambda: DataConfig(folds=5, train_size=1151), r"data\.train_size=1151 must be between 10 .* and 1150"),
    (lambda: DataConfig(train_size=9), r"data\.train_size=9 must be between 10 .* and 1294"),
    (lambda: DataConfig(train_size=1295), r"data\.train_size=1295 must be between 10 .* and 1294"),
    (lambda: DataConfig(part=1), r"data\.part=1 needs subsets to choose from; set data\.train_size, or .* at 0"),
    (
        lambda: DataConfig(train_size=250, part=5),
        r"data\.part=5 is beyond the 1294 images .* of digits; with data\.train_size=250 the last part is 4",
    ),
    (
        lambda: ModelConfig(depth=21, skip="residual"),
        r"model\.depth=21 does not fit model\.skip=residual: .*; choose 20 or 22",
    ),
    (
        lambda: ModelConfig(family="cnn", depth=21),
        r"model\.depth=21 does not fit model\.stages=3: .* 6n \+ 2 weight layers; choose 20 or 26",
    ),
    (lambda: ModelConfig(family="cnn", depth=2), r"model\.depth=2 does not fit model\.stages=3: .*; choose 8 or 14"),
    (
        lambda: ModelConfig(norm="group", width=10),
        r"model\.width=10 does not divide into model\.norm_groups=4 groups; change either",
    ),
    (lambda: ModelConfig(cell="gru"), r"model\.cell=gru has no effect with model\.family=mlp; set model\.family=rnn"),
    (lambda: ModelConfig(forget_bias=1.0), r"model\.forget_bias=1\.0 needs a gate with a bias; .*lstm or gru"),
    (lambda: recurrent(forget_bias=1.0), r"model\.forget_bias=1\.0 needs a gate with a bias"),
    (lambda: recurrent(cell="lstm", bias=False, forget_bias=1.0), r"model\.forget_bias=1\.0 .* model\.bias=true"),
    (lambda: recurrent(depth=3), r"model\.depth=3 does not fit model\.family=rnn: .*; choose 2$"),
    (
        lambda: recurrent(activation="gelu"),
        r"model\.activation=gelu .* model\.cell=rnn .* model\.activation=tanh or relu$",
    ),
    (lambda: recurrent(cell="lstm", activation="relu"), r"model\.activation=relu .* choose model\.activation=tanh$"),
    (lambda: recurrent(norm="layer"), r"model\.norm=layer has no place in model\.family=rnn; leave it at none"),
    (lambda: recurrent(skip="residual"), r"model\.skip=residual has no place in model\.family=rnn; leave it at none"),
    (lambda: recurrent(dropout=0.5), r"model\.dropout=0\.5 has no place in model\.family=rnn; leave it at 0\.0"),
    (lambda: recurrent(init="lsuv"), r"model\.init=lsuv .* with model\.family=rnn choose model\.init=orthogonal"),
    (lambda: recurrent(init="delta_orthogonal"), r"with model\.family=rnn choose model\.init=orthogonal"),
    (
        lambda: RunConfig(model=recurrent(), train=TrainConfig(activation_checkpointing=True)),
        r"train\.activation_checkpointing=true .* model\.family=rnn has none; set it to false",
    ),
    (
        lambda: RunConfig(model=recurrent(), probes=ProbesConfig(names=("validation_inactive_fraction",))),
        r"probes\.names=validation_inactive_fraction .* model\.family=rnn .*; leave it out",
    ),
    (
        lambda: points(model=ModelConfig(family="cnn", depth=4, stages=1)),
        r"model\.family=cnn .* in spirals, .* choose model\.family=mlp",
    ),
    (lambda: points(model=recurrent()), r"model\.family=rnn .* in spirals, .* choose model\.family=mlp"),
    (lambda: DataConfig(name="spirals", flip=True), r"data\.flip=true .* spirals are points, .* at false and 0"),
    (lambda: DataConfig(name="spirals", cutout=1), r"data\.cutout=1 are for images, and spirals are points"),
    (lambda: DataConfig(name="spirals", crop_padding=1), r"data\.crop_padding=1 is too large for spirals"),
    (
        lambda: RunConfig(probes=ProbesConfig(names=("linear_regions",))),
        r"probes\.names=linear_regions is read on a plane .* digits has more than two; choose data\.name=spirals",
    ),
    (
        lambda: RunConfig(probes=ProbesConfig(names=("decision",))),
        r"probes\.names=decision is read on a plane .* digits has more than two; choose data\.name=spirals",
    ),
    (
        lambda: points("linear_regions", model=ModelConfig(activation="tanh")),
        r"linear_regions is of plain nets of relu, leaky_relu, very_leaky_relu, .* model\.activation=tanh; change",
    ),
    (
        lambda: points("linear_regions", model=ModelConfig(skip="residual")),
        r"linear_regions is of plain nets .* model\.skip=residual",
    ),
    (
        lambda: points("linear_regions", model=ModelConfig(norm="batch")),
        r"linear_regions is of plain nets .* model\.norm=batch",
    ),
    (lambda: ModelConfig(init="delta_orthogonal"), r"model\.init=delta_orthogonal .* choose model\.init=orthogonal"),
    (lambda: ModelConfig(sigma_w=1.0), r"model\.sigma_w=1\.0 has no effect with model\.init=he; .*gaussian"),
    (lambda: ModelConfig(sigma_b=0.1), r"model\.sigma_b=0\.1 has no effect with model\.init=he; .*gaussian"),
    (
        lambda: ModelConfig(init="gaussian", sigma_b=0.1, bias=False),
        r"model\.sigma_b=0\.1 needs biases; set model\.bias=true or model\.sigma_b=0",
    ),
    (
        lambda: TrainConfig(nesterov=True, momentum=0.0),
        r"train\.nesterov=true needs train\.optimizer=sgd with momentum; given sgd with train\.momentum=0\.0",
    ),
    (lambda: TrainConfig(nesterov=True, optimizer="adam"), r"train\.nesterov=true needs .*; given adam"),
    (
        lambda: TrainConfig(corruption=0.2),
        r"train\.corruption=0\.2 and .* have no effect with train\.pretraining_steps=0; set that, or leave .* 0\.001$",
    ),
    (lambda: TrainConfig(pretraining_lr=0.1), r"train\.pretraining_lr=0\.1 have no effect"),
    (lambda: TrainConfig(pretraining_steps=5, corruption=1.0), r"train\.corruption=1\.0 must be .* less than 1$"),
    *(
        (
            partial(pretrained, **{name: value}),
            rf"train\.pretraining_steps=5 .* model\.{name}=.*; choose model\.{name}={only}, or",
        )
        for name, value, only in (
            ("family", "cnn", "mlp"),
            ("skip", "residual", "none"),
            ("norm", "batch", "none"),
            ("dropconnect", 0.5, r"0\.0"),
        )
    ),
    *(
        (
            partial(pretrained_again, **transfer),
            r"train\.pretraining_steps=5 would train blocks again .*; leave both out",
        )
        for transfer in ({"source": ("data.name:mnist",)}, {"trained": 0})
    ),
    (lambda: TrainConfig(warmup_steps=600), r"train\.warmup_steps=600 must be less than train\.steps=600"),
    (lambda: TrainConfig(milestones=(0.7, 0.5)), r"train\.milestones=\[0\.7, 0\.5\] must rise and lie between 0 and 1"),
    (lambda: TrainConfig(milestones=(0.5, 0.5)), r"train\.milestones=\[0\.5, 0\.5\] must rise"),
    (lambda: TrainConfig(milestones=(1.0,)), r"train\.milestones=\[1\.0\] must rise and lie between 0 and 1"),
    (
        lambda: RunConfig(train=TrainConfig(batch_size=1295)),
        r"train\.batch_size=1295 is more than the 1294 images .*; choose a smaller train\.batch_size or a larger "
        r"data\.train_size",
    ),
    (
        lambda: RunConfig(model=ModelConfig(family="cnn", depth=22, stages=5)),
        r"model\.stages=5 halves digits images of 8 pixels to nothing; choose at most 4 stages",
    ),
]


KEY = "6d76d6a408f17555"

REFUSED_TRANSFERS: list[tuple[dict[str, Any], str]] = [
    ({"source": ["mnist"]}, r"holds 'mnist'; give each part once and as NAME:VALUE"),
    ({"source": ["data.name:mnist", "data.name:digits"]}, r"give each part once"),
    ({"source": ["train.steps:5"]}, r"does not say what was trained on; add data\.name:NAME"),
    ({"source": ["data.name:mnst"]}, r"describes no run: data\.name=mnst must be one of .*did you mean mnist\?"),
    ({"source": ["data.name:mnist", "train.stps:5"]}, r"describes no run: train\.stps is not a setting"),
    ({"source": ["data.name:mnist", "transfer.head:mlp"]}, r"is itself a transfer is given as run:KEY"),
    ({"source": ["run:12"]}, r"the 16 digits of a run's key"),
    ({"source": [f"run:{KEY}", "data.name:mnist"]}, r"give run:KEY alone"),
    ({"source": ["file:weights.pt"]}, r"the 64 digits that sha256sum PATH tells"),
    ({"source": ["file:weights.pt", "sha256:abc"]}, r"the 64 digits"),
    ({"copied": 3}, r"transfer\.copied=3 has no effect without transfer\.source"),
    ({"copied": 0, "trained": 0}, r"transfer\.copied=0 must be at least 1"),
    ({"copied": 2, "trained": 3}, r"transfer\.trained=3 must be at most transfer\.copied=2"),
    ({"copied": 20, "trained": 0}, r"transfer\.copied=20 is more than the 19 blocks .* at most 19"),
    ({"trained": 20}, r"transfer\.trained=20 is more than the 19 blocks"),
    ({"backbone_lr_factor": 0}, r"freeze them with transfer\.trained=0"),
    ({"backbone_lr_factor": 0.1, "trained": 0}, r"has no effect with transfer\.trained=0"),
]


@pytest.mark.parametrize(("transfer", "message"), REFUSED_TRANSFERS)
def test_transfers_that_cannot_be_are_refused(transfer: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        from_mapping({"transfer": transfer})
    assert "\n" not in str(caught.value)


def test_a_transfer_does_not_go_with_an_initialization_that_rescales() -> None:
    with pytest.raises(ConfigError, match=r"model\.init=lsuv rescales all layers"):
        from_mapping({"model": {"init": "lsuv"}, "transfer": {"source": ["data.name:mnist"]}})


def test_a_source_is_the_run_of_its_settings_with_this_model_and_seed() -> None:
    source = ["train.lr:0.10", "data.name:mnist", "data.classes:[3, 1]", "model.width:50"]
    run = from_mapping(
        {"seed": 3, "model": {"depth": 5}, "train": {"steps": 7}, "transfer": {"source": source, "trained": 0}}
    )
    assert run.source() == RunConfig(
        seed=3,
        data=DataConfig(name="mnist", classes=(3, 1)),
        model=ModelConfig(depth=5, width=50),
        train=TrainConfig(lr=0.1),
    )
    assert RunConfig().source() is None


def test_equal_sources_have_equal_keys() -> None:
    spellings = (
        ["data.name:mnist", "train.lr:0.1", "data.classes:[0, 1]"],
        ["data.classes:[0,1]", "train.lr:0.10", "data.name:mnist"],
    )
    assert len({from_mapping({"transfer": {"source": list(given)}}).key() for given in spellings}) == 1


def test_of_a_file_the_content_is_in_the_key_and_the_place_is_not() -> None:
    def key(path: str, digit: str) -> str:
        return from_mapping({"transfer": {"source": [f"file:{path}", f"sha256:{digit * 64}"]}}).key()

    assert key("a.pt", "0") == key("/b/c.pt", "0") != key("a.pt", "1")
    source = ["file:a.pt", f"sha256:{'0' * 64}"]
    run = from_mapping({"transfer": {"source": source}})
    run.key()
    assert differing(run) == {"transfer.source": source}


def test_what_is_told_of_a_run_may_be_changed_and_its_key_stays() -> None:
    def run(seed: int) -> RunConfig:
        return from_mapping({"probes": {"names": ["weight_norm"]}, "seed": seed})

    key, told = run(0).key(), differing(run(0))
    told["probes.names"].append("grad_norm")
    assert differing(run(0)) == {"probes.names": ["weight_norm"]}
    module._key.cache_clear()
    assert run(0).key() == key


def test_every_factor_of_the_other_families_is_refused_of_a_model_of_torchvision() -> None:
    for name in (name for name in OTHERS if name.startswith("model.")):
        other = next(value for value in OTHERS[name] if value != DEFAULTS[name])
        settings = {"model.family": "torchvision", name: other}
        if name in ("model.family", "model.architecture", "model.image_size"):
            from_mapping(nested(settings))
            continue
        with pytest.raises(ConfigError, match=rf"^model\.{name[6:]}=.* has no effect with model\.family=torchvision"):
            from_mapping(nested(settings))


def test_the_name_of_weights_of_torchvision_is_in_the_key() -> None:
    first, second = (from_torchvision(f"torchvision:IMAGENET1K_{version}") for version in ("V1", "V2"))
    assert len({first.key(), second.key(), RunConfig(model=of_torchvision()).key()}) == 3
    assert first.key() == "5aa7ed5f3b5e54b2"
    assert first.source() is None


def test_only_the_network_tells_how_many_blocks_a_model_of_torchvision_has() -> None:
    assert of_torchvision().blocks is None
    assert from_torchvision("torchvision:IMAGENET1K_V1", copied=1000).transfer.copied == 1000


@pytest.mark.parametrize(("depth", "skip", "blocks"), [(2, "none", 1), (5, "none", 4), (8, "residual", 4)])
def test_the_stem_counts_as_a_block_and_the_head_does_not(depth: int, skip: str, blocks: int) -> None:
    from depthlab.nets import build

    config = ModelConfig(depth=depth, skip=skip)
    net = build(config, channels=1, size=8, classes=10, seed=0)
    assert config.blocks == blocks == len(net.block_names())


@pytest.mark.parametrize("classes", [(1,), (1, 1), (1, 10), (-1, 2)])
def test_classes_that_are_not_there_are_refused(classes: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"data\.classes=.* must be two labels of digits or more, each once"):
        DataConfig(classes=classes)


def test_a_part_of_the_classes_has_fewer_images() -> None:
    assert DataConfig(name="cifar10", classes=(0, 1, 2)).training_images == 13_500
    with pytest.raises(ConfigError, match=r"data\.train_size=13501 must be between 3 .* and 13500"):
        DataConfig(name="cifar10", classes=(0, 1, 2), train_size=13_501)


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_refusals_say_what_was_given_and_what_to_change(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataConfig(crop_padding=7, cutout=8),
        lambda: DataConfig(train_size=10),
        lambda: DataConfig(train_size=1294),
        lambda: DataConfig(train_size=250, part=4),
        lambda: ModelConfig(depth=2, skip="residual"),
        lambda: ModelConfig(skip="preactivation", branch="rezero", norm="batch", init="lsuv"),
        lambda: ModelConfig(depth=8, family="cnn"),
        lambda: ModelConfig(depth=26, family="cnn"),
        lambda: recurrent(cell="lstm", forget_bias=4, init="torch_default"),
        lambda: recurrent(activation="relu", bias=False),
        lambda: TrainConfig(warmup_steps=599),
        lambda: TrainConfig(lr_decay=1.0),
        lambda: RunConfig(train=TrainConfig(batch_size=1294)),
        lambda: RunConfig(model=ModelConfig(family="cnn", depth=10, stages=4)),
    ],
)
def test_the_edges_of_what_is_allowed(make: Callable[[], Any]) -> None:
    make()


def test_depths_that_are_suggested_fit() -> None:
    """Whatever depth is refused, the two that the message names are accepted."""
    for family, skip, depth in itertools.product(("mlp", "cnn"), names.SKIPS, range(2, 30)):
        try:
            ModelConfig(family=family, skip=skip, depth=depth)
        except ConfigError as error:
            for choice in str(error).rpartition("choose ")[2].split(" or "):
                ModelConfig(family=family, skip=skip, depth=int(choice))


def test_choices_are_what_the_rooms_offer() -> None:
    from depthlab.data.splits import BUILT_IN
    from depthlab.nets.blocks import BLOCKS
    from depthlab.nets.ensemble import CRITICAL_GAINS
    from depthlab.nets.families import FAMILIES
    from depthlab.nets.initialization import INITS
    from depthlab.nets.layers import ACTIVATIONS, MULTIPLIERS, NORMS
    from depthlab.nets.recurrence import CELLS

    assert set(names.ACTIVATIONS) == set(ACTIVATIONS) == set(CRITICAL_GAINS)
    assert set(names.NORMS) == set(NORMS)
    assert set(names.SKIPS) == {"none", *BLOCKS}
    assert set(names.BRANCHES) == set(MULTIPLIERS)
    assert set(names.INITS) == set(INITS)
    assert set(names.FAMILIES) == set(FAMILIES)
    assert set(names.CELLS) == set(CELLS)
    assert set(BUILT_IN) <= set(DATASETS)


@pytest.mark.parametrize("name", ["digits", "synthetic", "spirals"])
def test_what_is_known_of_built_in_data_is_true(name: str) -> None:
    from depthlab.data.prepared import find_faults
    from depthlab.data.splits import BUILT_IN

    prepared = BUILT_IN[name]()
    arrays = {**vars(prepared), "classes": np.array(prepared.classes)}
    assert list(find_faults(arrays, DATASETS[name])) == []


@pytest.mark.parametrize("optimizer", names.OPTIMIZERS)
@pytest.mark.parametrize("schedule", names.SCHEDULES)
def test_every_optimiser_and_schedule_is_there(optimizer: str, schedule: str) -> None:
    from torch import nn

    from depthlab.training import build_optimizer, learning_rate

    config = TrainConfig(optimizer=optimizer, schedule=schedule)
    assert build_optimizer(nn.Linear(2, 2), config).param_groups[0]["lr"] == config.lr
    assert 0 <= learning_rate(config, 599) <= config.lr


def test_every_field_is_described() -> None:
    described = {name: default for name, default, about in describe_fields() if about}
    launch = dict(flatten(to_mapping(SweepConfig()), "sweep."))
    assert {"sweep.engine", "sweep.workers", "sweep.slurm.partition", "sweep.ray.address"} < set(launch)
    assert {name: list(v) if isinstance(v, tuple) else v for name, v in described.items()} == {**DEFAULTS, **launch}


def test_streams_are_apart_and_frozen() -> None:
    seeds = {stream_seed(seed, name) for seed in range(50) for name in ("init", "order", "augment", "dropout/3")}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert stream_seed(0, "init") == 1519069808562059438
