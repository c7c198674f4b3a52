"""From overrides to runs: the same values, and so the same keys, as from Python; and the files of settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from depthlab.cli import compose as module
from depthlab.cli import experiments
from depthlab.cli.compose import Composer, Launch
from depthlab.config import (
    ConfigError,
    DataConfig,
    ModelConfig,
    ProbesConfig,
    RayConfig,
    RunConfig,
    SlurmConfig,
    SweepConfig,
    TrainConfig,
    flat,
)

CONFIGS = experiments.folder("configs")
FILES = sorted(CONFIGS.rglob("*.yaml"))
GROUP_FILES = [path for path in FILES if path.parent.name in ("data", "model", "train")]


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer(CONFIGS)


def keys(composer: Composer, *overrides: str) -> list[str]:
    return [launch.run.key() for launch in composer.sweep(overrides)]


def test_without_overrides_a_run_is_the_default_one(composer: Composer) -> None:
    assert keys(composer) == [RunConfig().key()] == ["6d76d6a408f17555"]


@pytest.mark.parametrize(
    ("overrides", "run"),
    [
        (["train.lr=1"], RunConfig(train=TrainConfig(lr=1.0))),
        (["train.lr=1e-3"], RunConfig(train=TrainConfig(lr=0.001))),
        (["model.bias=false", "seed=3"], RunConfig(model=ModelConfig(bias=False), seed=3)),
        (["train.clip_norm=2", "train.clip_norm=null"], RunConfig()),
        (["train.milestones=[0.25]"], RunConfig(train=TrainConfig(milestones=(0.25,)))),
        (["probes.names=[grad_norm]", "probes.every=0"], RunConfig(probes=ProbesConfig(every=0, names=("grad_norm",)))),
        (["model.init=gaussian", "model.sigma_w=1.5"], RunConfig(model=ModelConfig(init="gaussian", sigma_w=1.5))),
        (["model=residual"], RunConfig(model=ModelConfig(skip="residual", norm="batch"))),
        (["model=resnet", "model=plain"], RunConfig()),
        (["model.width=32", "model=resnet"], RunConfig(
            model=ModelConfig(family="cnn", width=32, skip="residual", norm="batch", bias=False)
        )),
        (["data=mnist", "train=adam"], RunConfig(
            data=DataConfig(name="mnist"), train=TrainConfig(optimizer="adam", lr=0.001)
        )),
        (["model.activation='relu'"], RunConfig()),
        (["model.depth=${seed}", "seed=4"], RunConfig(model=ModelConfig(depth=4), seed=4)),
    ],
)  # fmt: skip
def test_runs_have_the_keys_that_they_have_in_python(composer: Composer, overrides: list[str], run: RunConfig) -> None:
    (launch,) = composer.sweep(overrides)
    assert launch.run == run
    assert launch.run.key() == run.key()


def test_launching_is_no_part_of_the_run(composer: Composer) -> None:
    (launch,) = composer.sweep(["device=cpu", "sweep.workers=2", "sweep.threads=3"])
    assert launch.run.key() == RunConfig().key()
    assert launch.device == "cpu"
    assert launch.sweep == SweepConfig(workers=2, threads=3)


@pytest.mark.parametrize("chosen", ["hydra/launcher=submitit_slurm", "sweep.engine=submitit_slurm"])
def test_an_engine_is_chosen_as_in_hydra_or_under_sweep(composer: Composer, chosen: str) -> None:
    wanted = ["sweep.slurm.timeout_min=30", "sweep.slurm.parameters=[account:mine,exclusive]", "sweep.ray.address=auto"]
    (launch,) = composer.sweep([chosen, *wanted])
    assert launch.run.key() == RunConfig().key()
    assert launch.sweep == SweepConfig(
        engine="submitit_slurm",
        slurm=SlurmConfig(timeout_min=30, parameters=("account:mine", "exclusive")),
        ray=RayConfig(address="auto"),
    )
    experiment = experiments.load("quickstart")
    assert {each.sweep.engine for each in experiment.launches(composer, "smoke", [chosen])} == {"submitit_slurm"}


def test_sweeps_are_products_the_last_varying_fastest(composer: Composer) -> None:
    found = [launch.run for launch in composer.sweep(["model.depth=5,10", "seed=range(3)"])]
    assert [(run.model.depth, run.seed) for run in found] == [(5, 0), (5, 1), (5, 2), (10, 0), (10, 1), (10, 2)]


def test_what_the_runs_of_a_sweep_share_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An experiment has a thousand runs; composing the files takes Hydra a tenth of a second, parsing a millisecond."""
    composed: list[tuple[str, ...]] = []
    parsed: list[str] = []
    compose, parse = module.compose, module.OverridesParser.parse_override

    def noted(name: str, overrides: list[str]) -> Any:
        composed.append(tuple(overrides))
        return compose(name, overrides=overrides)

    def read(parser: Any, text: str) -> Any:
        parsed.append(text)
        return parse(parser, text)

    monkeypatch.setattr(module, "compose", noted)
    monkeypatch.setattr(module.OverridesParser, "parse_override", read)
    module._read.cache_clear()
    found = list(Composer(CONFIGS).sweep(["model=plain,residual", "seed=range(3)", "sweep.workers=2"]))
    assert composed == [("model=plain",), ("model=residual",)]
    assert len(parsed) == len(set(parsed))
    assert len({id(launch.sweep) for launch in found}) == 1
    assert len({launch.run.key() for launch in found}) == 6
    assert len({id(launch.run.train) for launch in found}) == 1
    assert len({id(launch.run.model) for launch in found}) == 2


