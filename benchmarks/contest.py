"""Loops that train the same model on the same batches: raylab's, one written by hand, `transformers.Trainer`."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torchvision.transforms.v2 import functional
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
)
from transformers import Trainer as HuggingFaceTrainer

from raylab.config import Experiment, ModelConfig
from raylab.data.augment import IMAGENET_MEAN, IMAGENET_STD
from raylab.data.dataset import Batch
from raylab.data.datasets import load_dataset
from raylab.models.registry import register
from raylab.storage import Folder
from raylab.training import loop
from raylab.training.runfolder import RunFolder

RECIPE: dict[str, Any] = {
    "model.pretrained": False,
    "data.dataset": "kitchen",
    "data.kitchen": "tiny",
    "data.augment": "none",
    "data.loader_workers": 0,
    "optim.schedule": "constant",
    "optim.weight_decay": 0.0,
    "train.precision": "fp32",
}


@register(task="action", settings=("pretrained",))
def small_videomae(config: ModelConfig, heads: Mapping[str, int]) -> nn.Module:
    """VideoMAE, 192 wide and 4 deep, over 16 frames of 96 pixels."""
    return SmallVideoMAE(heads)


class SmallVideoMAE(nn.Module):
    """transformers' classifier with the classes of all heads side by side: (B, 16, 3, 96, 96) → head → logits."""

    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self, heads: Mapping[str, int]) -> None:
        super().__init__()
        size = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 768}
        self.heads = dict(heads)
        self.network = VideoMAEForVideoClassification(
            VideoMAEConfig(image_size=96, num_frames=16, num_labels=sum(heads.values()), **size)
        )

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        return self.split(self.network(pixel_values=video).logits)

    def split(self, logits: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.heads, logits.split(list(self.heads.values()), dim=1), strict=True))


class Time(NamedTuple):
    """Seconds on the wall, and of all of this process's threads."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Time:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return cls(time.perf_counter(), time.process_time())

    def since(self, start: Time) -> Time:
        return Time(self.wall - start.wall, self.cpu - start.cpu)


Turn = Callable[[], Time]


def timed(epoch: Callable[[], None]) -> Turn:
    def turn() -> Time:
        start = Time.now()
        epoch()
        return Time.now().since(start)

    return turn


def take_turns(turns: Mapping[str, Turn], repeats: int) -> dict[str, list[Time]]:
    """The times of each contestant; every second round runs backwards."""
    times: dict[str, list[Time]] = {name: [] for name in turns}
    for repeat in range(repeats):
        for name in reversed(turns) if repeat % 2 else turns:
            times[name].append(turns[name]())
    return times


class Contest:
    """One experiment, its trainer, and the batches of an epoch in memory."""

    def __init__(self, experiment: Experiment, folder: Path, device: torch.device) -> None:
        run = RunFolder(Folder.open(folder))
        run.create(experiment)
        worker = loop.Worker.current(device)
        self.trainer = loop.Trainer(experiment, load_dataset(experiment.data), run, worker)
        self.experiment, self.device = experiment, device
        self.loader = self.trainer.train_loader
        self.batches: list[Batch] = list(self.loader)
        self.start = copy.deepcopy(self.trainer.state.task.model)

    @property
    def clips(self) -> int:
        """Of an epoch, on this worker."""
        return sum(len(batch["ids"]) for batch in self.batches)

    def raylab(self, source: Iterable[Batch] | None = None) -> Turn:
        """An epoch of training as raylab does it, with its metrics and records."""

        def epoch() -> None:
            self.trainer.train_loader = source or self.batches
            self.trainer.train_epoch()
            self.trainer.state.progress.batch = 0

        return timed(epoch)

    def bare(self) -> Turn:
        """An epoch of the least that trains the same model."""
        model, device, experiment = copy.deepcopy(self.start), self.device, self.experiment
        self.bare_model = model
        mean, std = (255 * torch.tensor(value, device=device).view(3, 1, 1) for value in (model.mean, model.std))
        scale, size = 1 / std, [experiment.data.size] * 2
        network = DistributedDataParallel(model, gradient_as_bucket_view=True) if dist.is_initialized() else model
        optimizer = torch.optim.AdamW(model.parameters(), lr=experiment.optim.lr, weight_decay=0.0, fused=True)
        precision = loop.DTYPES[experiment.train.precision]
        model.train()

        def epoch() -> None:
            for batch in self.batches:
                video = floats(functional.center_crop(batch["video"].to(device, non_blocking=True), size))
                with torch.autocast(device.type, precision, enabled=precision is not torch.float32):
                    logits = network(video.sub_(mean).mul_(scale))
                    labels = {head: value.to(device, non_blocking=True) for head, value in batch["labels"].items()}
                    loss = total_loss(logits, labels)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), experiment.train.clip_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        return timed(epoch)

    def hugging_face(self, folder: Path) -> Turn:
        """An epoch of `transformers.Trainer`; its setting up, before the first step, is not counted."""
        experiment, model = self.experiment, copy.deepcopy(self.start)
        self.hugging_face_model = model
        mean, std = (255 * torch.tensor(value).view(3, 1, 1) for value in (model.mean, model.std))
        scale, size = 1 / std, [experiment.data.size] * 2

        def collate(batches: list[Batch]) -> dict[str, Tensor]:
            (batch,) = batches
            video = floats(functional.center_crop(batch["video"], size)).sub_(mean).mul_(scale)
            return {"pixel_values": video, "labels": torch.stack([batch["labels"][head] for head in model.heads])}

        def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
            return total_loss(model.split(outputs.logits), dict(zip(model.heads, labels, strict=True)))

        trainer = HuggingFaceTrainer(
            model.network,
            TrainingArguments(
                str(folder),
                use_cpu=self.device.type == "cpu",
                num_train_epochs=1,
                per_device_train_batch_size=1,  # of whole batches
                train_sampling_strategy="sequential",
                learning_rate=experiment.optim.lr,
                lr_scheduler_type="constant",
                optim="adamw_torch_fused",
                max_grad_norm=experiment.train.clip_norm,
                bf16=experiment.train.precision == "bf16",
                logging_steps=experiment.train.log_steps,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                log_level="error",
                remove_unused_columns=False,
                dataloader_pin_memory=False,
            ),
            data_collator=collate,
            train_dataset=self.batches,
            compute_loss_func=loss,
        )
        marks = Marks()
        trainer.add_callback(marks)
        trainer.remove_callback(PrinterCallback)

        def turn() -> Time:
            trainer.train()
            return marks.time

        return turn

    def close(self) -> None:
        """End what raylab's trainer has running."""
        if self.trainer.recorder:
            self.trainer.recorder.close()

    def agree(self, other: nn.Module) -> bool:
        """Whether `other` has arrived at the weights of raylab's model, to the bit."""
        ours = self.trainer.state.task.model.state_dict()
        return all(torch.equal(ours[name], value) for name, value in other.state_dict().items())


class Marks(TrainerCallback):
    """The time from the first batch of `transformers.Trainer` to the last step."""

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.start = Time.now()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.time = Time.now().since(self.start)


def floats(video: Tensor) -> Tensor:
    """In the layout of convolutions' weights; the loader has it channels last."""
    return video.to(torch.float32, memory_format=torch.contiguous_format)


def total_loss(logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([F.cross_entropy(logits[head].float(), labels[head]) for head in labels]).sum()
