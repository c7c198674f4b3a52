"""The table of readings: whatever is added comes out, from memory, from disk and from a file."""

from __future__ import annotations

import gc
import math
import struct
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from depthlab.instrument import records as module
from depthlab.instrument.records import BLOCK, Records

COLUMNS = {"step": "int64", "layer": "str", "depth": "int64", "probe": "str", "value": "float64"}
NAMES = ["stem", "blocks.0", "blocks.1", "head"]


def value(step: int, place: int, probe: str) -> float:
    return step + place / 10 + len(probe) / 1000


def add(records: Records, steps: range, places: Sequence[int] = range(4), probe: str = "grad_norm") -> None:
    for step in steps:
        values = torch.tensor([value(step, place, probe) for place in places], dtype=torch.float64)
        records.add(step, probe, places, values)


def made(steps: int = 7) -> Records:
    records = Records()
    records.names = NAMES
    for step in range(steps):
        add(records, range(step, step + 1), probe="weight_norm")
        add(records, range(step, step + 1), probe="grad_norm")
        add(records, range(step, step + 1), [-1], probe="train_loss")
    return records


def expected(steps: int, *, per_step: Sequence[tuple[int, str]] | None = None) -> pd.DataFrame:
    layers = ["network", *NAMES]
    rows = per_step or [
        (-1, "train_loss"),
        *((place, probe) for place in range(4) for probe in ("grad_norm", "weight_norm")),
    ]
    return pd.DataFrame(
        [
            {
                "step": step,
                "layer": layers[place + 1],
                "depth": place + 1,
                "probe": probe,
                "value": value(step, place, probe),
            }
            for step in range(steps)
            for place, probe in rows
        ]
    )


def test_table_is_sorted_by_step_depth_and_probe() -> None:
    table = made(7).table()
    pd.testing.assert_frame_equal(table, expected(7))
    assert table.dtypes.astype(str).to_dict() == COLUMNS


def test_rows_may_come_in_any_order() -> None:
    records = Records()
    records.names = NAMES
    add(records, range(1), [3, 0, 2])
    add(records, range(1), [1], probe="weight_norm")
    table = records.table()
    assert table["depth"].tolist() == [1, 2, 3, 4]
    assert table["layer"].tolist() == NAMES
    assert table["value"].tolist() == [value(0, place, "grad_norm") for place in (0,)] + [
        value(0, 1, "weight_norm"),
        value(0, 2, "grad_norm"),
        value(0, 3, "grad_norm"),
    ]


