"""Runs: one from configuration to table, the store that keeps them, the sweep that trains what is missing."""

from depthlab.runs.ledger import Entry, ledger
from depthlab.runs.run import execute
from depthlab.runs.store import Run, Status, StoreError, results_root, runs_root, writing
from depthlab.runs.sweep import Outcome, cost, load_readings, sweep

__all__ = [
    "Entry",
    "Outcome",
    "Run",
    "Status",
    "StoreError",
    "cost",
    "execute",
    "ledger",
    "load_readings",
    "results_root",
    "runs_root",
    "sweep",
    "writing",
]
