"""How processes start, and when signals come, in fresh processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_waits_though_another_thread_takes_it(name: str) -> None:
    code = f"""
import os, signal, threading, time
from depthlab._processes import signals_deferred

def stop(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, stop)
handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
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
assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
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
