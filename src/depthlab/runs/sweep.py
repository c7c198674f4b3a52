"""A sweep: trains what is missing of a list of runs, several at once, and gathers their readings."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from depthlab.config import RunConfig, SweepConfig, flat
from depthlab.runs.run import execute
from depthlab.runs.store import Run, Status, StoreError, runs_root
from depthlab.training import available_cores, prepare_process


@dataclass(frozen=True)
class Outcome:
    """What a sweep did: counts of runs, and key and error of those that failed."""

    trained: int
    found: int
    failures: Sequence[tuple[str, str]]


def sweep(configs: Iterable[RunConfig], *, device: torch.device, launch: SweepConfig) -> Outcome:
    """Trains what is not finished. A run that fails does not stop the others.

    Processes of one thread each, as many as there are cores: many small runs share a machine better so than one after
    the other with all threads, and a run's bits do not depend on how many run beside it.
    """
    unique = {config.key(): config for config in configs}
    missing = [config for config in unique.values() if not Run.of(config).status().finished]
    missing.sort(key=_cost, reverse=True)  # the longest first, so that none is left over at the end
    workers = min(len(missing), launch.workers or (1 if device.type == "cuda" else available_cores()))
    failures: list[tuple[str, str]] = []
    found = len(unique) - len(missing)
    if missing:
        _tell(f"{len(missing)} of {len(unique)} runs to train, {workers} at once; {found} are finished")
        failures = _train_all(missing, device, workers, launch.threads or 1)
    return Outcome(len(missing) - len(failures), found, failures)


def load_readings(configs: Iterable[RunConfig], probes: Sequence[str] | None = None) -> pd.DataFrame:
    """One long table of all runs: key, status, settings under their dotted names, step, layer, depth, probe, value.

    Settings are those of the model, data.name, train.steps, seed, and all others that differ between the runs.
    probes: which readings to keep (None: all). Raises StoreError if a run is not finished.
    """
    unique = {config.key(): config for config in configs}
    runs = {key: Run.of(config) for key, config in unique.items()}
    states = {key: run.status() for key, run in runs.items()}
    unfinished = [key for key, state in states.items() if not state.finished]
    if unfinished:
        raise StoreError(f"{len(unfinished)} of {len(unique)} runs are not finished in {runs_root()}")
    settings = pd.DataFrame({key: flat(config) for key, config in unique.items()}).T.map(_plain)
    kept = [name for name in settings if _is_kept(str(name)) or settings[name].nunique(dropna=False) > 1]
    tables = []
    for key, run in runs.items():
        table = run.readings()
        if probes is not None:
            table = table[table["probe"].isin(probes)]
        tables.append(table.assign(key=key, status=states[key].value, **settings.loc[key, kept].to_dict()))
    return pd.concat(tables, ignore_index=True)


def cost(configs: Iterable[RunConfig]) -> dict[str, Any]:
    """What finished runs cost: their number, the sum of their times, and where they were trained."""
    records = [Run.of(config).record() for config in configs]
    return {
        "count": len(records),
        "process_seconds": round(sum(record["wall_seconds"] for record in records), 1),
        "devices": sorted({record["device"] for record in records}),
        "threads": sorted({record["threads"] for record in records}),
        "commits": sorted({str(record["commit"]) for record in records}),
    }


def _is_kept(name: str) -> bool:
    return name.startswith("model.") or name in ("data.name", "train.steps", "seed")


def _train_all(configs: Sequence[RunConfig], device: torch.device, workers: int, threads: int) -> list[tuple[str, str]]:
    failures: list[tuple[str, str]] = []
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare_worker, initargs=(threads,))
    bar = tqdm(total=len(configs), unit="run", disable=not sys.stderr.isatty(), dynamic_ncols=True)
    try:
        futures: dict[Future[str], RunConfig] = {
            pool.submit(_train_one, config, runs_root(), device): config for config in configs
        }
        for number, future in enumerate(as_completed(futures), start=1):
            config = futures[future]
            summary = _summary(future, config)
            if future.exception() is not None:
                failures.append((config.key(), summary))
            bar.update()
            bar.set_postfix_str(f"{len(failures)} failed" if failures else "")
            if bar.disable:
                _tell(f"[{number}/{len(configs)}] {config.key()} {summary}")
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        bar.close()
        pool.shutdown(cancel_futures=True)
    return failures


def _prepare_worker(threads: int) -> None:
    # one group of keystrokes interrupts parent and workers alike; the parent alone says so
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    prepare_process(threads)


def _train_one(config: RunConfig, root: Path, device: torch.device) -> str:
    run = execute(config, root=root, device=device)
    record = run.record()
    return _result_line(record)


def _result_line(record: dict[str, Any]) -> str:
    if record["status"] == Status.DIVERGED:
        return f"diverged at step {record['diverged_step']} after {record['wall_seconds']:.1f} s"
    return f"done in {record['wall_seconds']:.1f} s, test error {record['metrics']['test_error']:.2%}"


def _summary(future: Future[str], config: RunConfig) -> str:
    error = future.exception()
    if error is None:
        return f"{_name(config)}: {future.result()}"
    return f"{_name(config)}: failed: {type(error).__name__}: {error}"


def _name(config: RunConfig) -> str:
    model = config.model
    return (
        f"{model.family}-{model.depth} {model.activation} init={model.init} norm={model.norm} skip={model.skip} "
        f"seed={config.seed}"
    )


def _cost(config: RunConfig) -> float:
    return config.model.depth * config.train.steps


def _plain(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
