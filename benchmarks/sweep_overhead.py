"""What a sweep costs beside its trainings.

    python benchmarks/sweep_overhead.py
    python benchmarks/sweep_overhead.py --seconds 20 --trials 3 --rounds 2

The same experiments are trained twice, by turns: one after another in plain processes, as a shell loop would do it
(`raylab.training.loop.train`, no Ray), and as the documented configurations of `python -m raylab.tune`, one at a time
and none stopped early. Both are started as a user starts them, with as many threads, on data rendered before. Nothing
is measured from inside: parts of the time are told apart by when files change and processes appear.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import psutil
import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from raylab.config import Experiment
from raylab.data.datasets import load_dataset
from raylab.storage import Folder
from raylab.sweeps.space import SearchSpace
from raylab.training.runfolder import RunFolder

PLAIN = """
import sys
import torch
from raylab.data.datasets import load_dataset
from raylab.storage import Folder
from raylab.training.loop import Worker, train
from raylab.training.runfolder import RunFolder

run = RunFolder(Folder.open(sys.argv[1]))
train(run.experiment, load_dataset(run.experiment.data), run, Worker(torch.device("cpu")), lambda row: None)
"""
WORKER = "ray::RayTrainWorker"  # what Ray calls a process that trains
# Parts of the time, in order. All are sums over the trials but those that a sweep has once.
CLUSTER = "once: checks, cluster, driver"
CONTROLLER = "once: Ray Train's controller"
PROCESS = "tear-down of the last, process"
LOADING = "imports, data set, model"
TRAINING = "training, checkpoints"
END = "once: end"
PARTS = (CLUSTER, CONTROLLER, PROCESS, LOADING, TRAINING, END)
Seconds = Mapping[str, float]


def write_space(experiment: Experiment, trials: int, file: Path) -> SearchSpace:
    """A search space whose documented configurations are all its trials."""
    rates = {f"trial{i + 1}": {"optim.lr": 1e-4 * (i + 1)} for i in range(trials)}
    content = {
        "description": "what a sweep costs",
        "experiment": experiment.to_dict(),
        "space": {"optim.lr": {"loguniform": [1e-5, 1e-1]}},
        "documented": rates,
        "search": {"trials": trials, "scheduler": "none", "max_concurrent": 1},
    }
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return SearchSpace.load(str(file))


def loaded(run: Path) -> float:
    """When the model was built: the first file of TensorBoard appears then."""
    return (run / "tensorboard").stat().st_mtime


def trained(run: Path) -> float:
    """When the last epoch ended."""
    return (run / "history.jsonl").stat().st_mtime


def run_plain(space: SearchSpace, folder: Path) -> Seconds:
    """Seconds of each part, for all trials together."""
    seconds: Counter[str] = Counter()
    for name, values in space.documented.items():
        RunFolder(Folder.open(folder / name)).create(space.trial(values))
        started = time.time()
        subprocess.run([sys.executable, "-c", PLAIN, folder / name], check=True)
        marks = started, loaded(folder / name), trained(folder / name), time.time()
        for part, (before, at) in zip((LOADING, TRAINING, PROCESS), pairwise(marks), strict=True):
            seconds[part] += at - before
    return seconds


def run_sweep(space: SearchSpace, file: Path, folder: Path) -> Seconds:
    """Seconds of each part, for the whole sweep."""
    started = time.time()
    sweep = psutil.Popen([sys.executable, "-m", "raylab.tune", file, "--storage", folder], stdout=subprocess.DEVNULL)
    workers = list(appearances(sweep, WORKER))
    ended = time.time()
    if sweep.returncode:
        raise SystemExit(f"the sweep ended with exit code {sweep.returncode}")
    runs = sorted((folder / space.name / "trials").iterdir(), key=trained)
    driver = (runs[0] / "run.json").stat().st_mtime
    marks = [(CLUSTER, driver), (CONTROLLER, workers[0])]
    for i, (run, worker) in enumerate(zip(runs, workers, strict=True)):
        marks += [(PROCESS, worker)] if i else []
        marks += [(LOADING, loaded(run)), (TRAINING, trained(run))]
    seconds: Counter[str] = Counter()
    for (_, before), (part, at) in pairwise([("", started), *marks, (END, ended)]):
        seconds[part] += at - before
    return seconds


def appearances(parent: psutil.Popen, title: str, tick: float = 0.1) -> Iterator[float]:
    """When each process of that title first showed under `parent`, until `parent` ends."""
    seen: set[int] = set()
    while parent.poll() is None:
        for process in parent.children(recursive=True):
            try:
                if process.pid not in seen and " ".join(process.cmdline()).startswith(title):
                    seen.add(process.pid)
                    yield time.time()
            except psutil.NoSuchProcess:
                continue
        time.sleep(tick)


def calibrate(experiment: Experiment, seconds: float, folder: Path) -> Experiment:
    """`experiment` with as many epochs as take about `seconds`."""
    space = write_space(experiment.override({"train.epochs": 3}), 1, folder / "calibration.yaml")
    run_plain(space, folder / "calibration")
    first, *_, last = RunFolder(Folder.open(folder / "calibration" / "trial1")).history()
    epochs = max(1, round(seconds * 2 / (last["seconds"] - first["seconds"])))
    return experiment.override({"train.epochs": epochs, "optim.restart_epochs": epochs})


def table(plain: list[Seconds], sweep: list[Seconds], trials: int) -> Table:
    """Median seconds a trial, as Markdown."""
    shown = Table("seconds a trial", "plain process", "sweep", "difference", box=box.MARKDOWN)
    rows = [
        (part, *(median(round_[part] / trials for round_ in rounds) for rounds in (plain, sweep))) for part in PARTS
    ]
    totals = (median(sum(round_.values()) / trials for round_ in rounds) for rounds in (plain, sweep))
    for name, one, other in [*rows, ("together", *totals)]:
        shown.add_row(name, f"{one:.2f}", f"{other:.2f}", f"{other - one:+.2f}")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description="What a sweep costs beside its trainings.")
    parser.add_argument("--seconds", type=float, default=60, help="of each training")
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=1, help="how often both are measured, by turns")
    parser.add_argument("--threads", type=int, default=1, help="of each training, and CPUs that a trial reserves")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "RAY_ADDRESS": "local"}

    demo = SearchSpace.load("epic_phase2").for_demo()
    experiment = demo.experiment.override({"resources.cpus_per_worker": options.threads, "train.patience": None})
    load_dataset(experiment.data)  # rendered here once
    plain: list[Seconds] = []
    sweep: list[Seconds] = []
    console = Console(width=120)
    with TemporaryDirectory() as work:
        folder = Path(work)
        space = write_space(calibrate(experiment, options.seconds, folder), options.trials, folder / "space.yaml")
        for i in range(options.rounds):
            plain.append(run_plain(space, folder / f"plain{i}"))
            sweep.append(run_sweep(space, folder / "space.yaml", folder / f"sweep{i}"))
            ratio = sum(sweep[-1].values()) / sum(plain[-1].values())
            print(f"round {i + 1}: sweep / plain {ratio:.3f}", file=sys.stderr, flush=True)
    console.print(table(plain, sweep, options.trials))
    ratios = [sum(b.values()) / sum(a.values()) for a, b in zip(plain, sweep, strict=True)]
    console.print(
        f"The sweep takes {median(ratios):.3f} times as long as its {options.trials} trainings in plain processes "
        f"({min(ratios):.3f} to {max(ratios):.3f} in {options.rounds} rounds); {space.experiment.train.epochs} epochs, "
        f"{options.threads} threads.",
        highlight=False,
    )


if __name__ == "__main__":
    main()
