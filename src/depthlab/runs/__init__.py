"""Runs: one from configuration to table, the store that keeps them, the sweep that trains what is missing.

What finished runs hold is read without torch; what trains them is imported when it is asked for.
"""

from typing import TYPE_CHECKING

from depthlab._later import later
from depthlab.runs.finished import cost, load_readings
from depthlab.runs.ledger import CLEANED, STATES, Entry, config_of, ledger, remove, table
from depthlab.runs.store import DiskFullError, Run, Status, StoreError, results_root, runs_root, writing

if TYPE_CHECKING:
    from depthlab.runs.engines import ELSEWHERE
    from depthlab.runs.engines.engine import EngineError
    from depthlab.runs.forecasting import Forecast, forecast
    from depthlab.runs.run import execute, is_finished
    from depthlab.runs.sweeping import Outcome, sweep

__all__ = [
    "CLEANED",
    "ELSEWHERE",
    "STATES",
    "DiskFullError",
    "EngineError",
    "Entry",
    "Forecast",
    "Outcome",
    "Run",
    "Status",
    "StoreError",
    "config_of",
    "cost",
    "execute",
    "forecast",
    "is_finished",
    "ledger",
    "load_readings",
    "remove",
    "results_root",
    "runs_root",
    "sweep",
    "table",
    "writing",
]

__getattr__ = later(
    __name__,
    {
        "ELSEWHERE": "depthlab.runs.engines:ELSEWHERE",
        "EngineError": "depthlab.runs.engines.engine:EngineError",
        "Outcome": "depthlab.runs.sweeping:Outcome",
        "Forecast": "depthlab.runs.forecasting:Forecast",
        "execute": "depthlab.runs.run:execute",
        "forecast": "depthlab.runs.forecasting:forecast",
        "is_finished": "depthlab.runs.run:is_finished",
        "sweep": "depthlab.runs.sweeping:sweep",
    },
)


def __dir__() -> list[str]:
    """Completion finds what is imported late."""
    return __all__
