"""Every experiment: its declaration and script fit together, and no claim is written so that it cannot fail."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from depthlab import figures
from depthlab.cli import experiments
from depthlab.cli.compose import Composer

RESULTS = Path(__file__).parents[2] / "results"
NAMES = experiments.names()
COMMITTED = [name for name in NAMES if (RESULTS / name / "readings.csv.gz").exists()]

CONDITIONS = {
    "vanishing_gradients": ["model.activation", "model.init", "model.norm", "model.skip"],
    "degradation": ["model.skip", "model.depth"],
    "initialization": ["model.activation", "model.init", "model.sigma_w", "model.sigma_b"],
    "normalization": ["model.norm", "model.norm_affine", "model.norm_noise", "model.skip"],
    "quickstart": ["model.activation", "model.init"],
    "activations": ["model.activation", "model.sigma_w", "train.lr"],
    "bias_variance": ["model.width", "data.label_noise"],
    "depth_or_width": ["model.depth", "model.width", "train.lr"],
    "exploding_gradients": ["model.sigma_w", "model.cell", "model.forget_bias", "train.clip_norm"],
    "skip_connections": ["model.skip", "model.branch", "model.gate_bias", "model.bias"],
    "losses": ["train.loss", "model.head_bias", "train.lr"],
    "pretraining": [
        *("model.activation", "model.init", "train.optimizer", "train.lr", "train.steps"),
        *("train.pretraining_steps", "train.pretraining_lr", "train.corruption"),
    ],
    "regularization": [
        *("model.dropout", "model.dropconnect", "train.l1", "train.l1_step", "train.weight_decay"),
        *("data.crop_padding", "data.flip", "data.cutout", "train.label_smoothing", "train.early_stopping"),
        *("data.label_noise", "data.train_size", "train.optimizer", "train.lr", "train.eval_every"),
    ],
    "cross_validation": ["train.weight_decay"],
    "transfer": [f"transfer.{name}" for name in ("source", "copied", "trained", "head", "backbone_lr_factor")],
}
"""The settings in which the compared runs differ."""

PERMUTATIONS = 8


@pytest.mark.parametrize("scale", experiments.SCALES)
@pytest.mark.parametrize("name", NAMES)
def test_declares_at_least_three_seeds_of_every_condition(name, scale):
    composer = Composer(experiments.folder("configs"))
    launches = experiments.load(name).launches(composer, scale)
    table = pd.DataFrame([{"seed": launch.run.seed, "model": str(launch.run.model)} for launch in launches])
    assert (table.groupby("model")["seed"].nunique() >= 3).all()


@pytest.mark.parametrize("name", COMMITTED)
def test_redrawing_gives_the_committed_tables_and_claims_byte_for_byte(name, tmp_path):
    folder = tmp_path / name
    shutil.copytree(RESULTS / name, folder)
    for file in ("table.md", "table.csv", "claims.md"):
        (folder / file).unlink()
    figures.redraw(folder, experiments.script(name))
    for file in ("table.md", "table.csv", "claims.md"):
        assert (folder / file).read_bytes() == (RESULTS / name / file).read_bytes(), file


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_figures_are_at_laptop_scale_on_clean_code(name):
    origin = pd.read_json(RESULTS / name / "provenance.json", typ="series")
    assert origin["scale"] == "laptop"
    assert not origin["overrides"]
    assert origin["dirty"] is False


@pytest.mark.parametrize("name", [name for name in COMMITTED if name in CONDITIONS])
def test_no_comparison_survives_permuted_conditions(name):
    """Labels of the compared runs are passed round; a claim about them must then fail more often than not."""
    script = experiments.script(name)
    readings = figures.read(RESULTS / name)
    supported = np.array(
        [
            [claim.verdict == "supported" for claim in script.claims(_permuted(readings, name, seed))]
            for seed in range(PERMUTATIONS)
        ]
    )
    statements = [claim.statement for claim in script.claims(readings)]
    survivors = [text for text, share in zip(statements, supported.mean(axis=0), strict=True) if share >= 0.5]
    assert survivors == [text for text in statements if text in NOT_BETWEEN_NETS.get(name, ())]


NOT_BETWEEN_NETS = {
    "degradation": (
        "The deep plain net's gradients do not vanish, neither at initialization ...",
        "... nor after training: degradation is not vanishing.",
    ),
    "activations": ("Training saturates the first layer of sigmoid and tanh nets.",),
    "cross_validation": ("The spread between folds understates how much the cross-validated error varies.",),
    "depth_or_width": ("... and after it more than one layer of twenty can have.",),
}
"""Claims that compare layers, steps or folds of one net, or a net with a number: labels of nets do not decide them."""


def test_claims_about_layers_fail_where_gradients_do_vanish():
    """A factor of 0.8 a layer is put into the gradients of the committed readings."""
    script = experiments.script("degradation")
    readings = figures.read(RESULTS / "degradation")
    vanishing = readings["value"] * 0.8 ** (readings["model.depth"] - readings["depth"])
    planted = readings.assign(value=readings["value"].where(readings["probe"] != "grad_norm", vanishing))
    verdicts = {claim.statement: claim.verdict for claim in script.claims(planted)}
    assert [verdicts[statement] for statement in NOT_BETWEEN_NETS["degradation"]] == ["not supported"] * 2


def test_claims_about_training_fail_where_it_changes_nothing():
    """Every layer keeps the saturation that it has at initialization."""
    script = experiments.script("activations")
    readings = figures.read(RESULTS / "activations")
    of_layer = readings.sort_values("step").groupby(["key", "layer", "probe"])["value"].transform("first")
    planted = readings.assign(value=readings["value"].where(readings["probe"] != "saturation", of_layer))
    verdicts = {claim.statement: claim.verdict for claim in script.claims(planted)}
    assert [verdicts[statement] for statement in NOT_BETWEEN_NETS["activations"]] == ["not supported"]


def test_the_claim_about_pools_fails_where_all_are_alike():
    """The cross-validated error of every pool is shifted to the same mean; the spread between its folds stays."""
    script = experiments.script("cross_validation")
    readings = figures.read(RESULTS / "cross_validation")
    of_pool = readings.groupby(["probe", "train.weight_decay", "seed"])["value"].transform("mean")
    planted = readings.assign(value=readings["value"] - of_pool + 0.2)
    verdicts = {claim.statement: claim.verdict for claim in script.claims(planted)}
    assert [verdicts[statement] for statement in NOT_BETWEEN_NETS["cross_validation"]] == ["not supported"]


def test_the_claim_about_a_bound_fails_where_regions_stay_below_it():
    script = experiments.script("depth_or_width")
    readings = figures.read(RESULTS / "depth_or_width")
    planted = readings.assign(
        value=readings["value"].mask(readings["probe"] == "linear_regions", readings["value"] / 3)
    )
    verdicts = {claim.statement: claim.verdict for claim in script.claims(planted)}
    assert [verdicts[statement] for statement in NOT_BETWEEN_NETS["depth_or_width"]] == ["not supported"]


def _permuted(readings: pd.DataFrame, name: str, seed: int) -> pd.DataFrame:
    """Labels move between runs of one depth; where depth itself is compared its label moves along with the layers."""
    columns = CONDITIONS[name]
    if name == "cross_validation":
        # a choice is as good as what it is made by is related to what it is judged by: one of them keeps its labels
        validation = readings["probe"] == "validation_error"
        return pd.concat([figures.permuted(readings[validation], columns, seed), readings[~validation]])
    if "model.depth" not in columns or not readings["depth"].any():
        return figures.permuted(readings, columns, seed)
    # layers of a net cannot move to a net of another depth: depths are passed round by network readings alone
    network = readings[readings["depth"] == 0]
    layers = figures.permuted(readings[readings["depth"] > 0], [c for c in columns if c != "model.depth"], seed)
    return pd.concat([figures.permuted(network, columns, seed), layers], ignore_index=True)
