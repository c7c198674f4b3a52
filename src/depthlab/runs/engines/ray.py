"""Ray's tasks: on a cluster that is there, or on one of this sweep's own."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from depthlab.config import RunConfig
from depthlab.runs.engines.engine import Engine, EngineError
from depthlab.runs.engines.job import Job, Result
from depthlab.runs.progress import tell
from depthlab.runs.store import DiskFullError

LOOK_EVERY = 1.0
"""Seconds between looks at how far the runs are."""

LOOPBACK = "127.0.0.1"
ANSWERS_WITHIN = 10.0
OBJECT_STORE = 100 * 2**20
"""Bytes that an own cluster reserves for objects: jobs pass none to speak of."""


class Ray(Engine):
    """A task for each run; Ray itself starts it elsewhere when its process or its node is lost."""

    def _train_until_none_is_left(self, configs: Sequence[RunConfig], *, wait: bool) -> None:
        is_ours = not ray.is_initialized()
        if is_ours:
            self._connect()
        try:
            self._train(configs, wait)
        finally:
            if is_ours:
                ray.shutdown()

    def _connect(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
        address = self._launch.ray.address
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "address": address or "local"}
        if address is None:
            options |= {"num_cpus": self._count * self._threads, "object_store_memory": OBJECT_STORE}
            options |= {"include_dashboard": False, "_node_ip_address": LOOPBACK}
        try:
            _knock(address or "")
            ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            said = " ".join(str(error).split())
            raise EngineError(f"sweep.ray.address={address or 'null'}: Ray cannot be reached: {said}") from None

    def _train(self, configs: Sequence[RunConfig], wait: bool) -> None:
        task = ray.remote(num_cpus=self._threads, num_gpus=self._launch.gpus, max_retries=self._launch.ray.max_retries)(
            _train_one
        )
        waiting, jobs = list(reversed(configs)), dict[Any, RunConfig]()
        try:
            while waiting or jobs:
                while waiting and len(jobs) < self._count:
                    config = waiting.pop()
                    jobs[task.remote(self._job(config, wait))] = config
                for ended in ray.wait(list(jobs), timeout=LOOK_EVERY)[0]:
                    self._collect(ended, jobs.pop(ended))
                self._look()
        except (KeyboardInterrupt, DiskFullError):
            self._stop(list(jobs))
            raise

    def _collect(self, ended: Any, config: RunConfig) -> None:
        try:
            result: Result = ray.get(ended)
        except RayTaskError as error:
            self._lost(config, str(error.cause).splitlines()[0])
        except RayError as error:
            self._lost(config, f"{type(error).__name__} after {self._launch.ray.max_retries} retries")
        else:
            self._take(config, result)

    def _stop(self, tasks: Sequence[Any]) -> None:
        """Has all runs saved: to be cancelled is a Ctrl-C for a task. A second Ctrl-C does not wait for that."""
        tell("stopping: each run finishes its update and is saved; Ctrl-C again does not wait")
        try:
            for task in tasks:
                ray.cancel(task)
            for task in tasks:
                _wait(task)
        except KeyboardInterrupt:
            for task in tasks:
                ray.cancel(task, force=True)


def _knock(address: str) -> None:
    """Raises OSError if nobody listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=ANSWERS_WITHIN).close()


def _wait(task: Any) -> None:
    while True:
        try:
            ray.get(task, timeout=LOOK_EVERY)
        except GetTimeoutError:
            time.sleep(0)
        except RayError:
            return
        else:
            return


def _train_one(job: Job) -> Result:
    """In a worker of Ray's: the run."""
    return job.train()
