"""A callback for Lightning's Trainer."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer

from depthlab.instrument.adapters.trainer import WatcherOfTrainer
from depthlab.instrument.watcher import Watcher


class WatchCallback(WatcherOfTrainer, Callback):
    """Watches a fit: `Trainer(callbacks=[callback := WatchCallback()])`, then `callback.watcher.table()`.

    options: those of `depthlab.watch`. The module is watched with the first of its optimizers.
    """

    begin = "fit"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to watch, when the optimizers are there."""
        self._watcher = Watcher(pl_module, trainer.optimizers[0], **self._options)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Notes the loss that the module's training step returned."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is not None:
            self.watcher.step(loss)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends it; readings stay."""
        self.watcher.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Ends it too, Ctrl-C included."""
        if self._watcher is not None:
            self._watcher.close()
