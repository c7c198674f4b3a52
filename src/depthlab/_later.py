"""How a start is short: names that are imported when they are asked for, and no search for garbage among imports."""

from __future__ import annotations

import gc
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


def later(package: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__` (PEP 562). places: where each name is, as "module:name", or "module" for a module.

    No name may be that of a module of the package, which Python sets in its place once it is imported.
    """

    def find(name: str) -> Any:
        if name in places:
            return pkgutil.resolve_name(places[name])
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find


@contextmanager
def uncollected() -> Iterator[None]:
    """Python looks for no garbage inside: importing torch makes half a million objects, and all of them stay."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
