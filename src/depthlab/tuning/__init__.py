"""Which settings are best: Optuna searches declared ranges, and every trial is a run like others. Needs optuna."""

from depthlab.tuning.outcomes import Outcome
from depthlab.tuning.results import describe, write
from depthlab.tuning.search import Search, search
from depthlab.tuning.study import Study

__all__ = ["Outcome", "Search", "Study", "describe", "search", "write"]
