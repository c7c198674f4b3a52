"""One run of a sweep, in whatever process an engine gives it."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

import torch

from depthlab.config import ConfigError, RunConfig, SweepConfig
from depthlab.runs.interrupts import obey_once
from depthlab.runs.locks import HeldError, LeaseLostError
from depthlab.runs.run import execute, one_line
from depthlab.runs.store import DiskFullError, Run, Status, runs_root
from depthlab.runs.trial import Progress
from depthlab.training import prepare_process, resolve_device


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended: whether with a result, what to tell of it, and whether another process trained it."""

    succeeded: bool
    line: str
    elsewhere: bool = False


Result = Ended | HeldError | LeaseLostError | DiskFullError
"""What a job comes back with; of the errors, the first two say that another process trains the run."""


@dataclass(frozen=True)
class Job:
    """A run, and all that a process elsewhere must know: places are absolute, since it has another working directory.

    device: a name such as auto, resolved where the job is. data: $DEPTHLAB_DATA of who started the sweep, if it is set.
    """

    config: RunConfig
    root: Path
    data: str | None
    device: str
    threads: int
    checkpoint_seconds: float
    wait: bool
    keep_weights: bool

    @classmethod
    def of(cls, config: RunConfig, device: str, threads: int, launch: SweepConfig, wait: bool) -> Job:
        """The job of a run, with the results and data of this process; launch: how often, and what of it, is saved."""
        given = os.environ.get("DEPTHLAB_DATA")
        data = str(Path(given).expanduser().absolute()) if given else None
        seconds, keep = launch.checkpoint_seconds, launch.keep_weights
        return cls(config, runs_root(), data, device, threads, seconds, wait, keep)

    def train(self) -> Result:
        """Trains the run in this process. Raises Stopped if the process is asked to stop."""
        if self.data is not None:
            os.environ["DEPTHLAB_DATA"] = self.data
        obey_once()
        prepare_process(self.threads)
        try:
            device = resolve_device(self.device)
            return train(
                self.config,
                self.root,
                device,
                checkpoint_seconds=self.checkpoint_seconds,
                wait=self.wait,
                keep_weights=self.keep_weights,
            )
        except ConfigError as error:
            return Ended(False, f"failed: {error}")
        except (HeldError, LeaseLostError, DiskFullError) as error:
            return error


def train(
    config: RunConfig,
    root: Path,
    device: torch.device,
    *,
    progress: Progress | None = None,
    checkpoint_seconds: float,
    wait: bool = True,
    keep_weights: bool = False,
) -> Ended:
    """Trains a run, and says how it ended.

    Raises HeldError or LeaseLostError if another process trains it, Stopped if this one is asked to stop, and
    DiskFullError, since no other run could be stored either.
    """
    try:
        run = execute(
            config,
            root=root,
            device=device,
            progress=progress,
            checkpoint_seconds=checkpoint_seconds,
            wait=wait,
            keep_weights=keep_weights,
        )
        return told(run)
    except (HeldError, LeaseLostError, DiskFullError):
        raise
    except Exception as error:  # whatever it is, the other runs go on
        trace = Run.of(config, root).folder / "error.txt"
        return Ended(False, f"failed: {one_line(error)}" + (f" (traceback in {trace})" if trace.exists() else ""))


def told(run: Run) -> Ended:
    """How a run that is finished ended, by its directory."""
    record = run.record()
    elsewhere = (record.get("host"), record.get("pid")) != (socket.gethostname(), os.getpid())
    if record["status"] == Status.DIVERGED:
        line = f"diverged at step {record['diverged_step']} after {record['wall_seconds']:.1f} s"
    else:
        line = f"done in {record['wall_seconds']:.1f} s, test error {record['metrics']['test_error']:.2%}"
    by = f", trained by process {record.get('pid')} on {record.get('host')}" if elsewhere else ""
    return Ended(True, line + by, elsewhere)
