"""Runs: one from configuration to table, the store that keeps them, the sweep that trains what is missing."""

from depthlab.runs.engines import ELSEWHERE
from depthlab.runs.engines.engine import EngineError
from depthlab.runs.ledger import CLEANED, STATES, Entry, config_of, ledger, remove, table
from depthlab.runs.run import execute, is_finished
from depthlab.runs.store import DiskFullError, Run, Status, StoreError, results_root, runs_root, writing
from depthlab.runs.sweep import Outcome, cost, load_readings, sweep

__all__ = [
    "CLEANED",
    "ELSEWHERE",
    "STATES",
    "DiskFullError",
    "EngineError",
    "Entry",
    "Outcome",
    "Run",
    "Status",
    "StoreError",
    "config_of",
    "cost",
    "execute",
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
