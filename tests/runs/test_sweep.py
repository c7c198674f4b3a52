"""Sweeps: the others go on whatever happens to one run, and readings are gathered into one table."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from in_processes import (
    CPU,
    LONG,
    TRAIN_ONE,
    Command,
    environment_told,
    is_alive,
    killed_at_once,
    killed_at_seed_1,
    on_a_full_disk,
)

from depthlab import _processes
from depthlab.config import DataConfig, ProbesConfig, RunConfig, SweepConfig, TrainConfig
from depthlab.figures.stored import conform, read, to_bytes
from depthlab.runs import DiskFullError, Run, Status, StoreError, cost, execute, finished, load_readings, sweep, workers


def seeds(config: RunConfig, *numbers: int) -> list[RunConfig]:
    return [dataclasses.replace(config, seed=number) for number in numbers]


def test_a_sweep_trains_what_is_missing_whatever_happens_to_one_run(
    tiny: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished, good = seeds(tiny, 0, 1)
    execute(finished, device=CPU)
    diverging = dataclasses.replace(tiny, train=TrainConfig(steps=6, batch_size=20, lr=1e30))
    failing = dataclasses.replace(tiny, data=DataConfig(name="mnist", train_size=100))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mnist.npz").write_bytes(b"not a data set")
    damaged = dataclasses.replace(tiny, seed=7)
    Run.of(damaged).folder.mkdir()
    (Run.of(damaged).folder / "run.json").write_text("{")

    outcome = sweep([finished, good, diverging, failing, damaged, good], device=CPU, launch=SweepConfig(workers=2))

    assert (outcome.trained, outcome.found) == (2, 1)
    reasons = dict(outcome.failures)
    assert set(reasons) == {failing.key(), damaged.key()}
    assert "mnist.npz" in reasons[failing.key()]
    assert "error.txt" in reasons[failing.key()]
    assert "damaged; delete" in reasons[damaged.key()]
    assert "error.txt" not in reasons[damaged.key()]
    assert Run.of(good).status() is Status.DONE
    assert Run.of(diverging).status() is Status.DIVERGED
    assert Run.of(failing).status() is Status.FAILED
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "4 of 5 runs to train, 2 at once; 1 are finished"
    assert [line[:5] for line in lines[1:]] == ["[1/4]", "[2/4]", "[3/4]", "[4/4]"]
    alone = execute(good, root=tmp_path / "alone", device=CPU).readings()
    pd.testing.assert_frame_equal(Run.of(good).readings(), alone, check_exact=True)


def test_a_sweep_of_finished_runs_starts_no_process(tiny: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    execute(tiny, device=CPU)
    monkeypatch.setattr(workers, "ProcessPoolExecutor", None)
    outcome = sweep([tiny], device=CPU, launch=SweepConfig())
    assert (outcome.trained, outcome.found, list(outcome.failures)) == (0, 1, [])


@pytest.mark.slow
def test_a_killed_worker_costs_its_own_run_only(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workers, "_train_one", killed_at_seed_1)
    configs = seeds(tiny, 0, 1, 2)
    outcome = sweep(configs, device=CPU, launch=SweepConfig(workers=2))
    assert [key for key, _ in outcome.failures] == [configs[1].key()]
    assert "its process was killed" in outcome.failures[0][1]
    assert outcome.trained == 2
    states = [Run.of(config).status() for config in configs]
    assert states == [Status.DONE, Status.INTERRUPTED, Status.DONE]
    assert sum(line.startswith("[") for line in capsys.readouterr().err.splitlines()) == 3


def test_a_killed_process_that_took_the_count_along_stops_nobody(
    tiny: RunConfig, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock of the count of updates is held by a thread that never lets go of it."""
    count = multiprocessing.get_context("spawn").Value("q", 0)
    keeper = threading.Thread(target=count.get_lock().acquire)
    keeper.start()
    keeper.join()
    monkeypatch.setattr(workers, "_steps", count)
    began = time.monotonic()
    assert workers._train_one(tiny, results / "runs", CPU).succeeded
    assert time.monotonic() - began < LONG


