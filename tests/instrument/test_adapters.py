"""Each adapter in a real run of the trainer that it is for, where that is installed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import depthlab
from depthlab._torchvision import import_torchvision


def installed(*names: str) -> None:
    """Skips a test unless these can be imported; some import torchvision, which not every torch lets them."""
    import_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what others warn of is not ours
        for name in names:
            pytest.importorskip(name, reason=f"{name} is not installed (extra: adapters)")


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def examples(count: int = 48) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 5, generator=generator)
    return TensorDataset(inputs, (inputs.sum(dim=1) > 0).long())


def by_hand(batch: int) -> Any:
    """The same training in a plain loop, without anybody's trainer."""
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with depthlab.watch(model, optimizer, budget=None) as watcher:
        for inputs, labels in DataLoader(examples(), batch_size=batch):
            loss = F.cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            watcher.step(loss)
    return watcher.table()


def test_tensorboard_gets_every_reading_once(tmp_path: Path) -> None:
    installed("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from depthlab.instrument.adapters.tensorboard import SummaryWriter, TensorBoard

    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with depthlab.watch(model, optimizer, budget=None) as watcher:
        board = TensorBoard(watcher, SummaryWriter(str(tmp_path)))
        for _ in range(5):
            loss = model(torch.ones(3, 5)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            watcher.step(loss)
            board.write()
    board.write()
    board.writer.close()
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    events.Reload()
    written = {(tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}
    table = watcher.table()
    expected = {(f"{row.probe}/{row.layer}", row.step): np.float32(row.value) for row in table.itertuples()}
    assert sum(len(events.Scalars(tag)) for tag in events.Tags()["scalars"]) == len(table)
    assert written == pytest.approx(expected)


def test_lightning(tmp_path: Path) -> None:
    installed("lightning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning

        from depthlab.instrument.adapters.lightning import WatchCallback

        class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.net = small_net()

            def training_step(self, batch: Any, _index: int) -> torch.Tensor:
                return F.cross_entropy(self.net(batch[0]), batch[1])

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.parameters(), lr=0.1)

        callback = WatchCallback(budget=None)
        with pytest.raises(RuntimeError, match=r"nothing was watched yet.*and call fit"):
            _ = callback.watcher
        trainer = lightning.Trainer(
            accelerator="cpu", max_epochs=1, callbacks=[callback], logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(Module(), DataLoader(examples(), batch_size=8))
    found = callback.watcher.table()
    expected = by_hand(batch=8)
    assert callback.watcher.layers == ["net.0", "net.2", "net.4"]
    assert found["value"].tolist() == pytest.approx(expected["value"].tolist(), rel=1e-6)
    assert found["probe"].tolist() == expected["probe"].tolist()


def test_lightning_ends_the_watching_of_a_fit_that_fails(tmp_path: Path) -> None:
    installed("lightning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning

        from depthlab.instrument.adapters.lightning import WatchCallback

        class Failing(lightning.LightningModule):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.net = small_net()

            def training_step(self, batch: Any, index: int) -> torch.Tensor:
                if index == 2:
                    raise MemoryError
                return F.cross_entropy(self.net(batch[0]), batch[1])

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.parameters(), lr=0.1)

        callback = WatchCallback(budget=None, every=1)
        trainer = lightning.Trainer(
            accelerator="cpu", max_epochs=1, callbacks=[callback], logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        module = Failing()
        before = len(torch.nn.modules.module._global_forward_hooks)
        with pytest.raises(MemoryError):
            trainer.fit(module, DataLoader(examples(), batch_size=8))
    assert len(torch.nn.modules.module._global_forward_hooks) == before
    assert set(callback.watcher.table()["step"]) == {0, 1}


def test_hugging_face(tmp_path: Path) -> None:
    installed("transformers", "accelerate")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import Trainer, TrainingArguments

        from depthlab.instrument.adapters.huggingface import WatchCallback

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = small_net()

            def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
                logits = self.net(inputs)
                return {"loss": F.cross_entropy(logits, labels), "logits": logits}

        data = [{"inputs": inputs, "labels": label} for inputs, label in examples()]
        arguments = TrainingArguments(
            output_dir=str(tmp_path), max_steps=6, per_device_train_batch_size=8, learning_rate=0.1, use_cpu=True,
            report_to=[], save_strategy="no", logging_steps=2, disable_tqdm=True,
        )  # fmt: skip
        callback = WatchCallback(budget=None)
        with pytest.raises(RuntimeError, match=r"nothing was watched yet.*and call train"):
            _ = callback.watcher
        Trainer(model=Model(), args=arguments, train_dataset=data, callbacks=[callback]).train()
    table = callback.watcher.table()
    assert callback.watcher.layers == ["net.0", "net.2", "net.4"]
    assert table[table["probe"] == "grad_norm"].groupby("step").size().to_dict() == dict.fromkeys(range(6), 3)
    assert table[table["probe"] == "train_loss"]["step"].tolist() == [1, 3, 5]
    assert (table[table["probe"] == "update_ratio"]["value"] > 0).all()
