"""A grid of small runs: depthlab's own sweep beside Hydra's basic launcher, from cold start to last file.

And what the machine has: bare loops in one process for each core, beside one alone. No sweep is faster than that.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path

import step
import torch
from measuring import circumstances, interleaved, speed, speed_table

from depthlab.training import available_cores, prepare_process

HERE = Path(__file__).parent
RESULT = HERE / "results" / "sweep.md"
GRIDS = {
    "24 MLPs": "data=digits model.depth=10,20,30 model.activation=relu,tanh model.init=he,xavier seed=0,1 "
    "train.steps=600 train.lr=0.01",
    "8 ResNet-20": "data=cifar10_augmented model=resnet model.depth=20 seed=range(8) train=he2015 train.warmup_steps=0 "
    "train.steps=20 train.eval_every=20 data.validation_fraction=0.01",
}
GRIDS["8 ResNet-20, bf16"] = GRIDS["8 ResNet-20"] + " train.precision=bf16"
BARE = {"24 MLPs": "MLP-20x100", "8 ResNet-20": "ResNet-20, float32", "8 ResNet-20, bf16": "ResNet-20, bf16"}
"""The net of `step.py` whose bare loop tells what the machine has for a grid's runs."""
BASIC = [sys.executable, str(HERE / "basic_launcher.py"), "-m"]
OURS = [sys.executable, "-m", "depthlab", "train", "-m"]
SECONDS = 5.0
"""That a bare loop takes."""
SETTLED = 5
"""Updates after which a loop is as fast as it will be."""
MEETING: list[Barrier] = []
"""In a process with a bare loop: where it waits for the others."""


def seconds(command: list[str], grid: str) -> float:
    """Of the whole command, in an empty results folder."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        environment |= {"DEPTHLAB_RESULTS": folder}
        begin = time.perf_counter()
        ended = subprocess.run(
            [*command, *grid.split()], env=environment, cwd=folder, capture_output=True, text=True, check=False
        )
        taken = time.perf_counter() - begin
        if ended.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {ended.stderr[-2000:]}")
        expected = len(list(Path(folder).glob("runs/*/readings.parquet")))
        if expected not in (8, 24):
            raise RuntimeError(f"{' '.join(command)} left {expected} runs")
        return taken


def of_the_machine(name: str, rounds: int) -> str:
    """A sentence: how much more updates a bare loop in each core's process makes than one alone."""
    alone, all_ = "1", str(available_cores())
    found = interleaved({count: partial(update_of, name, int(count)) for count in (alone, all_)}, rounds, name)
    return (
        f"Without any sweep, {all_} processes with a bare loop over {name} make {speed(found, all_, alone)} times the "
        "updates of one alone, each on one thread."
    )


def update_of(name: str, processes: int) -> float:
    """Seconds of an update, those of all processes counted."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, meet_at, [context.Barrier(processes)]) as pool:
        return 1 / sum(pool.map(updates_a_second, [name] * processes))


def updates_a_second(name: str) -> float:
    """Of a bare loop over one batch, begun when all processes have come as far."""
    prepare_process(1)
    config = step.NETS[name]
    shape = (3, 32, 32) if config.data.name == "cifar10" else (1, 28, 28)
    batches = [(torch.rand(step.BATCH, *shape), torch.zeros(step.BATCH, dtype=torch.int64))]
    updates = step.bare(config, batches)
    for _ in range(SETTLED):
        next(updates)
    MEETING[0].wait()
    begin, done = time.perf_counter(), 0
    while time.perf_counter() - begin < SECONDS:
        next(updates)
        done += 1
    return done / (time.perf_counter() - begin)


def meet_at(barrier: Barrier) -> None:
    """Tells a process where it waits for the others."""
    MEETING.append(barrier)


def main() -> None:
    """Measures, and prints the page."""
    parser = argparse.ArgumentParser(description="A grid of small runs: depthlab beside Hydra's basic launcher.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--grids", nargs="+", choices=GRIDS, default=list(GRIDS))
    parser.add_argument("--output", nargs="?", type=Path, const=RESULT, help="also write it (default: results/ here)")
    options = parser.parse_args()
    tables, heads = [], []
    for name in options.grids:
        contenders = {
            "depthlab train -m": partial(seconds, OURS, GRIDS[name]),
            "Hydra's basic launcher": partial(seconds, BASIC, GRIDS[name]),
        }
        ours, basic = contenders
        found = interleaved(contenders, options.rounds, name)
        tables.append(f"## {name}\n\n`{GRIDS[name]}`\n\n{speed_table(found, [basic], 'sweeps')}")
        tables[-1] += f"\n{of_the_machine(BARE[name], options.rounds)}\n"
        heads.append(f"{speed(found, ours, basic)} times as fast ({name})")
    page = f"""# A sweep, from cold start to its last file

> From cold start to its last file a sweep is done {", ".join(heads)} as by Hydra's basic launcher with all threads.

{circumstances()}
Whole commands in turn, {options.rounds} rounds; medians, ratios of speeds with quartiles. Both train the same runs with
the same code; they differ in how these are spread over the machine.

{chr(10).join(tables)}"""
    print(page)
    if options.output is not None:
        options.output.write_text(page)


if __name__ == "__main__":
    main()
