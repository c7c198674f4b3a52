"""Readings as scalars of TensorBoard."""

from __future__ import annotations

from torch.utils.tensorboard import SummaryWriter

from depthlab.instrument.watcher import Watcher


class TensorBoard:
    """Writes what a watcher has read to TensorBoard, each layer of a probe as the scalar `probe/layer`.

    `write()` every so often, and after the last step:

        board = TensorBoard(watcher, SummaryWriter("logs"))
    """

    def __init__(self, watcher: Watcher, writer: SummaryWriter) -> None:
        self.watcher, self.writer = watcher, writer
        self._written = 0

    def write(self) -> None:
        """Writes what was read since the last call."""
        for block in self.watcher.blocks(start=self._written):
            for reading in block.itertuples():
                self.writer.add_scalar(f"{reading.probe}/{reading.layer}", reading.value, reading.step)
            self._written += 1
        self.writer.flush()
