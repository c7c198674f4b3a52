"""A Slurm for a test: a controller and a few nodes on this machine, with its own keys, ports and folder.

Nothing of the machine's own configuration is used or changed. There is no accounting, as on many small clusters.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "srun", "scontrol", "scancel")
PACKAGES = "munge slurmctld slurmd slurm-client"
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
"""Daemons are not in everybody's path."""

STARTS_WITHIN = 60.0


def missing() -> str:
    """Why no Slurm can be started here; empty if one can."""
    if sys.platform != "linux":
        return "Slurm runs on Linux"
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    return f"needs {', '.join(absent)}; on Debian: apt-get install {PACKAGES}" if absent else ""


class Slurm:
    """A cluster that is there inside `with`; `environment` is what its clients need."""

    def __init__(self, folder: Path, nodes: int, *, cores: int = 1, lines: str = "") -> None:
        self.folder, self.nodes = folder, [f"node{number}" for number in range(1, nodes + 1)]
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}
        self._cores, self._lines = cores, lines
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack:
            self._write()
            _adopt_orphans(True)
            self._stack.callback(_adopt_orphans, False)
            self._stack.callback(self._end_all)
            for name, command in self._commands().items():
                self._start(name, command)
                if name == "munged":
                    self._until("munged answers", (self.folder / "munge.socket").exists)
            self._until("all nodes are idle", lambda: self.states_of_nodes().count("idle") == len(self.nodes))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, *command: str) -> str:
        """What a client says."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, timeout=30)
        return done.stdout + done.stderr

    def jobs(self) -> dict[str, tuple[str, str]]:
        """State and node of every job that is not over, by number."""
        lines = self.run("squeue", "--noheader", "--array", "--format=%i|%T|%N").splitlines()
        found = [line.split("|") for line in lines if line.count("|") == 2]
        return {number: (state, node) for number, state, node in found}

    def states_of_nodes(self) -> list[str]:
        """The state of every node, which stands once for each partition."""
        return self.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%t").split()

    def kill_node(self, name: str) -> None:
        """As if it lost its power: the daemon and all that it started are gone in one moment, without a word."""
        daemon = self._daemons.pop(name)
        below = _of_node(self.folder / f"spool-{name}", name)
        for pid in [daemon.pid, *below]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        daemon.wait()
        for pid in below:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)

    def log(self) -> str:
        """The ends of all logs, for a test that fails."""
        return "\n".join(f"== {path.name}\n{path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log")))

    def _commands(self) -> dict[str, list[str]]:
        inside = self.folder
        keys = ["--key-file", inside / "munge.key", "--socket", inside / "munge.socket", "--seed-file"]
        files = [inside / "munge.seed", "--pid-file", inside / "munge.pid", "--log-file", inside / "munge.log"]
        commands = {"munged": ["munged", "--foreground", "--force", *keys, *files]}
        commands["slurmctld"] = ["slurmctld", "-D", "-c", "-f", inside / "slurm.conf"]
        for name in self.nodes:
            commands[name] = ["slurmd", "-D", "-N", name, "-f", inside / "slurm.conf"]
        return {name: [str(part) for part in command] for name, command in commands.items()}

    def _start(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.out").open("wb") as out:
            self._daemons[name] = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

    def _until(self, what: str, is_so: Callable[[], bool]) -> None:
        end = time.monotonic() + STARTS_WITHIN
        while not is_so():
            dead = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
            if dead or time.monotonic() > end:
                out = "\n".join(path.read_text() for path in self.folder.glob("*.out"))
                raise RuntimeError(f"Slurm does not start: not so: {what}; ended: {dead}\n{out}\n{self.log()}")
            time.sleep(0.1)

    def _end_all(self) -> None:
        self.run("scancel", "--user", str(os.getuid()))
        for name, daemon in reversed(self._daemons.items()):
            below = _of_node(self.folder / f"spool-{name}", name) if name in self.nodes else []
            daemon.terminate()
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            for pid in [daemon.pid, *below]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            daemon.wait()

    def _write(self) -> None:
        self.folder.chmod(0o755)
        (self.folder / "state").mkdir()
        for name in self.nodes:
            (self.folder / f"spool-{name}").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        (self.folder / "slurm.conf").write_text(self._configuration())

    def _configuration(self) -> str:
        inside, host = self.folder, socket.gethostname().partition(".")[0]
        me = pwd.getpwuid(os.getuid()).pw_name
        controller, *ports = _free_ports(1 + len(self.nodes))
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={self._cores} RealMemory=2000"
            for name, port in zip(self.nodes, ports, strict=True)
        )
        # cred_expire: a job that is queued again waits until its old credential is void, by default for two minutes
        return f"""ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={me}
SlurmdUser={me}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={inside}/munge.socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={inside}/state
SlurmdSpoolDir={inside}/spool-%n
SlurmctldPidFile={inside}/slurmctld.pid
SlurmdPidFile={inside}/slurmd-%n.pid
SlurmctldLogFile={inside}/slurmctld.log
SlurmdLogFile={inside}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdTimeout=10
KillWait=5
ReturnToService=2
{self._lines}
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, each another one."""
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in held]


def _of_node(spool: Path, node: str) -> list[int]:
    """What a node started for jobs: tasks, known by their environment, after their parents, who are nobody's."""
    tasks = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            environment = (folder / "environ").read_bytes().split(b"\0")
            here = {f"SLURMD_NODENAME={node}".encode(), f"SLURM_CONF={spool.parent / 'slurm.conf'}".encode()}
            if here <= set(environment):
                tasks.append(int(folder.name))
    # tasks that have outlived their parent are children of this process, which is not to kill itself
    parents = {parent for parent in map(_parent, tasks) if parent not in (0, 1, os.getpid(), *tasks)}
    return [*parents, *tasks]


def _adopt_orphans(really: bool) -> None:
    """Makes the daemons of steps children of this process, which can then see them end.

    In a container nobody else may do that, and what is dead but not waited for looks alive.
    """
    set_child_subreaper = 36
    ctypes.CDLL(None).prctl(set_child_subreaper, int(really), 0, 0, 0)


def _parent(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0
