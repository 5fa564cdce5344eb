"""What distillation adds: one student, trained with and without teacher and assistant.

    python benchmarks/distillation_gain.py
    python benchmarks/distillation_gain.py --seeds 3 --epochs 4

On the built-in data in the labelled folder. A teacher and an assistant are trained first, on the labels; then students
of the same structure and with the same steps, for every seed alone and distilled in several ways. All weights begin at
random. What is compared is the validation accuracy after the last epoch.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
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
from raylab.training.loop import Worker, train
from raylab.training.runfolder import RunFolder

RECIPE: dict[str, Any] = {
    "task": "distillation",
    "model.scale": "tiny",
    "model.pretrained": False,
    "model.dropout": 0.0,
    "data.dataset": "kitchen_labelled",
    "data.kitchen": "medium",
    "data.frames": 8,
    "data.size": 32,
    "data.batch_size": 16,
    "data.augment": "none",
    "data.hflip": 0.0,
    "data.loader_workers": 0,
    "optim.lr": 1e-3,
    "optim.weight_decay": 0.01,
    "optim.warmup": 0.1,
    "train.precision": "fp32",
}
ALONE: dict[str, Any] = {"distill.teacher": None, "distill.assistant": None}
FROZEN = {"teacher": "videomae_base", "assistant": "videomae_small"}
STUDENT = "videomae_small"
LOGITS, FEATURES, ATTENTION, ASYMMETRIC = (
    f"distill.{term}_distillation_weight" for term in ("logit", "feature", "attention", "asymmetric")
)
WAYS: dict[str, dict[str, Any]] = {
    "published weights": {},
    "without logits": {LOGITS: 0.0},
    "logits alone": {FEATURES: 0.0, ATTENTION: 0.0, ASYMMETRIC: 0.0},
}


def measure(name: str, changes: dict[str, Any], folder: Path) -> float:
    """Train on one thread; the validation accuracy of the last epoch, in per cent."""
    torch.set_num_threads(1)
    experiment = Experiment().override({**RECIPE, **changes})
    run = RunFolder(Folder.open(folder / name))
    run.create(experiment)
    rows: list[dict[str, Any]] = []
    train(experiment, load_dataset(experiment.data), run, Worker(torch.device("cpu")), rows.append)
    print(
        f"{name}: {100 * rows[-1]['val/accuracy']:.1f} % after {rows[-1]['seconds']:.0f} s", file=sys.stderr, flush=True
    )
    return 100 * float(rows[-1]["val/accuracy"])


def newest(folder: Path) -> str:
    """The checkpoint of the last epoch."""
    latest = RunFolder(Folder.open(folder)).latest()
    assert latest is not None  # noqa: S101 - every epoch ends with one
    return latest.folder.path


def table(alone: list[float], distilled: dict[str, list[float]]) -> Table:
    """Accuracies as Markdown."""
    shown = Table("student", "accuracy, each seed", "mean ± deviation", "gain, paired by seed", box=box.MARKDOWN)
    shown.add_row("alone", _each(alone), _spread(alone), "")
    for way, values in distilled.items():
        gains = [value - before for value, before in zip(values, alone, strict=True)]
        error = stdev(gains) / sqrt(len(gains))
        shown.add_row(f"distilled, {way}", _each(values), _spread(values), f"{mean(gains):+.1f} ± {error:.1f} (error)")
    return shown


def _each(values: list[float]) -> str:
    return " ".join(f"{value:.1f}" for value in values)


def _spread(values: list[float]) -> str:
    return f"{mean(values):.1f} ± {stdev(values):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="What distillation adds to a student.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5, help="of the students")
    parser.add_argument("--frozen-epochs", type=int, default=12, help="of teacher and assistant")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds: a spread needs at least 2")
    try:
        load_dataset(Experiment().override(RECIPE).data)  # rendered here once
    except RaylabError as error:
        parser.error(str(error))
    started = time.monotonic()
    console = Console(width=140)
    context = multiprocessing.get_context("spawn")
    with TemporaryDirectory() as temporary, ProcessPoolExecutor(options.processes, context) as pool:
        folder = Path(temporary)
        frozen = {
            name: pool.submit(
                measure,
                name,
                {**ALONE, "model.name": model, "train.epochs": options.frozen_epochs, "seed": 100},
                folder,
            )
            for name, model in FROZEN.items()
        }
        reached = ", ".join(f"{name} {future.result():.1f} %" for name, future in frozen.items())
        base = {"model.name": STUDENT, "train.epochs": options.epochs}
        given = {
            "distill.teacher": newest(folder / "teacher"),
            "distill.assistant_model_path": newest(folder / "assistant"),
            "distill.cache": str(folder / "outputs"),
        }
        ways = {"alone": ALONE, **{way: {**given, **changes} for way, changes in WAYS.items()}}
        submit = partial(pool.submit, measure)
        futures = {
            way: [
                submit(f"{way}, seed {seed}", {**base, **changes, "seed": seed}, folder)
                for seed in range(options.seeds)
            ]
            for way, changes in ways.items()
        }
        found = {way: [future.result() for future in each] for way, each in futures.items()}
    alone = found.pop("alone")
    console.print(table(alone, found))
    console.print(f"{reached}; {options.epochs} epochs; {time.monotonic() - started:.0f} s in all.", highlight=False)


if __name__ == "__main__":
    main()
