"""Processes that ask for the same run: it is trained once, and by another one if its process was killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from in_processes import CPU, LONG, execute_at_once, execute_for_ever

from depthlab.config import RunConfig
from depthlab.runs import Run, Status, execute


def test_two_processes_at_once_train_a_run_once(tiny: RunConfig, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    processes = [context.Process(target=execute_at_once, args=(tiny, start, tmp_path / "log")) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LONG)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    assert Run.of(tiny).status() is Status.DONE
    assert not (Run.of(tiny).folder / "lock").exists()


def test_the_run_of_a_killed_process_is_taken_over(tiny: RunConfig) -> None:
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    process = context.Process(target=execute_for_ever, args=(tiny, started))
    process.start()
    assert started.wait(LONG)
    run = Run.of(tiny)
    assert run.status() is Status.RUNNING
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(LONG)
    assert run.status() is Status.INTERRUPTED
    assert (run.folder / "lock").exists()
    began = time.monotonic()
    assert execute(tiny, device=CPU).status() is Status.DONE
    assert time.monotonic() - began < 60
    assert not (run.folder / "lock").exists()


def test_the_lock_is_let_go_of_after_an_error(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")

    def fail() -> None:
        with run.locked():
            assert (run.folder / "lock").exists()
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            fail()
        assert not (run.folder / "lock").exists()