def test_updates_are_counted_for_the_bar(tiny: RunConfig, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = multiprocessing.get_context("spawn").Value("q", 0)
    monkeypatch.setattr(workers, "_steps", count)
    workers._train_one(tiny, results / "runs", CPU)
    assert count.value == 6
    workers._train_one(tiny, results / "runs", CPU)  # found finished, and all its updates with it
    assert count.value == 12


def test_workers_that_die_before_they_begin_end_the_sweep(tiny: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_train_one", killed_at_once)
    outcome = sweep(seeds(tiny, 0, 1), device=CPU, launch=SweepConfig(workers=1))
    assert len(outcome.failures) == 2
    assert all("killed before it could begin" in reason for _, reason in outcome.failures)


@pytest.mark.parametrize("error", [BrokenProcessPool(), EOFError(), ConnectionResetError()])
def test_runs_whose_process_cannot_start_are_told(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """For want of the process that it is forked from, too. A signal waits until the process is there."""

    class Pool:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def submit(self, *_: Any) -> None:
            if hasattr(signal, "pthread_sigmask"):
                assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, [])
            raise error

        def shutdown(self, **_: Any) -> None:
            pass

    monkeypatch.setattr(workers, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(_processes, "warm_up", lambda: None)
    outcome = sweep(seeds(tiny, 0, 1), device=CPU, launch=SweepConfig(workers=1))
    assert (outcome.trained, len(outcome.failures)) == (0, 2)
    assert all("killed before it could begin" in reason for _, reason in outcome.failures)


def test_workers_have_imported_torch_and_see_the_environment_of_now(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_train_one", environment_told)
    for value in ("first", "second"):
        monkeypatch.setenv("TOLD", value)
        outcome = sweep(seeds(tiny, 0), device=CPU, launch=SweepConfig(workers=1))
        told, seconds = outcome.failures[0][1].split()[-2:]
        assert told == value
        if _processes.ARE_FORKED:
            assert float(seconds) < 0.5  # of CPU time; importing torch takes three times that


def test_a_full_disk_stops_the_sweep_and_loses_nothing(
    tiny: RunConfig, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_train_one", on_a_full_disk)
    configs = seeds(tiny, 0, 1, 2, 3, 4, 5)
    (results / "runs").mkdir(parents=True)
    with pytest.raises(DiskFullError, match="No space left on device; make room"):
        sweep(configs, device=CPU, launch=SweepConfig(workers=1))
    states = [Run.of(config).status() for config in configs]
    assert states == [Status.DONE, *[Status.MISSING] * 5]
    assert len(Run.of(configs[0]).readings()) > 0
    (results / "runs" / "full").unlink()
    monkeypatch.setattr(workers, "_train_one", TRAIN_ONE)
    assert sweep(configs, device=CPU, launch=SweepConfig(workers=2)).trained == 5


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups are those of POSIX")
@pytest.mark.parametrize("moment", ["while they train", pytest.param("while workers start", marks=pytest.mark.slow)])
def test_ctrl_c_in_a_sweep_says_how_to_go_on(results: Path, moment: str) -> None:
    with Command() as command:
        pids = command.pids(results) if moment == "while they train" else []
        os.killpg(command.process.pid, signal.SIGINT)
        _, error = command.process.communicate(timeout=LONG)
    assert command.process.returncode == 130
    assert "Traceback" not in error
    lines = error.strip().splitlines()
    assert lines[-1] == "depthlab: stopped; what is trained is kept, type the same command to go on"
    if pids:
        assert lines[0].startswith("stopping: each run finishes its update and is saved")
    assert not any(is_alive(pid) for pid in pids)
    for folder in (results / "runs").glob("*"):
        assert Run(folder).status() is Status.INTERRUPTED
        with Run(folder).locked():  # taken over, not waited for
            pass


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="signals are those of POSIX")
@pytest.mark.parametrize(
    ("number", "whole_group"), [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGUSR1, True)]
)
def test_a_sweep_that_was_stopped_goes_on_to_the_same_readings(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, whole_group: bool
) -> None:
    steps = 6000
    with Command(steps) as command:
        pids = command.pids(results)
        time.sleep(1)
        (os.killpg if whole_group else os.kill)(command.process.pid, number)
        _, error = command.process.communicate(timeout=LONG)
    assert command.process.returncode == 130, error
    assert not any(is_alive(pid) for pid in pids)
    runs = [Run(folder) for folder in (results / "runs").glob("*")]
    assert [run.status() for run in runs] == [Status.INTERRUPTED] * 2
    assert all(0 < run.record()["steps"] < steps for run in runs)
    with Command(steps) as command:
        _, error = command.process.communicate(timeout=LONG)
    assert command.process.returncode == 0, error
    assert all(run.record()["resumed_at_steps"] for run in runs)
    monkeypatch.setenv("DEPTHLAB_RESULTS", str(tmp_path / "undisturbed"))
    with Command(steps) as command:
        command.process.communicate(timeout=LONG)
    for run in runs:
        undisturbed = tmp_path / "undisturbed" / "runs" / run.key / "readings.parquet"
        assert (run.folder / "readings.parquet").read_bytes() == undisturbed.read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="signals are those of POSIX")
def test_workers_end_when_the_sweep_is_killed(results: Path) -> None:
    with Command() as command:
        pids = command.pids(results)
        command.process.kill()
        for _ in range(10 * LONG):
            if not any(is_alive(pid) for pid in pids):
                return
            time.sleep(0.1)
        raise AssertionError("workers go on without anybody to hear of it")


@pytest.mark.slow
@pytest.mark.skipif(not _processes.ARE_FORKED, reason="workers are not forked here")
def test_a_sweep_goes_on_without_the_process_that_workers_are_forked_from(results: Path) -> None:
    with Command(2000) as command:
        pids = command.pids(results)
        origin = int(Path(f"/proc/{pids[0]}/stat").read_text().rpartition(")")[2].split()[1])
        assert origin != command.process.pid
        os.kill(origin, signal.SIGKILL)
        _, error = command.process.communicate(timeout=LONG)
    assert command.process.returncode == 0, error
    runs = [Run(folder) for folder in (results / "runs").glob("*")]
    assert [run.status() for run in runs] == [Status.DONE] * 2


def gathered(configs: list[RunConfig], probes: list[str] | None = None) -> pd.DataFrame:
    for config in configs:
        execute(config, device=CPU)
    return load_readings(configs, probes)


def test_readings_of_runs_are_gathered_with_what_differs(tiny: RunConfig) -> None:
    wide = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, init="gaussian", sigma_w=1.5))
    slow = dataclasses.replace(tiny, train=dataclasses.replace(tiny.train, lr=0.01, milestones=(0.5,)), seed=3)
    table = gathered([tiny, wide, slow, tiny])
    assert {"key", "status", "step", "layer", "depth", "probe", "value"} <= set(table)
    settings = {name for name in table if "." in str(name) or name == "seed"}
    models = {f"model.{field.name}" for field in dataclasses.fields(tiny.model)}
    always = models | {"data.name", "train.steps", "seed"}
    assert settings == always | {"train.lr", "train.milestones"}
    assert list(table["key"].unique()) == [tiny.key(), wide.key(), slow.key()]
    first = table.groupby("key").first()
    assert first.loc[wide.key(), "model.sigma_w"] == 1.5
    assert first.loc[slow.key(), "train.lr"] == 0.01
    assert first.loc[slow.key(), "train.milestones"] == (0.5,)
    assert first.loc[slow.key(), "seed"] == 3
    assert set(table["status"]) == {"done"}
    assert table["model.depth"].dtype == table["step"].dtype == "int64"
    assert len(table) == 3 * len(Run.of(tiny).readings())


