"""submitit's jobs: an array of Slurm's, or processes of this machine that behave like it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from abc import abstractmethod
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import submitit

from depthlab.config import ConfigError, RunConfig
from depthlab.runs.engines.engine import Engine, EngineError
from depthlab.runs.engines.job import Job, Result
from depthlab.runs.interrupts import Stopped, interrupts_ignored
from depthlab.runs.progress import tell
from depthlab.runs.store import DiskFullError, results_root, writing

LOOK_EVERY = 1.0
"""Seconds between looks at what jobs have left."""

ASK_SLURM_EVERY = 10.0
"""Seconds between questions to Slurm: one for the whole sweep."""

SETTLED_AFTER = 25.0
"""Seconds for which Slurm must say that a job is over: one that is queued again looks so for a moment, and what it left
may need a while to be seen on a network's disk."""

KILLED_WITHIN = 600.0
"""Seconds after which a job that was told to end, and saved its run, no longer waits to be killed."""

ARRAY = 1000
"""Jobs of one array; Slurm's own limit (MaxArraySize) is 1001."""

FOR_EVER = 60 * 24 * 365
"""Minutes, for jobs of this machine: nobody else waits for it."""

TIMEOUT = signal.SIGUSR2
"""What submitit has Slurm send before a job's time is up."""

OVER = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT"),
}
"""Slurm's states of jobs that come to nothing more."""


class Task:
    """A job as submitit stores, calls and, before its time is up, checkpoints it."""

    def __init__(self, job: Job, *, is_killed_later: bool) -> None:
        self.job, self.is_killed_later = job, is_killed_later

    def __call__(self) -> Result:
        """Trains the run, or goes on with it."""
        while True:
            try:
                return self.job.train()
            except Stopped as stop:
                if stop.by is TIMEOUT:
                    signal.raise_signal(TIMEOUT)  # the run is saved; submitit's own handler queues the job again
                if not self.is_killed_later:
                    raise
                # Slurm's SIGTERM comes before its SIGKILL; whether the job is queued again after that is for Slurm to
                # say, and it would not if the job ended by itself
                time.sleep(KILLED_WITHIN)

    def checkpoint(self) -> Any:
        """What submitit stores for the next time: the same, since the run's state is in the run's directory."""
        return submitit.helpers.DelayedSubmission(self)


class Submitit(Engine):
    """Jobs that leave their results, as submitit stores them, in a folder beside the runs."""

    def _train_until_none_is_left(self, configs: Sequence[RunConfig], *, wait: bool) -> None:
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        self._folder = results_root() / "submitit" / f"{now}-{os.getpid()}"
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        self._jobs: dict[str, tuple[Any, RunConfig]] = {}
        try:
            self._train(configs, wait)
        except (KeyboardInterrupt, DiskFullError):
            self._stop()
            raise
        if not self.failures:
            shutil.rmtree(self._folder, ignore_errors=True)

    @abstractmethod
    def _train(self, configs: Sequence[RunConfig], wait: bool) -> None:
        """Submits every run and collects what it comes to."""

    @abstractmethod
    def _stop(self) -> None:
        """Has all jobs saved and ended, and waits until they are."""

    def _collect(self) -> None:
        """Tells of the jobs that have left a result."""
        there = set(os.listdir(self._folder))  # noqa: PTH208 - names; and on a network's disk a listing is a fresh look
        for number, (job, config) in list(self._jobs.items()):
            if job.paths.result_pickle.name in there:
                del self._jobs[number]
                try:
                    self._take(config, job.result())
                except submitit.core.utils.UncompletedJobError as error:
                    self._lost(config, _reason(error, job.paths.stderr))

    def _give_up(self, number: str, state: str) -> None:
        job, config = self._jobs.pop(number)
        self._lost(config, f"{state}; its log is {job.paths.stderr}")


