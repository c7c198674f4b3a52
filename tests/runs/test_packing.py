"""How many runs at once, by the memory that there is: all sizes are made up, but for those that a bound must hold."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import pytest
import torch

from depthlab.config import DataConfig, ModelConfig, RayConfig, RunConfig, SweepConfig, TrainConfig
from depthlab.runs import Run, packing, sweep
from depthlab.runs.engines.engine import Engine
from depthlab.runs.packing import PROCESS, Packing, bound, pack, work
from depthlab.runs.rehearsal import Failure, Rehearsal, rehearse

GIB = 2**30
SMALL = RunConfig()
LARGE = RunConfig(model=ModelConfig(depth=40, width=4000))
CNN = RunConfig(model=ModelConfig(family="cnn", depth=8, norm="batch"), data=DataConfig(name="cifar10"))


def seeds(config: RunConfig, count: int) -> list[RunConfig]:
    return [dataclasses.replace(config, seed=seed) for seed in range(count)]


def rehearsal(memory: float, gpu_memory: float = 0) -> Rehearsal:
    return Rehearsal(0, 1, 0, 0, 0, 0, 0, 1, 1, int(memory), int(gpu_memory))


Machine = Callable[..., list[Any]]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine of eight cores with so much memory, where rehearsals find what they are told; returns what is asked."""

    def made(
        *, free: float, found: Rehearsal | Failure | None = None, cores: int = 8, free_gpu: float = 0
    ) -> list[Any]:
        asked: list[Any] = []

        def rehearsed(configs: Sequence[RunConfig], device: str, threads: int) -> Iterator[Rehearsal | Failure]:
            asked.append((list(configs), str(device), threads))
            assert found is not None, "nothing was to be rehearsed"
            yield from [found] * len(configs)

        monkeypatch.setattr(packing, "available_cores", lambda: cores)
        monkeypatch.setattr(packing, "available_memory", lambda: int(free))
        monkeypatch.setattr(packing, "free_gpu_memory", lambda device: int(free_gpu))
        monkeypatch.setattr(packing, "rehearse", rehearsed)
        return asked

    return made


def test_with_memory_for_all_there_is_one_thread_on_each_core(machine: Machine) -> None:
    asked = machine(free=64 * GIB)
    assert pack(seeds(SMALL, 100), SweepConfig(), "cpu") == Packing(8, 1)
    assert pack(seeds(SMALL, 3), SweepConfig(), "cpu") == Packing(3, 1)
    assert pack(seeds(CNN, 3), SweepConfig(), "cpu") == Packing(3, 1)  # bits do not depend on how many are missing
    assert pack(seeds(SMALL, 100), SweepConfig(threads=3), "cpu") == Packing(2, 3)
    assert pack(seeds(SMALL, 100), SweepConfig(threads=9), "cpu") == Packing(1, 9)
    assert not asked


def test_what_is_asked_for_wins_and_nothing_is_estimated(machine: Machine) -> None:
    machine(free=0)
    assert pack(seeds(LARGE, 100), SweepConfig(workers=20, threads=2), "cpu") == Packing(20, 2)
    assert pack(seeds(LARGE, 100), SweepConfig(workers=3), "cuda") == Packing(3, 1)
    assert pack(seeds(LARGE, 100), SweepConfig(engine="submitit_slurm"), "auto") == Packing(100, 1)
    on_ray = SweepConfig(engine="ray", ray=RayConfig(address="auto"), threads=4)
    assert pack(seeds(LARGE, 100), on_ray, "auto") == Packing(100, 4)
    assert pack(seeds(LARGE, 1), SweepConfig(), "cpu") == Packing(1, 1)
    assert pack(seeds(LARGE, 9), SweepConfig(engine="ray", gpus=1), "auto") == Packing(1, 1)


def test_short_of_memory_there_are_as_many_as_fit_into_nine_tenths(machine: Machine) -> None:
    asked = machine(free=10 * GIB, found=rehearsal(3 * GIB))
    found = pack([*seeds(SMALL, 5), *seeds(LARGE, 100)], SweepConfig(), "cpu")
    assert asked == [([LARGE, SMALL], "cpu", 1)]
    assert found == Packing(3, 1, "a run takes up to 3.0 GiB, and 10.0 GiB are free")
    assert str(found) == "3 at once (a run takes up to 3.0 GiB, and 10.0 GiB are free)"


