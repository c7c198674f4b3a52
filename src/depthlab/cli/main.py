"""`depthlab`: finds the command, and tells errors.

A command's module is imported when it is asked for: each needs other libraries, and importing them takes seconds.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import pkgutil
import sys
from collections.abc import Sequence

from depthlab import _processes
from depthlab._later import uncollected
from depthlab.cli import parser as command_line
from depthlab.config import ConfigError

COMMANDS = {
    "train": "depthlab.cli.train:train",
    "cost": "depthlab.cli.cost:cost",
    "figure": "depthlab.cli.figure:figure",
    "report": "depthlab.cli.report:report",
    "runs": "depthlab.cli.runs:list_runs",
    "tune": "depthlab.cli.tune:tune",
}
"""Where each command is defined."""

BRIEF = ("figure", "report", "runs")
"""Commands that leave little garbage: looking for it takes longer than it is worth."""

EXPECTED = (
    "depthlab.data.prepared:DataError",
    "depthlab.nets.network:WeightsError",
    "depthlab.runs.store:StoreError",
    "depthlab.runs.engines.engine:EngineError",
)
"""Faults of files and folders, as is PermissionError: told in one line. Anything else is a defect, with traceback."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status: 0, 1 (a run or a file failed), 2 (a wrong argument) or 130 (Ctrl-C)."""
    parser = command_line.build()
    options, rest = parser.parse_known_args(arguments)
    if options.command is None:
        parser.print_help()
        return 2
    if flags := [text for text in rest if text.startswith("-")]:
        parser.error(f"unrecognized arguments: {' '.join(flags)}; depthlab {options.command} --help lists them")
    options.overrides += rest  # argparse takes no more of them after an option that stands in their midst
    try:
        return _run(options, is_alone=arguments is None)
    except ConfigError as error:
        print(f"depthlab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        where = f" {stop}" if str(stop) else ""
        print(f"\ndepthlab: stopped{where}; what is trained is kept, type the same command to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # whoever read our output has gone, as `head` does; what is left of it must not fail again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(options: argparse.Namespace, is_alone: bool) -> int:
    """is_alone: whether the process is the command's own, so that nobody's garbage is kept by what is frozen."""
    if _is_sweep_here(options):
        _processes.warm_up()
    with uncollected():
        command = pkgutil.resolve_name(COMMANDS[options.command])
        if is_alone:
            gc.freeze()  # what is imported stays
            atexit.register(gc.freeze)  # and at the end, the system frees faster than Python
    if is_alone and options.command in BRIEF:
        gc.disable()
    try:
        status: int = command(options)
        sys.stdout.flush()
    except Exception as error:
        if not _is_expected(error):
            raise
        print(f"depthlab: {error}", file=sys.stderr)
        return 1
    return status


def _is_sweep_here(options: argparse.Namespace) -> bool:
    """Whether it is likely that a pool of this machine is to train: what else can be told takes importing torch."""
    names = {text.partition("=")[0] for text in options.overrides}
    match options.command:
        case "train":
            is_sweep = options.multirun or "experiment" in names
        case "tune":
            is_sweep = "sweep.workers=1" not in options.overrides
        case command:
            is_sweep = command == "cost"
    return is_sweep and names.isdisjoint({"hydra/launcher", "sweep.engine"})


def _is_expected(error: Exception) -> bool:
    """Whether it is one of EXPECTED, whose modules are not imported for it: those that are not have raised nothing."""
    there = [name for name in EXPECTED if name.partition(":")[0] in sys.modules]
    return isinstance(error, (PermissionError, *map(pkgutil.resolve_name, there)))
