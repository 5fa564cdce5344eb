"""A trained model and a video for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raylab.data.datasets import load_dataset
from raylab.storage import Folder
from raylab.training.loop import Worker, train
from raylab.training.runfolder import RunFolder


@pytest.fixture(scope="session")
def storage(tmp_path_factory, small_experiment) -> Path:
    """Results with one run of one epoch."""
    folder = tmp_path_factory.mktemp("results")
    experiment = small_experiment.override({"data.max_clips": 16, "train.epochs": 1})
    run = RunFolder(Folder.open(folder / "run"))
    run.create(experiment)
    train(experiment, load_dataset(experiment.data), run, Worker(torch.device("cpu")), lambda row: None)
    return folder


@pytest.fixture(scope="session")
def video(small_experiment) -> Path:
    """One of the built-in data set's."""
    return next(iter(load_dataset(small_experiment.data, ("val",)).sources.values()))
