"""From a long table of readings to figures, tables and claims."""

from depthlab.figures.axes import draw, legend, legend_above, legend_beside, log_ticks, theory
from depthlab.figures.bias_variance import BiasVariance, bias_variance, decompose, independent, residuals
from depthlab.figures.claims import Claim, permuted
from depthlab.figures.flow import draw_map, flow
from depthlab.figures.heat import draw_heat, theory_over
from depthlab.figures.importance import importance
from depthlab.figures.intervals import Interval, interval, intervals, paired, slopes, summarize
from depthlab.figures.plane import decisions, draw_decisions
from depthlab.figures.predictions import (
    above_floor,
    backward_slopes,
    model_of,
    predicted_backward,
    predicted_depth,
    trainable_depths,
)
from depthlab.figures.readings import outcomes, over_layers, select, tuned, updates_until, where
from depthlab.figures.report import Chapter, chapter, claims_table, page
from depthlab.figures.results import Experiment, read, redraw, write
from depthlab.figures.style import COLUMN, PAGE, panels, render, style
from depthlab.figures.tables import csv, markdown, pivot

__all__ = [
    "COLUMN",
    "PAGE",
    "BiasVariance",
    "Chapter",
    "Claim",
    "Experiment",
    "Interval",
    "above_floor",
    "backward_slopes",
    "bias_variance",
    "chapter",
    "claims_table",
    "csv",
    "decisions",
    "decompose",
    "draw",
    "draw_decisions",
    "draw_heat",
    "draw_map",
    "flow",
    "importance",
    "independent",
    "interval",
    "intervals",
    "legend",
    "legend_above",
    "legend_beside",
    "log_ticks",
    "markdown",
    "model_of",
    "outcomes",
    "over_layers",
    "page",
    "paired",
    "panels",
    "permuted",
    "pivot",
    "predicted_backward",
    "predicted_depth",
    "read",
    "redraw",
    "render",
    "residuals",
    "select",
    "slopes",
    "style",
    "summarize",
    "theory",
    "theory_over",
    "trainable_depths",
    "tuned",
    "updates_until",
    "where",
    "write",
]
