"""The training loop. It knows no Ray: it runs in one process, under torchrun, or in a Ray Train worker."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.amp import GradScaler

from raylab.config import Experiment
from raylab.data.augment import ClipTransform
from raylab.data.clips import Dataset
from raylab.data.dataset import Batch, ClipDataset
from raylab.data.loader import EvalBatches, TrainBatches, make_loader
from raylab.data.store.reader import stage
from raylab.errors import RaylabError, unknown_name
from raylab.models.freezing import enter
from raylab.models.registry import batches
from raylab.tasks import Task, build_task
from raylab.tasks.base import DTYPES, TaskOutput
from raylab.training.exchange import Exchange
from raylab.training.interrupt import Requests, answer
from raylab.training.memory import Attempt, halved, is_out_of_memory, pieces, recall, release, remember
from raylab.training.optim import learning_rates
from raylab.training.prefetch import Prefetch
from raylab.training.recorder import Recorder
from raylab.training.runfolder import RunFolder
from raylab.training.samples import SampleClips
from raylab.training.stages import check_stages, stage_at
from raylab.training.state import LossMean, Progress, TrainState, mending, numbers, seed_step, sync_flag
from raylab.training.usage import StepClock, peak_memory

Report = Callable[[dict[str, Any]], None]

log = logging.getLogger(__name__)


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
        RaylabError: the loss is no longer finite, or memory does not suffice for one clip.
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
    del trainer
    release(worker.device)
    return progress


class Trainer:
    """One worker's part of one run."""

    def __init__(self, experiment: Experiment, dataset: Dataset, run: RunFolder, worker: Worker) -> None:
        if worker.rank == 0:
            run.clean()
            run.note_frames(dataset.origin)
        torch.manual_seed(experiment.seed)  # the same initial weights on every rank
        self.experiment, self.dataset, self.run, self.worker = experiment, dataset, run, worker
        latest = run.latest()
        with latest.folder.as_local() if latest else nullcontext() as saved:
            task = build_task(experiment, dataset.labels, saved).to(worker.device)
            task.watch(dataset)
            check_stages(task.model, experiment.stages)
            self.state = self._fresh_state(task)
            self.exchange = Exchange(worker.world_size)
            with mending(latest):
                if saved:
                    self.state.read_weights(saved)
            self.begin_stage(latest.epoch if latest else 0)
            with mending(latest):
                if saved:
                    self.state.read(saved, worker.rank)
            self.take_position()
        if latest is None:
            self.state.progress.micro_batch = self.recalled()
        self.val_micro_batch = 0
        self.samples = SampleClips(experiment, dataset, self.val_batches)
        self.recorder = Recorder(run, experiment, self.state.progress.step) if worker.rank == 0 else None
        self.saved_at = time.monotonic()

    def begin_stage(self, epoch: int) -> None:
        """Make ready for the stage that an epoch is in: what it keeps fixed, loaders, optimiser and schedule."""
        self.stage = stage_at(self.experiment.stages, epoch)
        task = self.state.task
        enter(task.model, self.stage.settings, self.stage.path)
        self.gradients = self.exchange.gradients(task.trained)
        self.exchange.copy_first([*task.trained.parameters(), *task.trained.buffers()])
        self._load_data()
        self.state.begin(self.stage.settings, self.steps_per_epoch)

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
        size, accumulate = batches(self.experiment)
        self.batches = TrainBatches(len(train), size, worker.rank, worker.world_size, seed, data.draw)
        # Fewer workers than asked for take more batches to a step, so that it sees as many clips.
        asked = self.experiment.resources.workers
        self.accumulate = max(accumulate, round(accumulate * asked / worker.world_size))
        self.steps_per_epoch = -(-len(self.batches) // self.accumulate)
        self.val_batches = EvalBatches(len(val), size, worker.rank, worker.world_size)
        self.val_common = -(-len(val) // size) // worker.world_size  # batches that every rank has
        pin = worker.device.type == "cuda"
        self.train_loader = make_loader(train, self.batches, data, pin)
        self.val_loader = make_loader(val, self.val_batches, data, pin)
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
        self.state.task.train()
        self.clock = StepClock()
        while not self.train_steps():
            pass
        self.read_loss()
        self.clock.stop()

    def train_steps(self) -> bool:
        """Steps to the end of the epoch; False where memory has not sufficed for one, which is to begin again."""
        state, config = self.state, self.experiment.train
        progress = state.progress
        asked = Requests(self.run, self.worker.device, self.worker.rank)
        self.batches.set_position(progress.epoch, progress.batch)
        draw = self.experiment.data.draw(progress.epoch)
        for batch in self.prefetch(self.clock.watch(self.train_loader), self.train_transform, draw):
            last = progress.batch + 1 == len(self.batches)
            steps = (progress.batch + 1) % self.accumulate == 0 or last
            self.backward(batch, steps)
            progress.batch += 1
            if not steps:
                continue
            if not self.fits():
                return False
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
        return True

    def backward(self, batch: Batch, steps: bool) -> None:
        """Add one batch's gradients to those of the running step, unless it has failed; `steps`: it is the last."""
        state, progress = self.state, self.state.progress
        if progress.batch % self.accumulate == 0:
            self.attempt = Attempt(state.task.trained, progress.batch)
        if self.attempt.failed:
            return
        seed_step(self.experiment.seed, progress.epoch * len(self.batches) + progress.batch, self.worker.rank)
        left = len(batch["ids"])
        with self.attempt.trying():
            for piece in pieces(batch, progress.micro_batch):
                with self.autocast():
                    output = state.task(piece)
                clips = len(piece["ids"])
                share = clips / len(batch["ids"]) / self.group_size()
                left -= clips
                with self.gradients.sending(steps and not left):
                    state.scaler.scale(output.loss * share).backward()
                self.attempt.add(output, piece["labels"], clips)

    def fits(self) -> bool:
        """Whether memory has sufficed for the step on all workers: they take the mean gradients, or begin it again."""
        state, progress, worker = self.state, self.state.progress, self.worker
        self.gradients.finish(sound=not self.attempt.failed)
        if not self.exchange.most(self.attempt.failed):
            self.gradients.write()
            for output, labels, clips in self.attempt.outputs:
                state.metric.update(output.predictions, labels)
                state.loss.update({"loss": output.loss, **output.losses}, clips)
                self.clock.clips += clips * worker.world_size
            return True
        state.optimizer.zero_grad(set_to_none=True)
        self.attempt.undo()
        release(worker.device)
        progress.batch = self.attempt.first
        before = progress.micro_batch or self.batches.batch_size
        progress.micro_batch = halved(before, self.experiment, worker.device)
        if worker.rank == 0:
            kept = remember(self.experiment, worker.device, progress.micro_batch)
            log.warning(
                "out of memory with %d clips at once, at step %d: going on with %d, the effective batch as before%s",
                *(before, progress.step, progress.micro_batch, f"; kept in {kept}" if kept else ""),
            )
        return False

    def recalled(self) -> int:
        """Clips to begin with at once, where a whole batch did not fit before; 0 where it did, or nothing is known."""
        whole = self.batches.batch_size
        clips = -self.exchange.most(-min(recall(self.experiment, self.worker.device) or whole, whole))
        return clips if clips < whole else 0

    def group_size(self) -> int:
        """Batches whose gradients make the running step: the last group of an epoch may be smaller."""
        start = self.state.progress.batch
        first = start - start % self.accumulate
        return min(self.accumulate, len(self.batches) - first)

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
            self.recorder.step(state.progress.step, {"train/running_loss": loss, **learning_rates(state.optimizer)})

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
            "lr": float(state.optimizer.param_groups[0]["lr"]),  # the epoch's last
            "memory": max(peak_memory(self.worker.device), *(past.get("memory", 0) for past in progress.history), 0),
            "seconds": progress.seconds,
        }
        progress.history.append(row)
        state.schedule.epoch(monitored)
        if progress.epoch == self.stage.stop and not self.done:
            self.begin_stage(progress.epoch)
        self.save(val)
        if self.recorder:
            self.recorder.epoch(progress.history, self.samples.pictures(), done=self.done)
        return row

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """`val/…` metrics over every validation clip, each counted once."""
        task = self.state.task
        task.eval()
        metric = task.metrics("val").to(self.worker.device)
        loss = LossMean(self.state.loss.names).to(self.worker.device)
        self.exchange.copy_first(task.trained.buffers())  # running statistics, of batch norm
        asked = Requests(self.run, self.worker.device, self.worker.rank)
        for number, batch in enumerate(self.prefetch(self.val_loader, self.val_transform, epoch=0)):
            for output, part in self.judge(batch):
                metric.update(output.predictions, part["labels"])
                loss.update({"loss": output.loss, **output.losses}, len(part["ids"]))
                self.samples.note(part, output.predictions)
            if number < self.val_common and asked():
                self.save({})  # of the end of the epoch's training
        return numbers({**loss.compute(), **metric.compute()}, "val")

    def judge(self, batch: Batch) -> list[tuple[TaskOutput, Batch]]:
        """What the model says of a batch, whole or in as large pieces as fit: of each its output, and the piece."""
        while True:
            try:
                with self.autocast():
                    return [(self.state.task(part), part) for part in pieces(batch, self.val_micro_batch)]
            except RuntimeError as error:
                whole = self.val_micro_batch or len(batch["ids"])
                if whole == 1 or not is_out_of_memory(error):
                    raise
            release(self.worker.device)
            self.val_micro_batch = whole // 2  # ranks need not agree: they exchange nothing while they judge a batch

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
