"""How processes start, and when signals come, in fresh processes."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from depthlab import _processes

SRC = Path(__file__).parents[1] / "src"


def told_by(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_where_processes_cannot_be_forked_it_can_be_imported() -> None:
    """As on Windows, whose Python has no such class."""
    code = "import multiprocessing.context as c; del c.ForkServerContext; import depthlab._processes; print('there')"
    assert told_by(code) == "there\n"


@pytest.mark.skipif(sys.platform == "win32", reason="signals are not blocked there")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_a_signal_waits_though_another_thread_takes_it(name: str) -> None:
    code = f"""
import os, signal, threading, time
from depthlab._processes import signals_deferred

def stop(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.{name}, stop)
handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.{name})
threading.Thread(target=time.sleep, args=(2,), daemon=True).start()
told = []
try:
    with signals_deferred():
        os.kill(os.getpid(), signal.{name})
        time.sleep(0.1)
        told.append("to its end")
    told.append("no signal came")
except KeyboardInterrupt:
    told.append("stopped")
assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.{name})) == handlers
assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
print(told)
"""
    assert told_by(code) == "['to its end', 'stopped']\n"


def test_a_new_process_has_the_environment_it_is_given_and_its_temporary_folder(tmp_path: Path) -> None:
    code = f"""
import os, tempfile
from depthlab._processes import settle
before = tempfile.gettempdir()
given = {{"TMPDIR": {str(tmp_path)!r}, "OTHER": "1"}}
settle(given)
print(dict(os.environ) == given, before != tempfile.gettempdir(), tempfile.gettempdir())
"""
    assert told_by(code) == f"True True {tmp_path}\n"


@pytest.mark.skipif(sys.platform == "win32", reason="signals are not blocked there")
def test_a_new_process_gets_the_signals_that_were_deferred_for_it() -> None:
    code = """
import os, signal
from depthlab._processes import STOPPING, settle
signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
os.kill(os.getpid(), signal.SIGINT)
try:
    settle({})
except KeyboardInterrupt:
    print("stopped", signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""
    assert told_by(code) == "stopped set()\n"


@pytest.mark.skipif(sys.platform == "win32", reason="signals are not blocked there")
def test_another_thread_defers_what_comes_to_it_and_leaves_handlers_alone() -> None:
    """Only the main thread may set them."""
    found: list[Any] = []

    def start() -> None:
        with _processes.signals_deferred():
            found.append(signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, []))
        found.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert found == [True, set()]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(not _processes.ARE_FORKED, reason="processes are not forked here")
def test_the_process_to_be_forked_starts_where_no_signal_comes_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tracker's start would end what is deferred, and so comes first."""
    from multiprocessing import forkserver, resource_tracker

    order: list[Any] = []

    def started() -> None:
        order.append(("server", set(_processes.STOPPING) <= signal.pthread_sigmask(signal.SIG_BLOCK, [])))

    monkeypatch.setattr(resource_tracker, "ensure_running", lambda: order.append("tracker"))
    monkeypatch.setattr(forkserver, "ensure_running", started)
    monkeypatch.setattr(forkserver, "set_forkserver_preload", order.append)
    _processes.warm_up()
    assert order == [[_processes.PRELOADED], "tracker", ("server", True)]
    monkeypatch.setattr(_processes, "ARE_FORKED", False)
    _processes.warm_up()
    assert len(order) == 3


@pytest.mark.parametrize(("are_forked", "method"), [(False, "spawn"), (True, "forkserver")])
def test_processes_are_forked_where_they_can_be(monkeypatch: pytest.MonkeyPatch, are_forked: bool, method: str) -> None:
    if are_forked and not _processes.ARE_FORKED:
        pytest.skip("they cannot be here")
    monkeypatch.setattr(_processes, "ARE_FORKED", are_forked)
    assert _processes.context().get_start_method() == method


@pytest.mark.skipif(not _processes.ARE_FORKED, reason="processes are not forked here")
def test_a_forked_process_has_what_trains_imported_and_searches_only_what_is_new_for_garbage() -> None:
    with ProcessPoolExecutor(1, _processes.context()) as pool:
        assert set(_processes.IMPORTED) <= set(pool.submit(eval, "list(__import__('sys').modules)").result())
        assert pool.submit(gc.get_freeze_count).result() > 100_000
        assert pool.submit(gc.isenabled).result()
        assert pool.submit(threading.active_count).result() == 1
