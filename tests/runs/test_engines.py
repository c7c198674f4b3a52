"""Engines: the same readings as the pool of this machine, to the bit, and no run that takes others with it."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from in_processes import CPU, LONG, Command, DyingJob, FullDisk, is_alive

from depthlab.config import (
    ENGINES,
    ConfigError,
    DataConfig,
    RayConfig,
    RunConfig,
    SlurmConfig,
    SweepConfig,
    TrainConfig,
)
from depthlab.runs import DiskFullError, EngineError, Run, Status, execute, sweep
from depthlab.runs.engines import PLACES, engine_of
from depthlab.runs.engines.engine import Engine
from depthlab.runs.engines.job import Ended, Job
from depthlab.runs.interrupts import Stop

HERE = ["joblib", pytest.param("submitit_local", marks=pytest.mark.slow)]
"""Engines that need no cluster."""

needs_signals = pytest.mark.skipif(not hasattr(os, "killpg"), reason="signals are those of POSIX")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs find this package and the jobs of these tests, from a folder other than this one."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))


def seeds(config: RunConfig, *numbers: int) -> list[RunConfig]:
    return [dataclasses.replace(config, seed=number) for number in numbers]


def long(config: RunConfig) -> RunConfig:
    """A run of seconds."""
    return dataclasses.replace(config, train=TrainConfig(steps=4000, batch_size=20, eval_every=1000, lr=1e-3))


def bytes_of(config: RunConfig, root: Path | None = None) -> bytes:
    return (Run.of(config, root).folder / "readings.parquet").read_bytes()


def replaced(kind: type[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    """Has every engine start jobs of this kind."""

    def made(engine: Engine, config: RunConfig, wait: bool) -> Job:
        return kind.of(config, engine._device, 1, engine._launch, wait)

    monkeypatch.setattr(Engine, "_job", made)


def test_every_engine_that_can_be_chosen_has_its_place() -> None:
    assert tuple(PLACES) == ENGINES


@pytest.mark.parametrize(("name", "package", "extra"), [
    ("joblib", "joblib", "joblib"), ("submitit_local", "submitit", "slurm"), ("submitit_slurm", "submitit", "slurm"),
    ("ray", "ray", "ray"),
])  # fmt: skip
def test_a_package_that_is_missing_is_named(
    name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, PLACES[name][0], raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    told = rf"^hydra/launcher={name} needs {package}, .* pip install 'depthlab\[{extra}\]'$"
    with pytest.raises(ConfigError, match=told):
        engine_of(name)


@pytest.mark.parametrize("name", HERE)
def test_an_engine_gives_the_bits_of_the_pool_whatever_happens_to_one_run(
    name: str, tiny: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, diverging = tiny, dataclasses.replace(tiny, train=TrainConfig(steps=6, batch_size=20, lr=1e30))
    failing = dataclasses.replace(tiny, data=DataConfig(name="mnist", train_size=100))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mnist.npz").write_bytes(b"not a data set")
    damaged = dataclasses.replace(tiny, seed=7)
    Run.of(damaged).folder.mkdir(parents=True)
    (Run.of(damaged).folder / "run.json").write_text("{")

    outcome = sweep([good, diverging, failing, damaged], device="cpu", launch=SweepConfig(engine=name, workers=2))

    assert (outcome.trained, outcome.found) == (2, 0)
    reasons = dict(outcome.failures)
    assert set(reasons) == {failing.key(), damaged.key()}
    assert "mnist.npz" in reasons[failing.key()]
    assert "error.txt" in reasons[failing.key()]
    assert "damaged; delete" in reasons[damaged.key()]
    assert [Run.of(each).status() for each in (good, diverging)] == [Status.DONE, Status.DIVERGED]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "4 of 4 runs to train, 2 at once; 0 are finished"
    assert [line[:5] for line in lines[1:]] == ["[1/4]", "[2/4]", "[3/4]", "[4/4]"]
    for each in (good, diverging):
        execute(each, root=tmp_path / "alone", device=CPU)
        assert bytes_of(each) == bytes_of(each, tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("name", HERE)
def test_a_run_that_kills_its_process_stops_no_other(
    name: str, tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced(DyingJob, monkeypatch)
    configs = seeds(tiny, 0, 1, 2, 3)
    outcome = sweep(configs, device="cpu", launch=SweepConfig(engine=name, workers=2))
    assert [key for key, _ in outcome.failures] == [configs[1].key()]
    assert "its process was killed" in outcome.failures[0][1]
    assert [Run.of(config).status() for config in configs] == [
        Status.DONE, Status.INTERRUPTED, Status.DONE, Status.DONE
    ]  # fmt: skip


@pytest.mark.parametrize("name", HERE)
def test_one_at_once_is_one_at_once_and_a_full_disk_stops_the_sweep(
    name: str, tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced(FullDisk, monkeypatch)
    configs = seeds(tiny, 0, 1, 2, 3)
    with pytest.raises(DiskFullError, match="no space left; make room"):
        sweep(configs, device="cpu", launch=SweepConfig(engine=name, workers=1))
    states = [Run.of(config).status() for config in configs]
    assert states[:2] == [Status.DONE, Status.MISSING]
    assert states[3] is Status.MISSING


class LosingAll(Engine):
    """Every job ends without a word."""

    def _train_until_none_is_left(self, configs: Sequence[RunConfig], *, wait: bool) -> None:
        for config in configs:
            self._lost(config, "NODE_FAIL")


def test_of_a_job_that_is_lost_the_directory_of_its_run_tells(tiny: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = seeds(tiny, 0, 1)
    execute(whole, device=CPU)
    engine = LosingAll(SweepConfig(), 1, "cpu")
    engine.train_all([whole, broken])
    ((key, line),) = engine.failures
    assert key == broken.key()
    assert line.endswith("failed: its job ended without a result: NODE_FAIL")
    assert [path.name for path in Run.of(whole).folder.parent.iterdir()] == [whole.key()]  # nothing is left behind

    def full(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DiskFullError, match="No space left"):
        LosingAll(SweepConfig(), 1, "cpu").train_all([broken])


def test_a_job_carries_absolute_places_and_looks_for_its_device_where_it_is(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stop, "has_master", False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEPTHLAB_RESULTS", "here")
    monkeypatch.setenv("DEPTHLAB_DATA", "there")
    job = Job.of(tiny, "cuda:99", 1, SweepConfig(), True)
    assert (job.root, job.data) == (tmp_path / "here" / "runs", str(tmp_path / "there"))
    result = job.train()
    assert isinstance(result, Ended)
    assert not result.succeeded
    assert "failed: device=cuda:99: this machine has" in result.line


@pytest.mark.slow
@needs_signals
def test_joblib_resumes_what_was_killed_from_outside(tiny: RunConfig, tmp_path: Path) -> None:
    configs = seeds(long(tiny), 0, 1)
    killed = []

    def kill() -> None:
        for _ in range(10 * LONG):
            if list(Run.of(configs[0]).folder.glob("checkpoint-*")):
                killed.append(Run.of(configs[0]).record()["pid"])
                os.kill(killed[0], signal.SIGKILL)
                return
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    launch = SweepConfig(engine="joblib", workers=2, checkpoint_seconds=0.5)
    outcome = sweep(configs, device="cpu", launch=launch)
    killer.join()
    assert killed
    assert (outcome.trained, list(outcome.failures)) == (2, [])
    assert Run.of(configs[0]).record()["resumed_at_steps"]
    for config in configs:
        execute(config, root=tmp_path / "alone", device=CPU)
        assert bytes_of(config) == bytes_of(config, tmp_path / "alone")


@pytest.mark.slow
@needs_signals
@pytest.mark.parametrize("name", HERE)
def test_ctrl_c_saves_every_run(name: str, results: Path) -> None:
    with Command(10_000_000, f"hydra/launcher={name}") as command:
        pids = command.pids(results)
        time.sleep(2)
        os.killpg(command.process.pid, signal.SIGINT)
        _, error = command.process.communicate(timeout=LONG)
    assert command.process.returncode == 130, error
    lines = [line for line in error.splitlines() if line]
    assert lines[0].startswith("stopping: each run finishes its update and is saved")
    assert lines[-1] == "depthlab: stopped; what is trained is kept, type the same command to go on"
    assert not any(is_alive(pid) for pid in pids)
    for folder in (results / "runs").iterdir():
        assert Run(folder).status() is Status.INTERRUPTED
        assert len(list(folder.glob("checkpoint-*"))) == 1


@pytest.mark.slow
@needs_signals
def test_workers_of_joblib_end_when_the_sweep_is_killed(results: Path) -> None:
    with Command(10_000_000, "hydra/launcher=joblib") as command:
        pids = command.pids(results)
        command.process.kill()
        for _ in range(10 * LONG):
            if not any(is_alive(pid) for pid in pids):
                return
            time.sleep(0.1)
        raise AssertionError("workers go on without anybody to hear of it")


@pytest.mark.slow
@needs_signals
def test_submitit_queues_a_run_again_whose_time_is_up(tiny: RunConfig, tmp_path: Path) -> None:
    """What it does before a time limit: it sends SIGUSR2."""
    config = long(tiny)
    asked = []

    def ask() -> None:
        for _ in range(10 * LONG):
            if list(Run.of(config).folder.glob("checkpoint-*")):
                asked.append(Run.of(config).record()["pid"])
                os.kill(asked[0], signal.SIGUSR2)
                return
            time.sleep(0.05)

    asker = threading.Thread(target=ask)
    asker.start()
    launch = SweepConfig(engine="submitit_local", checkpoint_seconds=0.5)
    outcome = sweep([config], device="cpu", launch=launch)
    asker.join()
    assert asked
    assert outcome.trained == 1
    record = Run.of(config).record()
    assert len(record["resumed_at_steps"]) == 1
    execute(config, root=tmp_path / "alone", device=CPU)
    assert bytes_of(config) == bytes_of(config, tmp_path / "alone")


def test_what_is_asked_of_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from depthlab.runs.engines.submitit import SubmititSlurm

    wanted = SlurmConfig(partition="gpu", timeout_min=90, mem_gb=2.5, parameters=("account:mine", "exclusive"))
    engine = SubmititSlurm(SweepConfig(engine="submitit_slurm", threads=3, gpus=1, slurm=wanted), 7, "auto")
    engine._folder = tmp_path
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EngineError, match="finds no srun here"):
        engine._executor()
    (tmp_path / "srun").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    executor = engine._executor()
    executor.parameters["map_count"] = 20
    text = executor._make_submission_file_text("command", "uid")
    for line in ("partition=gpu", "time=90", "mem=2560MB", "account=mine", "exclusive", "requeue", "array=0-19%7",
                 "cpus-per-task=3", "gpus-per-node=1", "signal=USR2@90"):  # fmt: skip
        assert f"#SBATCH --{line}\n" in text
    assert executor.max_num_timeout == 100


def test_parameters_of_slurm_are_names_and_values() -> None:
    from depthlab.runs.engines.submitit import _parameter

    assert _parameter("qos:low") == _parameter("qos=low") == ("qos", "low")
    assert _parameter("begin=10:30") == ("begin", "10:30")
    assert _parameter("exclusive") == ("exclusive", True)
    with pytest.raises(ConfigError, match=r"--qos=low.* without dashes"):
        _parameter("--qos=low")


def test_a_ray_that_is_not_there_is_told_at_once(tiny: RunConfig) -> None:
    pytest.importorskip("ray")
    launch = SweepConfig(engine="ray", ray=RayConfig(address="127.0.0.1:1"))
    with pytest.raises(EngineError, match=r"^sweep\.ray\.address=127\.0\.0\.1:1: Ray cannot be reached: .*refused"):
        sweep([tiny], device="cpu", launch=launch)
