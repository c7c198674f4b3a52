"""The instrument: numbers of tensors, read where a network computes them. Needs torch only."""

from depthlab.probes.reading import Reading, Row
from depthlab.probes.statistics import dead_fraction, mean, norm, relative_change, saturation, std

__all__ = ["Reading", "Row", "dead_fraction", "mean", "norm", "relative_change", "saturation", "std"]
