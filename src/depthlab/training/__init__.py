"""The loop, optimisers, schedules, and the machine they run on."""

from depthlab.training.loop import Evaluation, Update, evaluate, residuals, train
from depthlab.training.machine import available_cores, prepare_process, resolve_device
from depthlab.training.optimizers import build_optimizer, learning_rate, set_learning_rate

__all__ = [
    "Evaluation",
    "Update",
    "available_cores",
    "build_optimizer",
    "evaluate",
    "learning_rate",
    "prepare_process",
    "residuals",
    "resolve_device",
    "set_learning_rate",
    "train",
]
