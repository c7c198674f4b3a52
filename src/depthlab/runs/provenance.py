"""Where a result came from: code, versions, machine, command."""

from __future__ import annotations

import importlib.util
import platform
import runpy
import shlex
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

VERSIONS_OF = ("depthlab", "torch", "torchvision", "numpy", "pandas", "hydra-core")


def provenance() -> dict[str, Any]:
    """Commit, whether files differ from it, versions, machine and command line of this process."""
    return {**_code(), "versions": _versions(), "machine": _machine(), "command": command_line()}


@cache
def torch_version() -> str:
    """The version of torch with its build, such as 2.13.0+cpu, which metadata lack; torch itself is not imported."""
    package = importlib.util.find_spec("torch")
    assert package is not None
    assert package.origin is not None
    return str(runpy.run_path(str(Path(package.origin).with_name("version.py")))["__version__"])


def command_line() -> str:
    """What was typed, with the program's name instead of its path; for `python -m depthlab` that of the package."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    return shlex.join([name, *sys.argv[1:]])


@cache
def _code() -> dict[str, Any]:
    """Commit of the code itself, which need not be the folder one stands in; null outside a checkout."""
    folder = Path(__file__).parent
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None or _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return {"commit": None, "dirty": None}
    changes = _git(folder, "status", "--porcelain", "--", ":/src", ":/configs")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    # without optional locks, since the workers of a sweep all ask at once while somebody may be committing
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in VERSIONS_OF:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found["torch"] = torch_version()
    return found


@cache
def _machine() -> dict[str, str]:
    return {"system": platform.system(), "processor": _processor()}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
