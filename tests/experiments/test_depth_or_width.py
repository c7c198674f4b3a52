"""What the figure of depth and width computes, on readings whose answers are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from depthlab import figures, theory
from depthlab.cli import experiments
from depthlab.cli.compose import Composer
from depthlab.config import RunConfig, flat
from depthlab.figures import half_side, predicted_regions

script = experiments.script("depth_or_width")

NETS = {(2, 102): 4600.0, (4, 14): 600.0, (13, 6): 550.0, (2, 20): 180.0, (3, 10): 185.0}


def readings(error: Any, trained: Any) -> pd.DataFrame:
    """Of three seeds: error(depth, width, rate) and the factor trained(depth, width) by which regions grow."""
    rows = []
    for (depth, width), start in NETS.items():
        for rate, seed in ((rate, seed) for rate in (0.01, 0.03) for seed in range(3)):
            value = error(depth, width, rate) + 0.001 * seed
            found = {
                ("linear_regions", 0): start + seed,
                ("linear_regions", 9): (start + seed) * trained(depth, width),
                **{(f"{part}_error", 9): value for part in ("train", "validation", "test")},
            }
            model = {"model.depth": depth, "model.width": width, "model.init": "gaussian", "model.sigma_b": 0.3}
            run = {"key": f"{depth}/{width}/{rate}/{seed}", "status": "done", "seed": seed, "train.lr": rate, **model}
            run |= {"data.name": "spirals", "layer": "network", "depth": 0}
            rows += [{**run, "probe": probe, "step": step, "value": number} for (probe, step), number in found.items()]
    return pd.DataFrame(rows)


def verdicts(table: pd.DataFrame) -> list[str]:
    return [claim.verdict for claim in script.claims(table)]


def slow(depth: int, width: int, rate: float) -> float:
    """What one layer learns at the larger rate alone, three at both, and twelve at none."""
    if depth == 13:
        return 0.2
    if (depth, width) == (2, 20):
        return 0.4
    return 0.3 if depth == 2 and rate == 0.01 else 0.01


def test_claims_on_nets_that_do_as_the_page_says():
    table = readings(slow, lambda depth, _: {2: 0.9, 3: 1.3, 4: 2.0, 13: 4.0}[depth])
    assert verdicts(table) == ["supported", "not supported", *["supported"] * 9]


def test_claims_fail_where_depth_changes_nothing():
    table = readings(lambda *_: 0.1, lambda *_: 1.0)
    table.loc[table["probe"] == "linear_regions", "value"] = 1000.0
    assert not {"supported"} & {verdict for i, verdict in enumerate(verdicts(table)) if i not in (6, 8, 9)}


def test_runs_that_are_drawn_are_not_counted():
    table = readings(slow, lambda *_: 1.0)
    again = table[table["key"] == "2/102/0.01/0"]
    drawn = again[again["probe"] != "linear_regions"].assign(key="drawn", value=0.9)
    pd.testing.assert_frame_equal(script.counted(pd.concat([table, drawn])), table)


def test_theory_is_that_of_the_square_of_normalized_points():
    """Pixels 0 and 255 lie half a range from the mean, in units of the standard deviation of the training points."""
    rows = readings(slow, lambda *_: 1.0)
    found = predicted_regions(rows[(rows["model.depth"] == 4)])
    side = half_side("spirals")
    assert 1.9 < side < 2.4
    assert found == theory.expected_regions([14] * 3, half_side=side, sigma_w=np.sqrt(2), sigma_b=0.3)


@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_budgets_agree_within_a_few_percent(scale: str):
    composer = Composer(experiments.folder("configs"))
    launches = experiments.load("depth_or_width").launches(composer, scale)
    runs = [run for run in (launch.run for launch in launches) if (run.model.depth - 1) * run.model.width != 20]
    counts = {run.model.depth: parameters(run) for run in runs}
    assert sorted(counts) == [2, 3, 4, 7, 13]
    assert max(counts.values()) < 1.08 * min(counts.values())


def parameters(run: RunConfig) -> int:
    """By the script, and by the formula of a plain net from two inputs to two logits."""
    rows = pd.DataFrame([{name: value for name, value in flat(run).items() if name != "probes.names"}])
    layers, width = run.model.depth - 1, run.model.width
    found = figures.parameters(rows)
    assert found == 3 * width + (layers - 1) * (width + 1) * width + 2 * (width + 1)
    return int(found)
