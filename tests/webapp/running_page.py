"""A page that runs: `python -m raylab.app` with checkpoints of the smallest kind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests
import torch

from raylab.config import Experiment
from raylab.data.datasets import load_dataset
from raylab.storage import Folder
from raylab.training.fit import fit
from raylab.training.loop import Worker, train
from raylab.training.runfolder import RunFolder

SMALL = {
    "data.kitchen": "tiny",
    "data.size": 32,
    "data.batch_size": 8,
    "data.loader_workers": 0,
    "train.precision": "fp32",
    "train.epochs": 1,
}
AURA = {"task": "classification", "data.dataset": "kitchen_aura", "data.split": "stratified", "data.folds": 3}
MODELS: dict[str, dict[str, Any]] = {
    "actions": {
        "model.name": "resnet50_transformer_regularized",
        "model.encoder": "test_resnet",
        "model.pretrained": False,
        "model.temporal_layers": 1,
        "model.temporal_width": 64,
        "model.dim_feedforward": 64,
        "data.dataset": "kitchen",
        "data.frames": 4,
        "data.hflip": 0.0,
        "data.max_clips": 16,
    },
    "keyframes": {
        "task": "keyframes",
        "model.name": "resnet50_dual_attention",
        "model.scale": "tiny",
        "model.pretrained": False,
        "data.dataset": "kitchen_keyframes",
        "data.sampling": "rate",
        "data.frames": 12,
    },
    "logistic": {**AURA, "model.name": "logistic_regression", "data.frames": 8, "data.max_clips": 60},
    "network": {
        **AURA,
        "model.name": "naive_cnn",
        "model.scale": "tiny",
        "model.pretrained": False,
        "data.frames": 4,
        "data.max_clips": 12,
    },
}
TABS = ("--actions", "actions", "--keyframes", "keyframes", "--labels", "logistic", "--labels", "network")


def train_models(folder: Path) -> Path:
    """Results with a run of each of `MODELS`."""
    for name, changed in MODELS.items():
        experiment = Experiment().override({**SMALL, **changed})
        run = RunFolder(Folder.open(folder / name))
        run.create(experiment)
        dataset = load_dataset(experiment.data)
        if name == "logistic":
            fit(experiment, dataset, run, lambda row: None)
        else:
            train(experiment, dataset, run, Worker(torch.device("cpu")), lambda row: None)
    return folder


def videos(model: str) -> list[Path]:
    """The built-in videos that a model was validated on."""
    config = Experiment().override({**SMALL, **MODELS[model]}).data
    return sorted(load_dataset(config, ("val",)).sources.values())


@dataclass
class Page:
    """A page that runs.

    Attributes:
        address: of it.
        process: the server's; the processes that look at videos are its children.
        files: the folder of its files.
    """

    address: str
    process: psutil.Process
    files: Path

    def post(self, tab: str, content: Any, name: str, **query: Any) -> requests.Response:
        """Upload bytes or an open file."""
        where = f"{self.address}/api/{tab}"
        return requests.post(where, data=content, params={"name": name, **query}, timeout=300)


@contextmanager
def running(storage: Path, *options: object, tabs: tuple[str, ...] = TABS) -> Iterator[Page]:
    """A page, ended as Ctrl-C ends it."""
    words = [*tabs, "--storage", storage, "--port", 0, "--device", "cpu", *options]
    command = [sys.executable, "-m", "raylab.app", *map(str, words)]
    with (
        tempfile.TemporaryDirectory() as temp,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": temp}) as process,
    ):
        try:
            assert process.stdout
            address = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
            assert address, "the page did not start"
            yield Page(address[0], psutil.Process(process.pid), Path(temp, f"raylab-app-{os.getuid()}"))
        finally:
            children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            assert not psutil.wait_procs(children, timeout=10)[1]
            assert not any(Path(temp).rglob("*.mp4"))


def eventually(happens: Any, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < until
        time.sleep(0.1)
