"""A Ray of several nodes for a test, all on this machine, with its own port, folder and secret.

Ray listens on the machine's own address, whatever it is told: nobody without the secret can use it.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

HOST = "127.0.0.1"
STARTS_WITHIN = 120.0


def missing() -> str:
    """Why no Ray can be started here; empty if one can."""
    if sys.platform != "linux":
        return "these tests look for processes as Linux shows them"
    return "" if importlib.util.find_spec("ray") else "needs ray; install it with: pip install 'depthlab[ray]'"


class RayNodes:
    """A head that trains nothing and nodes of one core each; `address` is where a sweep joins them."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._nodes: list[subprocess.Popen[bytes]] = []
        secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", **secret}
        self.environment["RAY_raylet_start_wait_time_s"] = str(int(STARTS_WITHIN))
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack:
            # not pytest's own folder: the names of Ray's sockets are long, and a socket's may have 107 characters
            self.folder = Path(tempfile.mkdtemp(prefix="ray-"))
            self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self._stack.callback(self._end_all)
            with socket.socket() as free:
                free.bind((HOST, 0))
                port = free.getsockname()[1]
            self.address = f"{HOST}:{port}"
            head = ["--head", f"--port={port}", f"--temp-dir={self.folder}", "--include-dashboard=false"]
            self._start("--num-cpus=0", *head)
            self._until_there(1)
            for number in range(self._count):  # one after the other: two that start at once take each other's ports
                self._start("--num-cpus=1", f"--address={self.address}")
                self._until_there(2 + number)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def kill_node_of(self, pid: int) -> None:
        """Ends the node that a process of a task belongs to, with all of its processes, in one moment."""
        (node,) = [node for node in self._nodes if pid in _descendants(node.pid)]
        self._nodes.remove(node)
        _kill(node)

    def _start(self, *options: str) -> None:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--node-ip-address={HOST}"]
        command += ["--object-store-memory=100000000", "--disable-usage-stats", *options]
        paths = os.pathsep.join(path for path in sys.path if path)
        with (self.folder / f"node{len(self._nodes)}.out").open("wb") as out:
            node = subprocess.Popen(
                command,
                env={**self.environment, "PYTHONPATH": paths},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self._nodes.append(node)

    def _until_there(self, count: int) -> None:
        code = (
            f"import ray; ray.init(address={self.address!r}, logging_level='ERROR', log_to_driver=False)\n"
            "print('NODES', sum(node['Alive'] for node in ray.nodes()))"
        )
        end = time.monotonic() + STARTS_WITHIN
        while True:
            command = [sys.executable, "-c", code]
            done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
            if f"NODES {count}" in done.stdout:
                return
            if time.monotonic() > end or any(node.poll() is not None for node in self._nodes):
                out = "\n".join(path.read_text() for path in self.folder.glob("*.out"))
                raise RuntimeError(f"Ray does not start:\n{done.stdout}{done.stderr}{out}")
            time.sleep(0.5)

    def _end_all(self) -> None:
        for node in reversed(self._nodes):
            _kill(node)


def _kill(node: subprocess.Popen[bytes]) -> None:
    for pid in [node.pid, *_descendants(node.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    node.wait()


def _descendants(pid: int) -> list[int]:
    """Children, their children, and so on."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *_descendants(child)]
    return found
