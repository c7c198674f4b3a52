"""Signals that grow: with depth above the edge of chaos, out of float32, and through time; and what clipping does.

Top: the backward signal of tanh nets at initialization with theory, the error to which they train, and the forward
signal of deep relu nets on its way out of float32. Middle: the gradient of a recurrent net's state at each time step at
initialization, of vanilla cells with theory and of gated ones, and the error during training. Bottom: gradient norm of
one seed, and errors, of vanilla cells with and without clipping. Where learning rates are not told apart, each net has
the one that validates best.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from depthlab import figures, theory
from depthlab.figures import Claim, where

PROBES = ("backward_norm", "activation_std", "grad_norm", "validation_error", "train_error", "test_error")

SIGMAS = {each: rf"$\sigma_w$ = {each:g}" for each in (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)}
CELLS = {
    ("rnn", 0): "vanilla",
    ("lstm", 0): "LSTM",
    ("lstm", 3): "LSTM, forget bias 3",
    ("gru", 0): "GRU",
    ("gru", 3): "GRU, forget bias 3",
}
NETS = {name: name for name in (*CELLS.values(), "vanilla, clipped")}
GUESSING = 90
"""Error in percent; a run that diverged does no better."""
SHOWN, FAST = 1.5, 0.1
"""The recurrent gain and the learning rate at which clipping is shown."""
RELU_STD = np.sqrt(0.5 * (1 - 1 / np.pi))
"""Standard deviation of relu(z) over that of a centred Gaussian z."""


def feedforward(readings: pd.DataFrame, activation: str) -> pd.DataFrame:
    return where(readings, model__family="mlp", model__activation=activation)


def recurrent(readings: pd.DataFrame, *, spikes: bool = False) -> pd.DataFrame:
    """Recurrent nets, those that are read all along and evaluated more often, or the others; with their names."""
    rows = where(readings, model__family="rnn")
    usual: int = rows["train.eval_every"].max()
    rows = rows[(rows["train.eval_every"] < usual) == spikes]
    cells = [CELLS[each] for each in zip(rows["model.cell"], rows["model.forget_bias"], strict=True)]
    found = rows.assign(cell=cells, clipped=rows["train.clip_norm"].notna())
    return found.assign(net=found["cell"].mask(found["clipped"], found["cell"] + ", clipped"))


def errors(readings: pd.DataFrame, probe: str) -> pd.DataFrame:
    """Error at the end of training, in percent."""
    return percent(figures.outcomes(readings, probe))


def percent(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(value=(100 * rows["value"]).fillna(GUESSING))


def chaos(readings: pd.DataFrame, probe: str = "train_error") -> pd.DataFrame:
    """Errors of tanh nets, each at its best learning rate."""
    rows = feedforward(readings, "tanh")
    return errors(figures.tuned(rows, "train.lr", ["model.sigma_w", "model.depth"]), probe)


def layer_slopes(readings: pd.DataFrame) -> pd.DataFrame:
    """Growth of the backward signal per layer in the deepest tanh nets at initialization, measured and predicted."""
    rows = figures.select(feedforward(readings, "tanh"), "backward_norm", step="first")
    rows = where(rows, model__depth=rows["model.depth"].max(), train__lr=rows["train.lr"].min())
    return figures.backward_slopes(rows, ["model.sigma_w"])


def overflows(readings: pd.DataFrame) -> pd.DataFrame:
    """Per relu net: the first layer whose activations are not finite in float32, nan if none; the predicted one.

    `ended` is the update, from 0, at which the run diverged.
    """
    rows = where(feedforward(readings, "relu"), probe="activation_std")
    found = []
    settings: Any
    for settings, run in rows.groupby(["model.sigma_w", "model.depth", "seed"]):
        sigma_w, depth, seed = settings
        first = where(run, step=0)
        layer = first["depth"][~np.isfinite(first["value"])].min()
        predicted = theory.overflow_depth(activation="relu", sigma_w=sigma_w)
        ended = run["step"].max() if run["status"].iloc[0] == "diverged" else np.nan
        found.append((sigma_w, depth, seed, layer, predicted, ended))
    return pd.DataFrame(found, columns=["model.sigma_w", "model.depth", "seed", "value", "predicted", "ended"])


def in_time(readings: pd.DataFrame) -> pd.DataFrame:
    """Norm of dL/dh_t at initialization; `depth` is the time step."""
    rows = recurrent(figures.select(readings, "backward_norm", step="first"))
    return rows[rows["layer"].str.startswith("step_") & (rows["train.lr"] == FAST)]


def backward_in_time(sigma_w: float, steps: int) -> np.ndarray:
    """ln|dL/dh_t| - ln|dL/dh_T| of a vanilla cell by theory; the inputs, normalized, drive each step with 1."""
    return theory.time_profile([1.0] * steps, activation="tanh", sigma_w=sigma_w).log_backward_norm


def time_slopes(readings: pd.DataFrame) -> pd.DataFrame:
    """Growth of the gradient of the state per time step at initialization; predicted for vanilla cells, else nan."""
    rows = in_time(readings)
    found = figures.slopes(rows, ["net", "model.sigma_w"])
    steps = np.arange(rows["depth"].max())
    lines = {each: np.polyfit(steps, backward_in_time(each, len(steps)), 1)[0] for each in found["model.sigma_w"]}
    return found.assign(predicted=found["model.sigma_w"].map(lines).where(found["net"].str.startswith("vanilla")))


def reach(readings: pd.DataFrame) -> pd.DataFrame:
    """|dL/dh_1| / |dL/dh_T| at initialization, per recurrent net and seed."""
    rows = in_time(readings)
    keys = ["net", "model.sigma_w", "seed"]
    first, last = (where(rows, depth=each).set_index(keys)["value"] for each in (1, rows["depth"].max()))
    return (first / last).rename("value").reset_index()


def tuned(readings: pd.DataFrame) -> pd.DataFrame:
    """Readings of recurrent nets, each at its best gain and learning rate."""
    best = figures.tuned(recurrent(readings), "train.lr", ["net", "model.sigma_w"])
    return figures.tuned(best, "model.sigma_w", ["net"])


def shown(readings: pd.DataFrame) -> pd.DataFrame:
    """Vanilla cells of the gain at which clipping is shown."""
    return where(readings, cell="vanilla", model__sigma_w=SHOWN)


def spikes(readings: pd.DataFrame) -> pd.DataFrame:
    """Norm of the recurrent matrix's gradient, before clipping, all along the training."""
    return where(figures.select(recurrent(readings, spikes=True), "grad_norm"), layer="blocks.0.cell")


