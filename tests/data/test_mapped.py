"""The arrays of a prepared file are mapped where they can be, and read where they cannot; processes share them."""

from __future__ import annotations

import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from depthlab.config import DATASETS, DataConfig
from depthlab.data import Batches, Images, Splits, evaluation_batches, load
from depthlab.data.mapped import map_pixels
from depthlab.data.prepared import KEYS, Prepared, read_prepared, write_prepared

CPU = torch.device("cpu")
PIXELS = np.arange(6000, dtype=np.uint8).reshape(10, 20, 30)


def mapped(file: Path, name: str = "pixels.npy") -> np.ndarray | None:
    with file.open("rb") as stream, zipfile.ZipFile(stream) as archive:
        return map_pixels(stream, archive.getinfo(name))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    np.savez(tmp_path / "file.npz", before=np.arange(3), pixels=PIXELS, after=np.arange(4.0))
    return tmp_path / "file.npz"


def test_a_stored_array_is_mapped_and_equal(file: Path) -> None:
    found = mapped(file)
    assert found is not None
    assert found.dtype == np.uint8
    assert np.array_equal(found, PIXELS)


def test_it_takes_its_bytes_from_the_file_and_gives_none_back(file: Path) -> None:
    found = mapped(file)
    assert found is not None
    with file.open("r+b") as stream:
        stream.seek(file.read_bytes().index(PIXELS.tobytes()))
        stream.write(b"\xee")
    assert found[0, 0, 0] == 0xEE  # it is the file, and not a copy
    whole = file.read_bytes()
    found[3] = 77
    assert file.read_bytes() == whole  # a page that is written to is the writer's own


def test_it_outlives_the_name_of_its_file(file: Path) -> None:
    found = mapped(file)
    file.with_suffix(".new").write_bytes(b"other")
    file.with_suffix(".new").replace(file)
    assert np.array_equal(found, PIXELS)


def test_torch_takes_it_without_a_warning(file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = torch.from_numpy(mapped(file))
    assert torch.equal(tensor, torch.from_numpy(PIXELS))


@pytest.mark.parametrize(
    "array",
    [PIXELS.astype(np.int8), PIXELS.astype(np.int64), np.asfortranarray(PIXELS), np.array([{}], dtype=object)],
    ids=["int8", "int64", "fortran", "object"],
)
def test_other_arrays_are_left_to_be_read(array: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "file.npz", pixels=array)
    assert mapped(tmp_path / "file.npz") is None


def test_a_compressed_array_is_left_to_be_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "file.npz", pixels=PIXELS)
    assert mapped(tmp_path / "file.npz") is None


def test_damaged_bytes_are_left_to_whoever_reads_them(file: Path) -> None:
    whole = bytearray(file.read_bytes())
    begin = whole.index(PIXELS.tobytes())
    for place in (begin + 17, whole.rindex(b"\x93NUMPY", 0, begin) + 20):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        file.write_bytes(damaged)
        assert mapped(file) is None


def test_a_file_that_ends_before_its_array_is_not_mapped(file: Path) -> None:
    """Mapped all the same, it would kill the process where its end is passed."""
    whole = file.read_bytes()
    with file.open("rb") as stream, zipfile.ZipFile(stream) as archive:
        member = archive.getinfo("pixels.npy")
    for length in (whole.index(PIXELS.tobytes()) + 5000, member.header_offset + 10, 0):
        file.write_bytes(whole[:length])
        with file.open("rb") as stream:
            assert map_pixels(stream, member) is None


def is_mapped(array: np.ndarray) -> bool:
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            return True
        array = array.base  # type: ignore[assignment]
    return False


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_prepared_file_gives_the_same_however_it_is_stored(
    save: Callable[..., None], root: Path, make_prepared: Callable[..., Prepared]
) -> None:
    prepared = make_prepared("cifar10")
    save(root / "cifar10.npz", **{key: getattr(prepared, key) for key in KEYS})
    found = read_prepared(root / "cifar10.npz", "cifar10")
    for key in KEYS[:-1]:
        assert np.array_equal(getattr(found, key), getattr(prepared, key))
    for images in (found.train_images, found.test_images):
        assert is_mapped(images) is (save is np.savez)