@pytest.mark.parametrize(
    ("allowed", "given", "message"),
    [
        ("train.nesterov=true", "train.nesterov=1", "train.nesterov=1 must be true or false"),
        ("train.lr=1", "train.lr=true", "train.lr=True must be a number"),
        ("model.depth=4", "model.depth=4.0", r"model.depth=4.0 must be a whole number"),
        ("model.norm=batch", "model.norm=1", "model.norm=1 must be a word"),
        ("data.classes=[0,1]", "data.classes=[0,true]", "data.classes=True must be a whole number"),
        ("data.classes=[0,1]", "data.classes=[0,1.0]", "data.classes=1.0 must be a whole number"),
    ],
)
def test_sharing_takes_no_value_for_an_equal_one_of_another_type(
    composer: Composer, allowed: str, given: str, message: str
) -> None:
    before = composer.compose([allowed])
    with pytest.raises(ConfigError, match=message):
        composer.compose([given])
    assert composer.compose([allowed]) == before


def test_a_setting_that_is_refused_stays_refused() -> None:
    fresh = Composer(CONFIGS)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"model.depth=0 must be at least 2"):
            fresh.compose(["model.depth=0"])


def test_what_is_shared_is_changed_by_no_run(composer: Composer) -> None:
    """Neither by one of the same files nor by one that is launched otherwise."""
    plain = next(composer.sweep([]))
    slurm = ["sweep.engine=submitit_slurm", "sweep.slurm.mem_gb=4", "sweep.slurm.parameters=[qos:low]", "device=cpu"]
    changed = next(composer.sweep(["model.depth=7", "data.classes=[1,2]", *slurm]))
    assert next(composer.sweep([])) == plain == Launch(RunConfig(), "auto", SweepConfig())
    assert (changed.run.model.depth, changed.run.data.classes) == (7, (1, 2))
    other = next(composer.sweep([*slurm, "sweep.slurm.mem_gb=8"]))
    assert (changed.sweep.slurm.mem_gb, other.sweep.slurm.mem_gb) == (4.0, 8.0)


def test_each_choice_of_files_is_one_of_its_own() -> None:
    fresh = Composer(CONFIGS)
    mnist, residual = DataConfig(name="mnist"), ModelConfig(skip="residual", norm="batch")
    for files, run in (
        (["model=residual", "data=mnist"], RunConfig(model=residual, data=mnist)),
        (["model=residual"], RunConfig(model=residual)),
        (["data=mnist"], RunConfig(data=mnist)),
        ([], RunConfig()),
    ):
        assert next(fresh.sweep(files)).run == run


def test_each_folder_of_configurations_has_a_search_of_its_own(composer: Composer, tmp_path: Path) -> None:
    other = written(tmp_path, "data/digits.yaml", "name: digits\ncrop_padding: 1\n")
    for each, padding in ((composer, 0), (other, 1)):
        found = each.searched(["train.lr=interval(0.1,0.2)"])({"train.lr": 0.15})
        assert (found.data.crop_padding, found.train.lr) == (padding, 0.15)


