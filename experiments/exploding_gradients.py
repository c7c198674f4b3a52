"""Signals that grow: with depth above the edge of chaos, out of float32, and through time; and what clipping does.

Top: the backward signal of tanh nets at initialization with theory, the error to which they train, and the forward
signal of deep relu nets on its way out of float32. Middle: the gradient of a recurrent net's state at each time step at
initialization, of vanilla cells with theory and of gated ones, and the error during training. Bottom: gradient norm of
one seed, and errors, of vanilla cells with and without clipping. Where learning rates are not told apart, each net has
the one that validates best.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depthlab import figures
from depthlab.figures import Claim, paired, where

PROBES = ("backward_norm", "activation_std", "grad_norm", "validation_error", "train_error", "test_error")

GAIN, RATE, DEPTH = "model.sigma_w", "train.lr", "model.depth"
SIGMAS = {each: rf"$\sigma_w$ = {each:g}" for each in (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)}
BIASED = "LSTM, forget bias 3"
CELLS = {
    **{("rnn", 0): "vanilla", ("lstm", 0): "LSTM", ("lstm", 3): BIASED},
    **{("gru", 0): "GRU", ("gru", 3): "GRU, forget bias 3"},
}
NETS = [*CELLS.values(), "vanilla, clipped"]
GUESSING = 90  # error in percent; a run that diverged does no better
SHOWN, FAST = 1.5, 0.1  # the recurrent gain and the learning rate at which clipping is shown


def feedforward(readings: pd.DataFrame, activation: str) -> pd.DataFrame:
    return where(readings, model__family="mlp", model__activation=activation)


def recurrent(readings: pd.DataFrame, *, spikes: bool = False) -> pd.DataFrame:
    """Recurrent nets, those that are read all along and evaluated more often, or the others; with their names."""
    rows = where(readings, model__family="rnn")
    usual: int = rows["train.eval_every"].max()
    rows = rows[(rows["train.eval_every"] < usual) == spikes]
    rows = figures.named(rows, ["model.cell", "model.forget_bias"], CELLS).rename(columns={"net": "cell"})
    clipped = rows["train.clip_norm"].notna()
    return rows.assign(clipped=clipped, net=rows["cell"].mask(clipped, rows["cell"] + ", clipped"))


def errors(rows: pd.DataFrame, probe: str = "test_error") -> pd.DataFrame:
    return figures.errors(rows, probe, diverged=GUESSING)


def chaos(readings: pd.DataFrame, probe: str = "train_error") -> pd.DataFrame:
    """Errors of tanh nets, each at its best learning rate."""
    return errors(figures.tuned(feedforward(readings, "tanh"), RATE, [GAIN, DEPTH]), probe)


def at_start(readings: pd.DataFrame) -> pd.DataFrame:
    """The backward signal of the deepest tanh nets at initialization."""
    rows = figures.deepest(figures.select(feedforward(readings, "tanh"), "backward_norm", step="first"))
    return figures.hidden(where(rows, train__lr=rows[RATE].min()))


def overflow(readings: pd.DataFrame) -> pd.DataFrame:
    return where(feedforward(readings, "relu"), probe="activation_std")


def in_time(readings: pd.DataFrame) -> pd.DataFrame:
    """Norm of dL/dh_t at initialization; `depth` is the time step."""
    rows = figures.states(figures.select(readings, "backward_norm", step="first"))
    return where(recurrent(rows), train__lr=FAST)


def best(readings: pd.DataFrame) -> pd.DataFrame:
    """Recurrent nets of every gain, each at its best learning rate."""
    return figures.tuned(recurrent(readings), RATE, ["net", GAIN])


def spikes(readings: pd.DataFrame) -> pd.DataFrame:
    """Norm of the recurrent matrix's gradient, before clipping, all along the training."""
    return where(figures.select(recurrent(readings, spikes=True), "grad_norm"), layer="blocks.0.cell")


def shown(readings: pd.DataFrame) -> pd.DataFrame:
    """Errors of vanilla cells of the gain at which clipping is shown."""
    return errors(where(recurrent(readings), cell="vanilla", model__sigma_w=SHOWN))


def table(readings: pd.DataFrame) -> pd.DataFrame:
    deep = figures.deepest(chaos(readings, "test_error"))
    layers = f"tanh, {deep[DEPTH].iloc[0]} layers"
    slopes = [figures.backward_slopes(at_start(readings), [GAIN]).assign(net=layers)]
    found = pd.concat([*slopes, figures.time_slopes(in_time(readings), ["net", GAIN])])
    predicted = found.groupby(["net", GAIN])["predicted"].agg(lambda each: each.mean(skipna=False))
    ends = pd.concat([deep.assign(net=layers), errors(best(readings))])
    return figures.table(
        ends,
        {"net": "net", GAIN: "gain"},
        {
            "slope measured": found,
            "slope predicted": dict(predicted.astype(object).where(predicted.notna(), "-")),
            "best learning rate": RATE,
            "test error, %": ends,
        },
    )


