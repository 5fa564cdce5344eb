"""The training loop. It knows no Ray: it runs in one process, under torchrun, or in a Ray Train worker."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor
from torch.amp import GradScaler
from torch.utils.data import DataLoader

from raylab.config import Experiment
from raylab.data.augment import ClipTransform
from raylab.data.clips import Dataset
from raylab.data.dataset import Batch, ClipDataset, EncodedBatch
from raylab.data.loader import EvalBatches, TrainBatches, make_loader
from raylab.data.store.reader import stage
from raylab.errors import RaylabError, unknown_name
from raylab.models.freezing import enter
from raylab.tasks import Task, build_task
from raylab.tasks.base import DTYPES
from raylab.training.interrupt import Requests, answer
from raylab.training.prefetch import Prefetch
from raylab.training.recorder import Recorder
from raylab.training.runfolder import CheckpointInfo, RunFolder
from raylab.training.stages import check_stages, stage_at
from raylab.training.state import LossMean, Progress, TrainState, seed_step, sync_flag

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Worker:
    """Where this process stands in the group that trains one model."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @classmethod
    def current(cls, device: torch.device | None = None) -> Worker:
        if device is None:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if dist.is_initialized():
            return cls(device, dist.get_rank(), dist.get_world_size())
        return cls(device)


def train(experiment: Experiment, dataset: Dataset, run: RunFolder, worker: Worker, report: Report) -> Progress:
    """Train `experiment`, from the run's newest checkpoint if it has one, to its last epoch.

    Args:
        experiment: what to train.
        dataset: its clips.
        run: where checkpoints and metrics go; only rank 0 writes.
        worker: this process's device and rank.
        report: called on every rank after each epoch with that epoch's row of metrics.

    Raises:
        RaylabError: the loss is no longer finite.
    """
    trainer = Trainer(experiment, dataset, run, worker)
    progress = trainer.state.progress
    if progress.history:  # a resumed run first says where it stands
        if worker.rank == 0:
            run.write_history(progress.history)
        report(progress.history[-1])
    while not trainer.done:
        trainer.train_epoch()
        report(trainer.finish_epoch())
    return progress


