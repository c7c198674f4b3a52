"""Ranges as they are typed, in Hydra's grammar, and what is said of those that make no sense."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from depthlab.cli import experiments
from depthlab.cli.compose import Composer, Searched
from depthlab.cli.tune import _checked
from depthlab.config import Choice, Interval, Range, WholeInterval, from_mapping, typed


def searched(*overrides: str) -> Searched:
    return Composer(experiments.folder("configs")).searched(overrides)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.lr=interval(1e-4,1)", Interval(1e-4, 1.0)),
        ("train.lr=interval(0,1)", Interval(0.0, 1.0)),
        ("train.lr=tag(log,interval(1e-4,1))", Interval(1e-4, 1.0, log=True)),
        ("train.lr=range(0.5,2,0.5)", Interval(0.5, 1.5, step=0.5)),
        ("train.lr=range(1,4)", WholeInterval(1, 3)),
        ("train.lr=int(interval(1,5))", WholeInterval(1, 5)),
        ("model.width=interval(16,256)", WholeInterval(16, 256)),
        ("model.width=tag(log,interval(16,256))", WholeInterval(16, 256, log=True)),
        ("model.width=tag(log,range(1,9))", WholeInterval(1, 8, log=True)),
        ("data.train_size=interval(100,1000)", WholeInterval(100, 1000)),
        ("model.sigma_w=interval(1,2)", Interval(1.0, 2.0)),
        ("seed=interval(0,9)", WholeInterval(0, 9)),
        ("model.depth=range(10,60,10)", WholeInterval(10, 50, step=10)),
        ("model.depth=range(10,61,10)", WholeInterval(10, 60, step=10)),
        ("model.depth=range(50,5,-10)", WholeInterval(10, 50, step=10)),
        ("model.depth=choice(5,10,20)", Choice(("5", "10", "20"))),
        ("model.depth=5,10,20", Choice(("5", "10", "20"))),
        ("model.activation=relu,tanh", Choice(("relu", "tanh"))),
        ("model.bias=true,false", Choice(("true", "false"))),
        ("train.clip_norm=null,1,10", Choice(("null", "1", "10"))),
        ("train.milestones=choice([0.5,0.75],[0.3])", Choice(("[0.5,0.75]", "[0.3]"))),
        ("model=plain,residual", Choice(("plain", "residual"))),
    ],
)
def test_every_form_of_a_range(text: str, expected: Range) -> None:
    found = searched(text, "train.steps=100")
    assert found.ranges == {text.partition("=")[0]: expected}
    assert found.fixed == ("train.steps=100",)


@pytest.mark.parametrize("text", ["train.lr=0.1", "train.milestones=[0.5,0.75]", "model=residual"])
def test_one_value_is_no_range(text: str) -> None:
    assert searched(text).ranges == {}
    assert searched(text).fixed == (text,)


def test_a_range_given_twice_is_the_last() -> None:
    assert searched("model.depth=5,10", "model.depth=20").ranges == {}
    assert searched("model.depth=20", "model.depth=5,10").fixed == ()


def test_values_give_the_run_to_the_last_bit() -> None:
    found = searched("train.lr=interval(1e-4,1)", "model.depth=4,8", "model=plain,residual", "train.steps=7")
    values = {"train.lr": 0.1 + 0.2, "model.depth": "8", "model": "residual"}
    run = found(values)
    assert (run.train.lr, run.model.depth, run.model.skip, run.train.steps) == (0.30000000000000004, 8, "residual", 7)
    assert typed(values) == ["train.lr=0.30000000000000004", "model.depth=8", "model=residual"]
    model = {"depth": 8, "skip": "residual", "norm": "batch"}
    assert run == from_mapping({"train": {"lr": 0.1 + 0.2, "steps": 7}, "model": model})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "there is nothing to search; give a setting a range"),
        (["model.depth=5"], "there is nothing to search"),
        (["train.rl=interval(0,1)"], "train.rl is not a setting; did you mean train.lr?"),
        (["train.lr=interval(1,0.1)"], "train.lr=interval(1,0.1): 1 to 0.1 holds nothing to choose from"),
        (["train.lr=interval(1,1)"], "1 to 1 holds nothing to choose from"),
        (["train.lr=tag(log,interval(0,1))"], "a range on a log scale starts above 0, not at 0"),
        (["model.width=tag(log,range(8,64,8))"], "a range on a log scale has no step, here 8"),
        (["train.lr=tag(lgo,interval(0.1,1))"], "the tag lgo is not known; tag(log, ...) is"),
        (["train.lr=tag(log,choice(0.1,1))"], "is no range; write train.lr=A,B,C or train.lr=interval(LOW,HIGH)"),
        (["model.depth=interval(2.5,10)"], "2.5 is not a whole number, which this setting is"),
        (["train.lr=interval(-1,1)"], "train.lr=-1.0, at the end of its range, is impossible: train.lr=-1.0 must be"),
        (["model.dropout=interval(0,1)"], "model.dropout=1.0, at the end of its range, is impossible"),
        (["model.activation=interval(0,1)"], "model.activation=0.0, at the end of its range, is impossible"),
        (["model.activation=relu,rlu"], "model.activation=rlu, at the end of its range, is impossible"),
        (["model.activation=choice(relu)"], "relu leaves nothing to choose; give two values or more"),
        (["model.activation=relu,relu"], "are not all different; give each once"),
        (["model=plain,plian"], "model=plian must be one of"),
        (["model=glob(*)"], "values are listed, such as model=A,B"),
        (["train.lr=range(3,3)"], "stands for no value"),
        (["train.lr=interval(0.1,1", "x"], "cannot read 'train.lr=interval(0.1,1'"),
        (["train.lr=interval(0.1,1)", "sweep.workers=1,2"], "sweep.workers holds for all trials of a search"),
        (["device=cpu,cuda"], "device holds for all trials of a search"),
        (["data.name=digits,mnist"], "data.name: trials are compared on one validation split"),
        (["data=digits,mnist"], "data: trials are compared on one validation split"),
        (["data.validation_fraction=interval(0.1,0.5)"], "trials are compared on one validation split"),
        (["model.skip=residual", "model.depth=5,7"], "model.depth=5, at the end of its range, is impossible"),
        (["model.depth=5,10", "--name", "a/b"], "--name a/b names a folder"),
        (["model.depth=5,10", "--trials", "0"], "0 must be a whole number of at least 1"),
        (["model.depth=5,10", "--trials", "ten"], "ten must be a whole number of at least 1"),
        (["model.depth=5,10", "--pruner", "mean"], "invalid choice: 'mean'"),
        (["model.depth=5,10", "--nmae", "a"], "unrecognized arguments: --nmae"),
    ],
)
def test_what_cannot_be_searched_is_said_before_anything_is_trained(
    depthlab: Callable[..., Any], folder: Any, overrides: list[str], message: str
) -> None:
    pytest.importorskip("optuna", reason="needs optuna: pip install 'depthlab[tune]'")
    answer = depthlab("tune", *overrides)
    assert answer.status == 2
    assert message in answer.error
    assert answer.error.count("\n") == 1 or answer.error.startswith("usage")
    assert list(folder.iterdir()) == []


def test_values_that_fit_with_some_of_the_others_are_searched() -> None:
    """A depth of 5 has no residual blocks, and yet it is a depth to look at; in whatever order it is typed."""
    skips, depths = "model.skip=residual,none", "model.depth=5,10"
    first, second = (_checked(searched(*order)).run for order in ((skips, depths), (depths, skips)))
    assert first == second
    assert (first.model.depth, first.model.skip) == (5, "none")
