"""torchvision, importable beside any torch.

The torchvision wheel of the package index is built for CUDA. Beside a CPU-only torch its C++ extension cannot be
loaded; torchvision shrugs that off, but then gives shape rules to two operators which that extension would have
declared, and `import torchvision` dies with "operator torchvision::nms does not exist". depthlab uses data sets,
transforms and models, none of which needs an operator of the extension, so declaring the two is enough.
"""

from __future__ import annotations

import functools
import importlib
import sys
from types import ModuleType

import torch

OPERATORS = ("nms", "qnms")
"""Operators to which torchvision gives a shape rule whether or not its extension was loaded."""


def import_torchvision() -> ModuleType:
    """The module torchvision; where its extension cannot be loaded, everything in it but the extension's operators.

    A torchvision that imports by itself is left as it is. ImportError if there is none, or none that fits this torch.
    """
    if "torchvision" not in sys.modules:
        _forget_failed_import()
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    _forget_failed_import()
    _declare_operators()
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        raise ImportError(
            f"the installed torchvision does not fit torch {torch.__version__} ({error}); install the torchvision "
            f"that belongs to it, see https://github.com/pytorch/vision#installation"
        ) from None


def _forget_failed_import() -> None:
    # Python drops a package whose import failed, but keeps its finished submodules, which would not be bound anew.
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]


@functools.cache  # an operator can be declared once only
def _declare_operators() -> None:
    for name in OPERATORS:
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
