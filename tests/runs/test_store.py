"""The store: states derived from a directory, damage, and writes that are whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from depthlab.config import (
    DataConfig,
    ModelConfig,
    ProbesConfig,
    RunConfig,
    TrainConfig,
    TransferConfig,
    to_mapping,
)
from depthlab.runs import Run, Status, StoreError, execute, locks, results_root, runs_root
from depthlab.runs.store import COLUMNS, YAML_LOADER, writing

CPU = torch.device("cpu")
HERE = socket.gethostname()


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def stored(tmp_path: Path, content: bytes | dict[str, Any]) -> Run:
    run = Run(tmp_path / "key")
    run.folder.mkdir()
    (run.folder / "run.json").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return run


def readings(rows: int = 3) -> pd.DataFrame:
    return pd.DataFrame([(step, "network", 0, "train_loss", 0.5) for step in range(rows)], columns=list(COLUMNS))


def test_results_are_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPTHLAB_RESULTS", str(tmp_path / "elsewhere"))
    assert results_root() == tmp_path / "elsewhere"
    assert runs_root() == tmp_path / "elsewhere" / "runs"
    monkeypatch.setenv("DEPTHLAB_RESULTS", "")
    monkeypatch.chdir(tmp_path)
    assert results_root() == tmp_path / "results"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DEPTHLAB_RESULTS", "~/mine")
    assert results_root() == tmp_path / "mine"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "seed: [",
        "seed: 1: 2",
        "\t",
        "- 1",
        "5",
        "1: 2",
        "seed: on",
        "model: 5",
        "data: {classes: !!python/tuple [0, 1]}",
        "seed: !!python/object/apply:os.mkdir [sprung]",
    ],
)
def test_a_configuration_that_cannot_be_read_is_none_and_executes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(content)
    assert Run(tmp_path).config() is None
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(),
        RunConfig(train=TrainConfig(lr=1e-05, weight_decay=5e-324, milestones=(1e-9, 0.5), clip_norm=1e300)),
        RunConfig(model=ModelConfig(family="torchvision", architecture="on")),
        RunConfig(model=ModelConfig(family="torchvision", architecture="1e3")),
        RunConfig(data=DataConfig(classes=(9, 0)), probes=ProbesConfig(names=()), seed=2**62),
        RunConfig(transfer=TransferConfig(source=("data.name:mnist", "train.lr:1e-3"))),
    ],
    ids=RunConfig.key,
)
def test_a_configuration_comes_back_from_its_directory(tmp_path: Path, config: RunConfig) -> None:
    run = Run(tmp_path)
    run.begin(config, {"host": HERE, "pid": os.getpid()})
    assert run.config() == config
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == to_mapping(config)


def test_configurations_are_read_by_libyaml_where_it_is_there() -> None:
    """A list of a thousand runs takes seconds without."""
    assert YAML_LOADER is (yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader)


def test_a_run_that_is_not_there_is_missing(tiny: RunConfig) -> None:
    assert Run.of(tiny).status() is Status.MISSING
    assert Run.of(tiny).record() == {}
    assert not Run.of(tiny).status().finished


@pytest.mark.parametrize(
    ("record", "status"),
    [
        ({"status": "done", "steps": 3, "metrics": {}, "wall_seconds": 1.0}, Status.DONE),
        ({"status": "diverged", "diverged_step": 3, "wall_seconds": 1.0}, Status.DIVERGED),
        ({"status": "failed", "error": "ValueError"}, Status.FAILED),
        ({"status": "interrupted"}, Status.INTERRUPTED),
        ({"status": "running", "host": HERE, "pid": os.getpid()}, Status.INTERRUPTED),
    ],
)
def test_states(tmp_path: Path, record: dict[str, Any], status: Status) -> None:
    run = stored(tmp_path, record)
    assert run.status() is status
    assert run.status().finished == (status in (Status.DONE, Status.DIVERGED))


@pytest.mark.parametrize(
    ("holder", "silent_for", "status"),
    [
        ({"host": HERE, "pid": os.getpid()}, 0.5, Status.RUNNING),
        ({"host": HERE, "pid": os.getpid()}, 1.5, Status.INTERRUPTED),  # another process has that number by now
        ({"host": HERE, "pid": dead_pid()}, 0.5, Status.INTERRUPTED),
        ({"host": "another", "pid": dead_pid()}, 0.5, Status.RUNNING),
        ({"host": "another", "pid": os.getpid()}, 1.5, Status.INTERRUPTED),
    ],
)
def test_who_runs_gives_signs_of_life(
    tmp_path: Path, holder: dict[str, Any], silent_for: float, status: Status
) -> None:
    run = stored(tmp_path, {"status": "running", **holder})
    lock = run.folder / "lock"
    lock.touch()
    renewed = time.time() - silent_for * locks.LEASE
    os.utime(lock, (renewed, renewed))
    assert run.status() is status


DAMAGED = [
    b"",
    b'{"status": "do',
    b"[]",
    b"null",
    b"{}",
    b"\xff\xfe\x00",
    b'{"status": "splendid"}',
    b'{"status": ["done"]}',
    b'{"status": "missing"}',
    b'{"status": "done"}',
    b'{"status": "diverged"}',
    b'{"status": "failed"}',
    b'{"status": "running"}',
]


@pytest.mark.parametrize("content", DAMAGED)
def test_damage_is_one_line_that_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    run = stored(tmp_path, content)
    with pytest.raises(StoreError, match=r"run\.json is damaged; delete .*key and train the run again") as caught:
        run.status()
    assert "\n" not in str(caught.value)


def test_a_record_that_cannot_be_opened_is_not_called_damaged(tmp_path: Path) -> None:
    run = Run(tmp_path)
    (tmp_path / "run.json").mkdir()
    with pytest.raises(StoreError, match=r"run\.json cannot be read: Is a directory"):
        run.status()


@pytest.mark.parametrize("size", [0, 100, -1])
def test_damaged_readings_are_told(tmp_path: Path, size: int) -> None:
    run = Run(tmp_path)
    run.end(readings(), {"status": "done"})
    path = tmp_path / "readings.parquet"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(StoreError, match=r"readings\.parquet is missing or damaged; delete .* and train"):
        run.readings()


def test_missing_readings_are_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"readings\.parquet is missing or damaged"):
        Run(tmp_path).readings()


def test_readings_come_back_as_they_were(tmp_path: Path) -> None:
    table = readings().assign(value=[float("nan"), float("inf"), 5e-324])
    Run(tmp_path).end(table, {"status": "done"})
    assert Run(tmp_path).readings()["value"].to_numpy().tobytes() == table["value"].to_numpy().tobytes()


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    run = Run(tmp_path)
    run.end(readings(3), {"status": "done"})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    target, name = (os, "fsync") if where == "fsync" else (Path, "replace")
    monkeypatch.setattr(target, name, full)
    with pytest.raises(StoreError, match=r"cannot write .*readings\.parquet: No space left on device; .*DEPTHLAB_RES"):
        run.end(readings(5), {"status": "failed"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_readings_are_on_the_disk_before_the_run_is_called_finished(tmp_path: Path) -> None:
    run, order = Run(tmp_path), []
    with pytest.MonkeyPatch.context() as patch:
        replace = Path.replace
        patch.setattr(Path, "replace", lambda old, new: (order.append(Path(new).name), replace(old, new))[1])
        run.end(readings(), {"status": "done"})
    assert order == ["readings.parquet", "run.json"]


def test_a_disk_that_fills_up_at_the_end_fails_the_run_which_is_tried_again(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pd.DataFrame, "to_parquet", full)
        with pytest.raises(StoreError, match="No space left on device"):
            execute(tiny, device=CPU)
    run = Run.of(tiny)
    assert run.status() is Status.FAILED
    assert {path.name for path in run.folder.iterdir()} == {"config.yaml", "run.json", "error.txt"}
    assert execute(tiny, device=CPU).status() is Status.DONE


def test_a_disk_that_is_full_to_the_last_byte_is_one_error(tiny: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the failure can be noted; the run is then one whose process is gone."""

    def fill_up(done: int, loss: float | None, error: float | None) -> None:
        monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(StoreError, match=r"readings\.parquet: No space left on device"):
        execute(tiny, device=CPU, progress=fill_up)
    run = Run.of(tiny)
    assert run.record()["status"] == "running"
    assert {path.name for path in run.folder.iterdir()} == {"config.yaml", "run.json"}


def test_a_results_folder_that_cannot_be_is_one_line(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEPTHLAB_RESULTS", str(tmp_path / "file"))
    with pytest.raises(StoreError, match=r"cannot write .*: Not a directory; .*DEPTHLAB_RESULTS") as caught:
        execute(tiny, device=CPU)
    assert "\n" not in str(caught.value)


def test_only_faults_of_the_disk_are_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), writing(tmp_path):
        _ = 1 / 0
