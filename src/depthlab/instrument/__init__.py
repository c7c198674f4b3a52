"""The instrument in anybody's training: watch a loop, measure a model, predict from one pass."""

from depthlab.config import READ_BY_DEFAULT as DEFAULT
from depthlab.instrument.one_pass import measure
from depthlab.instrument.watcher import Watcher, watch
from depthlab.probes import Prediction, predict

__all__ = ["DEFAULT", "Prediction", "Watcher", "measure", "predict", "watch"]