def copied(part: Images) -> Images:
    """As images lay in memory before they were mapped: each part its own, channels first."""
    pixels, labels = part[:]
    return Images(pixels.contiguous(), labels)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
@pytest.mark.parametrize("settings", [{}, {"crop_padding": 4, "flip": True}, {"cutout": 5}, {"flip": True}])
def test_batches_are_those_of_copies_bit_for_bit(
    name: str, settings: dict[str, int], root: Path, make_prepared: Callable[..., Prepared]
) -> None:
    write_prepared(root / f"{name}.npz", make_prepared(name))
    config = DataConfig(name=name, train_size=30, label_noise=0.2, **settings)  # type: ignore[arg-type]
    splits = load(config, CPU)
    for part in (splits.train, splits.validation, splits.test):
        for one, two in zip(everything(splits, part, config), everything(splits, copied(part), config), strict=True):
            assert torch.equal(one, two)
            assert one.stride() == two.stride()


def everything(splits: Splits, part: Images, config: DataConfig) -> list[torch.Tensor]:
    """All that a run asks of a part."""
    statistics = {"mean": splits.mean, "std": splits.std}
    batches = Batches(part, config, batch_size=4, seed=0, **statistics)
    found = [tensor for step in range(9) for tensor in batches[step]]
    found += [tensor for batch in evaluation_batches(part, batch_size=3, **statistics) for tensor in batch]
    found += [tensor for batch in evaluation_batches(part.first(2), batch_size=3, **statistics) for tensor in batch]
    return found


def test_parts_share_one_pool() -> None:
    splits = load(DataConfig(name="digits"), CPU)
    assert splits.train.pool.data_ptr() == splits.validation.pool.data_ptr() == splits.train.first(3).pool.data_ptr()
    assert len(splits.train.first(3)) == 3


LOADED = """
import sys
import torch
from pathlib import Path
from depthlab.config import DataConfig
from depthlab.data import Batches, Images, load

def pss():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))

def ask(word):
    print(word, flush=True)
    sys.stdin.readline()

config = DataConfig(name="cifar10", crop_padding=4, flip=True)
few = Images(torch.zeros(128, 3, 32, 32, dtype=torch.uint8), torch.zeros(128).long())
load(DataConfig(name="digits"), torch.device("cpu"))
for step in range(20):  # what a batch needs while it is made is no part of the data set
    Batches(few, config, batch_size=128, seed=0, mean=torch.ones(3), std=torch.ones(3))[step]
ask("up")
print(pss(), flush=True)
sys.stdin.readline()
splits = load(config, torch.device("cpu"))
batches = Batches(splits.train, config, batch_size=128, seed=0, mean=splits.mean, std=splits.std)
for step in range(batches.steps_per_epoch):
    batches[step]
ask("loaded")
print(pss(), flush=True)
sys.stdin.readline()
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's account of shared memory")
def test_eight_processes_have_a_data_set_in_memory_once(root: Path, make_prepared: Callable[..., Prepared]) -> None:
    """An epoch of CIFAR-10 in each: together they add less than 1.3 times its size."""
    write_prepared(root / "cifar10.npz", make_prepared("cifar10"))
    size = (root / "cifar10.npz").stat().st_size
    assert size > 3072 * (DATASETS["cifar10"].train + DATASETS["cifar10"].test)
    command = [sys.executable, "-c", LOADED]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    try:
        before = together(processes, "up")
        after = together(processes, "loaded")
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    added = (after - before) / size
    print(f"eight processes add {added:.2f} times the size of the data set")
    assert 0.9 < added < 1.3


def together(processes: list[subprocess.Popen[str]], word: str) -> int:
    """Bytes of all processes, shared ones counted once, when each has come to the word."""

    def line(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline().strip()

    def go_on(process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()

    for process in processes:
        assert line(process) == word
    for process in processes:
        go_on(process)
    sizes = [int(line(process)) for process in processes]
    for process in processes:
        go_on(process)
    return 1024 * sum(sizes)