def test_models_of_torchvision_are_rehearsed(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    model = ModelConfig(family="torchvision", image_size=64)
    runs = seeds(dataclasses.replace(SMALL, model=model), 100)
    asked = machine(free=10 * GIB, found=rehearsal(3 * GIB))
    assert pack(runs, SweepConfig(), "cpu").workers == 3
    assert [configs for configs, *_ in asked] == [runs[:1]]
    machine(free=10 * GIB, found=Failure("ConfigError: no such architecture"))
    assert pack(runs, SweepConfig(), "cpu").workers == 1
    assert capsys.readouterr().err == ""  # the runs themselves will tell
    larger = dataclasses.replace(runs[0], model=dataclasses.replace(model, image_size=224))
    assert (work(runs[0]), work(larger)) == (128 * 64**2, 128 * 224**2)
    as_they_are = dataclasses.replace(runs[0], model=ModelConfig(family="torchvision"))
    assert work(as_they_are) == 128 * 8**2


def test_of_models_of_torchvision_each_is_rehearsed_beside_the_largest_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of them is the largest is not known before, nor whether it is larger than what has a bound."""
    sizes = {"resnet18": GIB, "resnet34": GIB, "resnet50": GIB, "vgg16": 3 * GIB}
    nets = [
        dataclasses.replace(SMALL, model=ModelConfig(family="torchvision", architecture=name, image_size=64))
        for name in sizes
    ]

    def rehearsed(configs: Sequence[RunConfig], *_: Any) -> Iterator[Rehearsal]:
        for config in configs:
            is_torchvisions = config.model.family == "torchvision"
            yield rehearsal(sizes[config.model.architecture] if is_torchvisions else 2 * GIB)

    monkeypatch.setattr(packing, "available_cores", lambda: 8)
    monkeypatch.setattr(packing, "available_memory", lambda: 10 * GIB)
    monkeypatch.setattr(packing, "rehearse", rehearsed)
    assert pack([run for net in nets for run in seeds(net, 3)], SweepConfig(), "cpu").workers == 3
    assert pack([*seeds(nets[0], 3), *seeds(LARGE, 9)], SweepConfig(), "cpu").workers == 4
    assert pack([*nets[:3], *seeds(LARGE, 9)], SweepConfig(), "cpu").workers == 4


def test_the_three_largest_kinds_are_rehearsed_and_the_largest_finding_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = [dataclasses.replace(LARGE, model=ModelConfig(depth=40, width=width)) for width in (1000, 4000, 2000, 3000)]
    rates = [dataclasses.replace(config, train=TrainConfig(lr=lr)) for config in wide for lr in (0.1, 0.2)]
    sizes = {4000: 2 * GIB, 3000: GIB, 2000: 3 * GIB}  # of 1000 nothing is known
    monkeypatch.setattr(packing, "available_cores", lambda: 8)
    monkeypatch.setattr(packing, "available_memory", lambda: 10 * GIB)
    monkeypatch.setattr(
        packing, "rehearse", lambda configs, *_: (rehearsal(sizes[config.model.width]) for config in configs)
    )
    assert pack(rates, SweepConfig(), "cpu").workers == 3


def test_small_runs_fill_what_a_large_one_leaves(machine: Machine) -> None:
    machine(free=10 * GIB, found=rehearsal(7 * GIB))
    assert PROCESS + bound(SMALL) < GIB
    assert pack([LARGE, *seeds(SMALL, 100)], SweepConfig(), "cpu").workers == 1 + int(
        2 * GIB // (PROCESS + bound(SMALL))
    )
    assert pack([LARGE, LARGE, *seeds(SMALL, 100)], SweepConfig(), "cpu").workers == 1


def test_a_rehearsal_that_finds_enough_memory_changes_nothing(machine: Machine) -> None:
    asked = machine(free=10 * GIB, found=rehearsal(GIB))
    assert pack(seeds(LARGE, 100), SweepConfig(), "cpu") == Packing(8, 1)
    assert len(asked) == 1
    asked = machine(free=1.05 * 8 * (PROCESS + bound(SMALL)), found=rehearsal(PROCESS))
    assert pack(seeds(SMALL, 8), SweepConfig(), "cpu") == Packing(8, 1)
    assert len(asked) == 1, "into nine tenths of what is free their bounds do not fit"


def test_cores_that_memory_leaves_become_threads_of_convolutions_only(machine: Machine) -> None:
    large = dataclasses.replace(CNN, train=TrainConfig(batch_size=2000))
    machine(free=10 * GIB, found=rehearsal(3 * GIB))
    found = pack(seeds(large, 9), SweepConfig(), "cpu")
    assert (found.workers, found.threads) == (3, 2)
    assert str(found).startswith("3 at once with 2 threads each (a run takes up to 3.0 GiB")
    assert pack([large, *seeds(LARGE, 9)], SweepConfig(), "cpu").threads == 1
    assert pack(seeds(large, 9), SweepConfig(threads=1), "cpu").threads == 1


@pytest.mark.parametrize("found", [rehearsal(1000 * GIB), Failure("its process was killed", killed=True)])
def test_a_run_that_asks_for_more_than_there_is_trains_alone(
    found: Rehearsal | Failure, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(free=2.5 * (PROCESS + bound(LARGE)) / 0.9, found=found)  # of two runs, if the bound were all that is known
    assert pack(seeds(LARGE, 9), SweepConfig(), "cpu").workers == 1
    assert capsys.readouterr().err.startswith("there may be too little memory even for one run at a time: ")


Findings = list[Rehearsal | Failure]


@pytest.mark.parametrize(
    ("device", "found", "workers"),
    [
        # one that is killed outweighs all that were found; one that only failed does not
        ("cpu", [rehearsal(GIB), Failure("its process was killed", killed=True)], 1),
        ("cpu", [rehearsal(3 * GIB), Failure("DataError: damaged")], 3),
        # of the GPU too the largest counts
        ("cuda", [rehearsal(GIB, 7.5 * GIB), rehearsal(GIB, GIB)], 4),
        # and bounds, which are those of the CPU, do not count
        ("cuda", [rehearsal(3 * GIB, GIB), rehearsal(GIB, GIB)], 3),
    ],
)
def test_of_several_findings_the_largest_counts(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, device: str, found: Findings, workers: int
) -> None:
    machine(free=10 * GIB, free_gpu=40 * GIB)
    monkeypatch.setattr(packing, "rehearse", lambda *_: iter(found))
    runs = [*seeds(LARGE, 100)] if device == "cpu" else [LARGE, *seeds(SMALL, 100)]
    assert pack(runs, SweepConfig(), device).workers == workers


def test_runs_that_cannot_be_rehearsed_are_as_large_as_their_bounds(machine: Machine) -> None:
    machine(free=2.9 * (PROCESS + bound(LARGE)) / 0.9, found=Failure("DataError: mnist is damaged"))
    assert pack(seeds(LARGE, 9), SweepConfig(), "cpu").workers == 2
    assert pack(seeds(LARGE, 9), SweepConfig(), "cuda").workers == 1


def test_a_gpu_is_shared_while_its_memory_and_the_machines_allow(machine: Machine) -> None:
    asked = machine(free=100 * GIB, free_gpu=80 * GIB, found=rehearsal(3 * GIB, 14.5 * GIB))
    found = pack(seeds(SMALL, 100), SweepConfig(), "cuda:1")
    assert asked == [([SMALL], "cuda:1", 1)]
    assert found == Packing(4, 1, "a run takes up to 15.0 GiB of the GPU, and 80.0 GiB of it are free")
    machine(free=100 * GIB, free_gpu=80 * GIB, found=rehearsal(3 * GIB, GIB))
    assert pack(seeds(SMALL, 100), SweepConfig(), "cuda") == Packing(8, 1)
    machine(free=10 * GIB, free_gpu=80 * GIB, found=rehearsal(3 * GIB, GIB))
    assert pack(seeds(CNN, 100), SweepConfig(), "cuda") == Packing(
        3, 1, "a run takes up to 3.0 GiB, and 10.0 GiB are free"
    )
    machine(free=100 * GIB, free_gpu=10 * GIB, found=rehearsal(3 * GIB, 14 * GIB))
    assert pack(seeds(SMALL, 100), SweepConfig(engine="submitit_local", gpus=1), "auto").workers == 1


def test_a_sweep_begins_as_it_is_packed(tiny: RunConfig, machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine(free=1.6 * PROCESS, found=rehearsal(PROCESS))
    configs = seeds(tiny, 2)
    assert sweep(configs, device="cpu", launch=SweepConfig()).trained == 2
    told = capsys.readouterr().err.splitlines()[0]
    assert told == "2 of 2 runs to train, 1 at once (a run takes up to 0.5 GiB, and 0.8 GiB are free); 0 are finished"


@pytest.mark.parametrize("engine", ["local", "joblib", pytest.param("submitit_local", marks=pytest.mark.slow)])
def test_each_process_sets_its_threads(engine: str, tiny: RunConfig, machine: Machine) -> None:
    machine(free=0)
    sweep([tiny], device="cpu", launch=SweepConfig(engine=engine, workers=1, threads=3))
    assert Run.of(tiny).record()["threads"] == 3  # joblib itself would give it half of four cores


class Seen(Engine):
    """Trains nothing; remembers how it was made."""

    made: ClassVar[list[tuple[int, int]]] = []

    def _train_until_none_is_left(self, configs: Sequence[RunConfig], *, wait: bool) -> None:
        self.made.append((self._count, self._threads))


def test_an_engine_is_given_what_was_packed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["depthlab.runs.sweeping"], "engine_of", lambda name: Seen)
    large = dataclasses.replace(CNN, train=TrainConfig(batch_size=2000))
    machine(free=10 * GIB, found=rehearsal(3 * GIB))
    sweep(seeds(large, 9), device="cpu", launch=SweepConfig())
    sweep(seeds(large, 9), device="cpu", launch=SweepConfig(workers=5))
    assert Seen.made == [(3, 2), (5, 1)]


def test_work_and_weights_are_those_of_the_net() -> None:
    """By hand: digits have 64 pixels; CIFAR's 32 x 32 images pass three stages of 16, 32 and 64 channels."""
    mlp = RunConfig(model=ModelConfig(depth=4, width=50), train=TrainConfig(batch_size=10))
    assert work(mlp) == 10 * (64 * 50 + 2 * 50 * 50 + 50 * 10)
    assert bound(mlp) == 4 * (16 * 10 * (3 * 50 + 10) + 6 * 500 * 50 + 24 * (64 * 50 + 2 * 50 * 50 + 50 * 10))
    cnn = dataclasses.replace(CNN, model=ModelConfig(family="cnn", depth=8, width=16, norm="batch"))
    convolutions = 27 * 16 * 1024 + 2 * 9 * 16**2 * 1024 + 2 * 9 * 32**2 * 256 + 2 * 9 * 64**2 * 64
    assert work(cnn) == 128 * (convolutions + 64 * 10)
    for cell, gates in (("rnn", 1), ("gru", 3), ("lstm", 4)):
        net = RunConfig(model=ModelConfig(family="rnn", cell=cell, depth=2, width=7, activation="tanh"))
        weights, outputs = gates * 7 * (8 + 7), gates * 8 * 7
        assert work(net) == 128 * (8 * weights + 70)
        assert bound(net) == 4 * (16 * 128 * (outputs + 10) + 6 * 500 * outputs + 24 * (weights + 70))
    highway = RunConfig(model=ModelConfig(depth=4, width=50, skip="highway"))
    assert work(highway) == 128 * (64 * 50 + 2 * 2 * 50 * 50 + 50 * 10)


def test_resolutions_that_do_not_halve_are_rounded_up() -> None:
    """28 pixels of MNIST: 14, 7 and, as a convolution of stride 2 with padding leaves them, 4."""
    model = ModelConfig(family="cnn", depth=10, width=2, stages=4)
    stages = 9 * 2 * 28**2 + 2 * 9 * (2**2 * 28**2 + 4**2 * 14**2 + 8**2 * 7**2 + 16**2 * 4**2)
    assert work(RunConfig(model=model, data=DataConfig(name="mnist"))) == 128 * (stages + 16 * 10)


@pytest.mark.parametrize(
    ("model", "gains"),
    [
        (ModelConfig(), False),
        (ModelConfig(family="cnn", depth=8), True),
        (ModelConfig(family="rnn", depth=2, activation="tanh"), False),
        (ModelConfig(family="torchvision"), True),
    ],
    ids=lambda each: getattr(each, "family", ""),
)
def test_convolutions_gain_from_threads(model: ModelConfig, gains: bool) -> None:
    assert model.gains_from_threads is gains


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(),
        RunConfig(model=ModelConfig(depth=300), train=TrainConfig(batch_size=500)),
        RunConfig(model=ModelConfig(depth=3, width=3000), train=TrainConfig(optimizer="adam", lr=0.001)),
        RunConfig(model=ModelConfig(family="cnn", depth=8, width=16, norm="batch"), train=TrainConfig(batch_size=1000)),
        RunConfig(
            model=ModelConfig(family="rnn", depth=2, width=500, activation="tanh"), train=TrainConfig(batch_size=1000)
        ),
    ],
    ids=lambda config: f"{config.model.family}-{config.model.depth}x{config.model.width}",
)
@pytest.mark.slow
def test_a_bound_holds_and_is_not_far_off(config: RunConfig) -> None:
    found = next(rehearse([config], torch.device("cpu"), 1))
    assert isinstance(found, Rehearsal)
    assert found.memory < PROCESS + bound(config) < 5 * found.memory
