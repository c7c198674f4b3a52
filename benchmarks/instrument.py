"""What watching a training costs, and how many of its gradient norms survive: depthlab beside other tools.

One process, one fixed random batch. A round attaches one tool after the other, in an order drawn anew and each to its
own fresh copy of the net and the optimiser, lets it settle, and times a stretch of updates. A tool's cost is its time
over that of the unwatched net in the same round. No two tools are attached at once, so that none pays for another's
hooks or takes another's time for its own.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import random
import statistics
import sys
import textwrap
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from importlib import metadata, util
from pathlib import Path
from typing import Any

import torch
from measuring import circumstances
from torch import nn
from tqdm import tqdm
from trainings import BATCH, GREY, IDIOMS, NETS, Training, make, vanishing
from watching import AGAIN, BARE, PACKAGES, TOOLS, Attach

from depthlab.figures.tables import pipe_table
from depthlab.training import prepare_process, resolve_device

RESULT = Path(__file__).parent / "results" / "instrument.md"
RUNS, NOT_INSTALLED = "runs", "not installed"

PAGE = os.sysconf("SC_PAGE_SIZE")
MOST_MEMORY = os.sysconf("SC_PHYS_PAGES") * PAGE // 2
"""A tool that makes the process take half of the machine's memory is stopped before the system stops the process."""

READINGS = 20
"""Updates of the vanishing net whose readings are counted."""


def stretch(attach: Attach, training: Training, options: argparse.Namespace) -> float:
    """Seconds of an update with the tool attached, mean over a stretch that comes after updates to settle."""
    gc.collect()
    with attach(training) as watched:
        repeat(watched.update, options.settle, options, training)
        return repeat(watched.update, options.steps, options, training)


def repeat(update: Callable[[], object], steps: int, options: argparse.Namespace, training: Training) -> float:
    """Seconds of one of so many updates; of more or fewer if these would take less or more time than is allowed."""
    training.wait()
    begin = time.perf_counter()
    done = 0
    taken = 0.0
    while done == 0 or ((done < steps or taken < options.least) and taken < options.limit):
        update()
        done += 1
        taken = time.perf_counter() - begin
        if resident() > MOST_MEMORY:
            raise MemoryError(f"{resident() / 2**30:.0f} GiB in use after {done} updates")
    training.wait()
    return (time.perf_counter() - begin) / max(done, 1)


def resident() -> int:
    """Bytes of memory that the process has; 0 where the system does not say."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * PAGE if pages.exists() else 0


def costs(net: str, options: argparse.Namespace, progress: tqdm[Any]) -> dict[str, list[float] | str]:
    """Seconds of an update in each round, by tool; for a tool that cannot watch this net, why."""
    config, images = NETS[net]
    model = make(config, images)
    seconds: dict[str, list[float] | str] = {tool: [] for tool in options.tools}
    order, shuffle = list(options.tools), random.Random(0).shuffle
    for _ in range(options.rounds):
        shuffle(order)
        for tool in order:
            progress.set_postfix_str(f"{net}, {tool}")
            if isinstance(rounds := seconds[tool], list):
                training = Training(model, images, options.device)
                try:
                    rounds.append(stretch(TOOLS[tool], training, options))
                except Exception as error:
                    if tool == BARE:
                        raise
                    seconds[tool] = failure(error)
            progress.update()
    return seconds


def failure(error: BaseException) -> str:
    """In one line, what went wrong first: cockpit's own exit from an error raises another."""
    if isinstance(error, ModuleNotFoundError) and error.name in PACKAGES:
        return NOT_INSTALLED
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return textwrap.shorten(f"{type(error).__name__}: {error}", 160)


def runs(attach: Attach, idiom: Callable[[], nn.Module], device: torch.device) -> str:
    """What comes of watching a few updates: "runs", or an error in one line."""
    training = Training(idiom(), GREY, device)
    try:
        with attach(training) as watched:
            watched.update()
            watched.update()
    except Exception as error:
        return failure(error)
    return RUNS


def survivors(attach: Attach, steps: int, device: torch.device) -> tuple[str, str]:
    """Shares of all (step, weight layer) whose gradient norm the tool kept, and kept as a finite number above 0."""
    training = vanishing(device)
    with attach(training) as watched:
        for _ in range(steps):
            watched.update()
        if watched.norms is None:
            return "none", "none"
        norms = watched.norms()
    total = steps * len(training.weights)
    good = sum(math.isfinite(norm) and norm > 0 for norm in norms)
    return f"{len(norms) / total:.1%}", f"{good / total:.1%}"


def alive(steps: int, device: torch.device) -> float:
    """Share of all (step, weight layer) whose gradient has an entry other than 0: no norm can be above 0 elsewhere."""
    training, found = vanishing(device), list[bool]()
    for _ in range(steps):
        training.update(lambda: found.extend(bool(p.grad.any()) for p in training.weights if p.grad is not None))
    return sum(found) / len(found)


def cost_table(found: Mapping[str, Mapping[str, list[float] | str]]) -> str:
    """Markdown: ratio to the unwatched net by tool and net, median over rounds and quartiles."""
    heads, rows = ["tool"], [[tool] for tool in next(iter(found.values()))]
    for net, seconds in found.items():
        unwatched = torch.tensor(seconds[BARE], dtype=torch.float64)
        heads.append(f"{net} ({unwatched.median().item() * 1e3:.3g} ms)")
        for row in rows:
            if isinstance(rounds := seconds[row[0]], str):
                row.append(verdict(rounds))
                continue
            ratios = torch.tensor(rounds, dtype=torch.float64) / unwatched
            low, middle, high = ratios.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
            row.append(f"{middle:.3f} [{low:.3f}, {high:.3f}]")
    return pipe_table(heads, rows, ["left"] + ["right"] * len(found))


