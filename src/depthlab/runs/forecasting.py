"""What a sweep would cost: from rehearsals of its kinds of runs, before any run is trained."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch

from depthlab.config import RunConfig, SweepConfig
from depthlab.runs.packing import Packing, pack, work
from depthlab.runs.rehearsal import Failure, Rehearsal, kind, rehearse
from depthlab.runs.sweeping import is_trained, missing_sources

KINDS = 64
"""Kinds of runs that are rehearsed, if nothing is said."""

Known = tuple[RunConfig, Rehearsal]
"""A run of a kind, and what its rehearsal found."""


@dataclass(frozen=True)
class Forecast:
    """What the missing runs of a sweep would take: seconds of one run after another, and of the sweep as it is packed.

    kinds: how many kinds of runs there are, `rehearsed` of them rehearsed. memory: bytes of the largest process, less
    what it shares. failures: for each kind that could not be rehearsed, why, and how many runs are not counted for it.
    """

    missing: int
    finished: int
    packing: Packing
    run_seconds: float
    wall_seconds: float
    memory: int
    kinds: int
    rehearsed: int
    failures: Sequence[tuple[str, int]]


def forecast(
    configs: Iterable[RunConfig],
    *,
    device: torch.device | str,
    launch: SweepConfig,
    most_kinds: int = KINDS,
    progress: Callable[[int, int], None] | None = None,
) -> Forecast:
    """What a sweep of these runs, and of those from whose weights they start, would cost; nothing is stored.

    One run of each kind is rehearsed on this machine, with as many threads as it would have: kinds have all settings in
    common that change what an update takes. A run then takes what its updates, readings and evaluations take together,
    if it neither diverges nor stops early. A kind that is not rehearsed takes what the next one in work does, times the
    ratio of their works. Runs that are trained at once are taken not to slow each other down.

    most_kinds: how many are rehearsed at most, evenly spread over the work of an update.
    progress: called with how many kinds are rehearsed, and how many are to be.
    """
    unique = {config.key(): config for config in configs}
    untrained = {key: config for key, config in unique.items() if not is_trained(config, launch.keep_weights)}
    finished = len(unique) - len(untrained)
    sources = {source.key(): source for source in missing_sources(untrained.values())}
    missing = list((sources | untrained).values())
    if not missing:
        return Forecast(0, finished, Packing(0, 1), 0.0, 0.0, 0, 0, 0, [])
    packing = pack(missing, launch, str(device))
    kinds: dict[Any, list[RunConfig]] = {}
    for config in missing:
        kinds.setdefault(kind(config), []).append(config)
    chosen = _spread(sorted((members[0] for members in kinds.values()), key=work), most_kinds)
    known: dict[Any, Known] = {}
    failures: list[tuple[str, int]] = []
    with closing(rehearse(chosen, device, packing.threads)) as rehearsals:
        for done, (config, found) in enumerate(zip(chosen, rehearsals, strict=True), 1):
            if isinstance(found, Failure):
                failures.append((found.reason, len(kinds.pop(kind(config)))))
            else:
                known[kind(config)] = config, found
            if progress is not None:
                progress(done, len(chosen))
    of_kinds = ((members, known.get(each) or _next(members[0], known)) for each, members in kinds.items() if known)
    seconds = [each for members, rehearsed in of_kinds for each in _seconds(members, *rehearsed)]
    return Forecast(
        missing=len(missing),
        finished=finished,
        packing=packing,
        run_seconds=sum(seconds),
        wall_seconds=_makespan(seconds, packing.workers),
        memory=max((found.memory for _, found in known.values()), default=0),
        kinds=len(kinds) + len(failures),
        rehearsed=len(known),
        failures=failures,
    )


def _next(config: RunConfig, known: Mapping[Any, Known]) -> Known:
    """The rehearsal that is next in work to a run."""
    return min(known.values(), key=lambda pair: abs(math.log(work(pair[0]) / work(config))))


def _seconds(members: Sequence[RunConfig], other: RunConfig, found: Rehearsal) -> Iterator[float]:
    """What the runs of a kind take by the rehearsal of one of them, or by that of another kind."""
    factor = work(members[0]) / work(other)
    return (factor * found.seconds(config) for config in members)


def _spread(items: Sequence[RunConfig], most: int) -> list[RunConfig]:
    """So many of them at most, evenly spread from the first to the last."""
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[len(items) // 2]]
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def _makespan(seconds: Iterable[float], workers: int) -> float:
    """When the last of so many workers ends, each of whom takes the longest run that is left when it has ended one."""
    busy_until = [0.0] * workers
    for each in sorted(seconds, reverse=True):
        heapq.heapreplace(busy_until, busy_until[0] + each)
    return max(busy_until)
