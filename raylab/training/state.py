"""Everything that changes while a run trains, and its form on disk.

A checkpoint is a folder:

| file | content |
|---|---|
| `experiment.json`, `labels.json` | what was trained: rebuilds the model, its transforms and its label maps |
| `model.safetensors` | the weights of the trained model |
| `auxiliary.safetensors` | weights that served its training alone, where there are any |
| `config.json`, `preprocessor_config.json` | of a model of transformers: makes the folder one that it opens |
| `training.json`, `training.safetensors` | optimiser, schedule, gradient scaler, running metrics, position, history |
| `checkpoint.json` | epoch, step and metrics; written last, so a folder that has it is complete |

Random numbers need no state: every draw is a function of the seed and the position (`seed_step`).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torchmetrics import Metric

from raylab.config import Experiment, Stage
from raylab.errors import RaylabError
from raylab.tasks import Task
from raylab.training.optim import Schedule, build_optimizer
from raylab.training.runfolder import CheckpointInfo
from raylab.training.tree import load_tree, save_tree


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        epoch: finished epochs.
        batch: batches done in the running epoch, on every worker.
        workers: how many they are.
        step: optimiser steps done.
        micro_batch: clips that go through the model at once, where memory did not suffice for a batch; else 0.
        best: best value of the monitored metric so far, with its epoch.
        seconds: time spent training and validating, over all restarts.
        history: one row of metrics for each finished epoch.
    """

    epoch: int = 0
    batch: int = 0
    workers: int = 0
    step: int = 0
    micro_batch: int = 0
    best: float | None = None
    best_epoch: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class TrainState:
    """The parts of a run that a checkpoint must hold for a resumed run to end with the same bits.

    Attributes:
        optimizer, schedule: of the running stage; there are none before `begin`.
    """

    experiment: Experiment
    labels: dict[str, list[str]]
    task: Task
    scaler: GradScaler
    metric: Metric
    loss: LossMean
    progress: Progress
    optimizer: Optimizer = field(init=False)
    schedule: Schedule = field(init=False)

    def begin(self, stage: Stage, steps_per_epoch: int) -> None:
        """A fresh optimiser, over what the task trains now, and a fresh schedule over the steps of a stage."""
        config = self.experiment.optim
        config = config.model_copy(update={"lr": stage.lr * config.lr_scale, "min_lr": config.min_lr * config.lr_scale})
        self.optimizer = build_optimizer(self.task.trained, config)
        self.schedule = Schedule(self.optimizer, config, stage.epochs, steps_per_epoch, self.experiment.train.mode)

    @property
    def _modules(self) -> dict[str, nn.Module]:
        """The name of a file → whose weights it has."""
        found = {"model": self.task.model, "auxiliary": self.task.auxiliary}
        return {name: module for name, module in found.items() if module is not None}

    def write(self, folder: Path) -> None:
        """Write all files but the seal. Called on rank 0, inside `collected`."""
        (folder / "experiment.json").write_text(json.dumps(self.experiment.to_dict(), indent=1))
        (folder / "labels.json").write_text(json.dumps(self.labels))
        for name, module in self._modules.items():
            weights = {key: tensor.contiguous() for key, tensor in module.state_dict().items()}
            save_file(weights, folder / f"{name}.safetensors", metadata={"format": "pt"})  # transformers asks for it
        self.task.export(folder)
        parts = {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "metric": self.metric.state_dict(),
            "loss": self.loss.state_dict(),
            "progress": asdict(self.progress),
        }
        save_tree(parts, folder / "training")

    def read_weights(self, folder: Path) -> None:
        """Take up the weights of a checkpoint: before `begin`, since what a stage keeps fixed is known by them."""
        for name, module in self._modules.items():
            module.load_state_dict(load_file(folder / f"{name}.safetensors"))

    def read(self, folder: Path, rank: int) -> None:
        """Take up all else of a checkpoint, which was written in the stage that has begun.

        Running metrics were summed over all workers when they were written, so rank 0 takes the sums
        and the others begin at zero: a run may go on with another number of workers.
        """
        parts = load_tree(folder / "training")
        self.optimizer.load_state_dict(parts["optimizer"])
        self.schedule.load_state_dict(parts["schedule"])
        self.scaler.load_state_dict(parts["scaler"])
        self.progress = Progress(**parts["progress"])
        if rank == 0:
            device = self.metric.device
            for metric, state in ((self.metric, parts["metric"]), (self.loss, parts["loss"])):
                metric.load_state_dict(state)
                metric.to(device)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Inside, the running metrics are the sums over all workers. Every rank must enter."""
        with self.metric.sync_context(), self.loss.sync_context():
            yield


@contextmanager
def mending(checkpoint: CheckpointInfo | None) -> Iterator[None]:
    """Errors of reading a checkpoint say what to do."""
    try:
        yield
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        if checkpoint is None:
            raise
        raise RaylabError(
            f"{checkpoint.folder}: the checkpoint is damaged ({error}): delete it to go on from an earlier one"
        ) from error


class LossMean(Metric):
    """Mean of each loss over clips, `update({"loss": value}, clips)`; kept on the device until read."""

    full_state_update = False
    sums: Tensor
    clips: Tensor

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names
        self.add_state("sums", torch.zeros(len(names), dtype=torch.double), dist_reduce_fx="sum", persistent=True)
        self.add_state("clips", torch.zeros((), dtype=torch.double), dist_reduce_fx="sum", persistent=True)

    def update(self, losses: dict[str, Tensor], clips: int) -> None:
        self.sums += torch.stack([losses[name] for name in self.names]).double() * clips
        self.clips += clips

    def compute(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.sums / self.clips.clamp(min=1), strict=True))


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed every generator a step may draw from (dropout, drop path) by its position in the run."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    value = int.from_bytes(digest, "little") >> 1
    torch.manual_seed(value)
    random.seed(value)


def sync_flag(flag: bool, device: torch.device) -> bool:
    """Rank 0's decision on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return flag
    tensor = torch.tensor(int(flag), device=device)
    dist.broadcast(tensor, src=0)
    return bool(tensor.item())


def numbers(metrics: dict[str, Tensor], prefix: str) -> dict[str, float]:
    """Tensors to floats, under `prefix/`."""
    return {f"{prefix}/{name}": float(value) for name, value in metrics.items()}