def test_what_is_gathered_comes_back_from_the_file_of_a_figure(tiny: RunConfig, tmp_path: Path) -> None:
    slow = dataclasses.replace(tiny, train=dataclasses.replace(tiny.train, milestones=(0.25, 0.5), clip_norm=1.0))
    table = gathered([tiny, slow])
    (tmp_path / "readings.csv.gz").write_bytes(to_bytes(table))
    back = read(tmp_path / "readings.csv.gz")
    assert set(back.loc[back["key"] == slow.key(), "train.milestones"]) == {(0.25, 0.5)}
    assert back.loc[back["key"] == tiny.key(), "train.clip_norm"].isna().all()
    pd.testing.assert_frame_equal(back, conform(table))


def test_how_runs_are_probed_is_told_where_it_differs(tiny: RunConfig) -> None:
    """Labels of conditions are then passed round only among runs that are read alike."""
    seldom = dataclasses.replace(tiny, probes=ProbesConfig(every=0, names=("grad_norm",)))
    table = gathered([tiny, seldom]).drop_duplicates("key").set_index("key")
    assert table.loc[seldom.key(), "probes.names"] == ("grad_norm",)
    assert table.loc[tiny.key(), "probes.every"] == tiny.probes.every
    assert not [name for name in gathered([tiny]) if str(name).startswith("probes.")]


