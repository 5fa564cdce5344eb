"""Trained models, and the command that judges them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from raylab.config import Experiment
from raylab.data.datasets import load_dataset
from raylab.storage import Folder
from raylab.training.loop import Worker, train
from raylab.training.runfolder import RunFolder


@pytest.fixture(scope="session")
def train_run() -> Callable[[Path, Experiment], None]:
    """Trains an experiment in a run folder."""

    def run(folder: Path, experiment: Experiment) -> None:
        found = RunFolder(Folder.open(folder))
        found.create(experiment)
        train(experiment, load_dataset(experiment.data), found, Worker(torch.device("cpu")), lambda row: None)

    return run


@pytest.fixture(scope="session")
def cli() -> Callable[..., str]:
    """Runs the command, which must end well; its output."""
    from raylab.evaluate import evaluate

    application = typer.Typer()
    application.command()(evaluate)

    def run(*words: object) -> str:
        result = CliRunner().invoke(application, [str(word) for word in words], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    return run
