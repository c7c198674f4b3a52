"""Data sets as tensors on the device; batches and augmentation that are pure functions of seed and step."""

from depthlab.data.augment import cut_out, normalize, shift_and_flip
from depthlab.data.batches import Batches, evaluation_batches
from depthlab.data.prepared import DataError, data_root
from depthlab.data.pretrained import pretrained_file
from depthlab.data.splits import Images, Splits, load

__all__ = [
    "Batches",
    "DataError",
    "Images",
    "Splits",
    "cut_out",
    "data_root",
    "evaluation_batches",
    "load",
    "normalize",
    "pretrained_file",
    "shift_and_flip",
]
