"""Sweeps as typed, in processes of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from depthlab.runs import Run

WITHIN = 300.0
"""Seconds that anything may take here: Slurm takes half a minute to notice that a node is gone."""


def settings(steps: int) -> list[str]:
    """Four runs of a few seconds for every thousand steps."""
    return [
        *("data=synthetic", "train.batch_size=20", "train.lr=0.001", "model.depth=12", f"train.steps={steps}"),
        *("train.eval_every=1000", "probes.every=500", "seed=range(4)", "sweep.checkpoint_seconds=1", "device=cpu"),
    ]


@dataclass
class Sweep:
    """A sweep in a process of its own."""

    results: Path
    steps: int
    more: list[str]
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def __enter__(self) -> Self:
        self.results.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "depthlab", "train", "-m", *settings(self.steps), *self.more]
        paths = os.pathsep.join(path for path in sys.path if path)
        own = {"DEPTHLAB_RESULTS": str(self.results), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        with (self.results / "told").open("wb") as told:
            # from a folder that nothing is in: the places of runs and data must not depend on it
            self.process = subprocess.Popen(
                command, env={**self.environment, **own}, cwd=self.results, stdout=told, stderr=told
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)

    @property
    def told(self) -> str:
        """All that was told."""
        return (self.results / "told").read_text()

    @property
    def runs(self) -> list[Run]:
        return [Run(folder) for folder in sorted((self.results / "runs").glob("*")) if folder.is_dir()]

    def records(self) -> list[dict[str, Any]]:
        return [run.record() for run in self.runs]

    def until(self, what: str, is_so: Callable[[], Any]) -> Any:
        """What `is_so` returns, as soon as it is true."""
        end = time.monotonic() + WITHIN
        while not (found := is_so()):
            assert self.process.poll() is None, f"the sweep has ended before {what}:\n{self.told}"
            assert time.monotonic() < end, f"not within {WITHIN} s: {what}:\n{self.told}"
            time.sleep(0.1)
        return found

    def ends(self) -> int:
        """Its exit status."""
        try:
            return self.process.wait(WITHIN)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the sweep does not end:\n{self.told}") from None

    def saved(self) -> list[Run]:
        """Runs that are being trained and have a checkpoint."""
        return [run for run in self.runs if run.record().get("status") == "running" and any(run.folder.glob("c*-*.pt"))]

    def readings(self) -> dict[str, bytes]:
        return {run.key: (run.folder / "readings.parquet").read_bytes() for run in self.runs}

    def counts(self) -> tuple[int, ...]:
        """Runs trained, found and failed, as the sweep told in the end."""
        (line,) = re.findall(r"^(\d+) runs trained, (\d+) found finished, (\d+) failed$", self.told, re.MULTILINE)
        return tuple(map(int, line))
