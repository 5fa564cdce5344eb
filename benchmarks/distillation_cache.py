"""What learning from two frozen networks adds to an epoch, once what they say is kept on disk.

    python benchmarks/distillation_cache.py
    python benchmarks/distillation_cache.py --model videomae_base --clips 4 --repeats 2

The student trains alone and distilled, epoch by epoch in turn, on the same clips, at full size, all networks with
random weights. All terms have their published weights: hidden states and attention maps of three layers, and the
asymmetric term. CPU time of one thread.
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
from raylab.storage import Folder
from raylab.training.loop import Trainer, Worker
from raylab.training.runfolder import RunFolder

RECIPE: dict[str, Any] = {
    "task": "distillation",
    "model.pretrained": False,
    "model.dropout": 0.0,
    "data.dataset": "kitchen_labelled",
    "data.kitchen": "tiny",
    "data.augment": "none",
    "data.hflip": 0.0,
    "data.loader_workers": 0,
    "distill.pretrained": False,
    "train.precision": "fp32",
}
ALONE: dict[str, Any] = {"distill.teacher": None, "distill.assistant": None}


def epoch(trainer: Trainer) -> float:
    """CPU seconds of one epoch of training, without validation."""
    started = time.process_time()
    trainer.train_epoch()
    seconds = time.process_time() - started
    progress = trainer.state.progress
    progress.epoch, progress.batch = progress.epoch + 1, 0
    trainer.state.metric.reset()
    trainer.state.loss.reset()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description="What distillation adds to an epoch, once its targets are on disk.")
    parser.add_argument("--model", default="videomae_small")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    clip = {
        "model.name": options.model,
        "data.max_clips": options.clips,
        "data.batch_size": options.batch,
        "data.frames": options.frames,
        "data.size": options.size,
    }
    worker = Worker(torch.device("cpu"))
    with TemporaryDirectory() as folder:
        trainers = {}
        try:
            for name, changes in {"alone": ALONE, "distilled": {"distill.cache": f"{folder}/outputs"}}.items():
                experiment = Experiment().override({**RECIPE, **clip, **changes})
                run = RunFolder(Folder.open(Path(folder) / name))
                run.create(experiment)
                trainers[name] = Trainer(experiment, load_dataset(experiment.data), run, worker)
        except RaylabError as error:
            parser.error(str(error))
        first = {name: epoch(trainer) for name, trainer in trainers.items()}
        rounds = [{name: epoch(trainer) for name, trainer in trainers.items()} for _ in range(options.repeats)]
        kept = sum(file.stat().st_size for file in Path(folder).glob("outputs/**/*.safetensors"))
    shown = Table("student", "first epoch, s a clip", "later, s a clip", "ratio", box=box.MARKDOWN)
    for name, seconds in first.items():
        later = median(each[name] for each in rounds) / options.clips
        ratio = median(each[name] / each["alone"] for each in rounds)
        shown.add_row(name, f"{seconds / options.clips:.2f}", f"{later:.2f}", f"{ratio:.3f}")
    console = Console(width=120)
    console.print(shown)
    console.print(
        f"{options.model}, {options.frames} × {options.size}², batch {options.batch}; "
        f"{kept / options.clips / 1e6:.1f} MB kept a clip.",
        highlight=False,
    )


if __name__ == "__main__":
    main()
