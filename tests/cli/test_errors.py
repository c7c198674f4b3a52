"""A slip on the command line: one or two plain lines, exit code 2, and nothing is trained or written."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ERRORS = {
    # the key
    "train model.depht=3": "model.depht is not a setting; did you mean model.depth?",
    "train mdoel=plain": "mdoel is not a setting; did you mean model?",
    "train x=1": "x is not a setting; depthlab train --help lists them all",
    "train hydra.run.dir=x": "hydra.run.dir is not a setting",
    "train model/foo=x": "model/foo is not a setting",
    "train +model.foo=1": "settings can be changed, not added or removed; write model.foo=VALUE",
    "train ~model.depth": "settings can be changed, not added or removed; write model.depth=VALUE",
    "train model@foo=plain": "settings can be changed, not added or removed; write model=VALUE",
    "train model": "cannot read 'model'; settings are given as NAME=VALUE",
    "train =3": "cannot read '=3'; settings are given as NAME=VALUE",
    "train seed=range(3": "cannot read 'seed=range(3'",
    "train model.depth=5,,": "cannot read 'model.depth=5,,'",
    # the value
    "train model.depth=deep": "model.depth='deep' must be a whole number",
    "train model.depth=": "model.depth='' must be a whole number",
    "train model.depth=2.5": "model.depth=2.5 must be a whole number",
    "train model.depth={a:1}": "model.depth={'a': 1} must be a whole number",
    "train seed=null": "seed=null must be a whole number",
    "train model.bias=yes": "model.bias='yes' must be true or false",
    "train model.dropout=1.2": "model.dropout=1.2 must be at least 0 and less than 1",
    "train train.lr=nan": "train.lr=nan must be at least 0",
    "train model.activation=rleu": "must be one of sigmoid, tanh, relu",
    "train model=nope": "model=nope must be one of closed_highway,",
    "train model=plain,nope": "model=nope must be one of closed_highway,",
    "train train={lr:0.1}": "must be one of adam, adamw, he2015, sgd",
    "train model.depth=${nope}": "model.depth: Interpolation key 'nope' not found",
    "train device=tpu": "device=tpu is not a device; choose auto, cpu, cuda or cuda:N",
    "train device=cuda:99": "this machine has",
    "train device=meta": "device=meta is not supported; choose auto, cpu, cuda or cuda:N",
    "train sweep.workers=0": "sweep.workers=0 must be at least 1",
    # what goes together
    "train model.depth=3 model.skip=residual": "choose 2 or 4",
    "train model=resnet model.depth=21": "choose 20 or 26",
    "train data.validation_fraction=0.9999": "leaves 0 images of digits to train on",
    "train model.family=torchvision model.depth=8": "model.depth=8 has no effect with model.family=torchvision",
    "train model.architecture=vgg11": "leave it at resnet18, or choose model.family=torchvision",
    "train model.family=torchvision model.architecture=resnet81": "did you mean resnet18?",
    "train model.family=torchvision transfer.source=[torchvision:IMAGENET1K_V9]": "must be one of IMAGENET1K_V1, the",
    "train model.family=torchvision transfer.source=[torchvision:DEFAULT]": "name them, such as torchvision:IMAGENET1K",
    "train transfer.source=[torchvision:IMAGENET1K_V1]": "set model.family=torchvision and model.architecture",
    "train train.batch_size=5000": "choose a smaller train.batch_size or a larger data.train_size",
    "train -m model.depth=4,5 model.skip=residual": "model.depth=5 does not fit",
    # sweeps
    "train seed=1,2": "these settings stand for 2 runs; give -m to train them as a sweep",
    "train -m model.depth=range(2,2)": "model.depth=range(2,2) stands for no value",
    "train -m seed=range(0,3,0)": "range() arg 3 must not be zero",
    "train -m model=glob(*)": "values are listed, such as model=A,B",
    "train -m train.lr=interval(0,1)": "values are listed, such as train.lr=A,B",
    "train -m model.depth=10,sort(3,4)": "write model.depth=A,B",
    "train -m device=cpu,auto": "device and what is under sweep hold for all runs of a sweep",
    "train -m hydra/launcher=jolib": "sweep.engine=jolib must be one of local, joblib, submitit_local, submitit_slurm, "
    "ray; did you mean joblib?",
    "train -m hydra/launcher=local,ray": "device and what is under sweep hold for all runs of a sweep",
    "train -m hydra.launcher.n_jobs=2": "whose settings are under sweep, such as sweep.workers=4",
    "train hydra/launcher=joblib": "hydra/launcher=joblib trains sweeps; give -m, with one run too",
    "train -m sweep.slurm.timeout_min=0": "sweep.slurm.timeout_min=0 must be at least 1",
    "train -m sweep.slurm.parameters=qos": "sweep.slurm.parameters",
    "train -m sweep.slurm=1": "sweep.slurm is not a setting",
    # experiments
    "train experiment=quickstar": "; did you mean quickstart?",
    "train experiment=": "experiment= must be one of ",
    "train experiment=quickstart scale=smoek": "scale=smoek must be one of smoke, laptop, paper; did you mean smoke?",
    "train experiment=quickstart model.depht=3": "model.depht is not a setting; did you mean model.depth?",
    "train scale=smoke": "give experiment=NAME as well, or leave it out",
    "figure nope": "experiment=nope must be one of ",
    "figure quickstart scale=smoek": "scale=smoek must be one of",
    "figure quickstart x=1": "x is not a setting",
    "figure quickstart --redraw scale=smoke": "scale=smoke has no effect with --redraw",
    "runs x=1": "depthlab runs takes experiment=NAME",
    "runs experiment=nope": "experiment=nope must be one of",
    # what argparse refuses, after a line of usage
    "trian": "invalid choice: 'trian'",
    "train --fast": "unrecognized arguments: --fast; depthlab train --help lists them",
    "figure": "NAME",
}


@pytest.mark.parametrize("line", ERRORS)
def test_slips_are_told_in_plain_words(depthlab: Callable[..., Any], folder: Path, line: str) -> None:
    answer = depthlab(*line.split())
    assert answer.status == 2
    assert ERRORS[line] in answer.error
    assert len(answer.error.strip().splitlines()) <= 2
    assert "depthlab: " in answer.error or "depthlab figure: " in answer.error
    assert "Traceback" not in answer.error
    assert answer.out == ""
    assert list(folder.iterdir()) == []


def test_no_command_shows_what_there_is(depthlab: Callable[..., Any]) -> None:
    answer = depthlab()
    assert answer.status == 2
    assert "usage: depthlab" in answer.out
    assert "DEPTHLAB_RESULTS" in answer.out


def test_a_results_folder_that_cannot_be_is_one_line(
    depthlab: Callable[..., Any], folder: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "file").write_text("")
    monkeypatch.setenv("DEPTHLAB_RESULTS", str(folder / "file"))
    answer = depthlab("train", *tiny)
    assert answer.status == 1
    assert answer.error.startswith("depthlab: cannot write ")
    assert len(answer.error.splitlines()) == 1


def test_weights_that_do_not_fit_are_told(depthlab: Callable[..., Any], folder: Path, tiny: list[str]) -> None:
    kept = [setting for setting in tiny if not setting.startswith("model.width")]
    assert depthlab("train", *tiny, "sweep.keep_weights=true").status == 0
    (path,) = folder.glob("results/runs/*/weights.pt")
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    answer = depthlab("train", *kept, f"transfer.source=[file:{path},sha256:{checksum}]")
    assert answer.status == 1
    assert "in the source and [100, 192] here; give both the same model.width" in answer.error
    assert len(answer.error.splitlines()) == 1


def test_images_that_a_model_of_torchvision_does_not_take_are_told(depthlab: Callable[..., Any]) -> None:
    answer = depthlab("train", "model.family=torchvision", "model.architecture=alexnet")
    assert answer.status == 2
    assert answer.error.startswith("depthlab: model.architecture=alexnet does not take images of 8 pixels")
    assert answer.error.endswith("to 224, for which it was made, or to 63\n")
    assert len(answer.error.splitlines()) == 1


def test_data_that_is_damaged_is_told(depthlab: Callable[..., Any], folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "mnist.npz").write_bytes(b"nothing of the kind")
    answer = depthlab("train", "data=mnist")
    assert answer.status == 1
    assert answer.error.startswith(f"depthlab: {folder / 'data' / 'mnist.npz'} is damaged")
    assert "Traceback" not in answer.error
    assert len(answer.error.splitlines()) <= 2
    listed = depthlab("runs").out
    assert "failed" in listed
    assert "mnist.npz" in listed


def test_a_damaged_run_is_told(depthlab: Callable[..., Any], folder: Path, tiny: list[str]) -> None:
    assert depthlab("train", *tiny).status == 0
    (record,) = folder.glob("results/runs/*/run.json")
    record.write_text("{")
    answer = depthlab("train", *tiny)
    assert answer.status == 1
    assert answer.error == f"depthlab: {record} is damaged; delete {record.parent} and train the run again\n"
    assert "1 damaged" in depthlab("runs").out


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(("depthlab.data", "DataError"), id="data"),
        pytest.param(("depthlab.nets", "WeightsError"), id="weights"),
        pytest.param(("depthlab.runs", "StoreError"), id="store"),
        pytest.param(("depthlab.runs", "DiskFullError"), id="disk"),
        pytest.param(("depthlab.runs", "EngineError"), id="engine"),
        pytest.param(("builtins", "PermissionError"), id="permission"),
    ],
)
def test_faults_of_files_and_engines_are_one_line(
    depthlab: Callable[..., Any], tiny: list[str], monkeypatch: pytest.MonkeyPatch, error: tuple[str, str]
) -> None:
    from depthlab import runs

    def fail(*_: Any, **__: Any) -> None:
        module, name = error
        raise getattr(importlib.import_module(module), name)("there is none; make one")

    monkeypatch.setattr(runs, "execute", fail)
    answer = depthlab("train", *tiny)
    assert (answer.status, answer.out, answer.error) == (1, "", "depthlab: there is none; make one\n")


def test_what_nobody_expected_shows_its_traceback(
    depthlab: Callable[..., Any], tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from depthlab import runs

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(runs, "execute", fail)
    with pytest.raises(ZeroDivisionError):
        depthlab("train", *tiny)
