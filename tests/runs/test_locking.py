"""Processes that ask for the same run: it is trained once, and by another one if its process was killed."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import filelock
import pytest
from in_processes import CPU, LONG, execute_at_once, execute_for_ever, suspended

from depthlab.config import RunConfig, SweepConfig
from depthlab.runs import Run, Status, execute, locks, sweep
from depthlab.runs.locks import HeldError


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


class Elsewhere:
    """The lock of a run, held by a process of another host, which may renew it."""

    def __init__(self, run: Run, monkeypatch: pytest.MonkeyPatch, *, alive: bool) -> None:
        run.folder.mkdir(parents=True)
        monkeypatch.setattr(locks, "LEASE", 1.5)
        self.lock = filelock.SoftFileLease(
            run.folder / "lock", lease_duration=1.5, heartbeat_interval=0.25 if alive else 1.4, thread_local=False
        )
        with monkeypatch.context() as patch:
            patch.setattr(socket, "gethostname", lambda: "elsewhere")
            self.lock.acquire()
        if not alive:
            self.lock._claim.heartbeat.stop.set()  # type: ignore[union-attr]


@pytest.mark.parametrize("disk", ["local", "network"])
def test_the_run_of_a_lost_host_is_taken_over(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], disk: str
) -> None:
    if disk == "network":  # NFS refuses to exchange two names, and then filelock takes nothing over
        monkeypatch.setattr("filelock._soft.exchange_names", lambda old, new: False)
    run = Run.of(tiny)
    other = Elsewhere(run, monkeypatch, alive=False)
    assert run.is_locked()
    began = time.monotonic()
    assert execute(tiny, device=CPU).status() is Status.DONE
    assert time.monotonic() - began >= 1.5
    assert list(run.folder.glob("lock*")) == []
    assert "held by process" in (told := capsys.readouterr().err)
    assert "on elsewhere" in told
    del other  # which would have let go of the lock


def test_a_host_that_gives_signs_of_life_keeps_its_run(tiny: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.of(tiny)
    other = Elsewhere(run, monkeypatch, alive=True)
    with pytest.raises(HeldError, match="on elsewhere"):
        execute(tiny, device=CPU, wait=False)
    waiting = threading.Thread(target=lambda: execute(tiny, device=CPU))
    waiting.start()
    waiting.join(5)
    assert waiting.is_alive()
    assert run.is_locked()
    assert run.status() is Status.MISSING
    other.lock.release()
    waiting.join(LONG)
    assert run.status() is Status.DONE


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes are suspended by signals of POSIX")
def test_a_process_that_was_suspended_for_long_leaves_its_run_to_the_other(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wakes while the other one trains, and must not write any more."""
    monkeypatch.setattr(locks, "LEASE", 2.0)
    endless = dataclasses.replace(tiny, train=dataclasses.replace(tiny.train, steps=10**7, eval_every=10**7))
    context = multiprocessing.get_context("spawn")
    started, ended = context.Event(), context.Queue()
    process = context.Process(target=suspended, args=(endless, 2.0, started, ended))
    process.start()
    assert process.pid is not None
    assert started.wait(LONG)
    os.kill(process.pid, signal.SIGSTOP)
    run = Run.of(endless)
    with run.locked():
        (run.folder / "run.json").write_text("the other's")
        os.kill(process.pid, signal.SIGCONT)
        assert ended.get(timeout=LONG) == "LeaseLostError"
        process.join(LONG)
        assert (run.folder / "run.json").read_text() == "the other's"
        assert (run.folder / "lock").exists()


@pytest.mark.parametrize("ask", ["run", "sweep"])
def test_what_a_killed_process_left_after_its_last_word_is_tidied_away(tiny: RunConfig, ask: str) -> None:
    run = execute(tiny, device=CPU)
    for name in ("checkpoint-000000003.pt", "checkpoint-000000002.damaged", ".checkpoint-000000004.pt.x"):
        (run.folder / name).write_bytes(b"")
    process = subprocess.Popen([sys.executable, "-c", LEAVES_ITS_LOCK.format(str(run.folder / "lock"))])
    assert process.wait(LONG) == -signal.SIGKILL
    assert (run.folder / "lock").exists()
    if ask == "run":
        execute(tiny, device=CPU)
    else:
        assert sweep([tiny], device=CPU, launch=SweepConfig()).found == 1
    assert {path.name for path in run.folder.iterdir()} == {"config.yaml", "run.json", "readings.parquet"}


LEAVES_ITS_LOCK = """
import os, signal
from filelock import SoftFileLease
lock = SoftFileLease({!r}, lease_duration=120.0)
lock.acquire()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_lock_of_a_finished_run_that_is_held_is_left_alone(tiny: RunConfig) -> None:
    run = execute(tiny, device=CPU)
    with run.locked():
        assert execute(tiny, device=CPU, wait=False) == run
        assert (run.folder / "lock").exists()
