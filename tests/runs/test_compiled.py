"""Compiled runs: stopped and gone on they read the same, a sweep leaves no process, and a fault leaves no run."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import psutil
import pytest
import torch

from depthlab.cli import main
from depthlab.config import ConfigError, ModelConfig, RunConfig, SweepConfig, TrainConfig
from depthlab.runs import Run, Status, execute, packing, sweep
from depthlab.runs.interrupts import Stop, Stopped
from depthlab.runs.packing import bound
from depthlab.runs.rehearsal import COMPILER

CPU = torch.device("cpu")

pytestmark = [  # torch's own, when it imports its compiler and when it traces
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
]
inductor = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler"),
]


@pytest.fixture
def compiled(tiny: RunConfig) -> RunConfig:
    """Updates 1, 3 and so on are compiled; dropout draws at each."""
    train = dataclasses.replace(tiny.train, compile=True, optimizer="adam", lr=0.01, steps=10)
    return dataclasses.replace(tiny, model=ModelConfig(depth=3, width=8, norm="batch", dropout=0.2), train=train)


@pytest.mark.usefixtures("without_compiler")
def test_where_there_is_no_compiler_no_run_is_begun(compiled: RunConfig, results: Path) -> None:
    with pytest.raises(ConfigError, match=r"no-such-compiler.* set train\.compile=false"):
        execute(compiled, device=CPU)
    assert not Run.of(compiled).folder.exists()
    assert not results.exists()


@pytest.mark.usefixtures("without_compiler")
def test_the_command_line_tells_so_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train.compile=true", "data.name=synthetic", "train.steps=3", "train.batch_size=20", "device=cpu"]
    assert main(["train", *arguments]) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("depthlab: train.compile=true, and torch.compile cannot compile anything for cpu: ")
    assert last.endswith("set train.compile=false")


def test_a_compiler_is_part_of_what_a_run_takes(compiled: RunConfig) -> None:
    plain = dataclasses.replace(compiled, train=dataclasses.replace(compiled.train, compile=False))
    assert bound(compiled) == bound(plain) + 2 * COMPILER
    assert packing.work(compiled) == packing.work(plain)


class TestInductor:
    pytestmark = inductor

    def test_stopped_and_gone_on_it_reads_the_same(self, compiled: RunConfig, tmp_path: Path) -> None:
        """It stops after the update that follows; 1, 3, 5 and 7 are compiled, and what is left is anew each time."""
        whole = execute(compiled, root=tmp_path / "whole", device=CPU)
        for last in (1, 3, 6):
            stop = Stop()

            def ask(done: int, *_known: float | None, stop: Stop = stop, last: int = last) -> None:
                stop.asked = done >= last

            with pytest.raises(Stopped):
                execute(compiled, device=CPU, progress=ask, stop=stop)
        run = execute(compiled, device=CPU)
        assert run.record()["resumed_at_steps"] == [2, 4, 7]
        read = [(each.folder / "readings.parquet").read_bytes() for each in (run, whole)]
        assert read[0] == read[1]

    def test_a_sweep_reads_the_same_and_leaves_no_process(
        self, compiled: RunConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        runs = [dataclasses.replace(compiled, seed=seed) for seed in (0, 1)]
        outcome = sweep(runs, device=CPU, launch=SweepConfig(workers=1))
        assert (outcome.trained, outcome.failures) == (2, [])
        assert "train.compile=true: the second update of a run waits for the compiler" in capfd.readouterr().err
        alone = execute(runs[1], root=tmp_path / "alone", device=CPU)
        read = [(each.folder / "readings.parquet").read_bytes() for each in (Run.of(runs[1]), alone)]
        assert read[0] == read[1]
        names = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
        assert not [name for name in names if "inductor" in name or "compile_worker" in name]

    def test_other_models_can_be_compiled(self, compiled: RunConfig) -> None:
        model = ModelConfig(family="torchvision", architecture="alexnet", image_size=64)
        train = TrainConfig(steps=4, batch_size=4, eval_every=4, compile=True)
        run = execute(dataclasses.replace(compiled, model=model, train=train), device=CPU)
        assert run.status() is Status.DONE
