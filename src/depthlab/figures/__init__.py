"""From a long table of readings to figures, tables and claims."""

from depthlab.figures.axes import draw, legend, theory
from depthlab.figures.claims import Claim, permuted
from depthlab.figures.intervals import Interval, interval, intervals, paired, slopes, summarize
from depthlab.figures.readings import select
from depthlab.figures.results import Experiment, read, redraw, write
from depthlab.figures.style import COLUMN, PAGE, panels, style
from depthlab.figures.tables import pivot

__all__ = [
    "COLUMN",
    "PAGE",
    "Claim",
    "Experiment",
    "Interval",
    "draw",
    "interval",
    "intervals",
    "legend",
    "paired",
    "panels",
    "permuted",
    "pivot",
    "read",
    "redraw",
    "select",
    "slopes",
    "style",
    "summarize",
    "theory",
    "write",
]