def test_only_the_wanted_probes_are_gathered(tiny: RunConfig) -> None:
    assert set(gathered([tiny], ["grad_norm", "test_error"])["probe"]) == {"grad_norm", "test_error"}


def test_readings_are_those_of_their_run_however_many_are_gathered_at_a_time(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run has less of the wanted probes than the others, and none of one of them."""
    seldom = dataclasses.replace(tiny, probes=ProbesConfig(every=0, names=("grad_norm",)), seed=7)
    configs, probes = [seldom, *seeds(tiny, 0, 1)], ["grad_norm", "weight_norm"]
    table = gathered(configs, probes)
    for config in configs:
        own = Run.of(config).readings()
        found = table.loc[table["key"] == config.key(), list(own)].reset_index(drop=True)
        pd.testing.assert_frame_equal(found, own[own["probe"].isin(probes)].reset_index(drop=True))
        assert (table.loc[table["key"] == config.key(), "seed"] == config.seed).all()
    monkeypatch.setattr(finished, "AT_A_TIME", 2)
    pd.testing.assert_frame_equal(load_readings(configs, probes), table)


def test_readings_of_files_by_other_versions_are_gathered_too(tiny: RunConfig) -> None:
    """Words may be stored as Arrow's string or large_string."""
    configs, probes = seeds(tiny, 0, 1), ["grad_norm", "train_loss"]
    table = gathered(configs, probes)
    path = Run.of(configs[1]).folder / "readings.parquet"
    old = pq.read_table(path)
    other = pa.string() if pa.types.is_large_string(old.schema.field("layer").type) else pa.large_string()
    fields = [field.with_type(other) if field.name in ("layer", "probe") else field for field in old.schema]
    pq.write_table(old.cast(pa.schema(fields)), path)
    again = load_readings(configs, probes)
    pd.testing.assert_frame_equal(again, table)
    assert again.index.tolist() == list(range(len(table)))


def test_a_diverged_run_is_gathered_as_such(tiny: RunConfig) -> None:
    config = dataclasses.replace(tiny, train=TrainConfig(steps=6, batch_size=20, lr=1e30))
    assert set(gathered([config])["status"]) == {"diverged"}


def test_readings_of_unfinished_runs_are_refused(tiny: RunConfig) -> None:
    execute(tiny, device=CPU)
    with pytest.raises(StoreError, match=r"^1 of 2 runs are not finished in .*runs$"):
        load_readings(seeds(tiny, 0, 1))


def test_what_runs_cost(tiny: RunConfig) -> None:
    configs = seeds(tiny, 0, 1)
    for config in configs:
        execute(config, device=CPU)
    times = [Run.of(config).record()["wall_seconds"] for config in configs]
    found: dict[str, Any] = cost(configs)
    assert found["process_seconds"] == round(sum(times), 1)
    assert (found["count"], found["devices"], found["threads"]) == (2, ["cpu"], [torch.get_num_threads()])


@pytest.mark.slow
def test_eight_sweeps_at_once_train_each_of_forty_runs_once(results: Path, tmp_path: Path) -> None:
    """And they share the work: what one of them trains, the others leave to it."""
    settings = [
        "data=synthetic",
        "train.steps=300",
        "train.batch_size=20",
        "train.lr=0.001",
        "seed=range(40)",
        "sweep.workers=1",
    ]
    command = [sys.executable, "-m", "depthlab", "train", "-m", *settings]
    sweeps = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(8)]
    counts = []
    for process in sweeps:
        out, error = process.communicate(timeout=3 * LONG)
        assert process.returncode == 0, error
        counts.append([int(word) for word in out.split() if word.isdigit()])
    assert [sum(count) for count in counts] == [40] * 8
    assert sum(trained for trained, _, _ in counts) == 40
    assert sum(trained > 0 for trained, _, _ in counts) >= 2
    records = [Run(folder).record() for folder in (results / "runs").iterdir()]
    assert [record["status"] for record in records] == ["done"] * 40
    assert all("resumed_at_steps" not in record for record in records)
