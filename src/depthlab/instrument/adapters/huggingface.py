"""A callback for Hugging Face's Trainer."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from depthlab.instrument.adapters.trainer import WatcherOfTrainer
from depthlab.instrument.watcher import Watcher


class WatchCallback(WatcherOfTrainer, TrainerCallback):
    """Watches a training: `Trainer(..., callbacks=[callback := WatchCallback()])`, then `callback.watcher.table()`.

    options: those of `depthlab.watch`. Losses are those that the trainer logs, at its `logging_steps`.
    """

    begin = "train"

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Begins to watch, when the optimizer is there."""
        optimizer = given["optimizer"]
        # accelerate wraps the optimizer, and calls the wrapped one's step
        self._watcher = Watcher(given["model"], getattr(optimizer, "optimizer", optimizer), **self._options)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **given: Any,
    ) -> None:
        """Notes the loss, which the trainer tells when it logs only."""
        if logs and "loss" in logs:
            self.watcher.step(float(logs["loss"]))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Ends it; readings stay."""
        self.watcher.close()
