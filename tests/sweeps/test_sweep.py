"""Whole sweeps on a real cluster of this machine."""

import json
import os
import subprocess
import sys
import time
from http.client import HTTPConnection

import pandas as pd
import psutil
import pytest
import yaml
from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

import raylab
from raylab.cluster.connect import dashboard_url
from raylab.errors import RaylabError
from raylab.storage import Folder
from raylab.sweeps.folder import SweepFolder
from raylab.sweeps.space import SearchSpace
from raylab.training.runfolder import ENDED

TIMED = ["seconds"]


def space_data(experiment, **search):
    return {
        "description": "a small sweep",
        "experiment": experiment.to_dict(),
        "space": {"optim.lr": {"loguniform": [1e-5, 1e-2]}, "model.dropout": {"uniform": [0.0, 0.5]}},
        "documented": {
            "low": {"optim.lr": 1e-4, "model.dropout": 0.1},
            "middle": {"optim.lr": 1e-3, "model.dropout": 0.1},
            "high": {"optim.lr": 3e-3, "model.dropout": 0.1},
        },
        "search": {"grace_epochs": 1, **search},
    }


def test_a_sweep_survives_a_failing_trial_prunes_and_goes_on_when_asked(tmp_path, small_experiment):
    data = space_data(
        small_experiment.override({"optim.name": "sgd", "train.clip_norm": None}),
        trials=2,
        keep_trials=1,
        max_concurrent=1,
    )
    data["space"]["optim.lr"] = {"choice": [1e-3, 1e-2, 1e30]}
    for row, rate in zip(data["documented"].values(), (1e-3, 1e30, 1e-2), strict=True):
        row["optim.lr"] = rate
    space = SearchSpace.parse(data, "mixed", "mixed.yaml")

    board = raylab.sweep(space, storage=tmp_path, quiet=True)
    assert list(board["trial"]) == ["low", "middle"]
    sweep = SweepFolder(Folder.open(tmp_path / "mixed"))
    touched = {run.name: run.status()["time"] for run in sweep.runs()}
    assert trials_on_the_train_page() >= {"low": "FINISHED", "middle": "FINISHED"}.items()  # one with a cause inside

    board = raylab.sweep(space.override(["search.trials=3"]), storage=tmp_path, quiet=True)
    assert {name: sweep.run(name).status()["time"] for name in touched} == touched
    assert set(board["trial"]) == {"low", "middle", "high"}
    assert list(board["trial"])[-1] == "middle"
    failed = board.set_index("trial").loc["middle"]
    assert failed["state"] == "failed"
    assert "lower optim.lr" in failed["error"]
    assert pd.isna(failed["val/action_top1"])

    kept = {run.name: len(run.checkpoints()) for run in sweep.runs()}
    assert kept == {board["trial"][0]: 1, board["trial"][1]: 0, "middle": 0}
    best = raylab.best_checkpoint("mixed", storage=tmp_path)
    assert best.run == board["trial"][0]
    assert best.metrics["val/action_top1"] == board["val/action_top1"][0]
    written = pd.read_csv(tmp_path / "mixed" / "leaderboard.csv").fillna({"error": ""})
    pd.testing.assert_frame_equal(
        written, pd.read_parquet(tmp_path / "mixed" / "leaderboard.parquet"), check_dtype=False
    )

    trials = [tmp_path / "mixed" / "trials" / name for name in ("low", "middle", "high")]
    ended = [(trial / "status.json").stat().st_mtime for trial in trials]
    began = [(trial / "tensorboard").stat().st_mtime for trial in trials]
    assert sorted([*began, *ended]) == [began[0], ended[0], began[1], ended[1], began[2], ended[2]]

    with pytest.raises(RaylabError, match="--fresh"):
        raylab.sweep(space.override(["optim.momentum=0.5"]), storage=tmp_path, quiet=True)


@pytest.mark.slow
def test_a_sweep_killed_in_the_middle_ends_as_one_never_disturbed(tmp_path, small_experiment):
    experiment = small_experiment.override({"train.epochs": 4, "train.checkpoint_minutes": 1e-9})
    # One trial at a time: with several, which results the sampler knows depends on timing. And no early stopping:
    # how far a trial gets between the scheduler's decision and its end depends on timing too.
    data = space_data(experiment, trials=6, max_concurrent=1, scheduler="none")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    run_to_the_end(tmp_path, "whole")

    sweep = SweepFolder(Folder.open(tmp_path / "disturbed" / "mine"))
    process = start(tmp_path, "disturbed")
    wait_for(lambda: states(sweep).get("high") == "running" and sweep.run("high").checkpoints(), process)
    descendants = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    psutil.wait_procs(descendants, timeout=60)
    ended = {run.name: run.status()["time"] for run in sweep.runs() if run.status()["state"] in ENDED}
    assert set(ended) == {"low", "middle"}
    assert states(sweep)["high"] == "running"
    step = sweep.run("high").latest().step

    run_to_the_end(tmp_path, "disturbed")
    assert {name: sweep.run(name).status()["time"] for name in ended} == ended  # no finished trial ran twice
    assert sweep.run("high").history()[-1]["step"] >= step

    whole, disturbed = (
        pd.read_csv(tmp_path / name / "mine" / "leaderboard.csv").drop(columns=TIMED) for name in ("whole", "disturbed")
    )
    assert len(whole) == 6
    pd.testing.assert_frame_equal(whole, disturbed)


def trials_on_the_train_page():
    """Name and status of every run that the Ray dashboard's Train page lists."""
    connection = HTTPConnection(dashboard_url().removeprefix("http://"), timeout=60)
    connection.request("GET", "/api/train/v2/runs/v1", headers=get_auth_headers_if_auth_enabled({}))
    return {(run["name"], run["status"]) for run in json.load(connection.getresponse())["train_runs"]}


def start(folder, storage):
    command = [sys.executable, "-m", "raylab.tune", folder / "mine.yaml", "--storage", folder / storage]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL)


def run_to_the_end(folder, storage):
    assert start(folder, storage).wait(timeout=400) == 0


def states(sweep):
    return {run.name: run.status()["state"] for run in sweep.runs()}


def wait_for(condition, process, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the sweep ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_the_demo_of_phase_1_trains_all_six_architectures_alike(tmp_path):
    board = raylab.sweep("epic_phase1", demo=True, storage=tmp_path, quiet=True)
    assert set(board["trial"]) == set(SearchSpace.load("epic_phase1").documented)
    assert set(board["state"]) == {"finished"}
    assert set(board["epochs"]) == {4}
    rows = [run.history()[-1]["step"] for run in SweepFolder(Folder.open(tmp_path / "epic_phase1_demo")).runs()]
    assert len(set(rows)) == 1  # the same number of steps
