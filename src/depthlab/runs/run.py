"""One run, from a configuration to a table."""

from __future__ import annotations

import os
import socket
import time
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from depthlab import nets
from depthlab.config import PROTOCOL, RunConfig, differing
from depthlab.runs import weights
from depthlab.runs.checkpoints import Checkpoints
from depthlab.runs.interrupts import Stop, stopping_politely
from depthlab.runs.locks import HeldError, LeaseLostError
from depthlab.runs.progress import tell
from depthlab.runs.provenance import provenance
from depthlab.runs.sources import source_of
from depthlab.runs.store import Run, Status, StoreError
from depthlab.runs.trial import Progress, Trial
from depthlab.training import check_compiler


def execute(
    config: RunConfig,
    *,
    root: Path | None = None,
    device: torch.device,
    progress: Progress | None = None,
    checkpoint_seconds: float = 60.0,
    wait: bool = True,
    stop: Stop | None = None,
    keep_weights: bool = False,
) -> Run:
    """The finished run of a configuration: loaded if it is there, trained if it is not.

    One process at a time trains a run; another that asks for it waits, and then finds it done. An exception ends the
    run as failed, with its traceback in error.txt, and is raised. On Ctrl-C, SIGTERM or SIGUSR1 it finishes the update,
    saves and raises `Stopped`; a second one raises KeyboardInterrupt at once. However a run was ended, it goes on from
    its last checkpoint when it is asked for again, and gives the same readings as if it had not been, to the bit if
    device and number of threads are the same.

    checkpoint_seconds: time from one checkpoint to the next; 0: one only when asked to stop.
    stop: with it `progress` can ask the run to stop, as a signal does: it stops after the update that follows.
    wait: whether to wait for another process that trains the run, or to raise HeldError.
    keep_weights: whether the last weights are wanted; a run that is finished without them is trained again. A source of
        weights that is missing is trained first (see `source_of`).
    Raises StoreError if the run's directory is damaged or cannot be written, LeaseLostError if another process has
    taken the run over, DataError if the data cannot be had, ConfigError if train.compile does not work on this machine.
    """
    run = Run.of(config, root)
    if is_finished(run, keep_weights):
        return run
    if config.model.family == "torchvision":  # a slip of the pen should leave no failed run
        nets.check_architecture(config.model.architecture)
    if config.train.compile:
        check_compiler(device)
    given = _given_weights(config, root, device=device, checkpoint_seconds=checkpoint_seconds, wait=wait, stop=stop)
    with run.locked(wait=wait) as lease:
        if _is_complete(run, keep_weights):
            return run
        started = time.perf_counter()
        record = _beginning(config, device, given)
        run.begin(config, record)
        origin = {name: str(record[name]) for name in ("commit", "device", "threads")}
        origin["torch"] = str(torch.__version__)  # not of torch's own type, which a checkpoint may not hold
        checkpoints = Checkpoints(run, checkpoint_seconds)
        trial = None

        def watched(*how_far: Any) -> None:
            lease.check()
            if progress is not None:
                progress(*how_far)

        try:
            generators = [device] if device.type == "cuda" else []
            with stopping_politely(stop) as asked, torch.random.fork_rng(devices=generators):
                trial = Trial(
                    config, device, watched, checkpoints=checkpoints, stop=asked, origin=origin, weights=given
                )
                del given  # copied by now, and as large as the network
                outcome = trial.run()
            readings, last = outcome.pop("readings"), outcome.pop("weights", None)
            if keep_weights and last is not None:
                weights.keep(run, last)
            wall = trial.seconds_before + time.perf_counter() - started
            resumed = {"resumed_at_steps": trial.resumed, "earlier_parts": trial.earlier} if trial.resumed else {}
            run.end(readings, {**outcome, "wall_seconds": round(wall, 3), **resumed, **record})
            checkpoints.remove()
        except LeaseLostError:
            raise  # the directory is another process's
        except Exception as error:
            run.end_early({"status": Status.FAILED, "error": one_line(error), **record}, traceback.format_exc())
            raise
        except BaseException:
            steps = {} if trial is None else {"steps": trial.done}
            run.end_early({"status": Status.INTERRUPTED, **steps, **record}, None)
            raise
        return run


def _beginning(config: RunConfig, device: torch.device, given: weights.Weights | None) -> dict[str, Any]:
    """What run.json tells of a run from its first moment on: settings, place, code, and the source of its weights."""
    return {
        "key": config.key(),
        "protocol": PROTOCOL,
        "settings": differing(config),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
        **provenance(),
        **({} if given is None else {"source": {"origin": given.origin, "sha256": given.sha256}}),
    }


def _given_weights(config: RunConfig, root: Path | None, *, stop: Stop | None, **how: Any) -> weights.Weights | None:
    """What a run starts from: of a file, of torchvision, or of another run, which is trained here if it is missing."""
    if "file" in (parts := config.transfer.parts):
        return weights.in_file(Path(parts["file"]).expanduser(), parts["sha256"])
    if "torchvision" in parts:
        return weights.of_torchvision(config.model.architecture, parts["torchvision"])
    source = source_of(config, root)
    if source is None:
        return None
    run = Run.of(source, root)
    if (found := weights.kept(run)) is None:
        tell(f"training the source {run.key} of {config.key()} first")
        execute(source, root=root, stop=stop, keep_weights=True, **how)
        found = weights.kept(run)
    if found is None:
        raise StoreError(
            f"the source {run.key} diverged and has no weights to start from; give transfer.source a smaller train.lr"
        )
    return found


def _is_complete(run: Run, keep_weights: bool) -> bool:
    """Whether the run has its result, and its weights too if they are wanted; one that diverged has none."""
    status = run.status()
    return status.finished and (not keep_weights or weights.are_kept(run) or status is Status.DIVERGED)


def is_finished(run: Run, keep_weights: bool = False) -> bool:
    """Whether the run has its result, and its weights if `keep_weights` says that they are wanted.

    What a process left that was killed after its last word is tidied away.
    """
    finished = _is_complete(run, keep_weights)
    if finished:
        with suppress(OSError, StoreError, HeldError):  # a folder that may only be read; another process is just ending
            Checkpoints(run, 0).remove()
            if (run.folder / "lock").exists():
                with run.locked(wait=False):
                    pass
    return finished


def one_line(error: BaseException) -> str:
    """An error's kind and the first line of its message."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _device_name(device: torch.device) -> str:
    return f"cuda: {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type