def table(readings: pd.DataFrame) -> pd.DataFrame:
    deep = chaos(readings, "test_error")
    deep = where(deep, model__depth=deep["model.depth"].max())
    layers = f"tanh, {deep['model.depth'].max()} layers"
    cells = errors(figures.tuned(recurrent(readings), "train.lr", ["net", "model.sigma_w"]), "test_error")
    found = pd.concat([deep.assign(net=layers), cells])
    slopes = pd.concat([layer_slopes(readings).assign(net=layers), time_slopes(readings)])
    rows = []
    for (net, gain), part in found.groupby(["net", "model.sigma_w"], sort=True):
        slope = where(slopes, net=net, model__sigma_w=gain)
        rows.append(
            {
                "net": net,
                "gain": gain,
                "slope measured": figures.interval(slope["value"]),
                "slope predicted": slope["predicted"].mean() if slope["predicted"].notna().all() else "-",
                "best learning rate": part["train.lr"].iloc[0],
                "test error, %": figures.interval(part["value"]),
            }
        )
    return pd.DataFrame(rows)


def worst(found: pd.DataFrame) -> pd.Series:
    """The largest |measured - predicted| per seed."""
    gaps = (found["value"] - found["predicted"]).abs().groupby(found["seed"])
    return gaps.agg(lambda each: each.max(skipna=False))


