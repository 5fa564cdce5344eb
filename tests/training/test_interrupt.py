"""Runs that are asked to save, because their time is up."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from raylab.data.datasets import load_dataset
from raylab.storage import Folder
from raylab.training.interrupt import Requests, answer, ask, pending
from raylab.training.loop import Trainer, Worker, train
from raylab.training.runfolder import RunFolder

CPU = Worker(torch.device("cpu"))


def new_run(folder, experiment):
    run = RunFolder(Folder.open(folder))
    run.create(experiment)
    return run


def end(run):
    train(run.experiment, load_dataset(run.experiment.data), run, CPU, lambda row: None)
    return weights(run)


def weights(run):
    return load_file(Path(run.latest().folder.path) / "model.safetensors")


def begin(run, phase):
    """Train until a request has been answered in this phase of the first epoch; then the process would be killed."""
    trainer = Trainer(run.experiment, load_dataset(run.experiment.data), run, CPU)
    if phase == "validate":
        trainer.train_epoch()
    ask(run)
    getattr(trainer, phase)()
    assert not pending(run)
    return trainer


def assert_equal(one, other):
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_request_saves_within_the_epoch_and_nothing_else_changes(tmp_path, small_experiment):
    whole = end(new_run(tmp_path / "whole", small_experiment))
    run = new_run(tmp_path / "asked", small_experiment)
    trainer = begin(run, "train_epoch")
    (saved,) = run.checkpoints()
    assert (saved.epoch, saved.step, saved.metrics) == (0, 1, {})
    assert trainer.state.progress.step > 1
    assert_equal(end(run), whole)


def test_a_request_during_validation_saves_the_epochs_training(tmp_path, small_experiment):
    whole = end(new_run(tmp_path / "whole", small_experiment))
    run = new_run(tmp_path / "asked", small_experiment)
    trainer = begin(run, "validate")
    (saved,) = run.checkpoints()
    assert (saved.epoch, saved.step) == (0, trainer.state.progress.step)
    assert_equal(end(run), whole)


def test_rank_0_looks_seldom(tmp_path, small_experiment):
    run = new_run(tmp_path, small_experiment)
    asked = Requests(run, CPU.device, rank=0)
    assert not any(asked() for _ in range(1000))
    assert asked.every > 100  # of steps that take no time
    ask(run)
    assert sum(asked() for _ in range(2 * asked.every)) >= 1
    answer(run)
    answer(run)  # whoever asked may have gone
    assert not pending(run)


def test_fewer_workers_than_asked_for_make_the_same_steps(tmp_path, small_experiment):
    small_experiment = small_experiment.override({"data.batch_size": 4})
    two = end(new_run(tmp_path / "two", small_experiment.override({"train.accumulate": 2})))
    one = end(new_run(tmp_path / "one", small_experiment.override({"resources.workers": 2})))
    assert_equal(one, two)


def test_a_run_goes_on_at_the_same_clips_with_fewer_workers(tmp_path, small_experiment):
    run = new_run(tmp_path, small_experiment.override({"data.batch_size": 2, "resources.workers": 2}))
    trainer = Trainer(run.experiment, load_dataset(run.experiment.data), run, CPU)
    trainer.state.progress.batch, trainer.state.progress.workers = 3, 2
    trainer.take_position()
    assert (trainer.state.progress.batch, trainer.state.progress.workers) == (6, 1)
    trainer.state.progress.batch, trainer.state.progress.workers = 7, 4
    trainer.take_position()
    assert trainer.state.progress.batch == len(trainer.batches)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["train", "tune"])
def test_sigterm_saves_before_it_ends_a_command(tmp_path, verb):
    command = [sys.executable, "-m", f"raylab.{verb}", "epic_phase2", "--demo", "--storage", str(tmp_path / "asked")]
    command += [
        "train.checkpoint_minutes=1000",
        "train.epochs=2",
        "train.keep_every=2",
        "data.kitchen=small",
        "data.max_clips=240",
        "model.temporal_width=512",
        "data.batch_size=1",
    ]
    command += ["--name", "mine", *(["search.trials=1"] if verb == "tune" else [])]
    folder = tmp_path / "asked" / "mine"
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not (run := find_run(folder)) or not list((run / "tensorboard").glob("*")):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 130
    asked = RunFolder(Folder.open(run))
    assert asked.latest()
    assert asked.status()["state"] == "running"

    assert subprocess.run(command, check=False).returncode == 0
    command[command.index(str(tmp_path / "asked"))] = str(tmp_path / "whole")
    assert subprocess.run(command, check=False).returncode == 0
    asked, whole = (
        load_file(
            Path(RunFolder(Folder.open(find_run(tmp_path / name / "mine"))).latest().folder.path) / "model.safetensors"
        )
        for name in ("asked", "whole")
    )
    assert_equal(asked, whole)


def find_run(folder):
    return next((file.parent for file in folder.rglob("run.json")), None)