def test_blocks_are_fetched_every_so_many_steps() -> None:
    records = made(2 * BLOCK + BLOCK // 2)
    sizes = [len(block) for block in records.blocks()]
    assert sizes == [9 * BLOCK, 9 * BLOCK, 9 * BLOCK // 2]
    blocks = list(records.blocks())
    assert [block["step"].min() for block in blocks] == [0, BLOCK, 2 * BLOCK]
    assert all(block.dtypes.astype(str).to_dict() == COLUMNS for block in blocks)
    assert [list(block.columns) for block in records.blocks(2)] == [list(COLUMNS)]
    pd.testing.assert_frame_equal(list(records.blocks(1))[1], blocks[2])
    assert list(records.blocks(3)) == []


def test_blocks_from_where_a_reader_was() -> None:
    """As one asks for what is new, again and again, while the training goes on."""
    records, seen, steps = Records(), 0, []
    records.names = NAMES
    for begin in range(0, 500, 50):
        add(records, range(begin, begin + 50))
        for block in records.blocks(seen):
            steps += block["step"].tolist()
            seen += 1
    assert steps == np.repeat(np.arange(500), 4).tolist()


def test_what_is_pending_is_bounded() -> None:
    records = Records()
    records.names = NAMES
    most = 0
    for step in range(10 * BLOCK):
        add(records, range(step, step + 1))
        most = max(most, len(records._pending))
    assert most == BLOCK
    assert len(records.table()) == 4 * 10 * BLOCK


def test_steps_that_are_far_apart_are_fetched_no_later() -> None:
    records = Records()
    records.names = NAMES
    for step in range(0, 100 * BLOCK, BLOCK):
        add(records, range(step, step + 1))
        assert len(records._pending) == 1


def test_memory_does_not_grow_with_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IN_MEMORY", 2**16)
    records = Records()
    records.names = NAMES

    def grown(steps: range) -> int:
        before = tracemalloc.get_traced_memory()[0]
        add(records, steps)
        records.fetch()
        return tracemalloc.get_traced_memory()[0] - before

    tracemalloc.start()
    try:
        grown(range(3000))  # past the size that goes to disk
        more = grown(range(3000, 9000))
    finally:
        tracemalloc.stop()
    assert 6000 * 4 * 22 > 500_000  # bytes of the rows themselves
    assert more < 20_000
    assert len(records.table()) == 36_000


@pytest.mark.parametrize("size", [1, 2**14])
def test_from_disk_comes_the_same_table(monkeypatch: pytest.MonkeyPatch, size: int, tmp_path: Path) -> None:
    steps = 3 * BLOCK + 20
    in_memory = made(steps)
    monkeypatch.setattr(module, "IN_MEMORY", size)
    spilled = made(steps)
    spilled.fetch()
    assert spilled._file._rolled  # type: ignore[attr-defined]
    assert not in_memory._file._rolled  # type: ignore[attr-defined]
    pd.testing.assert_frame_equal(spilled.table(), expected(steps))
    pd.testing.assert_frame_equal(in_memory.table(), expected(steps))
    spilled.save(tmp_path / "spilled.parquet")
    in_memory.save(tmp_path / "in_memory.parquet")
    assert (tmp_path / "spilled.parquet").read_bytes() == (tmp_path / "in_memory.parquet").read_bytes()


@pytest.mark.parametrize("size", [1, 2**23])
def test_table_while_rows_still_come(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(module, "IN_MEMORY", size)
    records = Records()
    records.names = NAMES
    for end in (3, 4, 150, 151, 400):
        have = records.table()["step"].nunique() if end > 3 else 0
        add(records, range(have, end))
        pd.testing.assert_frame_equal(
            records.table(), expected(end, per_step=[(place, "grad_norm") for place in range(4)])
        )
    pd.testing.assert_frame_equal(records.table(), records.table())


@pytest.mark.parametrize("name", ["table.parquet", "other.pq"])
def test_saved_is_the_table(tmp_path: Path, name: str) -> None:
    records = made(2 * BLOCK + 3)
    records.save(tmp_path / name)
    saved = pd.read_parquet(tmp_path / name)
    assert saved.dtypes.astype(str).to_dict() == COLUMNS
    pd.testing.assert_frame_equal(
        saved.sort_values(["step", "depth", "probe"], kind="stable", ignore_index=True), records.table()
    )
    assert pq.ParquetFile(tmp_path / name).num_row_groups == 3
    add(records, range(300, 301))
    assert len(records.table()) == len(saved) + 4


def test_every_float_survives(tmp_path: Path) -> None:
    special = [math.nan, math.inf, -math.inf, 0.0, -0.0, 5e-324, 1e-310, 1.7976931348623157e308, 1 / 3, -1e-45]
    records = Records()
    records.names = [str(place) for place in range(len(special))]
    records.add(0, "p", range(len(special)), torch.tensor(special, dtype=torch.float64))
    records.save(tmp_path / "p.parquet")
    for values in (records.table()["value"], pd.read_parquet(tmp_path / "p.parquet")["value"]):
        assert [struct.pack("d", found) for found in values] == [struct.pack("d", given) for given in special]


def test_types_and_shapes_of_values_may_differ() -> None:
    records = Records()
    records.names = NAMES
    records.add(0, "a", [0, 1], torch.tensor([1e-45, 2.5], dtype=torch.float32))
    records.add(0, "b", [2], torch.tensor([1 / 3], dtype=torch.float64))
    records.add(0, "c", [0, 3], torch.tensor([0.5, 7.0], dtype=torch.bfloat16))
    records.add(0, "d", [1], torch.tensor(4.0))
    records.add(1, "b", range(1), torch.tensor([5.0], dtype=torch.float64))
    found = [(row.step, row.depth, row.probe, row.value) for row in records.table().itertuples()]
    subnormal = float(torch.tensor(1e-45))
    assert found == [
        *((0, 1, "a", subnormal), (0, 1, "c", 0.5), (0, 2, "a", 2.5), (0, 2, "d", 4.0)),
        *((0, 3, "b", 1 / 3), (0, 4, "c", 7.0), (1, 1, "b", 5.0)),
    ]


def test_values_are_those_of_the_moment() -> None:
    """They are not copied, so that nothing is done at each step: what is added is not changed by the watcher."""
    records = Records()
    records.names = NAMES
    records.add(0, "a", [0], torch.tensor([1.0]))
    records.fetch()
    assert records._pending == []
    assert records.table()["value"].tolist() == [1.0]


def test_names_may_grow() -> None:
    records = Records()
    records.names = NAMES[:2]
    add(records, range(3), [-1, 0, 1])
    first = records.table()
    assert first["layer"].tolist() == ["network", *NAMES[:2]] * 3
    records.names = [*NAMES]
    add(records, range(3, 5), [-1, 0, 1, 2, 3])
    second = records.table()
    pd.testing.assert_frame_equal(second[:9], first)
    assert second["layer"].tolist()[9:] == ["network", *NAMES] * 2


def test_empty_table_has_its_columns(tmp_path: Path) -> None:
    records = Records()
    table = records.table()
    assert len(table) == 0
    assert table.dtypes.astype(str).to_dict() == COLUMNS
    assert list(records.blocks()) == []
    records.save(tmp_path / "empty.parquet")
    assert pd.read_parquet(tmp_path / "empty.parquet").dtypes.astype(str).to_dict() == COLUMNS
    records.names = NAMES
    add(records, range(2))
    assert len(records.table()) == 8


@pytest.mark.parametrize("size", [1, 2**23])
def test_rows_that_come_while_blocks_are_read(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(module, "IN_MEMORY", size)
    records = Records()
    records.names = NAMES
    add(records, range(10))
    records.fetch()
    add(records, range(10, 20))
    seen = []
    for block in records.blocks():
        seen += block["step"].unique().tolist()
        if len(seen) == 10:
            add(records, range(20, 30))
            records.fetch()
    assert seen[:20] == list(range(20))
    assert sorted(records.table()["step"].unique()) == list(range(30))


def test_reader_that_stops_early_and_is_forgotten_later() -> None:
    records = made(250)
    reader = records.blocks()
    next(reader)
    list(records.blocks())  # puts the file to its end
    add(records, range(250, 400))
    records.fetch()
    del reader
    gc.collect()
    add(records, range(400, 401))
    assert records.table()["step"].unique().tolist() == list(range(401))


def test_two_readers_at_once() -> None:
    records = Records()
    records.names = NAMES
    for begin in (0, 10, 20):
        add(records, range(begin, begin + 10))
        records.fetch()
    pairs = list(zip(records.blocks(), records.blocks(), strict=True))
    assert [one["step"].tolist() for one, _ in pairs] == [other["step"].tolist() for _, other in pairs]
    assert len(pairs) == 3
    assert records.table()["step"].unique().tolist() == list(range(30))


def test_reader_that_stops_early() -> None:
    records = made(250)
    next(records.blocks())
    gc.collect()
    add(records, range(250, 251), probe="grad_norm")
    assert records.table()["step"].unique().tolist() == list(range(251))


@pytest.mark.filterwarnings("error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("size", [1, 2**23])
def test_file_is_closed_with_the_records(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(module, "IN_MEMORY", size)
    records = made(150)
    records.table()
    file = records._file
    del records
    gc.collect()
    assert file.closed


def test_tables_of_two_records_are_apart() -> None:
    one, other = made(3), made(5)
    assert len(one.table()) == 27
    assert len(other.table()) == 45
