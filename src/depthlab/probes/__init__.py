"""The instrument: numbers of tensors, read where a network computes them. Needs torch only."""

from depthlab.probes.catalogue import PROBES, Probe, Readout, known
from depthlab.probes.distribution import DISTRIBUTION, weight_distribution
from depthlab.probes.measure import Measured, measure
from depthlab.probes.norms import norms
from depthlab.probes.parameters import Parameters, Weight, candidate_weights, in_order_of_data, unwrapped
from depthlab.probes.predict import Prediction, Slope, predict
from depthlab.probes.reading import Reading, Row
from depthlab.probes.regions import linear_regions
from depthlab.probes.signals import Signals
from depthlab.probes.statistics import (
    cosine,
    dead_fraction,
    effective_rank,
    example_cosine,
    mean,
    norm,
    relative_change,
    rms,
    saturation,
    signal_to_noise,
    sparsity,
    std,
)
from depthlab.probes.trace import Trace
from depthlab.probes.window import InactiveUnits

__all__ = [
    "DISTRIBUTION",
    "PROBES",
    "InactiveUnits",
    "Measured",
    "Parameters",
    "Prediction",
    "Probe",
    "Reading",
    "Readout",
    "Row",
    "Signals",
    "Slope",
    "Trace",
    "Weight",
    "candidate_weights",
    "cosine",
    "dead_fraction",
    "effective_rank",
    "example_cosine",
    "in_order_of_data",
    "known",
    "linear_regions",
    "mean",
    "measure",
    "norm",
    "norms",
    "predict",
    "relative_change",
    "rms",
    "saturation",
    "signal_to_noise",
    "sparsity",
    "std",
    "unwrapped",
    "weight_distribution",
]
