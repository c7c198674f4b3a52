"""From a long table of readings to figures, tables and claims.

Most figures are drawn without torch; what counts regions or bins weights is imported when it is asked for.
"""

from typing import TYPE_CHECKING

from depthlab._later import later
from depthlab.figures.axes import draw, draw_errors, log_ticks, theory, theory_growth
from depthlab.figures.bias_variance import BiasVariance, bias_variance, decompose, independent, residuals
from depthlab.figures.claims import Claim, permuted
from depthlab.figures.conditions import deepest, errors, hidden, named, percent
from depthlab.figures.flow import draw_map, flow
from depthlab.figures.heat import draw_heat, theory_over
from depthlab.figures.importance import importance
from depthlab.figures.intervals import (
    Interval,
    by_seed,
    interval,
    intervals,
    largest_gap,
    less_baseline,
    paired,
    slopes,
    summarize,
)
from depthlab.figures.legends import legend, legend_above, legend_beside
from depthlab.figures.overflow import draw_overflow, finite_everywhere, overflow_depths, predicted_activation_std
from depthlab.figures.plane import decisions, draw_decisions
from depthlab.figures.predictions import (
    above_floor,
    backward_slopes,
    model_of,
    predicted_backward,
    predicted_depth,
    predicted_text,
    trainable_depths,
)
from depthlab.figures.readings import outcomes, over_layers, select, tuned, updates_until, where
from depthlab.figures.report import Chapter, chapter, claims_table, page
from depthlab.figures.results import Experiment, read, redraw, write
from depthlab.figures.seeds import draw_seeds
from depthlab.figures.style import COLUMN, PAGE, panels, render, style
from depthlab.figures.tables import csv, markdown, pivot, table
from depthlab.figures.through_time import predicted_through_time, states, time_slopes

if TYPE_CHECKING:
    from depthlab.figures.distribution import draw_distribution, weight_shares
    from depthlab.figures.regions import half_side, hidden_widths, parameters, points, predicted_regions

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
    "by_seed",
    "chapter",
    "claims_table",
    "csv",
    "decisions",
    "decompose",
    "deepest",
    "draw",
    "draw_decisions",
    "draw_distribution",
    "draw_errors",
    "draw_heat",
    "draw_map",
    "draw_overflow",
    "draw_seeds",
    "errors",
    "finite_everywhere",
    "flow",
    "half_side",
    "hidden",
    "hidden_widths",
    "importance",
    "independent",
    "interval",
    "intervals",
    "largest_gap",
    "legend",
    "legend_above",
    "legend_beside",
    "less_baseline",
    "log_ticks",
    "markdown",
    "model_of",
    "named",
    "outcomes",
    "over_layers",
    "overflow_depths",
    "page",
    "paired",
    "panels",
    "parameters",
    "percent",
    "permuted",
    "pivot",
    "points",
    "predicted_activation_std",
    "predicted_backward",
    "predicted_depth",
    "predicted_regions",
    "predicted_text",
    "predicted_through_time",
    "read",
    "redraw",
    "render",
    "residuals",
    "select",
    "slopes",
    "states",
    "style",
    "summarize",
    "table",
    "theory",
    "theory_growth",
    "theory_over",
    "time_slopes",
    "trainable_depths",
    "tuned",
    "updates_until",
    "weight_shares",
    "where",
    "write",
]

MODULES = {
    "distribution": ("draw_distribution", "weight_shares"),
    "regions": ("half_side", "hidden_widths", "parameters", "points", "predicted_regions"),
}
__getattr__ = later(
    __name__, {name: f"depthlab.figures.{module}:{name}" for module, names in MODULES.items() for name in names}
)


def __dir__() -> list[str]:
    """Completion finds what is imported late."""
    return __all__
