"""The instrument in anybody's training: watch a loop, measure a model, predict from one pass."""

from depthlab.instrument.watcher import DEFAULT, Watcher, measure, watch
from depthlab.probes import Prediction, predict

__all__ = ["DEFAULT", "Prediction", "Watcher", "measure", "predict", "watch"]
