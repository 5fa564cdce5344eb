"""What a model of keyframes has learnt: beside chance, the difference between frames, and the annotators themselves.

    python benchmarks/keyframes_gain.py
    python benchmarks/keyframes_gain.py --seeds 5 --kitchen large

Both models are trained on the built-in data in TVSum's layout, in the two documented stages, at their small scale and
from random weights; what is compared is the last epoch's, on the videos that were held out. The rows beside them are
those of `raylab evaluate`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
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
from raylab.evaluation.importance import FIGURE
from raylab.evaluation.kinds import KINDS
from raylab.models.registry import list_models
from raylab.storage import Folder
from raylab.tasks.importance_metrics import FIGURES
from raylab.training.loop import Worker, train
from raylab.training.runfolder import RunFolder

RECIPE: dict[str, Any] = {
    "task": "keyframes",
    "model.scale": "tiny",
    "model.pretrained": False,
    "model.dropout": 0.1,
    "data.dataset": "kitchen_keyframes",
    "data.kitchen": "medium",
    "data.sampling": "rate",
    "data.frames": 60,
    "data.size": 32,
    "data.batch_size": 4,
    "data.augment": "none",
    "data.loader_workers": 0,
    "optim.weight_decay": 0.01,
    "optim.schedule": "constant",
    "train.precision": "fp32",
    # Random weights are worth less than ImageNet's: stage 1 is short, and in stage 2 the whole encoder learns.
    "train.stages": [
        {"epochs": 2, "lr": 1e-3, "freeze": "encoder"},
        {"epochs": 8, "lr": 1e-3, "clip": 1.0},
    ],
    "keyframes.mse_weight": 5.0,  # or nothing would say at which level the scores are to be
}


def measure(name: str, changes: dict[str, Any], folder: Path) -> dict[str, float]:
    """Train on one thread; the figures of the last epoch on held-out videos."""
    torch.set_num_threads(1)
    experiment = Experiment().override({**RECIPE, **changes})
    run = RunFolder(Folder.open(folder / name))
    run.create(experiment)
    rows: list[dict[str, Any]] = []
    train(experiment, load_dataset(experiment.data), run, Worker(torch.device("cpu")), rows.append)
    last = rows[-1]
    print(f"{name}: ρ {last['val/spearman_mean']:.3f} after {last['seconds']:.0f} s", file=sys.stderr, flush=True)
    return {figure: float(last[f"val/{figure}"]) for figure in FIGURES}


def table(found: dict[str, list[dict[str, float]]]) -> Table:
    """Figures as Markdown: the mean over seeds, with their deviation where there are several."""
    shown = Table("", *(figure.replace("_", " ") for figure in FIGURES), box=box.MARKDOWN)
    for name, rows in found.items():
        shown.add_row(name, *(_spread([row[figure] for row in rows]) for figure in FIGURES))
    return shown


def _spread(values: list[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description="What models of keyframes have learnt.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kitchen", default="medium", help="size of the data: tiny, small, medium, large")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    started = time.monotonic()
    data = {"data.kitchen": options.kitchen}
    try:
        experiment = Experiment().override({**RECIPE, **data})
        dataset = load_dataset(experiment.data)  # rendered here once
    except RaylabError as error:
        parser.error(str(error))
    beside = KINDS["keyframes"].references(dataset, "val", experiment.data)
    context = multiprocessing.get_context("spawn")
    with TemporaryDirectory() as temporary, ProcessPoolExecutor(options.processes, context) as pool:
        cache = {"train.cache": str(Path(temporary) / "outputs")}
        futures = {
            model.name: [
                pool.submit(
                    measure,
                    f"{model.name}, seed {seed}",
                    {**data, **cache, "model.name": model.name, "seed": seed},
                    Path(temporary),
                )
                for seed in range(options.seeds)
            ]
            for model in list_models("keyframes")
        }
        found = {name: [future.result() for future in each] for name, each in futures.items()}
    console = Console(width=160)
    console.print(table({**found, **{name: [scores.figures()] for name, scores in beside.items()}}))
    best = max(beside[name].figures()[FIGURE] for name in ("random", "frame difference"))
    gains = {name: mean(row[FIGURE] for row in rows) - best for name, rows in found.items()}
    videos = {split: len(known.clips.videos) for split, known in dataset.splits.items()}
    console.print(
        f"{FIGURE} beyond the better of random and frame difference: "
        f"{', '.join(f'{name} {gain:+.3f}' for name, gain in gains.items())}. {videos['train']} videos to learn from, "
        f"{videos['val']} held out; {options.seeds} seeds; {time.monotonic() - started:.0f} s in all.",
        highlight=False,
    )


if __name__ == "__main__":
    main()
