"""The figure of a search: bars of the shares, and the trials as they are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from depthlab.figures import importance, render

TRIALS = pd.DataFrame(
    {
        "state": ["done", "pruned", "diverged", "done"],
        "error": [0.02, 0.5, 1.0, 0.1],
        "train.lr": [0.01, 0.001, 1.0, 0.1],
        "model.width": [16, 32, 64, 16],
        "model.activation": ["relu", "tanh", "relu", "gelu"],
        "model.norm_groups": [2, "null", 4, 4],
    }
)
SHARES = {"model.width": 0.1, "train.lr": 0.6, "model.activation": 0.25, "model.norm_groups": 0.05}


def test_bars_are_the_shares_in_their_order() -> None:
    bars = importance(SHARES, TRIALS).axes[0]
    assert [bar.get_width() for bar in bars.patches] == [0.6, 0.25, 0.1, 0.05]
    assert [label.get_text() for label in bars.get_yticklabels()] == ["lr", "activation", "width", "norm_groups"]
    assert bars.yaxis_inverted(), "the most important on top"


def test_points_are_the_trials_of_the_three_most_important_settings() -> None:
    figure = importance(SHARES, TRIALS)
    slices = figure.axes[1:]
    assert [axes.get_xlabel() for axes in slices] == ["lr", "activation", "width"]
    points = {line.get_label(): line.get_xydata() for line in slices[0].lines}
    assert set(points) == {"done", "pruned", "diverged"}
    np.testing.assert_array_equal(points["done"], [[0.01, 0.02], [0.1, 0.1]])
    np.testing.assert_array_equal(points["diverged"], [[1.0, 1.0]])
    words = [label.get_text() for label in slices[1].get_xticklabels()]
    assert words == ["gelu", "relu", "tanh"]
    np.testing.assert_array_equal(slices[1].lines[0].get_xydata(), [[1, 0.02], [0, 0.1]])
    assert [axes.get_xscale() for axes in slices] == ["log", "linear", "linear"]
    assert {axes.get_yscale() for axes in slices} == {"log"}
    assert render(figure, "png").startswith(b"\x89PNG")


def test_an_error_of_nothing_is_not_on_a_logarithmic_axis() -> None:
    figure = importance({"train.lr": 1.0}, TRIALS.assign(error=[0.0, 0.5, 1.0, 0.1]))
    assert len(figure.axes) == 2
    assert figure.axes[1].get_yscale() == "linear"


def test_numbers_and_words_of_one_setting_are_words() -> None:
    axes = importance({"model.norm_groups": 1.0}, TRIALS).axes[1]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "4", "null"]


def test_without_shares_there_is_no_figure() -> None:
    with pytest.raises(ValueError, match="no importances"):
        importance({}, TRIALS)