def claims(readings: pd.DataFrame) -> list[Claim]:
    trained, growth, in_step, over = (each(readings) for each in (chaos, layer_slopes, time_slopes, overflows))
    cells, reached = errors(tuned(readings), "test_error"), reach(readings)
    depths, gains = (sorted(trained[f"model.{each}"].unique()) for each in ("depth", "sigma_w"))
    deep, edge, far = depths[-1], gains[0], gains[-1]
    is_deeper = over["model.depth"] > over["predicted"]
    missed = (over["value"] / over["predicted"] - 1).abs()[is_deeper]
    fast = where(errors(shown(recurrent(readings)), "test_error"), train__lr=FAST)
    peaks = spikes(readings).groupby(["clipped", "seed"])["value"].agg(lambda each: each.max(skipna=False))
    at, biased = "|dL/dh_1| / |dL/dh_T| at initialization", CELLS["lstm", 3]
    return [
        Claim(
            statement="Theory predicts the growth of the backward signal of deep tanh nets, at the edge and above.",
            effect="largest |slope measured - slope predicted| of all gains, nepers per layer",
            values=worst(growth),
            at_most=0.05,
        ),
        Claim(
            statement="Above the edge of chaos the signal explodes towards the input.",
            effect=f"slope of the backward signal, sigma_w = {far:g} - {edge:g}, nepers per layer",
            values=figures.paired(growth, "model.sigma_w", far, edge),
            at_most=-0.2,
        ),
        Claim(
            statement="There a deep net trains at no learning rate tried, where the critical one does.",
            effect=f"training error of {deep} layers, sigma_w = {far:g} - {edge:g}, points",
            values=figures.paired(where(trained, model__depth=deep), "model.sigma_w", far, edge),
            at_least=30,
        ),
        Claim(
            statement="It is the depth: of the same gain, a shallower net does better.",
            effect=f"training error, sigma_w = {gains[-2]:g}, {deep} - {depths[0]} layers, points",
            values=figures.paired(where(trained, model__sigma_w=gains[-2]), "model.depth", deep, depths[0]),
            at_least=30,
        ),
        Claim(
            statement="A relu net's activations leave float32 in the layer that theory names.",
            effect="largest |layer measured / layer predicted - 1|",
            values=missed.groupby(over["seed"]).agg(lambda each: each.max(skipna=False)),
            at_most=0.05,
        ),
        Claim(
            statement="A run ends in its first update where the net is deeper than that layer, and only there.",
            effect="share of nets that end as predicted",
            values=((over["ended"] == 0) == is_deeper).groupby(over["seed"]).mean(),
            at_least=0.99,
        ),
        Claim(
            statement="Theory predicts how the gradient of a vanilla cell's state grows through time.",
            effect="largest |slope measured - slope predicted| of all gains, nepers per time step",
            values=worst(in_step[in_step["predicted"].notna()]),
            at_most=0.1,
        ),
        Claim(
            statement="With the gain that is critical without inputs it vanishes on the way to the first row.",
            effect=f"{at}, vanilla, sigma_w = 1",
            values=where(reached, net="vanilla", model__sigma_w=1)["value"],
            at_most=1e-3,
            log=True,
        ),
        Claim(
            statement="Gates alone change little: an LSTM's vanishes too.",
            effect=f"{at}, LSTM",
            values=where(reached, net="LSTM")["value"],
            at_most=1e-2,
            log=True,
        ),
        Claim(
            statement="The bias of the forget gate keeps it.",
            effect=f"{at}, LSTM with forget bias 3 over LSTM without",
            values=figures.paired(reached[reached["net"] != "vanilla"], "net", biased, "LSTM", ratio=True),
            at_least=10,
            log=True,
        ),
        Claim(
            statement="That pays: an LSTM with the bias beats the one without, each at its best learning rate.",
            effect="test error, without - with, points",
            values=figures.paired(cells, "net", "LSTM", biased),
            at_least=0.5,
        ),
        Claim(
            statement="It beats vanilla cells of every gain.",
            effect="test error, best vanilla - LSTM with forget bias 3, points",
            values=figures.paired(cells, "net", "vanilla", biased),
            at_least=3,
        ),
        Claim(
            statement="Where gradients explode, clipping lets a vanilla cell train at a rate where it fails without.",
            effect=f"test error at learning rate {FAST:g}, sigma_w = {SHOWN:g}, not clipped - clipped, points",
            values=figures.paired(fast, "clipped", False, True),
            at_least=20,
        ),
        Claim(
            statement="Without clipping the gradient has spikes that it has not with it.",
            effect="largest gradient norm read in training, before clipping: not clipped / clipped",
            values=figures.paired(peaks.reset_index(), "clipped", False, True, ratio=True),
            at_least=2,
            log=True,
        ),
        Claim(
            statement="Clipping does not cure what vanishes: the LSTM stays better than the best clipped vanilla cell.",
            effect="test error, clipped vanilla - LSTM with forget bias 3, points",
            values=figures.paired(cells, "net", "vanilla, clipped", biased),
            at_least=3,
        ),
    ]


