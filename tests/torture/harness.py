"""Kills a sweep again and again, at random moments, and compares every byte of its readings with an undisturbed one's.

    python tests/torture/harness.py --kills 100 --seed 0

The sweep is typed, killed, and typed again until it ends complete; then it begins anew in an empty folder. Kills are of
four kinds, drawn from the seed: the whole process group at a random moment (as a power cut does), one worker at a
random moment (as the system does when memory is short), any process at a random operation on a file (between write and
rename among them), and a polite SIGTERM. After each kill every run must have a state that can be read.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from depthlab.runs import Status, ledger

GRID = [
    "data=digits",
    "train.steps=800",
    "train.lr=0.003",
    "train.optimizer=adam",
    "train.eval_every=100",
    "train.early_stopping=8",
    "probes.every=50",
    "model.dropout=0.1",
    "model.norm=none,batch",
    "model.depth=4,8",
    "seed=0,1",
]
LAUNCH = ["sweep.workers=2", "sweep.checkpoint_seconds=0.1"]
FILES = {"config.yaml", "run.json", "readings.parquet"}
"""What the directory of a finished run holds, and nothing else."""

KINDS = ("group", "worker", "operation", "politely")
LIMIT = 600
"""Seconds that a sweep may take; one that hangs is a failure."""

STATES = set(Status)


@dataclass
class Report:
    """What was seen. complaints: what must not be."""

    kills: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    resumed: int = 0
    complete: int = 0
    compared: int = 0
    seconds: float = 0.0
    complaints: list[str] = field(default_factory=list)


def torture(kills: int, seed: int, folder: Path) -> Report:
    """So many kills, and as many sweeps that end complete as they take."""
    random_ = random.Random(seed)
    report, began = Report(), time.monotonic()
    undisturbed = folder / "undisturbed"
    assert Sweep(undisturbed).ended() == 0
    duration = time.monotonic() - began
    expected = readings(undisturbed)
    with tqdm(total=kills, unit="kill", disable=not sys.stderr.isatty()) as bar:
        while sum(report.kills.values()) < kills and not report.complaints:
            results = folder / f"sweep-{report.complete}"
            for _ in kills_until_complete(results, kills, random_, duration, report):
                bar.update(sum(report.kills.values()) - bar.n)
                if report.complaints:
                    break
            else:
                compare(results, expected, report)
                bar.write(f"sweep {report.complete} is complete after {sum(report.kills.values())} kills", sys.stderr)
    report.seconds = time.monotonic() - began
    return report


def kills_until_complete(
    results: Path, kills: int, random_: random.Random, duration: float, report: Report
) -> Iterator[None]:
    """Types the sweep until it ends complete; after enough kills nobody disturbs it any more."""
    while True:
        kind = random_.choice(KINDS) if sum(report.kills.values()) < kills else "none"
        note = results.parent / "note"
        note.unlink(missing_ok=True)
        operation = round(2 ** random_.uniform(0, 9)) if kind == "operation" else 0
        sweep = Sweep(results, operation, note)
        moment = random_.uniform(0, duration / 2)  # so that a sweep is killed several times before it is complete
        if kind in ("group", "worker", "politely"):
            sweep.wait(moment)
            killed = sweep.kill(kind, random_)
        code = sweep.ended()
        if kind == "operation":
            lines = note.read_text().splitlines() if note.exists() else []
            killed = bool(lines)
            report.operations.update(re.sub(r"\.[a-z0-9_]{8}$|[0-9]{9}", "", line) for line in lines)
        if kind != "none" and killed:
            report.kills[kind] += 1
        report.complaints += complaints(results, sweep, code, kind)
        yield
        if code == 0 and not report.complaints:
            return
        if kind == "none":
            report.complaints.append(f"the sweep did not end complete though nobody disturbed it: {sweep.error()}")
            return


class Sweep:
    """The command, in a process group of its own."""

    def __init__(self, results: Path, operation: int = 0, note: Path | None = None) -> None:
        results.mkdir(parents=True, exist_ok=True)
        self.log = results.parent / f"{results.name}.log"
        path = [str(Path(__file__).parent / "killed"), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "DEPTHLAB_RESULTS": str(results),
            "TORTURE_OPERATIONS": str(operation),
            "TORTURE_NOTE": str(note),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "depthlab", "train", "-m", *GRID, *LAUNCH]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=results
            )

    def wait(self, seconds: float) -> None:
        """Until so much later, or until it has ended."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)

    def kill(self, kind: str, random_: random.Random) -> bool:
        """Whether there was anybody left to kill."""
        if self.process.poll() is not None:
            return False
        if kind == "group":
            os.killpg(self.process.pid, signal.SIGKILL)
        elif kind == "politely":
            self.process.terminate()
        else:
            workers = children(self.process.pid)
            if not workers:
                return False
            with suppress(ProcessLookupError):
                os.kill(random_.choice(workers), signal.SIGKILL)
        return True

    def ended(self) -> int:
        """Exit status; no process of the group is left."""
        try:
            code = self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            code = -1
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        return code

    def error(self) -> str:
        """What it said."""
        return self.log.read_text(errors="replace")