def ratio(seconds: Mapping[str, list[float] | str], tool: str = "depthlab") -> float:
    """Median over rounds of a tool's time over that of the unwatched net."""
    rounds, bare = seconds[tool], seconds[BARE]
    if isinstance(rounds, str) or isinstance(bare, str):
        return math.nan
    return statistics.median(time_ / unwatched for time_, unwatched in zip(rounds, bare, strict=True))


def noise(found: Mapping[str, Mapping[str, list[float] | str]]) -> str:
    """What of the headline is noise, if it was measured."""
    again = [f"{ratio(seconds, AGAIN):.3f}" for seconds in found.values() if AGAIN in seconds]
    return f"; a second one that nothing watches: {', '.join(again)}" if again else ""


def outcome_table(options: argparse.Namespace, found: Mapping[str, Mapping[str, list[float] | str]]) -> str:
    """Markdown: what survives of each tool's readings, which idioms it stands; below, every error in a line."""
    rows, crashes = [], defaultdict[str, list[str]](list)
    tools = {tool: TOOLS[tool] for tool in options.tools if tool != AGAIN}
    for tool, attach in tqdm(tools.items(), desc="readings and idioms"):
        outcomes = {name: runs(attach, idiom, options.device) for name, idiom in IDIOMS.items()}
        cells = [verdict(outcome) for outcome in outcomes.values()]
        try:
            rows.append([tool, *survivors(attach, READINGS, options.device), *cells])
        except Exception as error:
            outcomes["vanishing net"] = failure(error)
            rows.append([tool, verdict(outcomes["vanishing net"]), "", *cells])
        outcomes |= {net: why for net, seconds in found.items() if isinstance(why := seconds[tool], str)}
        for where, why in outcomes.items():
            if verdict(why) == "crashes":
                crashes[f"{tool}: {why}"].append(where)
    heads = ["tool", "norms kept", "finite and not 0", *IDIOMS]
    table = pipe_table(heads, rows, ["left", *["right"] * 2, *["left"] * len(IDIOMS)])
    return table + "\n" + "".join(f"- {what} ({', '.join(places)})\n" for what, places in crashes.items())


def verdict(outcome: str) -> str:
    """A cell for an outcome: an error in full would not fit."""
    return outcome if outcome in (RUNS, NOT_INSTALLED) else "crashes"


def versions_of_tools() -> dict[str, str]:
    """Of the other tools that are installed."""
    return {package: metadata.version(package) for module, package in PACKAGES.items() if util.find_spec(module)}


def report(options: argparse.Namespace) -> str:
    """The whole page."""
    with tqdm(total=len(options.nets) * options.rounds * len(options.tools)) as progress:
        found = {net: costs(net, options, progress) for net in options.nets}
    return f"""# Watching a training: what it costs, and what survives

> An update that `depthlab.watch` watches takes, over one that nothing watches, on {options.threads} thread{
        "s" * (options.threads > 1)
    }: {", ".join(f"{ratio(seconds):.3f} ({net})" for net, seconds in found.items())}{noise(found)}.

{circumstances(options.device, versions_of_tools())}
Time of a watched update over that of an unwatched one (whose milliseconds stand behind each net's name): median and
quartiles over {options.rounds} rounds; {options.settle} updates to settle, then {options.steps} that are timed, more
of either if they take less than {options.least:g} s, fewer if more than {options.limit:g} s; batch {BATCH}, SGD with
momentum. `{AGAIN}` is a second unwatched net: its
distance from 1 is noise.

{cost_table(found)}
Gradient norms of weight layers in a net that vanishes (50 layers, sigmoid, torch's default initialization) over
{READINGS} updates: the share of all layers and updates for which a tool kept a norm, and for which it is finite and
above 0. The gradients themselves have an entry other than 0 in {alive(READINGS, options.device):.1%}. Beside it: idioms
that hooks are known to stumble over.

{outcome_table(options, found)}"""


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def parse() -> argparse.Namespace:
    """Settings from the command line."""
    parser = argparse.ArgumentParser(description="What watching a training costs: depthlab beside other tools.")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS), help="default: all")
    parser.add_argument(
        "--tools", nargs="+", choices=list(TOOLS)[1:], default=list(TOOLS)[1:], metavar="TOOL",
        help=f"beside {BARE!r}; default: all of {', '.join(repr(tool) for tool in list(TOOLS)[1:])}",
    )  # fmt: skip
    parser.add_argument("--rounds", type=positive, default=9, help="rounds per net (default: %(default)s)")
    parser.add_argument(
        "--steps", type=positive, default=100, help="timed updates per round and tool (default: %(default)s)"
    )
    parser.add_argument("--settle", type=int, default=30, help="updates before these (default: %(default)s)")
    parser.add_argument("--least", type=float, default=3, help="seconds that either takes (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=10, help="seconds that either may take (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    parser.add_argument("--device", type=resolve_device, default="cpu", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--output", nargs="?", type=Path, const=RESULT, help="also write it (default: results/ here)")
    options = parser.parse_args()
    options.tools = [BARE, *(tool for tool in TOOLS if tool in options.tools)]
    return options


def main() -> None:
    """Measures, and prints the page."""
    options = parse()
    prepare_process(options.threads)
    warnings.simplefilter("ignore")  # the other tools' own
    missing = [package for module, package in PACKAGES.items() if util.find_spec(module) is None]
    if missing:
        print(f"Left out, since not installed: pip install {' '.join(missing)}", file=sys.stderr)
    page = report(options)
    print(page)
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(page)


if __name__ == "__main__":
    main()
