"""What watching a training costs, and how many of its gradient norms survive: depthlab beside other tools.

One process, one fixed random batch. A round attaches one tool after the other, in an order drawn anew and each to its
own fresh copy of the net and the optimiser, lets it settle, and times a stretch of updates, in turns of a fraction of a
second with a second copy that nothing watches: what slows the machine slows both. A tool's cost is the time of its
updates over that of these. No two tools are attached at once, so that none pays for another's hooks or takes another's
time for its own.
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
from measuring import TURN, Turns, circumstances
from torch import nn
from tqdm import tqdm
from trainings import BATCH, GREY, IDIOMS, NETS, Training, make, vanishing
from watching import BARE, PACKAGES, TOOLS, Attach

from depthlab.figures.tables import pipe_table
from depthlab.training import prepare_process, resolve_device

RESULT = Path(__file__).parent / "results" / "instrument.md"
RUNS, NOT_INSTALLED = "runs", "not installed"

PAGE = os.sysconf("SC_PAGE_SIZE")
MOST_MEMORY = os.sysconf("SC_PHYS_PAGES") * PAGE // 2
"""A tool that makes the process take half of the machine's memory is stopped before the system stops the process."""

SETTLED = 3
"""Updates after which a net that nothing watches is as fast as it will be."""

Rounds = list[tuple[float, float]]
"""Of each round, seconds of an update with a tool and without."""

READINGS = 20
"""Updates of the vanishing net whose readings are counted."""


def stretch(attach: Attach, watched: Training, unwatched: Training, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds of an update with the tool attached, and of one of an unwatched net in turns with it: means."""
    gc.collect()
    with attach(watched) as training:
        with_tool, without = Turns(), Turns()
        update, other_update = limited(training.update), limited(unwatched.update)
        settle(update, options.settle, options.limit)
        settle(other_update, SETTLED, options.limit)
        while with_tool.pieces < options.steps or with_tool.seconds < options.least:
            without.take(other_update, unwatched.wait)
            with_tool.take(update, watched.wait)
            if with_tool.seconds >= options.limit:
                break
    return with_tool.mean, without.mean


def settle(update: Callable[[], object], steps: int, limit: float) -> None:
    """So many updates, or fewer if these take so many seconds."""
    begin = time.perf_counter()
    for _ in range(steps):
        update()
        if time.perf_counter() - begin > limit:
            return


def limited(update: Callable[[], object]) -> Callable[[], None]:
    """An update after which the process must not have taken half of the machine's memory."""

    def checked() -> None:
        update()
        if resident() > MOST_MEMORY:
            raise MemoryError(f"{resident() / 2**30:.0f} GiB in use")

    return checked


def resident() -> int:
    """Bytes of memory that the process has; 0 where the system does not say."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * PAGE if pages.exists() else 0


def costs(net: str, options: argparse.Namespace, progress: tqdm[Any]) -> dict[str, Rounds | str]:
    """Seconds of an update with a tool and without, in each round, by tool; why, if it cannot watch this net."""
    config, images = NETS[net]
    model = make(config, images)
    seconds: dict[str, Rounds | str] = {tool: [] for tool in options.tools}
    order, shuffle = list(options.tools), random.Random(0).shuffle
    for _ in range(options.rounds):
        shuffle(order)
        for tool in order:
            progress.set_postfix_str(f"{net}, {tool}")
            if isinstance(rounds := seconds[tool], list):
                watched, unwatched = (Training(model, images, options.device) for _ in range(2))
                try:
                    rounds.append(stretch(TOOLS[tool], watched, unwatched, options))
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


def cost_table(found: Mapping[str, Mapping[str, Rounds | str]]) -> str:
    """Markdown: ratio to the unwatched net by tool and net, median over rounds and quartiles."""
    heads, rows = ["tool"], [[tool] for tool in next(iter(found.values()))]
    for net, seconds in found.items():
        unwatched = [without for rounds in seconds.values() if isinstance(rounds, list) for _, without in rounds]
        heads.append(f"{net} ({statistics.median(unwatched) * 1e3:.3g} ms)")
        for row in rows:
            if isinstance(rounds := seconds[row[0]], str):
                row.append(verdict(rounds))
                continue
            ratios = torch.tensor(each(rounds), dtype=torch.float64)
            low, middle, high = ratios.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
            row.append(f"{middle:.3f} [{low:.3f}, {high:.3f}]")
    return pipe_table(heads, rows, ["left"] + ["right"] * len(found))


def each(rounds: Rounds) -> list[float]:
    """Of each round, a tool's time over that of the unwatched net."""
    return [with_tool / without for with_tool, without in rounds]


def headline(found: Mapping[str, Mapping[str, Rounds | str]], tool: str) -> str:
    """Median over rounds of a tool's ratio on every net that it can watch."""
    ran = {net: rounds for net, seconds in found.items() if isinstance(rounds := seconds.get(tool, ""), list)}
    return ", ".join(f"{statistics.median(each(rounds)):.3f} ({net})" for net, rounds in ran.items())


def outcome_table(options: argparse.Namespace, found: Mapping[str, Mapping[str, list[float] | str]]) -> str:
    """Markdown: what survives of each tool's readings, which idioms it stands; below, every error in a line."""
    rows, crashes = [], defaultdict[str, list[str]](list)
    tools = {tool: TOOLS[tool] for tool in options.tools}
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
    threads = f"{options.threads} thread{'s' * (options.threads > 1)}"
    return f"""# Watching a training: what it costs, and what survives

> An update that `depthlab.watch` watches takes, over one that nothing watches, on {threads}:
> {headline(found, "depthlab")}; one that nothing watches either: {headline(found, BARE)}.

{circumstances(options.device, versions_of_tools())}
Time of a watched update over that of one of a second copy of the net that nothing watches (whose milliseconds stand
behind each net's name): median and quartiles over {options.rounds} rounds. The two take turns of {TURN:g} s, until
{options.steps} watched updates are timed or more that take {options.least:g} s together, fewer if they take
{options.limit:g} s; before these, {options.settle} updates to settle. Batch {BATCH}, SGD with momentum. Nothing is
attached in `{BARE}`: its distance from 1 is noise.

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
        help=f"beside {BARE!r}; default: all of {', '.join(map(repr, list(TOOLS)[1:]))}",
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