def children(pid: int) -> list[int]:
    """Workers of a sweep: what was forked from its process for that, or spawned where nothing is forked."""
    origins = set(_children(pid, b"multiprocessing.forkserver"))
    forked = [worker for origin in origins for worker in _children(origin, b"multiprocessing.forkserver")]
    return sorted(forked + _children(pid, b"spawn_main"))


def _children(pid: int, command: bytes) -> list[int]:
    """Child processes with this in their command line."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if parent == pid and command in (stat.parent / "cmdline").read_bytes():
                found.append(int(stat.parent.name))
    return found


def complaints(results: Path, sweep: Sweep, code: int, kind: str) -> list[str]:
    """What must not be, after a kill."""
    os.environ["DEPTHLAB_RESULTS"] = str(results)
    states = [entry.status for entry in ledger()]
    found = [f"after a kill ({kind}) a run is {state}" for state in states if state not in STATES]
    if code == -1:
        found.append(f"after a kill ({kind}) the sweep hung: {sweep.error()}")
    if kind in ("none", "politely") and "Traceback" in sweep.error():
        found.append(f"a traceback ({kind}): {sweep.error()}")
    return found


def readings(results: Path) -> dict[str, bytes]:
    """Of every run, to the bit."""
    return {path.parent.name: path.read_bytes() for path in (results / "runs").glob("*/readings.parquet")}


def compare(results: Path, expected: dict[str, bytes], report: Report) -> None:
    """With the undisturbed sweep."""
    found = readings(results)
    report.complete += 1
    report.compared += len(found)
    report.complaints += [f"{key} is not there" for key in expected.keys() - found.keys()]
    report.complaints += [f"{key} has other readings" for key, content in found.items() if content != expected[key]]
    for folder in (results / "runs").iterdir():
        report.resumed += len(json.loads((folder / "run.json").read_text()).get("resumed_at_steps", []))
        left = {path.name for path in folder.iterdir()} - FILES
        report.complaints += [f"{folder.name} holds {name} when all is done" for name in sorted(left)]


def main() -> int:
    """Prints the report; exit status 1 if there is anything to complain of."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = torture(options.kills, options.seed, Path(folder))
    print(f"{sum(report.kills.values())} kills in {report.seconds / 60:.1f} minutes: {dict(report.kills)}")
    print(f"  operations at which processes were killed: {dict(report.operations.most_common())}")
    print(f"  {report.complete} sweeps ended complete, {report.compared} runs compared byte for byte")
    print(f"  runs went on from a checkpoint {report.resumed} times")
    print("\n".join(report.complaints) or "  nothing to complain of")
    return 1 if report.complaints else 0


if __name__ == "__main__":
    sys.exit(main())
