"""What the commands do and say when all is well."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from depthlab import figures, runs
from depthlab.cli import experiments
from depthlab.cli import train as module
from depthlab.cli.compose import Composer, Launch
from depthlab.config import RunConfig, describe_fields
from depthlab.runs.trial import Trial


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """The runs that are trained, each as far as this process goes."""
    configs: list[RunConfig] = []
    train = Trial.run

    def counted(self: Trial) -> dict[str, Any]:
        configs.append(self.config)
        return train(self)

    monkeypatch.setattr(Trial, "run", counted)
    return configs


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch) -> list[list[RunConfig]]:
    """Sweeps that are asked for, trained in this process one run after the other: no process has to be started."""
    sweeps: list[list[RunConfig]] = []

    def sweep(configs: list[RunConfig], *, device: torch.device, launch: Any) -> runs.Outcome:
        sweeps.append(configs)
        found = [config for config in configs if runs.Run.of(config).status().finished]
        for config in configs:
            runs.execute(config, device=device)
        return runs.Outcome(len(configs) - len(found), len(found), [])

    monkeypatch.setattr(runs, "sweep", sweep)
    return sweeps


def test_a_run_is_trained_once_and_leaves_nothing_else(
    depthlab: Callable[..., Any], folder: Path, tiny: list[str], trained: list[RunConfig]
) -> None:
    first = depthlab("train", *tiny)
    assert first.status == 0
    (run,) = (folder / "results" / "runs").iterdir()
    last = first.out.splitlines()
    assert re.fullmatch(
        r"test error \d+\.\d\d% after 20 steps \(\d+\.\d\d% with the weights that validation chose, step \d+\)", last[0]
    )
    assert last[1:] == [f"wrote {run}"]
    lines = first.error.splitlines()
    assert lines[0] == "step 2/20"
    assert [line.partition(":")[0] for line in lines] == [f"step {step}/20" for step in range(2, 21, 2)]
    assert re.fullmatch(r"step 20/20: loss \d+\.\d+, validation accuracy \d+\.\d\d%", lines[-1])
    stored = {f"results/runs/{run.name}/{name}" for name in ("config.yaml", "run.json", "readings.parquet")}
    before = everything(folder)
    assert before == {"results", "results/runs", f"results/runs/{run.name}", *stored}, "no outputs folder of Hydra's"

    again = depthlab("train", *reversed(tiny))
    assert again.status == 0
    assert again.out.splitlines() == [last[0], f"found {run}"]
    assert again.error == ""
    assert len(trained) == 1
    assert everything(folder) == before


def test_a_run_that_diverges_is_a_result(depthlab: Callable[..., Any], tiny: list[str]) -> None:
    answer = depthlab("train", *tiny, "train.lr=1e30")
    assert answer.status == 0
    assert re.match(r"diverged at step \d+: the loss is not finite\nwrote ", answer.out)
    assert re.search(r"diverged +at step \d+ .*train\.lr=1e\+30 .*\n1 diverged\n$", depthlab("runs").out)


def test_threads_of_a_run(depthlab: Callable[..., Any], tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr(module, "prepare_process", threads.append)
    monkeypatch.setattr(module, "available_cores", lambda: 6)
    monkeypatch.setattr(runs, "execute", lambda config, **_: depthlab)
    monkeypatch.setattr(runs.Run, "record", lambda run: {"status": "diverged", "diverged_step": 0, "wall_seconds": 0})
    for more in ([], ["sweep.threads=3"], ["model=resnet", "model.depth=8"]):
        depthlab("train", *tiny, *more)
    assert threads == [1, 3, 6]


def test_updates_before_training_are_not_told_one_by_one(depthlab: Callable[..., Any], tiny: list[str]) -> None:
    answer = depthlab("train", *tiny, "train.pretraining_steps=5")
    assert answer.status == 0
    assert [line.partition(":")[0] for line in answer.error.splitlines()] == [
        f"step {step}/20" for step in range(2, 21, 2)
    ]


def test_ctrl_c_says_how_to_go_on(
    depthlab: Callable[..., Any], tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Any, done: int, loss: float | None, error: float | None) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module._Progress, "__call__", interrupted)
        answer = depthlab("train", *tiny)
    assert answer.status == 130
    assert answer.error == "\ndepthlab: stopped; what is trained is kept, type the same command to go on\n"
    assert "1 interrupted" in depthlab("runs").out
    assert depthlab("train", *tiny).status == 0
    assert "1 done" in depthlab("runs").out


def test_a_sweep_trains_what_is_missing(
    depthlab: Callable[..., Any], tiny: list[str], swept: list[list[RunConfig]], trained: list[RunConfig]
) -> None:
    assert depthlab("train", *tiny, "seed=1").status == 0
    answer = depthlab("train", "model.width=8", "-m", *tiny, "seed=range(3)")  # -m amid the settings
    assert answer.status == 0
    assert answer.out == "2 runs trained, 1 found finished, 0 failed\n"
    assert [config.seed for config in swept[0]] == [0, 1, 2]
    assert len(trained) == 3
    assert depthlab("train", "-m", *tiny, "seed=2,0").out == "0 runs trained, 2 found finished, 0 failed\n"
    listed = depthlab("runs").out.splitlines()
    assert listed[-1] == "3 done"
    assert all(re.match(r"[0-9a-f]{16}  done         test error \d+\.\d\d% ", line) for line in listed[:-1])


def test_failures_of_a_sweep_are_told(
    depthlab: Callable[..., Any], tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = runs.Outcome(1, 0, [("abc", "mlp-3: failed: ValueError: no luck")])
    monkeypatch.setattr(runs, "sweep", lambda *_, **__: outcome)
    answer = depthlab("train", "-m", *tiny, "seed=1,2")
    assert answer.status == 1
    assert answer.out == "1 runs trained, 0 found finished, 1 failed\n"
    assert answer.error == "  abc mlp-3: failed: ValueError: no luck\n"


def test_experiments_are_sweeps_without_m(depthlab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[RunConfig]] = []
    monkeypatch.setattr(runs, "sweep", lambda configs, **_: asked.append(configs) or runs.Outcome(0, 0, []))
    declared = experiments.load("quickstart").launches(Composer(experiments.folder("configs")), "laptop")
    for line in (["experiment=quickstart"], ["experiment=quickstart", "scale=laptop"]):
        assert depthlab("train", *line).status == 0
        assert asked.pop() == [launch.run for launch in declared]
    depthlab("train", "experiment=quickstart", "scale=smoke", "seed=5", "model.width=9")
    assert {(config.seed, config.model.width) for config in asked.pop()} == {(5, 9)}


MINIATURE = ["scale=smoke", "data.train_size=100", "train.steps=3", "train.batch_size=20"]


def test_an_experiment_from_missing_runs_to_its_figure(
    depthlab: Callable[..., Any], folder: Path, swept: list[list[RunConfig]]
) -> None:
    listed = depthlab("runs", "experiment=quickstart", *MINIATURE).out.splitlines()
    assert listed[-1] == "18 missing"
    assert len(listed) == 19
    assert list(folder.iterdir()) == []

    early = depthlab("figure", "quickstart", *MINIATURE)
    assert early.status == 1
    again = "depthlab train experiment=quickstart " + " ".join(MINIATURE)
    results = folder / "results"
    assert early.error == (
        f"depthlab: 18 of 18 runs are not finished in {results / 'runs'}; train them with: {again}\n"
    )
    nothing = depthlab("figure", "quickstart", "--redraw")
    assert nothing.status == 1
    assert nothing.error.startswith(f"depthlab: cannot redraw {results / 'quickstart'}: ")
    assert "Traceback" not in nothing.error

    assert depthlab(*again.split()[1:]).status == 0
    drawn = depthlab("figure", "quickstart", *MINIATURE)
    assert drawn.status == 0, drawn.error
    claims = drawn.out.splitlines()
    assert claims[-1] == f"wrote {results / 'quickstart'}/figure.png, table.md, claims.md"
    assert all(re.match(r" *(supported|not supported|undecided): ", line) for line in claims[:-1])
    files = {path.name: path.read_bytes() for path in (results / "quickstart").iterdir()}
    assert {"readings.csv.gz", "provenance.json", "figure.png", "figure.svg", "table.md", "claims.md"} <= set(files)
    assert b'"scale": "smoke"' in files["provenance.json"]

    for path in results.glob("runs/*/*"):
        path.unlink()
    assert depthlab("figure", "quickstart", "--redraw").out == drawn.out
    assert {path.name: path.read_bytes() for path in (results / "quickstart").iterdir()} == files


def test_a_figure_that_cannot_be_written_is_one_line(
    depthlab: Callable[..., Any], swept: list[list[RunConfig]], monkeypatch: pytest.MonkeyPatch
) -> None:
    depthlab("train", "experiment=quickstart", *MINIATURE)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figures, "write", full)
    answer = depthlab("figure", "quickstart", *MINIATURE)
    assert answer.status == 1
    assert re.match(r"depthlab: cannot write .*quickstart: No space left on device; ", answer.error)


def test_nothing_trained_is_no_error(depthlab: Callable[..., Any], folder: Path) -> None:
    assert depthlab("runs").out == f"no runs in {folder / 'results' / 'runs'}\n"


@pytest.mark.parametrize("command", [[], ["train"], ["figure"], ["runs"]], ids=" ".join)
def test_help_is_plain_english(depthlab: Callable[..., Any], command: list[str]) -> None:
    answer = depthlab(*command, "--help")
    assert answer.status == 0
    assert answer.out.startswith("usage: depthlab")
    assert max(map(len, answer.out.splitlines())) <= 120


def test_help_lists_every_setting(depthlab: Callable[..., Any]) -> None:
    told = depthlab("train", "--help").out
    unwrapped = re.sub(r"\n {6}(?=\S)", " ", told)
    for name, _, about in describe_fields():
        assert re.search(rf"^  {re.escape(name)}=\S+ {re.escape(about)}$", unwrapped, re.MULTILINE)
    for part in ("train.clip_norm=null", "model.bias=true", "probes.names=[...]", "device=auto", "experiment=NAME"):
        assert part in told


def test_help_imports_nothing_heavy() -> None:
    """It answers at once: what is imported is counted, since time on a busy machine is not worth measuring."""
    code = (
        "import sys\nfrom depthlab.cli import main\n"
        "try:\n    main(['train', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'pandas', 'hydra', 'omegaconf', 'matplotlib', 'sklearn', 'tqdm'}\n"
        "sys.exit(sorted(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_finished_is_listed_and_drawn_without_torch(
    depthlab: Callable[..., Any], folder: Path, swept: list[list[RunConfig]]
) -> None:
    """Importing it takes longer than all that a small figure needs."""
    assert depthlab("train", "experiment=quickstart", *MINIATURE).status == 0
    code = (
        "import sys\nfrom depthlab.cli import main\n"
        f"ends = main(['figure', 'quickstart', *{MINIATURE}]), main(['runs']), main(['runs', '--format', 'csv'])\n"
        "sys.exit([ends, *({'torch', 'sklearn', 'jinja2', 'scipy.stats'} & set(sys.modules))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder)
    assert done.stderr.strip() == "[(0, 0, 0)]"
    assert done.stdout.count("  done  ") == 18


def test_an_error_without_torch_is_one_line(folder: Path) -> None:
    code = "import sys\nfrom depthlab.cli import main\nstatus = main(['figure', 'quickstart'])\n"
    code += "sys.exit(9 if 'torch' in sys.modules else status)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "runs are not finished in" in done.stderr


def test_a_training_imports_nothing_that_only_figures_need(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom depthlab.cli import main\nmain(['train', 'train.steps=1'])\n"
        "heavy = {'matplotlib', 'sklearn', 'scipy.stats', 'scipy.optimize', 'torchvision', 'optuna', 'jinja2'}\n"
        "sys.exit(sorted(heavy & set(sys.modules)) or 0)"
    )
    environment = {**os.environ, "DEPTHLAB_RESULTS": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_a_reader_that_has_gone_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`depthlab runs | head -1`: what is told fits into a buffer, and fails only when that is emptied at the end."""
    monkeypatch.setenv("DEPTHLAB_RESULTS", str(tmp_path))
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    command = [sys.executable, "-m", "depthlab", "runs"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 1


def test_launches_are_values() -> None:
    first, second = (next(Composer(experiments.folder("configs")).sweep([])) for _ in range(2))
    assert isinstance(first, Launch)
    assert first == second


@pytest.mark.parametrize(
    ("typed", "is_warmed_up"),
    [
        ("train model.depth=4", False),
        ("train -m model.depth=4,5", True),
        ("train experiment=losses", True),
        ("train -m seed=1,2 hydra/launcher=joblib", False),
        ("cost model.depth=4", True),
        ("tune train.lr=interval(0,1)", True),
        ("tune train.lr=interval(0,1) sweep.workers=1", False),
        ("figure losses", False),
    ],
)
def test_a_process_to_be_forked_starts_where_a_pool_will_fork_it(
    typed: str, is_warmed_up: bool, depthlab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It imports torch, which is in vain where no pool is."""
    begun: list[bool] = []
    line = sys.modules["depthlab.cli.main"]
    monkeypatch.setattr(line._processes, "warm_up", lambda: begun.append(True))
    monkeypatch.setattr(line, "COMMANDS", dict.fromkeys(line.COMMANDS, "builtins:bool"))
    depthlab(*typed.split())
    assert bool(begun) is is_warmed_up


LARGEST = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:])
_, status, used = os.wait4(process.pid, 0)
print(used.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""Runs a command, and tells the most memory it had, in KiB."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss differs")
def test_a_plain_cnn_of_10000_layers_is_trained_and_read_in_two_gigabytes(folder: Path) -> None:
    """All of the run: importing torch takes 0.3 of them; weights, gradients, momentum and kept weights 0.45."""
    settings = ["model=plain_cnn", "model.depth=10000", "model.stages=1", "model.norm=none", "model.activation=tanh"]
    settings += ["model.init=delta_orthogonal", "train.steps=2", "train.batch_size=16", "train.lr=1e-4"]
    settings += ["train.activation_checkpointing=true", "sweep.threads=1"]
    command = [sys.executable, "-m", "depthlab", "train", "data=digits", *settings]
    # started by a small process: one that tests have made large hands on how large it was
    begun = [sys.executable, "-c", LARGEST, *command]
    ended = subprocess.run(begun, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    assert int(ended.stdout.splitlines()[-1]) < 2 * 1024**2
    (run,) = (folder / "results" / "runs").iterdir()
    readings = pd.read_parquet(run / "readings.parquet")
    assert readings["value"].map(math.isfinite).all()
    begin = readings[(readings["step"] == 0) & (readings["probe"] == "backward_norm")].set_index("depth")["value"]
    assert len(begin) == 10_000
    assert 0.1 < begin[1] / begin[9_999] < 0.2  # 0.17 by theory.profile, over all q_1
