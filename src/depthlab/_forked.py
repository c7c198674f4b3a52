"""Imported by the process to be forked, and by nothing else: all that `_processes.IMPORTED` names, garbage aside.

Python looks for no garbage among it, neither here nor in the processes that are forked, where it would touch, and so
copy, every page on which something imported stands.
"""

import gc
import importlib

from depthlab._later import uncollected
from depthlab._processes import IMPORTED

with uncollected():
    for name in IMPORTED:
        importlib.import_module(name)
gc.freeze()  # what is imported stays, in every process
