"""Models × folds on a real cluster: killed on the way, nothing that has finished is done again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

import raylab
from raylab.errors import RaylabError
from raylab.reporting.folds import comparison, figure_of, tables
from raylab.storage import Folder
from raylab.sweeps.folder import SweepFolder

MODELS = ["logistic_regression", "naive_cnn", "slowfast"]  # fitted, trained, and with settings of its own
SMALL = ["data.kitchen=tiny", "data.max_clips=24", "data.frames=4", "data.folds=2"]


def ended(sweep: SweepFolder) -> dict[str, str]:
    return {run.name: run.status()["time"] for run in sweep.runs() if run.status()["state"] == "finished"}


@pytest.mark.slow
def test_models_by_folds_and_more_models_later(tmp_path: Path) -> None:
    words = [*SMALL, "search.max_concurrent=1"]
    board = raylab.sweep("aura", [*words, "models=svm"], demo=True, storage=tmp_path, quiet=True)
    assert set(board["trial"]) == {"svm-fold0", "svm-fold1"}
    sweep = SweepFolder(Folder.open(tmp_path / "aura_demo"))
    first = ended(sweep)
    folder = tmp_path / "aura_demo" / "comparison"
    scores = pd.read_csv(folder / "scores.csv")
    assert scores.groupby("fold")["clip"].nunique().sum() == scores["clip"].nunique() == 24  # each clip once, unseen

    words.append("models=svm,logistic_regression")
    raylab.sweep("aura", words, demo=True, storage=tmp_path, quiet=True)
    assert ended(sweep).items() >= first.items()
    compared = comparison("aura_demo", tmp_path)
    assert list(compared.models["model"]) == ["logistic_regression", "svm"]
    assert list(compared.models["folds"]) == [2, 2]
    assert set(compared.figures) == {"accuracy", "precision", "recall", "f1", "roc_auc"}
    assert len(compared.tests) == 5
    assert len(tables(compared, figure_of(sweep))) == 2
    again = pd.read_csv(folder / "scores.csv")
    pd.testing.assert_frame_equal(again[again["model"] == "svm"].reset_index(drop=True), scores)
    for row in compared.folds.itertuples():
        its = again[(again["model"] == row.model) & (again["fold"] == row.fold)]
        assert ((its["score"] > 0) == its["positive"]).mean() == pytest.approx(row.accuracy)
    with pytest.raises(RaylabError, match="--fresh"):
        raylab.sweep("aura", [*words, "data.folds=3"], demo=True, storage=tmp_path, quiet=True)


@pytest.mark.slow
def test_killed_twice_it_repeats_no_finished_fold(tmp_path: Path) -> None:
    sweep = SweepFolder(Folder.open(tmp_path / "aura_demo"))
    finished: dict[str, str] = {}
    for least in (1, 4):
        process = start(tmp_path)
        wait_for(lambda least=least: len(ended(sweep)) >= least, process)
        descendants = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        psutil.wait_procs(descendants, timeout=60)
        assert ended(sweep).items() >= finished.items()
        finished = ended(sweep)
        assert len(finished) < 6
    assert start(tmp_path).wait(timeout=1500) == 0
    assert ended(sweep).items() >= finished.items()
    assert ended(sweep).keys() == {f"{model}-fold{fold}" for model in MODELS for fold in range(2)}
    for run in sweep.runs():
        assert [row["epoch"] for row in run.history()] == list(range(1, len(run.history()) + 1))
    compared = comparison(sweep)
    assert list(compared.models["folds"]) == [2] * 3


def start(storage: Path) -> subprocess.Popen[bytes]:
    words = [*SMALL, "train.epochs=1", f"models={','.join(MODELS)}", "--storage", str(storage)]
    command = [sys.executable, "-m", "raylab.tune", "aura", "--demo", *words]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL)


def wait_for(condition, process: subprocess.Popen[bytes], seconds: float = 900) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the sweep ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
