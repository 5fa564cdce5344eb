"""How much faster an epoch is with a fixed encoder, once its features are kept on disk, and whether losses stay.

    python benchmarks/frozen_features.py
    python benchmarks/frozen_features.py --models efficientnet_b0_dual_attention --clips 14 --repeats 5

Each model trains its first stage twice, epoch by epoch in turn: with the features of its encoder kept, and without.
Full size, random weights, batches of 4 clips of 60 frames of 224², from video files, two threads. The first epoch with
the cache fills it; the later ones are compared.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from raylab.config import Experiment
from raylab.data.datasets import load_dataset
from raylab.errors import RaylabError
from raylab.models.registry import find_model
from raylab.storage import Folder
from raylab.training.loop import Trainer, Worker
from raylab.training.runfolder import RunFolder

RECIPE: dict[str, Any] = {
    "model.pretrained": False,
    "data.frames": 60,
    "data.batch_size": 4,
    "data.kitchen": "tiny",
    "data.augment": "none",
    "data.loader_workers": 0,
    "data.store": False,
    "train.precision": "fp32",
}
DATA: dict[str, dict[str, Any]] = {
    "action": {"data.dataset": "kitchen"},
    "keyframes": {"data.dataset": "kitchen_keyframes", "data.sampling": "rate"},
}
MODELS = ("efficientnet_b0_dual_attention", "resnet50_dual_attention", "resnet50_lstm")


def epoch(trainer: Trainer) -> dict[str, float]:
    """Wall and CPU seconds of one epoch of training without validation, and its mean loss."""
    wall, cpu = time.monotonic(), time.process_time()
    trainer.train_epoch()
    seconds = {"wall": time.monotonic() - wall, "cpu": time.process_time() - cpu}
    state = trainer.state
    loss = float(state.loss.compute()["loss"])
    state.progress.epoch, state.progress.batch = state.progress.epoch + 1, 0
    state.metric.reset()
    state.loss.reset()
    return {**seconds, "loss": loss}


def measure(name: str, options: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, float]]]:
    """Every epoch, with and without the cache, in turn."""
    task = find_model(name).task
    stage = {"epochs": 1 + options.repeats, "lr": 1e-4, "freeze": "encoder"}
    settings = {**RECIPE, **DATA[task], "task": task, "model.name": name, "data.max_clips": options.clips}
    experiment = Experiment().override({**settings, "train.stages": [stage], "data.size": options.size})
    trainers = {}
    for kind, cache in {"with": str(folder / "features"), "without": False}.items():
        run = RunFolder(Folder.open(folder / kind))
        run.create(experiment := experiment.override({"train.cache": cache}))
        trainers[kind] = Trainer(experiment, load_dataset(experiment.data), run, Worker(torch.device("cpu")))
    rounds = [{kind: epoch(trainer) for kind, trainer in trainers.items()} for _ in range(1 + options.repeats)]
    return {kind: [each[kind] for each in rounds] for kind in trainers}


def main() -> None:
    parser = argparse.ArgumentParser(description="What features kept on disk save of an epoch with a fixed encoder.")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(2)
    columns = ("model", "without, s", "first, s", "later, s", "ratio", "of CPU time", "largest difference of losses")
    shown = Table(*columns, box=box.MARKDOWN)
    for name in options.models:
        with TemporaryDirectory() as folder:
            try:
                found = measure(name, options, Path(folder))
            except RaylabError as error:
                parser.error(str(error))
        pairs = list(zip(found["without"], found["with"], strict=True))
        ratio = {of: median(one[of] / other[of] for one, other in pairs[1:]) for of in ("wall", "cpu")}
        shown.add_row(
            name,
            f"{median(each['wall'] for each in found['without'][1:]):.2f}",
            f"{found['with'][0]['wall']:.2f}",
            f"{median(each['wall'] for each in found['with'][1:]):.3f}",
            f"{ratio['wall']:.0f}",
            f"{ratio['cpu']:.0f}",
            f"{max(abs(one['loss'] - other['loss']) for one, other in pairs):.1e}",
        )
    console = Console(width=140)
    console.print(shown)
    console.print(
        f"Epochs of {options.clips} clips of 60 × {options.size}², batch 4, the encoder fixed, without validation.",
        highlight=False,
    )


if __name__ == "__main__":
    main()
