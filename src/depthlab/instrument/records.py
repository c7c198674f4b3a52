"""Readings of a training that goes on: kept on the device, fetched in blocks, and spilled to disk."""

from __future__ import annotations

import io
import itertools
import tempfile
import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import torch
from torch import Tensor

BLOCK = 100
"""Readings are fetched from the device when this many steps of them are there."""

IN_MEMORY = 2**23
"""Bytes of readings that are held before they go to a temporary file."""

SPILLED = pa.schema([("step", pa.int64()), ("place", pa.int32()), ("probe", pa.int16()), ("value", pa.float64())])


class Records:
    """The long table of readings, in memory that does not grow with the steps.

    Places stand for layers: place k has depth k + 1, and place -1 is the whole network. `names` are those of the
    layers, and may grow.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._probes: list[str] = []
        self._pending: list[tuple[int, int, Sequence[int], Tensor]] = []
        self._first: int | None = None
        self._has_blocks = False
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115  (as long as the table)
        weakref.finalize(self, self._file.close)
        self._writer = pa.ipc.new_stream(self._file, SPILLED)

    def add(self, step: int, probe: str, places: Sequence[int], values: Tensor) -> None:
        """Keeps the values (places,) of a probe at a step, on their device."""
        if probe not in self._probes:
            self._probes.append(probe)
        if self._first is None:
            self._first = step
        elif step - self._first >= BLOCK:
            self.fetch()
            self._first = step
        self._pending.append((step, self._probes.index(probe), places, values))

    def fetch(self) -> None:
        """Moves what is on the device to the table."""
        if not self._pending:
            return
        # one transfer for each device and type, whatever the number of readings
        groups: defaultdict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
        for index, (_, _, _, values) in enumerate(self._pending):
            groups[values.device, values.dtype].append(index)
        fetched: dict[int, np.ndarray] = {}
        for members in groups.values():
            together = torch.cat([self._pending[index][3].reshape(-1) for index in members]).cpu()
            lengths = [len(self._pending[index][2]) for index in members]
            parts = np.split(together.double().numpy(), np.cumsum(lengths)[:-1])
            fetched.update(zip(members, parts, strict=True))
        lengths = [len(places) for _, _, places, _ in self._pending]
        columns = {
            "step": np.repeat([step for step, _, _, _ in self._pending], lengths),
            "place": np.concatenate([np.asarray(places) for _, _, places, _ in self._pending]),
            "probe": np.repeat([probe for _, probe, _, _ in self._pending], lengths),
            "value": np.concatenate([fetched[index] for index in range(len(lengths))]),
        }
        arrays = [pa.array(columns[field.name].astype(field.type.to_pandas_dtype())) for field in SPILLED]
        self._file.seek(0, io.SEEK_END)  # readers may stand anywhere
        self._writer.write_batch(pa.record_batch(arrays, schema=SPILLED))
        self._pending.clear()
        self._has_blocks = True

    def blocks(self, start: int = 0) -> Iterator[pd.DataFrame]:
        """The table (step, layer, depth, probe, value) block by block, in the order in which it was read."""
        self.fetch()
        if not self._has_blocks:
            return
        self._file.seek(0)
        stream = pa.ipc.open_stream(self._file)
        position = self._file.tell()
        for number in itertools.count():
            self._file.seek(position)
            try:
                batch = stream.read_next_batch()
            except StopIteration:
                return
            position = self._file.tell()
            if number >= start:
                yield self._named(batch.to_pandas())

    def table(self) -> pd.DataFrame:
        """The whole table, sorted by step, depth and probe."""
        blocks = list(self.blocks()) or [self._named(SPILLED.empty_table().to_pandas())]
        return pd.concat(blocks).sort_values(["step", "depth", "probe"], kind="stable", ignore_index=True)

    def save(self, path: Path) -> None:
        """Writes the table as Parquet, a block at a time."""
        schema = pa.Schema.from_pandas(self._named(SPILLED.empty_table().to_pandas()), preserve_index=False)
        with pa.parquet.ParquetWriter(path, schema) as writer:
            for block in self.blocks():
                writer.write_table(pa.Table.from_pandas(block, schema=schema, preserve_index=False))

    def _named(self, block: pd.DataFrame) -> pd.DataFrame:
        names = np.array([*self.names, "network"], dtype=object)
        probes = np.array([*self._probes, ""], dtype=object)
        return pd.DataFrame(
            {
                "step": block["step"],
                "layer": pd.array(names[block["place"]], dtype="str"),
                "depth": block["place"].astype("int64") + 1,
                "probe": pd.array(probes[block["probe"]], dtype="str"),
                "value": block["value"],
            }
        )