def test_sweeps_over_files_lists_and_choices(composer: Composer) -> None:
    found = [launch.run for launch in composer.sweep(["model=plain,residual", "probes.names=[grad_norm],[]"])]
    assert [(run.model.skip, run.probes.names) for run in found] == [
        ("none", ("grad_norm",)),
        ("none", ()),
        ("residual", ("grad_norm",)),
        ("residual", ()),
    ]
    assert keys(composer, "model.depth=choice(5,10)") == keys(composer, "model.depth=5,10")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_hold_values_only(path: Path) -> None:
    text = path.read_text()
    assert "_target_" not in text
    assert "${" not in text.replace('"${seed}"', "")  # a training set of its own for each seed is a value too
    assert isinstance(yaml.safe_load(text), dict)


@pytest.mark.parametrize("path", GROUP_FILES, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_every_file_composes_into_what_it_says(composer: Composer, path: Path) -> None:
    group = path.parent.name
    room = ["data=cifar10"] if group == "train" else []
    (launch,) = composer.sweep([*room, f"{group}={path.stem}"])
    values = flat(launch.run)
    for name, value in yaml.safe_load(path.read_text()).items():
        assert values[f"{group}.{name}"] == value


def test_every_file_is_tested() -> None:
    elsewhere = [path for path in FILES if path not in GROUP_FILES]
    assert {path.parent.name for path in elsewhere} == {"configs", "experiment"}
    assert len(GROUP_FILES) > 10


@pytest.mark.parametrize("scale", experiments.SCALES)
@pytest.mark.parametrize("name", experiments.names())
def test_every_experiment_composes_at_every_scale(composer: Composer, name: str, scale: str) -> None:
    experiment = experiments.load(name)
    launches = experiment.launches(composer, scale)
    assert len({launch.run.key() for launch in launches}) == len(launches) > 1
    assert len({launch.run.seed for launch in launches}) >= 3, "a claim wants an interval over seeds"
    assert experiment.title


def test_overrides_replace_what_an_experiment_sweeps(composer: Composer) -> None:
    experiment = experiments.load("quickstart")
    declared = [launch.run for launch in experiment.launches(composer, "smoke")]
    one_seed = [launch.run for launch in experiment.launches(composer, "smoke", ["seed=7"])]
    assert {run.seed for run in one_seed} == {7}
    assert 3 * len(one_seed) == len(declared)
    assert {dataclasses.replace(run, seed=0) for run in declared} == {
        dataclasses.replace(run, seed=0) for run in one_seed
    }
    deeper = [launch.run for launch in experiment.launches(composer, "smoke", ["model.depth=3,4,6", "train.lr=0.5"])]
    assert {run.model.depth for run in deeper} == {3, 4, 6}
    assert {run.train.lr for run in deeper} == {0.5}


def test_scales_differ_where_the_declaration_says_so(composer: Composer) -> None:
    experiment = experiments.Experiment(
        "made_up",
        "title",
        {"train.steps": {"smoke": 60, "paper": 6000}, "probes.names": ["grad_norm"], "model.bias": False},
        {"one": {"model.depth": {"smoke": "4,10", "laptop": 5}, "seed": "range(2)"}, "two": {"model.depth": 4}},
    )
    smoke = [launch.run for launch in experiment.launches(composer, "smoke")]
    assert [(run.model.depth, run.seed) for run in smoke] == [(4, 0), (4, 1), (10, 0), (10, 1)]
    assert {(run.train.steps, run.model.bias, run.probes.names) for run in smoke} == {(60, False, ("grad_norm",))}
    laptop = [launch.run for launch in experiment.launches(composer, "laptop")]
    assert {(run.model.depth, run.train.steps) for run in laptop} == {(5, 600), (4, 600)}
    assert {run.model.depth for run in (launch.run for launch in experiment.launches(composer, "paper"))} == {20, 4}


def written(folder: Path, file: str, text: str) -> Composer:
    """A composer of configs of which one file is another."""
    for path in FILES:
        copy = folder / path.relative_to(CONFIGS)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    (folder / file).write_text(text)
    return Composer(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: digits\ncrop: 4\n", "data.crop"),
        ("name: digits\nflip: perhaps\n", "data.flip"),
        ("name: digits\ncrop_padding: 1.5\n", "data.crop_padding"),
    ],
)
def test_a_slip_in_a_file_is_told_with_its_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        list(written(tmp_path, "data/digits.yaml", text).sweep([]))
    assert "\n" not in str(caught.value)


def test_a_declaration_with_other_parts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "configs", "experiment/odd.yaml", "title: odd\nsweep: {}\n")
    monkeypatch.setattr(experiments, "folder", lambda name: tmp_path / name)
    with pytest.raises(ConfigError, match=r"odd\.yaml must hold title, settings and grids; found title, sweep"):
        experiments.load("odd")
