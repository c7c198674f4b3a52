"""Names of a package that are imported when they are asked for, so that what needs no torch does not load it."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
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
