"""Runs: one from configuration to table, the store that keeps them, the sweep that trains what is missing."""

from depthlab.runs.ledger import CLEANED, STATES, Entry, config_of, ledger, remove, table
from depthlab.runs.run import execute
from depthlab.runs.store import DiskFullError, Run, Status, StoreError, results_root, runs_root, writing
from depthlab.runs.sweep import Outcome, cost, load_readings, sweep

__all__ = [
    "CLEANED",
    "STATES",
    "DiskFullError",
    "Entry",
    "Outcome",
    "Run",
    "Status",
    "StoreError",
    "config_of",
    "cost",
    "execute",
    "ledger",
    "load_readings",
    "remove",
    "results_root",
    "runs_root",
    "sweep",
    "table",
    "writing",
]