def claims(readings: pd.DataFrame) -> list[Claim]:
    return [
        *claims_on_chaos(chaos(readings), figures.backward_slopes(at_start(readings), [GAIN])),
        *claims_on_overflow(figures.overflow_depths(overflow(readings), [GAIN, DEPTH])),
        *claims_in_time(in_time(readings)),
        *claims_on_cells(readings, errors(figures.tuned(best(readings), GAIN, ["net"]))),
    ]


def claims_on_chaos(trained: pd.DataFrame, growth: pd.DataFrame) -> list[Claim]:
    depths, gains = (sorted(trained[each].unique()) for each in (DEPTH, GAIN))
    deep, edge, far = depths[-1], gains[0], gains[-1]
    return [
        Claim(
            statement="Theory predicts the growth of the backward signal of deep tanh nets, at the edge and above.",
            effect="largest |slope measured - slope predicted| of all gains, nepers per layer",
            values=figures.largest_gap(growth),
            at_most=0.05,
        ),
        Claim(
            statement="Above the edge of chaos the signal explodes towards the input.",
            effect=f"slope of the backward signal, sigma_w = {far:g} - {edge:g}, nepers per layer",
            values=paired(growth, GAIN, far, edge),
            at_most=-0.2,
        ),
        Claim(
            statement="There a deep net trains at no learning rate tried, where the critical one does.",
            effect=f"training error of {deep} layers, sigma_w = {far:g} - {edge:g}, points",
            values=paired(where(trained, model__depth=deep), GAIN, far, edge),
            at_least=30,
        ),
        Claim(
            statement="It is the depth: of the same gain, a shallower net does better.",
            effect=f"training error, sigma_w = {gains[-2]:g}, {deep} - {depths[0]} layers, points",
            values=paired(where(trained, model__sigma_w=gains[-2]), DEPTH, deep, depths[0]),
            at_least=30,
        ),
    ]


def claims_on_overflow(over: pd.DataFrame) -> list[Claim]:
    is_deeper = over[DEPTH] > over["predicted"]
    missed = over.assign(value=over["value"] / over["predicted"], predicted=1)[is_deeper]
    return [
        Claim(
            statement="A relu net's activations leave float32 in the layer that theory names.",
            effect="largest |layer measured / layer predicted - 1|",
            values=figures.largest_gap(missed),
            at_most=0.05,
        ),
        Claim(
            statement="A run ends in its first update where the net is deeper than that layer, and only there.",
            effect="share of nets that end as predicted",
            values=((over["ended"] == 0) == is_deeper).groupby(over["seed"]).mean(),
            at_least=0.99,
        ),
    ]


def claims_in_time(found: pd.DataFrame) -> list[Claim]:
    growth, at = figures.time_slopes(found, ["net", GAIN]), "|dL/dh_1| / |dL/dh_T| at initialization"

    def reach(net: str) -> pd.Series:
        return paired(where(found, net=net, model__sigma_w=1), "depth", 1, found["depth"].max(), ratio=True)

    return [
        Claim(
            statement="Theory predicts how the gradient of a vanilla cell's state grows through time.",
            effect="largest |slope measured - slope predicted| of all gains, nepers per time step",
            values=figures.largest_gap(growth[growth["predicted"].notna()]),
            at_most=0.1,
        ),
        Claim(
            statement="With the gain that is critical without inputs it vanishes on the way to the first row.",
            effect=f"{at}, vanilla, sigma_w = 1",
            values=reach("vanilla"),
            at_most=1e-3,
            log=True,
        ),
        Claim(
            statement="Gates alone change little: an LSTM's vanishes too.",
            effect=f"{at}, LSTM",
            values=reach("LSTM"),
            at_most=1e-2,
            log=True,
        ),
        Claim(
            statement="The bias of the forget gate keeps it.",
            effect=f"{at}, LSTM with forget bias 3 over LSTM without",
            values=reach(BIASED) / reach("LSTM"),
            at_least=10,
            log=True,
        ),
    ]


