"""Classifiers of handcrafted features through the same records, checkpoints and judgements as networks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import raylab
from raylab.config import Experiment
from raylab.data.datasets import load_dataset
from raylab.errors import RaylabError
from raylab.handcrafted.clips import NAMES, describe
from raylab.results import Run
from raylab.storage import Folder
from raylab.training.fit import fit
from raylab.training.runfolder import RunFolder

EXPERIMENT = Experiment().override(
    {
        "task": "classification",
        "model.name": "logistic_regression",
        "data.dataset": "kitchen_aura",
        "data.kitchen": "tiny",
        "data.split": "stratified",
        "data.folds": 3,
        "data.frames": 4,
        "data.max_clips": 48,
    }
)


@pytest.fixture(scope="module", params=["logistic_regression", "svm"])
def fitted(request, tmp_path_factory):
    storage = tmp_path_factory.mktemp("results")
    experiment = EXPERIMENT.override({"model.name": request.param})
    run = RunFolder(Folder.open(storage / "run"))
    run.create(experiment)
    reported: list[dict] = []
    fit(experiment, load_dataset(experiment.data), run, reported.append)
    run.set_status("finished")
    return storage, run, reported


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Without a cluster: what is not kept is computed in this process."""
    from raylab.handcrafted import parallel

    def refuse():
        raise AssertionError("fitting waits for no cluster")

    monkeypatch.setattr(parallel, "connect", refuse)


def test_it_leaves_what_every_run_leaves(fitted):
    _, run, reported = fitted
    assert run.history() == reported
    row = reported[0]
    assert (row["epoch"], row["best_epoch"], row["best"]) == (1, 1, row["val/accuracy"])
    assert {f"{split}/{name}" for split in ("train", "val", "gap") for name in ("loss", "f1", "roc_auc")} <= row.keys()
    assert row["val/accuracy"] > 0.6  # of two classes alike in number
    assert row["train/loss"] < 0.5
    assert row["memory"] > 1e7
    found = Run.read(run)
    assert (found.state, found.epochs, found.best) == ("finished", 1, row["val/accuracy"])
    assert (Path(run.folder.path) / "tensorboard").is_dir()
    assert not list(Path(run.folder.path).rglob("*.pkl"))


def test_the_best_checkpoint_judges_as_it_did(fitted):
    storage, _, reported = fitted
    best = raylab.best_checkpoint("run", storage=storage)
    assert best.metrics["val/roc_auc"] == reported[0]["val/roc_auc"]
    clips = describe(load_dataset(best.experiment.data), "val", best.experiment.data)
    model = best.load_model()
    assert model.features == tuple(NAMES)
    said = model(torch.from_numpy(clips.values))["label"].argmax(1).numpy()
    assert (said == clips.labels["label"]).mean() == pytest.approx(best.metrics["val/accuracy"])
    judgement = raylab.judge(best)
    assert judgement.scores["val"].figures()["label_top1"] == pytest.approx(best.metrics["val/accuracy"])
    assert judgement.predictions["val"].ids == clips.ids
    with pytest.raises(RaylabError, match="--views 2x1"):
        raylab.judge(best, views="2x1")
    with pytest.raises(RaylabError, match="judges whole files"):
        raylab.Predictor(best)


def test_fitted_again_it_goes_on_from_its_checkpoint(fitted):
    _, run, reported = fitted
    before = {path: path.stat().st_mtime_ns for path in Path(run.folder.path).rglob("model.skops")}
    again: list[dict] = []
    progress = fit(run.experiment, load_dataset(run.experiment.data), run, again.append)
    assert again == reported
    assert progress.history == reported
    assert {path: path.stat().st_mtime_ns for path in Path(run.folder.path).rglob("model.skops")} == before


def test_a_copied_checkpoint_loads_without_its_data_and_without_ray(fitted, tmp_path):
    storage, _, _ = fitted
    best = raylab.best_checkpoint("run", storage=storage)
    shutil.copytree(best.path, tmp_path / "copy")
    program = (
        "import sys, torch\n"
        "from raylab.results import Checkpoint\n"
        "model = Checkpoint.open(sys.argv[1]).load_model()\n"
        "print(model(torch.zeros(1, len(model.features)))['label'].tolist())\n"
        "assert 'ray' not in sys.modules\n"
    )
    environment = {**os.environ, "RAYLAB_CACHE": str(tmp_path / "empty"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, tmp_path / "copy"]
    said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    expected = best.load_model()(torch.zeros(1, len(NAMES)))["label"].tolist()
    assert json.loads(said.splitlines()[-1]) == expected
    assert not (tmp_path / "empty").exists()


def test_segments_have_no_features_of_their_own():
    experiment = EXPERIMENT.override({"data.dataset": "kitchen", "data.split": "official"})
    dataset = load_dataset(experiment.data)
    with pytest.raises(RaylabError, match="features are of whole videos"):
        describe(dataset, "train", experiment.data)


def test_a_video_that_cannot_be_read_is_named(tmp_path):
    from raylab.data.kitchen import kitchen_root
    from raylab.data.kitchen_aura import AURA

    shutil.copytree(kitchen_root("tiny", layout=AURA), tmp_path / "data")
    data = EXPERIMENT.override(
        {"data.dataset": "metadata", "data.root": str(tmp_path / "data"), "data.max_clips": None}
    )
    dataset = load_dataset(data.data)
    path = next(iter(dataset.sources.values()))
    path.write_bytes(b"no video")
    with pytest.raises(RaylabError, match=f"1 of .* videos cannot be read, the first: .*{path.name}"):
        for split in dataset.splits:
            describe(dataset, split, data.data)
