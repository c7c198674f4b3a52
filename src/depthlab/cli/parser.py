"""What can be typed, and its help. Nothing heavy is imported, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import textwrap
from typing import TYPE_CHECKING

from depthlab.config import PRUNERS, describe_fields

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

PLAIN = argparse.RawDescriptionHelpFormatter
INDENT = " " * 6

DESCRIPTION = "Trains deep networks, reads them layer by layer, and shows what depth does to them."
EXAMPLES = """examples:
  depthlab train model.depth=50 model.activation=sigmoid     one run on the built-in digits
  depthlab train -m model.depth=5,20,50 "seed=range(3)"      a sweep; typed again, it trains only what is missing
  depthlab train experiment=vanishing_gradients scale=smoke  the runs of a figure
  depthlab cost experiment=vanishing_gradients scale=paper   what they would take, from a few updates of each kind
  depthlab figure vanishing_gradients scale=smoke            that figure, its table and its claims
  depthlab runs                                              the state of every run
  depthlab tune "train.lr=tag(log,interval(1e-3,1))"         a search for the learning rate of least validation error

environment:
  DEPTHLAB_DATA      where data sets and downloaded weights are kept (default: a cache folder of the user's)
  DEPTHLAB_RESULTS   where runs and figures are written (default: ./results)
"""

RANGES = """ranges (quote them: the shell knows parentheses); settings of one value hold for all trials:
  train.lr=tag(log,interval(1e-3,1))     uniform in the logarithm
  model.dropout=interval(0,0.5)          uniform; whole numbers where the setting is one: model.width=interval(16,256)
  model.depth=range(4,40,4)              4, 8, ... 36
  model.activation=relu,tanh,gelu        one of these; the same: choice(relu,tanh,gelu)
  model=plain,residual                   a file of settings
  sweep.workers=N                        trials run at once (default: one for each core; on a GPU, one); with 1 the
                                         same command always chooses the same trials

examples:
  depthlab tune "train.lr=tag(log,interval(1e-3,1))" model.depth=5,10,20 train.steps=200 train.eval_every=20
  depthlab tune "train.lr=tag(log,interval(1e-3,1))" --trials 50 --name rates data=mnist

results (in results/tune/STUDY): study.db, which Optuna's dashboard shows as well; trials.csv, table.md, importance.png
and .svg. depthlab train --help lists the settings.
"""


def build() -> argparse.ArgumentParser:
    """The command line's parser; what it finds has `command` and `overrides`."""
    parser = argparse.ArgumentParser(
        "depthlab", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=PLAIN, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for add in (_add_train, _add_cost, _add_figure, _add_report, _add_runs, _add_tune):
        add(commands)
    return parser


def _add_train(commands: Commands) -> None:
    train = commands.add_parser(
        "train",
        help="train one run, a sweep (-m), or the runs of an experiment (experiment=NAME)",
        description="Trains what is not finished yet. A run with the same settings is never trained twice.",
        epilog=_settings_help(),
        formatter_class=PLAIN,
        allow_abbrev=False,
    )
    train.add_argument("-m", "--multirun", action="store_true", help="values such as 5,10 or range(3) are a sweep")
    _add_overrides(train)


def _add_cost(commands: Commands) -> None:
    cost = commands.add_parser(
        "cost",
        help="estimate what a sweep or an experiment would take, before it starts",
        description="Tells how many runs are missing, and what they would take of cores, time and memory: one run of "
        "each kind is begun, a few updates, one evaluation and one checkpoint, of which nothing is kept. Settings are "
        "those of depthlab train, whose --help lists them.",
        allow_abbrev=False,
    )
    cost.add_argument(
        "--kinds",
        type=_count,
        default=64,
        metavar="N",
        help="how many kinds are begun at most, evenly spread over the size of nets; others count in proportion to "
        "their multiplications (default: 64)",
    )
    _add_overrides(cost)


def _add_figure(commands: Commands) -> None:
    figure = commands.add_parser(
        "figure",
        help="draw the figure, table and claims of an experiment from finished runs",
        description="Writes figure.png, figure.svg, table.md, table.csv, claims.md, readings.csv.gz and "
        "provenance.json into the experiment's folder of the results.",
        allow_abbrev=False,
    )
    figure.add_argument("name", metavar="NAME", help="the experiment")
    figure.add_argument("--redraw", action="store_true", help="from the folder's readings.csv.gz, without any run")
    _add_overrides(figure)


def _add_report(commands: Commands) -> None:
    report = commands.add_parser(
        "report",
        help="one HTML page of all figures, tables and claims",
        description="Gathers the experiments that are drawn in the results into one file that needs no network and no "
        "server: figures that enlarge, tables that sort, a search box, and what made each of them.",
        allow_abbrev=False,
    )
    report.add_argument("--output", metavar="FILE", help="where to write it (default: report.html in the results)")
    report.add_argument(
        "--claims",
        metavar="FILE",
        help="a Markdown file: the table of all claims replaces what stands between its lines <!-- claims --> and "
        "<!-- /claims -->",
    )
    report.set_defaults(overrides=[])


def _add_runs(commands: Commands) -> None:
    runs = commands.add_parser(
        "runs",
        help="list runs: done, running, interrupted, failed, diverged, missing",
        description="The state of every run in the results, or, with experiment=NAME, of the runs it declares. What is "
        "selected can be exported, trained again or deleted.",
        allow_abbrev=False,
    )
    runs.add_argument("--status", metavar="STATE,...", help="only runs in these states (also: damaged)")
    runs.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="only runs with a setting; may be repeated",
    )
    runs.add_argument("--format", choices=("text", "csv", "json"), default="text", help="how to print them")
    acts = runs.add_mutually_exclusive_group()
    acts.add_argument("--retry-failed", action="store_true", help="train those that failed again")
    acts.add_argument(
        "--clean",
        action="store_true",
        help="delete those that failed or are damaged, or are in the states of --status",
    )
    _add_overrides(runs)


def _add_tune(commands: Commands) -> None:
    tune = commands.add_parser(
        "tune",
        help="search ranges of settings for the least validation error (needs optuna)",
        description="Trains runs of settings that Optuna chooses from ranges, and stops those that do worse than "
        "others. Typed again, it goes on where it was; with more --trials it searches on. Several such commands can "
        "share one study on one machine.",
        epilog=RANGES,
        formatter_class=PLAIN,
        allow_abbrev=False,
    )
    tune.add_argument("--name", metavar="STUDY", help="of the study (default: made from the ranges and settings)")
    tune.add_argument("--trials", type=_count, default=20, metavar="N", help="how many in all (default: 20)")
    tune.add_argument(
        "--pruner",
        choices=PRUNERS,
        default=PRUNERS[0],
        help="what stops a trial after the first quarter of its updates: an error above the median of the others after "
        "as many updates (default), successive halving, or nothing",
    )
    tune.add_argument("--sampler-seed", type=int, default=0, metavar="N", help="of the choices (default: 0)")
    _add_overrides(tune)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least 1")
    return int(text)


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help="settings, such as model.depth=50")


def _settings_help() -> str:
    lines = [
        "files of settings (configs/GROUP/NAME.yaml):  data=NAME  model=NAME  train=NAME",
        "experiments:  experiment=NAME, with scale=smoke, laptop (default) or paper",
        "",
        "settings and their defaults:",
    ]
    for name, default, about in describe_fields():
        value = f"[{','.join(map(str, default))}]" if isinstance(default, tuple) else str(default)
        shown = {"None": "null", "True": "true", "False": "false"}.get(value, value)
        lines.append(f"  {name}={shown if len(shown) < 30 else '[...]'}")
        lines += textwrap.wrap(about, 118, initial_indent=INDENT, subsequent_indent=INDENT, break_on_hyphens=False)
    lines.append("  device=auto\n      auto (CUDA where there is one), cpu, cuda or cuda:N")
    return "\n".join(lines)