def claims_on_cells(readings: pd.DataFrame, tuned: pd.DataFrame) -> list[Claim]:
    """`tuned`: errors of all recurrent nets, each at its best gain and learning rate."""
    fast = where(shown(readings), train__lr=FAST)
    peaks = spikes(readings).groupby(["clipped", "seed"])["value"].agg(lambda each: each.max(skipna=False))
    return [
        Claim(
            statement="That pays: an LSTM with the bias beats the one without, each at its best learning rate.",
            effect="test error, without - with, points",
            values=paired(tuned, "net", "LSTM", BIASED),
            at_least=0.5,
        ),
        Claim(
            statement="It beats vanilla cells of every gain.",
            effect="test error, best vanilla - LSTM with forget bias 3, points",
            values=paired(tuned, "net", "vanilla", BIASED),
            at_least=3,
        ),
        Claim(
            statement="Where gradients explode, clipping lets a vanilla cell train at a rate where it fails without.",
            effect=f"test error at learning rate {FAST:g}, sigma_w = {SHOWN:g}, not clipped - clipped, points",
            values=paired(fast, "clipped", False, True),
            at_least=20,
        ),
        Claim(
            statement="Without clipping the gradient has spikes that it has not with it.",
            effect="largest gradient norm read in training, before clipping: not clipped / clipped",
            values=paired(peaks.reset_index(), "clipped", False, True, ratio=True),
            at_least=2,
            log=True,
        ),
        Claim(
            statement="Clipping does not cure what vanishes: the LSTM stays better than the best clipped vanilla cell.",
            effect="test error, clipped vanilla - LSTM with forget bias 3, points",
            values=paired(tuned, "net", "vanilla, clipped", BIASED),
            at_least=3,
        ),
    ]


def draw_depth(axes: Sequence[Axes], readings: pd.DataFrame) -> None:
    """The backward signal with theory, the error to which nets train, and the forward signal on its way out."""
    signal = at_start(readings)
    figures.draw(axes[0], signal, "depth", GAIN, labels=SIGMAS, title="tanh, at start")
    for _, part in signal.groupby(GAIN):
        figures.theory(axes[0], *figures.predicted_backward(part))
    figures.draw_errors(axes[1], chaos(readings), DEPTH, GAIN, labels=SIGMAS, title="tanh")
    layers = figures.hidden(figures.deepest(where(overflow(readings), step=0)))
    figures.draw_overflow(axes[2], layers, GAIN, labels=SIGMAS)
    axes[2].set_title("relu, at start")


def draw_time(axes: Sequence[Axes], readings: pd.DataFrame) -> None:
    """The gradient of the state at each time step, with theory for vanilla cells, and the error during training."""
    rows = in_time(readings)
    vanilla, gated = where(rows, net="vanilla"), rows[rows["cell"] != "vanilla"]
    names: dict[str, Any] = {
        "xlabel": "time step (row of image)",
        "ylabel": r"gradient of state  $\|\partial L/\partial h_t\|$",
    }
    figures.draw(axes[0], vanilla, "depth", GAIN, labels=SIGMAS, **names, title="vanilla, at start")
    for _, part in vanilla.groupby(GAIN):
        figures.theory(axes[0], *figures.predicted_through_time(part))
    figures.draw(axes[1], gated, "depth", "net", labels=NETS, **names, title="gated, at start")
    tuned = figures.tuned(best(readings), GAIN, ["net"])
    curves = figures.percent(figures.select(tuned, "validation_error"), diverged=GUESSING)
    figures.draw_errors(axes[2], curves, "step", "net", labels=NETS, title="best rate")


def draw_clipping(axes: Sequence[Axes], readings: pd.DataFrame) -> None:
    """The gradient of one seed, whose spikes a mean over seeds would level; errors in training; and of all rates."""
    one, gain = where(spikes(readings), seed=readings["seed"].min()), SIGMAS[SHOWN]
    figures.draw(axes[0], one, "step", "net", labels=NETS, title=f"{gain}, one seed")
    curves = figures.select(recurrent(readings, spikes=True), "validation_error")
    curves = figures.percent(curves, diverged=GUESSING)
    figures.draw_errors(axes[1], curves, "step", "net", labels=NETS, title=f"{gain}, rate {FAST:g}")
    figures.draw_errors(axes[2], shown(readings), RATE, "net", labels=NETS, title=gain)
    figures.log_ticks(axes[2], shown(readings)[RATE])


def figure(readings: pd.DataFrame) -> Figure:
    drawing, axes = figures.panels(3, 3, height=6.3)
    draw_depth(axes[:3], readings)
    draw_time(axes[3:6], readings)
    draw_clipping(axes[6:], readings)
    figures.legend(drawing, "top", first=[*SIGMAS.values(), *NETS])
    return drawing
