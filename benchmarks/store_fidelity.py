"""What a clip store's JPEG costs: pixels and validation metrics beside those of direct decoding.

    python benchmarks/store_fidelity.py
    python benchmarks/store_fidelity.py --qualities 95 90 --epochs 8

Trains one model on frames decoded from video, then measures the validation split on such frames, and on those of
stores of several qualities: the same weights, the same clips. *Difference* is the mean over all pixels that the
loader delivers, of 0–255; *changed* the share of clips whose verb or noun is now another. The videos are encoded
without loss and but 72 pixels high, so that nothing hides what JPEG does: pixels of a larger source are averaged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from raylab.config import DataConfig, Experiment
from raylab.data.dataset import ClipDataset
from raylab.data.datasets import load_dataset
from raylab.data.store.manifest import StoreSettings
from raylab.errors import RaylabError
from raylab.prepare import make_store
from raylab.storage import Folder
from raylab.training.loop import Trainer, Worker, train
from raylab.training.runfolder import RunFolder

# Learned from scratch within minutes on a CPU, and not to the end: many clips lie near a decision.
RECIPE: dict[str, Any] = {
    "model.name": "resnet50_lstm",
    "model.encoder": "test_resnet",
    "model.pretrained": False,
    "model.dropout": 0.1,
    "model.temporal_width": 256,
    "model.temporal_layers": 1,
    "data.dataset": "kitchen",
    "data.kitchen": "medium",
    "data.frames": 4,
    "data.size": 48,
    "data.batch_size": 16,
    "data.augment": "none",
    "data.hflip": 0.0,
    "data.loader_workers": 0,
    "data.store": False,
    "optim.lr": 2e-3,
    "optim.weight_decay": 0.05,
    "optim.warmup": 0.05,
    "train.precision": "fp32",
}
METRICS = ("loss", "action_top1", "verb_top1", "noun_top1")


class Outcome(NamedTuple):
    """The validation split by one source of frames: its clips' classes (N, heads), and its metrics."""

    classes: Tensor
    metrics: dict[str, float]


def validate(experiment: Experiment, run: RunFolder) -> Outcome:
    """The newest checkpoint of a run, on validation frames from where `experiment.data` says."""
    dataset = load_dataset(experiment.data)
    trainer = Trainer(experiment, dataset, run, Worker(torch.device("cpu")))
    metrics = trainer.validate()
    classes = []
    with torch.inference_mode():
        for batch in trainer.prefetch(trainer.val_loader, trainer.val_transform, epoch=0):
            predictions = trainer.state.task(batch).predictions
            classes.append(torch.stack([predictions[head].argmax(1) for head in dataset.heads], dim=1))
    return Outcome(torch.cat(classes), metrics)


def difference(one: DataConfig, other: DataConfig) -> float:
    """Mean absolute difference of the frames of all validation clips, of 0–255."""
    first, second = (ClipDataset.of(load_dataset(data), "val", data) for data in (one, other))
    total = 0.0
    for index in range(len(first)):
        ours, theirs = first[index], second[index]
        if ours["id"] != theirs["id"]:
            raise RaylabError(f"clip {ours['id']} stands where the other has {theirs['id']}")
        total += (ours["video"].int() - theirs["video"].int()).abs().double().mean().item()
    return total / len(first)


def sources(data: DataConfig, qualities: list[int], folder: Path) -> Iterator[tuple[str, DataConfig, int]]:
    """Name, settings and bytes of each place to take frames from; the first is that of training."""
    yield "video", data, sum(path.stat().st_size for path in load_dataset(data).sources.values())
    for quality in qualities:
        stored = data.model_copy(update={"store": str(folder / str(quality))})
        manifest = make_store(stored, StoreSettings(frames=(data.frames,), quality=quality))
        yield f"store, quality {quality}", stored, sum(shard.bytes for shard in manifest.shards.values())


@contextmanager
def trained(experiment: Experiment) -> Iterator[RunFolder]:
    """A run of the experiment, on one thread, in a folder of its own."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        run = RunFolder(Folder.open(folder) / experiment.model.name)
        run.create(experiment)
        train(experiment, load_dataset(experiment.data), run, Worker(torch.device("cpu")), report=show_epoch)
        yield run


def show_epoch(row: dict[str, Any]) -> None:
    """One line on stderr for each finished epoch."""
    print(f"epoch {row['epoch']}, validation action {100 * row['val/action_top1']:.1f} %", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="What a clip store's JPEG costs.")
    parser.add_argument("--qualities", nargs="+", type=int, default=[95, 90, 75, 50], metavar="QUALITY")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--kitchen", default="medium", help="size of the built-in data set")
    options = parser.parse_args()
    try:
        experiment = Experiment().override({**RECIPE, "train.epochs": options.epochs, "data.kitchen": options.kitchen})
    except RaylabError as error:
        parser.error(str(error))

    table = Table("frames from", "MB", "clips", "difference", *METRICS, "changed", box=box.MARKDOWN)
    reference: Outcome | None = None
    with trained(experiment) as run, TemporaryDirectory() as folder:
        for name, data, size in sources(experiment.data, options.qualities, Path(folder)):
            outcome = validate(experiment.model_copy(update={"data": data}), run)
            reference = reference or outcome
            changed = (outcome.classes != reference.classes).any(1).double().mean().item()
            loss, *accuracies = (outcome.metrics[f"val/{metric}"] for metric in METRICS)
            table.add_row(
                *(name, f"{size / 1e6:.1f}", f"{len(outcome.classes):,}", f"{difference(experiment.data, data):.2f}"),
                *(f"{loss:.4f}", *(f"{100 * accuracy:.1f}" for accuracy in accuracies), f"{100 * changed:.1f}"),
            )
    console = Console(width=140)
    console.print(table)
    console.print(
        f"Accuracies in per cent. {experiment.model.name} with {experiment.model.encoder}, {experiment.data.frames} "
        f"frames of {experiment.data.size} pixels, {experiment.train.epochs} epochs on video frames.",
        highlight=False,
    )


if __name__ == "__main__":
    main()
