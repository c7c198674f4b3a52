"""The loop, optimisers, schedules, and the machine they run on."""

from depthlab.training.compiled import check_compiler
from depthlab.training.loop import Evaluation, Update, evaluate, predictions, residuals, train
from depthlab.training.machine import available_cores, prepare_process, resolve_device
from depthlab.training.memory import available_memory, free_gpu_memory, own_peak
from depthlab.training.optimizers import build_optimizer, learning_rate, set_learning_rate
from depthlab.training.pretraining import Autoencoder, Pretraining, reconstruction_error

__all__ = [
    "Autoencoder",
    "Evaluation",
    "Pretraining",
    "Update",
    "available_cores",
    "available_memory",
    "build_optimizer",
    "check_compiler",
    "evaluate",
    "free_gpu_memory",
    "learning_rate",
    "own_peak",
    "predictions",
    "prepare_process",
    "reconstruction_error",
    "residuals",
    "resolve_device",
    "set_learning_rate",
    "train",
]
