"""What the callbacks of trainers have in common."""

from __future__ import annotations

from typing import Any, ClassVar

from depthlab.instrument.watcher import Watcher


class WatcherOfTrainer:
    """Holds the options of a watcher, and the watcher itself once a training has begun.

    begin: name of the trainer's method that begins one.
    """

    begin: ClassVar[str]

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._watcher: Watcher | None = None

    @property
    def watcher(self) -> Watcher:
        """The watcher of the last training. RuntimeError before one has begun."""
        if self._watcher is None:
            raise RuntimeError(f"nothing was watched yet; give this callback to a Trainer and call {self.begin}")
        return self._watcher