def in_percent(
    drawing: Figure, panel: int, rows: pd.DataFrame, *, x: str, by: str = "net", labels: Mapping[Any, str] = NETS
) -> None:
    figures.draw(drawing.axes[panel], rows, x, by, labels=labels)
    drawing.axes[panel].set(ylabel=f"{rows['probe'].iloc[0].replace('_', ' ')}, %", ylim=(-5, 105))


def draw_overflow(drawing: Figure, readings: pd.DataFrame) -> None:
    panel = drawing.axes[2]
    rows = where(feedforward(readings, "relu"), probe="activation_std", step=0)
    rows = where(rows, model__depth=rows["model.depth"].max())
    rows = rows[rows["depth"] < rows["model.depth"]]
    least = rows.assign(finite=np.isfinite(rows["value"])).groupby(["model.sigma_w", "depth"])["finite"]
    rows = rows[least.transform("all")]
    figures.draw(panel, rows, "depth", "model.sigma_w", labels=SIGMAS)
    layers = np.arange(1, rows["model.depth"].max())
    for sigma_w in rows["model.sigma_w"].unique():
        lines = theory.profile(len(layers) + 1, activation="relu", sigma_w=sigma_w)
        figures.theory(panel, layers, RELU_STD * np.sqrt(lines.variance[:-1]))
    panel.axhline(float(np.finfo(np.float32).max), color="black", linewidth=0.6)
    at = panel.get_yaxis_transform()
    panel.text(0.65, 1e39, "end of float32", transform=at, ha="center", va="bottom", fontsize="small")
    panel.set(ylim=(1e-2, 1e44), ylabel="s.d. of activation")


def draw_time(drawing: Figure, panel: int, states: pd.DataFrame, by: str, labels: Mapping[Any, str]) -> None:
    figures.draw(drawing.axes[panel], states, "depth", by, labels=labels)
    drawing.axes[panel].set(
        xlabel="time step (row of image)", ylabel=r"gradient of state  $\|\partial L/\partial h_t\|$"
    )


def figure(readings: pd.DataFrame) -> Figure:
    drawing, axes = figures.panels(3, 3, height=6.3)
    signal = figures.select(feedforward(readings, "tanh"), "backward_norm", step="first")
    depth = signal["model.depth"].max()
    signal = where(signal, model__depth=depth, train__lr=signal["train.lr"].min())
    signal = signal[signal["depth"] < depth]
    figures.draw(axes[0], signal, "depth", "model.sigma_w", labels=SIGMAS)
    for _, part in signal.groupby("model.sigma_w"):
        figures.theory(axes[0], *figures.predicted_backward(part))
    in_percent(drawing, 1, chaos(readings), x="model.depth", by="model.sigma_w", labels=SIGMAS)
    draw_overflow(drawing, readings)
    states = in_time(readings)
    vanilla, gated = where(states, net="vanilla"), states[states["cell"] != "vanilla"]
    draw_time(drawing, 3, vanilla, "model.sigma_w", SIGMAS)
    steps = np.arange(1, vanilla["depth"].max() + 1)
    for sigma_w, part in where(vanilla, depth=steps[-1]).groupby("model.sigma_w"):
        last = figures.interval(part["value"], log=True).mean
        figures.theory(axes[3], steps, last * np.exp(backward_in_time(float(str(sigma_w)), len(steps))))
    draw_time(drawing, 4, gated, "net", NETS)
    in_percent(drawing, 5, percent(figures.select(tuned(readings), "validation_error")), x="step")
    one = where(spikes(readings), seed=readings["seed"].min())  # a mean over seeds would level the spikes
    figures.draw(axes[6], one, "step", "net", labels=NETS)
    curves = figures.select(recurrent(readings, spikes=True), "validation_error")
    in_percent(drawing, 7, percent(curves), x="step")
    rates = errors(shown(recurrent(readings)), "test_error")
    in_percent(drawing, 8, rates, x="train.lr")
    figures.log_ticks(axes[8], rates["train.lr"])
    titles = ("tanh, at start", "tanh", "relu, at start", "vanilla, at start", "gated, at start", "best rate")
    gain = SIGMAS[SHOWN]
    for panel, title in zip(axes, (*titles, f"{gain}, one seed", f"{gain}, rate {FAST:g}", gain), strict=True):
        panel.set_title(title)
    figures.legend(drawing, "top")
    return drawing
