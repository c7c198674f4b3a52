"""Kills the process in which it is imported at a drawn operation on the files of the results: a fault point.

Python imports it at start, in the workers of a sweep too, when its folder is on PYTHONPATH. An audit hook sees every
file opened, renamed or removed, before it happens: among others between the writing of a file and its renaming.
"""

import os
import signal
import sys
from pathlib import Path

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir")


class FaultPoint:
    """An audit hook that counts operations below a folder; at the last one it notes which it was and ends all."""

    def __init__(self, folder: str, operations: int, note: str) -> None:
        self.folder, self.left, self.note = folder, operations, note

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if event not in EVENTS or not arguments or not isinstance(arguments[0], (str, bytes, os.PathLike)):
            return
        path = os.fsdecode(arguments[0])
        if not path.startswith(self.folder):
            return
        self.left -= 1
        if self.left == 0:
            with Path(self.note).open("a") as note:
                note.write(f"{event} {Path(path).name}\n")
            os.kill(os.getpid(), signal.SIGKILL)


if operations := int(os.environ.get("TORTURE_OPERATIONS", "0")):
    sys.addaudithook(FaultPoint(os.environ["DEPTHLAB_RESULTS"], operations, os.environ["TORTURE_NOTE"]))