class Trainer:
    """One worker's part of one run."""

    def __init__(self, experiment: Experiment, dataset: Dataset, run: RunFolder, worker: Worker) -> None:
        if worker.rank == 0:
            run.clean()
        torch.manual_seed(experiment.seed)  # the same initial weights on every rank
        self.experiment, self.dataset, self.run, self.worker = experiment, dataset, run, worker
        latest = run.latest()
        with latest.folder.as_local() if latest else nullcontext() as saved:
            task = build_task(experiment, dataset.labels, saved).to(worker.device)
            task.watch(dataset)
            check_stages(task.model, experiment.stages)
            self.state = self._fresh_state(task)
            with mending(latest):
                if saved:
                    self.state.read_weights(saved)
            self.begin_stage(latest.epoch if latest else 0)
            with mending(latest):
                if saved:
                    self.state.read(saved, worker.rank)
            self.take_position()
        self.recorder = Recorder(run, experiment, self.state.progress.step) if worker.rank == 0 else None
        self.saved_at = time.monotonic()

    def begin_stage(self, epoch: int) -> None:
        """Make ready for the stage that an epoch is in: what it keeps fixed, loaders, optimiser and schedule."""
        self.stage = stage_at(self.experiment.stages, epoch)
        enter(self.state.task.model, self.stage.settings, self.stage.path)
        self._load_data()
        self.state.begin(self.stage.settings, self.steps_per_epoch)
        if self.worker.world_size > 1:
            self.state.task.distribute()

    def _load_data(self) -> None:
        """Loaders of both splits, and what happens to their batches on the way to the model."""
        data, seed, worker = self.experiment.data, self.experiment.seed, self.worker
        task, dataset = self.state.task, self.dataset
        self.train_transform = ClipTransform.for_model(task.model, data, train=True, seed=seed)
        self.val_transform = ClipTransform.for_model(task.model, data, train=False, seed=seed)
        remembered = task.remember(self.train_transform) if data.repeats else None
        train = ClipDataset.of(dataset, "train", data, train=True, seed=seed, cache=remembered)
        val = ClipDataset.of(dataset, "val", data, seed=seed, cache=task.remember(self.val_transform))
        stage(dataset.stored)
        self.batches = TrainBatches(len(train), data.batch_size, worker.rank, worker.world_size, seed, data.draw)
        config, asked = self.experiment.train, self.experiment.resources.workers
        # Fewer workers than asked for take more batches to a step, so that it sees as many clips.
        self.accumulate = max(config.accumulate, round(config.accumulate * asked / worker.world_size))
        self.steps_per_epoch = -(-len(self.batches) // self.accumulate)
        val_batches = EvalBatches(len(val), data.batch_size, worker.rank, worker.world_size)
        self.val_common = -(-len(val) // data.batch_size) // worker.world_size  # batches that every rank has
        pin = worker.device.type == "cuda"
        self.train_loader = make_loader(train, self.batches, data, pin)
        self.val_loader = make_loader(val, val_batches, data, pin)
        self.prefetch = Prefetch(worker.device)

    def _fresh_state(self, task: Task) -> TrainState:
        """The state before the first stage.

        Raises:
            RaylabError: the task has no metric of the name that decides.
        """
        experiment, device = self.experiment, self.worker.device
        valid = [f"val/{name}" for name in ("loss", *task.loss_names, *task.metric_names)]
        if experiment.monitor not in valid:
            raise unknown_name("metric (train.monitor or search.metric)", experiment.monitor, valid)
        return TrainState(
            experiment=experiment,
            labels=self.dataset.labels,
            task=task,
            scaler=GradScaler(device.type, enabled=experiment.train.precision == "fp16"),
            metric=task.metrics("train").to(device),
            loss=LossMean(["loss", *task.loss_names]).to(device),
            progress=Progress(workers=self.worker.world_size),
        )

    def take_position(self) -> None:
        """Stand where a checkpoint of more or fewer workers stood, or up to one step before."""
        progress, world_size = self.state.progress, self.worker.world_size
        if progress.workers and progress.workers != world_size:
            batch = min(progress.batch * progress.workers // world_size, len(self.batches))
            progress.batch = batch - batch % self.accumulate
        progress.workers = world_size

    @property
    def done(self) -> bool:
        """Whether the last epoch is reached, or in the last stage patience has run out."""
        progress, config = self.state.progress, self.experiment.train
        waited = progress.epoch - max(progress.best_epoch, self.stage.start)
        impatient = config.patience is not None and waited >= config.patience and self.stage.stop == config.length
        return progress.epoch >= config.length or impatient

    def train_epoch(self) -> None:
        """The rest of the running epoch, from wherever the state stands."""
        state, config = self.state, self.experiment.train
        progress = state.progress
        state.task.train()
        self.clock = StepClock()
        asked = Requests(self.run, self.worker.device, self.worker.rank)
        self.batches.set_position(progress.epoch, progress.batch)
        draw = self.experiment.data.draw(progress.epoch)
        for batch in self.prefetch(self.clock.watch(self.train_loader), self.train_transform, draw):
            last = progress.batch + 1 == len(self.batches)
            steps = (progress.batch + 1) % self.accumulate == 0 or last
            self.backward(batch, sync=steps)
            progress.batch += 1
            if not steps:
                continue
            self.step()
            if last:
                continue
            due = asked()
            if progress.step % config.log_steps == 0:
                self.read_loss()
                late = time.monotonic() - self.saved_at > config.checkpoint_minutes * 60
                due = sync_flag(late, self.worker.device) or due
            if due:
                self.save({})
        self.read_loss()
        self.clock.stop()

    def backward(self, batch: Batch, sync: bool) -> None:
        """Add one batch's gradients; workers exchange them only where `sync` says so."""
        state, progress = self.state, self.state.progress
        seed_step(self.experiment.seed, progress.epoch * len(self.batches) + progress.batch, self.worker.rank)
        with self.no_sync() if not sync else nullcontext():
            with self.autocast():
                output = state.task(batch)
            state.scaler.scale(output.loss / self.group_size()).backward()
        clips = len(batch["ids"])
        state.metric.update(output.predictions, batch["labels"])
        state.loss.update({"loss": output.loss.detach(), **output.losses}, clips)
        self.clock.clips += clips * self.worker.world_size

    def group_size(self) -> int:
        """Batches whose gradients make the running step: the last group of an epoch may be smaller."""
        accumulate, start = self.accumulate, self.state.progress.batch
        first = start - start % accumulate
        return min(accumulate, len(self.batches) - first)

    def step(self) -> None:
        """One optimiser step."""
        state, clip_norm = self.state, self.stage.settings.clip
        state.scaler.unscale_(state.optimizer)
        parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
        self.clock.grad_norm = torch.nn.utils.clip_grad_norm_(parameters, clip_norm or float("inf"))
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        state.schedule.step()
        state.progress.step += 1

    def read_loss(self) -> None:
        """Wait for the device, record the epoch's loss so far, and end a run that has diverged."""
        state = self.state
        with state.loss.sync_context():  # every rank sees the same loss, so all end together
            loss = (state.loss.sums[0] / state.loss.clips).item()
        if not math.isfinite(loss):
            raise self.diverged(f"the training loss is {loss}")
        if self.recorder:
            self.recorder.step(state.progress.step, {"train/running_loss": loss, "lr": self.learning_rate()})

    def diverged(self, what: str) -> RaylabError:
        progress = self.state.progress
        setting = f"{self.stage.path}.lr" if self.experiment.train.stages else "optim.lr"
        return RaylabError(
            f"{what} at step {progress.step}, epoch {progress.epoch + 1}: "
            f"lower {setting} (now {self.stage.settings.lr:g}), or use train.precision=bf16 or fp32"
        )

    def finish_epoch(self) -> dict[str, Any]:
        """Validate, record, save; the epoch's row of metrics."""
        state = self.state
        progress = state.progress
        started = time.monotonic()
        val = self.validate()
        training = numbers({**state.loss.compute(), **state.metric.compute()}, "train")
        state.metric.reset()
        state.loss.reset()
        progress.epoch, progress.batch = progress.epoch + 1, 0

        monitored = val[self.experiment.monitor]
        if not math.isfinite(monitored):
            raise self.diverged(f"{self.experiment.monitor} is {monitored}")
        sign = 1 if self.experiment.train.mode == "max" else -1
        if progress.best is None or sign * monitored > sign * progress.best:
            progress.best, progress.best_epoch = monitored, progress.epoch
        gap = {f"gap/{name[4:]}": training[f"train/{name[4:]}"] - value for name, value in val.items()}
        clock = self.clock.summary()
        progress.seconds += clock["seconds"] + time.monotonic() - started
        row = {
            "epoch": progress.epoch,
            "step": progress.step,
            "best": progress.best,
            "best_epoch": progress.best_epoch,
            **training,
            **val,
            **gap,
            **clock,
            "lr": self.learning_rate(),  # the epoch's last
            "seconds": progress.seconds,
        }
        progress.history.append(row)
        state.schedule.epoch(monitored)
        if progress.epoch == self.stage.stop and not self.done:
            self.begin_stage(progress.epoch)
        self.save(val)
        if self.recorder:
            self.recorder.epoch(progress.history, done=self.done)
        return row

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """`val/…` metrics over every validation clip, each counted once."""
        task = self.state.task
        task.eval()
        metric = task.metrics("val").to(self.worker.device)
        loss = LossMean(self.state.loss.names).to(self.worker.device)
        asked = Requests(self.run, self.worker.device, self.worker.rank)
        for number, batch in enumerate(self.prefetch(self.val_loader, self.val_transform, epoch=0)):
            with self.autocast():
                output = task(batch)
            metric.update(output.predictions, batch["labels"])
            loss.update({"loss": output.loss, **output.losses}, len(batch["ids"]))
            if number < self.val_common and asked():
                self.save({})  # of the end of the epoch's training
        return numbers({**loss.compute(), **metric.compute()}, "val")

    def save(self, metrics: dict[str, float]) -> None:
        """Write a checkpoint and keep, of all, the newest, the best, and those of every `train.keep_every` epochs."""
        progress, experiment = self.state.progress, self.experiment
        with self.state.collected():
            if self.worker.rank == 0:
                self.run.write_checkpoint(self.state.write, progress.epoch, progress.step, metrics)
                best = self.run.best(experiment.monitor, experiment.train.mode)
                self.run.prune([self.run.latest(), best, *self.run.every(experiment.train.keep_every)])
                answer(self.run)
        self.saved_at = time.monotonic()

    def autocast(self) -> torch.autocast:
        precision = self.experiment.train.precision
        return torch.autocast(self.worker.device.type, DTYPES[precision], enabled=precision != "fp32")

    def no_sync(self) -> AbstractContextManager[None]:
        parallel = self.state.task.parallel
        context: AbstractContextManager[None] = getattr(parallel, "no_sync", nullcontext)()
        return context

    def learning_rate(self) -> float:
        return float(self.state.optimizer.param_groups[0]["lr"])


class StepClock:
    """Where an epoch's time goes: clips a second, and the share spent waiting for data."""

    def __init__(self) -> None:
        self.clips = 0
        self.waited = 0.0
        self.elapsed = 0.0
        self.grad_norm: Tensor | None = None
        self.started = time.monotonic()

    def watch(self, loader: DataLoader[Any]) -> Iterator[Batch | EncodedBatch]:
        batches = iter(loader)
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            self.waited += time.monotonic() - asked
            if batch is None:
                return
            yield batch

    def stop(self) -> None:
        self.elapsed = time.monotonic() - self.started

    def summary(self) -> dict[str, float]:
        return {
            "clips_per_second": self.clips / self.elapsed,
            "data_wait": self.waited / self.elapsed,
            "grad_norm": float(self.grad_norm) if self.grad_norm is not None else 0.0,
            "seconds": self.elapsed,
        }


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


def numbers(metrics: dict[str, Tensor], prefix: str) -> dict[str, float]:
    """Tensors to floats, under `prefix/`."""
    return {f"{prefix}/{name}": float(value) for name, value in metrics.items()}