class SubmititSlurm(Submitit):
    """An array of Slurm's jobs, one for each run."""

    def _train(self, configs: Sequence[RunConfig], wait: bool) -> None:
        for first in range(0, len(configs), ARRAY):
            part = configs[first : first + ARRAY]
            tasks = [Task(self._job(config, wait), is_killed_later=True) for config in part]
            with interrupts_ignored():  # jobs that are submitted are known, so that they can be cancelled
                jobs = _submitted(self._executor(), tasks)
                self._jobs = {job.job_id: (job, config) for job, config in zip(jobs, part, strict=True)}
            tell(f"job {_array(jobs[0])} of Slurm, whose logs are in {self._folder}")
            self._wait()

    def _executor(self) -> Any:
        wanted = self._launch.slurm
        try:
            executor = submitit.SlurmExecutor(self._folder, max_num_timeout=wanted.max_num_timeout)
        except RuntimeError:
            raise EngineError(
                "hydra/launcher=submitit_slurm finds no srun here; start the sweep where sbatch and srun work"
            ) from None
        mine = {"job_name": "depthlab", "time": wanted.timeout_min, "cpus_per_task": self._threads}
        mine |= {"mem": f"{round(1024 * wanted.mem_gb)}MB"} if wanted.mem_gb else {}
        mine |= {"partition": wanted.partition} if wanted.partition else {}
        mine |= {"gpus_per_node": self._launch.gpus} if self._launch.gpus else {}
        given = dict(map(_parameter, wanted.parameters))
        executor.update_parameters(
            **mine, array_parallelism=self._count, additional_parameters={"requeue": True, **given}
        )
        return executor

    def _wait(self) -> None:
        asked, over_since = time.monotonic(), dict[str, float]()
        while self._jobs:
            time.sleep(LOOK_EVERY)
            self._collect()
            self._look()
            now = time.monotonic()
            if now - asked < ASK_SLURM_EVERY or (states := self._states()) is None:
                continue
            asked = now
            for number in list(self._jobs):
                state = states.get(number, "unknown to Slurm")
                if number in states and state not in OVER:
                    over_since.pop(number, None)
                elif now - over_since.setdefault(number, now) > SETTLED_AFTER:
                    self._give_up(number, state)

    def _states(self) -> dict[str, str] | None:
        """Slurm's state of every job that it still knows, by number; None if it does not answer.

        From squeue, which works on clusters without accounting too, and keeps jobs for minutes after their end.
        """
        arrays = ",".join(sorted({_array(job) for job, _ in self._jobs.values()}))
        command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T", f"--jobs={arrays}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode and "Invalid job id" not in done.stderr:
            return None
        return {number: state for number, _, state in (line.partition("|") for line in done.stdout.splitlines())}

    def _stop(self) -> None:
        if not self._jobs:
            return
        arrays = sorted({_array(job) for job, _ in self._jobs.values()})
        tell(f"stopping: job {', '.join(arrays)} of Slurm is cancelled, each run is saved; Ctrl-C again does not wait")
        subprocess.run(["scancel", *arrays], capture_output=True, check=False)
        try:
            while any(state not in OVER for state in (self._states() or {}).values()):
                time.sleep(LOOK_EVERY)
        except KeyboardInterrupt:
            pass


class SubmititLocal(Submitit):
    """Processes of this machine, `count` at once; submitit itself would start all of them."""

    def _train(self, configs: Sequence[RunConfig], wait: bool) -> None:
        executor = submitit.LocalExecutor(self._folder, max_num_timeout=self._launch.slurm.max_num_timeout)
        executor.update_parameters(timeout_min=FOR_EVER, gpus_per_node=self._launch.gpus)
        waiting = list(reversed(configs))
        while waiting or self._jobs:
            while waiting and len(self._jobs) < self._count:
                config = waiting.pop()
                with interrupts_ignored():
                    (job,) = _submitted(executor, [Task(self._job(config, wait), is_killed_later=False)])
                self._jobs[job.job_id] = (job, config)
            time.sleep(LOOK_EVERY / 4)
            over = [number for number, (job, _) in self._jobs.items() if job.state != "RUNNING"]
            self._collect()
            for number in over:
                if number in self._jobs:
                    self._give_up(number, "its process was killed, perhaps for want of memory")
            self._look()

    def _stop(self) -> None:
        tell("stopping: each run finishes its update and is saved; Ctrl-C again ends them at once")
        processes = [job._process for job, _ in self._jobs.values()]
        try:
            while alive := [process for process in processes if process.poll() is None]:
                for process in alive:
                    process.terminate()  # passed on to the run; one that only starts up has to be asked again
                time.sleep(LOOK_EVERY)
        except KeyboardInterrupt:
            for process in processes:
                process.kill()


def _submitted(executor: Any, tasks: Sequence[Task]) -> list[Any]:
    try:
        return list(executor.submit_array(tasks))
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        said = " ".join(str(error).split())
        raise EngineError(f"the jobs cannot be submitted: {said}; what is asked for is under sweep.slurm") from None


def _array(job: Any) -> str:
    """The number of a job's array; of a job that stands alone, its own."""
    return str(job.job_id).partition("_")[0]


def _parameter(text: str) -> tuple[str, Any]:
    """A parameter of sbatch and its value; a mere name, such as exclusive, is switched on."""
    name, *value = re.split("[:=]", text, maxsplit=1)
    if not name or name.startswith("-"):
        raise ConfigError(f"sweep.slurm.parameters: {text!r} must be NAME:VALUE or NAME, without dashes in front")
    return name, value[0] if value else True


def _reason(error: Exception, log: Path) -> str:
    """The last line of what submitit says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("-")]
    told = [line for line in lines if "Error" in line] or lines or [type(error).__name__]
    return f"{told[-1]}; its log is {log}"
