"""What a temporal model adds: the order of frames.

    python benchmarks/temporal_order.py
    python benchmarks/temporal_order.py --models resnet18_avg resnet50_lstm --epochs 4

Trains each model from random weights on the built-in data set, whose verbs are four pairs of opposite motions: each is
the other played backwards. All models get the same encoder, in place of their own, and the same data, recipe and seed,
so that only what they do with the sequence of frame features differs. *Direction* is the share of clips where the true
verb scores above its opposite: on clips it has not seen, a model blind to the order of frames is at chance there.
Accuracies are measured with the weights of the last epoch. Each model has a process and a thread of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from math import sqrt
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from raylab.config import Experiment
from raylab.data.clips import Dataset
from raylab.data.dataset import ClipDataset
from raylab.data.datasets import load_dataset
from raylab.data.loader import EvalBatches, make_loader
from raylab.errors import RaylabError
from raylab.models.registry import batches
from raylab.results import Checkpoint
from raylab.storage import Folder
from raylab.training.loop import Worker, train
from raylab.training.runfolder import RunFolder

# The encoder is a ResNet of 0.4 million parameters, learned from scratch within minutes on a CPU.
RECIPE: dict[str, Any] = {
    "model.encoder": "test_resnet",
    "model.pretrained": False,
    "model.dropout": 0.1,
    "data.dataset": "kitchen",
    "data.kitchen": "medium",
    "data.frames": 4,
    "data.batch_size": 16,
    "data.augment": "none",
    "data.hflip": 0.0,
    "data.loader_workers": 0,
    "optim.lr": 2e-3,
    "optim.weight_decay": 0.05,
    "optim.warmup": 0.05,
    "train.precision": "fp32",
}
# The temporal models, narrowed to suit such an encoder.
MODELS: dict[str, dict[str, Any]] = {
    "resnet18_avg": {},
    "resnet50_lstm": {"model.temporal_width": 256, "model.temporal_layers": 1},
    "resnet50_transformer": {
        "model.temporal_width": 128,
        "model.temporal_layers": 2,
        "model.dim_feedforward": 256,
    },
}


class Outcome(NamedTuple):
    """One trained model: its number of parameters, split → accuracies (see `scores`), CPU seconds of training."""

    parameters: int
    accuracy: dict[str, dict[str, float]]
    seconds: float


def measure(experiment: Experiment) -> Outcome:
    """Train on one thread, then evaluate both splits."""
    torch.set_num_threads(1)
    dataset = load_dataset(experiment.data)
    with TemporaryDirectory() as folder:
        run = RunFolder(Folder.open(folder) / experiment.model.name)
        run.create(experiment)
        started = time.process_time()
        train(experiment, dataset, run, Worker(torch.device("cpu")), report=partial(show_epoch, experiment.model.name))
        seconds = time.process_time() - started
        latest = run.latest()
        assert latest is not None  # noqa: S101 - every epoch ends with a checkpoint
        checkpoint = Checkpoint.open(latest.folder)
        model = checkpoint.load_model()
    accuracy = {split: scores(*predict(checkpoint, model, dataset, split)) for split in ("train", "val")}
    return Outcome(sum(p.numel() for p in model.parameters()), accuracy, seconds)


def show_epoch(model: str, row: dict[str, Any]) -> None:
    """One line on stderr for each finished epoch."""
    noun, verb = (f"{100 * row[f'val/{head}_top1']:.1f}" for head in ("noun", "verb"))
    print(f"{model}: epoch {row['epoch']}, validation noun {noun} %, verb {verb} %", file=sys.stderr, flush=True)


@torch.inference_mode()
def predict(
    checkpoint: Checkpoint, model: nn.Module, dataset: Dataset, split: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Head → logits (N, classes), and head → labels (N,), of every clip of a split."""
    data = checkpoint.experiment.data
    clips = ClipDataset.of(dataset, split, data)
    transform = checkpoint.transform(model)
    shares = EvalBatches(len(clips), batches(checkpoint.experiment).size, 0, 1)
    loader = make_loader(clips, shares, data, pin=False)
    parts = [(model(transform(batch["video"], batch["ids"], 0)), batch["labels"]) for batch in loader]
    logits, labels = ([part[i] for part in parts] for i in (0, 1))
    return _concatenate(logits), _concatenate(labels)


def _concatenate(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {head: torch.cat([part[head] for part in parts]) for head in parts[0]}


def scores(logits: dict[str, Tensor], labels: dict[str, Tensor]) -> dict[str, float]:
    """Top-1 accuracies in [0, 1]: `noun`, `verb`, `direction`, `action` (noun and verb).

    Verbs 2p and 2p + 1 of the data set are opposites, so `verb ^ 1` is the other of a pair.
    """
    verb = labels["verb"][:, None]
    right = {head: logits[head].argmax(1) == labels[head] for head in ("noun", "verb")}
    right["direction"] = (logits["verb"].gather(1, verb) > logits["verb"].gather(1, verb ^ 1))[:, 0]
    right["action"] = right["noun"] & right["verb"]
    return {name: hits.double().mean().item() for name, hits in right.items()}


def table(outcomes: Iterable[tuple[str, Outcome]], dataset: Dataset) -> Table:
    """Figures in per cent, as Markdown."""
    nouns, verbs = dataset.heads["noun"], dataset.heads["verb"]
    chance = {"noun": 1 / nouns, "verb": 1 / verbs, "direction": 1 / 2, "action": 1 / (nouns * verbs)}
    shown = Table("model", "parameters", "split", *chance, "CPU seconds", box=box.MARKDOWN)
    for name, (parameters, accuracy, seconds) in outcomes:
        training, validation = accuracy["train"], accuracy["val"]
        gap = {metric: value - validation[metric] for metric, value in training.items()}
        shown.add_row(name, f"{parameters:,}", "train", *_percent(training, chance), f"{seconds:.0f}")
        shown.add_row("", "", "val", *_percent(validation, chance))
        shown.add_row("", "", "gap", *_percent(gap, chance))
    shown.add_row("chance", "", "", *_percent(chance, chance))
    return shown


def _percent(values: dict[str, float], names: Iterable[str]) -> list[str]:
    return [f"{100 * values[name]:.1f}" for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description="What a temporal model adds: the order of frames.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--size", type=int, default=48, help="height and width that the models see, in pixels")
    options = parser.parse_args()
    try:
        base = Experiment().override({**RECIPE, "train.epochs": options.epochs, "data.size": options.size})
        dataset = load_dataset(base.data)  # rendered here once, before the models ask for it
    except RaylabError as error:
        parser.error(str(error))

    started = time.monotonic()
    experiments = [base.override({"model.name": name, **MODELS[name]}) for name in options.models]
    with ProcessPoolExecutor(len(experiments), multiprocessing.get_context("spawn")) as pool:
        outcomes = list(zip(options.models, pool.map(measure, experiments), strict=True))
    console = Console(width=120)
    console.print(table(outcomes, dataset))
    clips = {split: len(annotations.clips) for split, annotations in dataset.splits.items()}
    console.print(
        f"Per cent; {clips['train']:,} training and {clips['val']:,} validation clips, so a validation figure is known "
        f"to ±{100 * 1.96 * sqrt(0.25 / clips['val']):.1f} or better (95 %).\n"
        f"Encoder {base.model.encoder}, {base.data.frames} frames of {base.data.size} pixels, "
        f"{base.train.epochs} epochs; {time.monotonic() - started:.0f} s in all.",
        highlight=False,
    )


if __name__ == "__main__":
    main()
