"""What runs leave behind: found, compared, copied elsewhere, and loaded without running code."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch

import raylab
from raylab.config import Experiment
from raylab.data.dataset import ClipDataset
from raylab.data.datasets import load_dataset
from raylab.errors import RaylabError
from raylab.results import Checkpoint, locate
from raylab.storage import Folder
from raylab.sweeps.folder import SweepFolder
from raylab.sweeps.space import SearchSpace
from raylab.training.loop import Trainer, Worker
from raylab.training.runfolder import RunFolder

EXPERIMENT = Experiment().override(
    {
        "model.name": "resnet50_avg",
        "model.encoder": "test_resnet",
        "model.pretrained": False,
        "data.dataset": "kitchen",
        "data.kitchen": "tiny",
        "data.frames": 2,
        "data.size": 32,
        "data.batch_size": 8,
        "data.augment": "none",
        "data.loader_workers": 0,
        "data.max_clips": 16,
        "optim.lr": 1e-3,
        "train.epochs": 3,
        "train.precision": "fp32",
    }
)
SPACE = SearchSpace.parse(
    {
        "description": "three trials",
        "experiment": EXPERIMENT.to_dict(),
        "space": {"optim.lr": {"choice": [1e-4, 1e-2, 1e30]}},
        "search": {"grace_epochs": 1},
    },
    "grid",
    "grid.yaml",
)
TRIALS = {"gentle": 1e-4, "brisk": 1e-2}
VIDEO = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@dataclass
class Lab:
    """A results folder, and what each model answered in the moment its epoch ended: (run, epoch) → logits."""

    storage: Path
    answers: dict[tuple[str, int], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One run of its own, and a sweep of two trained trials and a failed one."""
    storage = tmp_path_factory.mktemp("results")
    lab = Lab(storage, {})
    train_run(RunFolder(Folder.open(storage / "alone")), EXPERIMENT, None, lab)
    sweep = SweepFolder(Folder.open(storage / "grid"))
    sweep.create(SPACE, {"command": "raylab tune grid.yaml"})
    for name, rate in TRIALS.items():
        train_run(sweep.run(name), SPACE.trial({"optim.lr": rate}), "grid", lab)
    sweep.run("wild").create(SPACE.trial({"optim.lr": 1e30}), "grid")
    sweep.run("wild").set_status("failed", "the loss is nan: lower optim.lr")
    return lab


@pytest.fixture
def lab(trained, tmp_path):
    """A copy of `trained` to do anything with."""
    shutil.copytree(trained.storage, tmp_path / "results")
    return Lab(tmp_path / "results", trained.answers)


def train_run(run, experiment, sweep, lab):
    run.create(experiment, sweep)
    trainer = Trainer(experiment, load_dataset(experiment.data), run, Worker(torch.device("cpu")))
    while not trainer.done:
        trainer.train_epoch()
        row = trainer.finish_epoch()
        lab.answers[run.name, row["epoch"]] = answer(trainer.state.task.model.eval())
    run.set_status("finished")


@torch.no_grad()
def answer(model):
    return model(VIDEO)


def seals(folder):
    """Every checkpoint below a folder, read with nothing of raylab."""
    return {path.parent: json.loads(path.read_text()) for path in Path(folder).rglob("checkpoint.json")}


# The best checkpoint


@pytest.mark.parametrize("name", ["alone", "grid"])
@pytest.mark.parametrize(
    ("asked", "metric", "choose"),
    [
        ({}, "val/action_top1", max),
        ({"metric": "val/action_top1"}, "val/action_top1", max),
        ({"metric": "val/loss"}, "val/loss", min),
        ({"metric": "val/loss", "mode": "max"}, "val/loss", max),
        ({"metric": "val/noun_top5", "mode": "min"}, "val/noun_top5", min),
    ],
)
def test_the_best_is_the_best_of_every_checkpoint(lab, name, asked, metric, choose):
    values = [seal["metrics"][metric] for seal in seals(lab.storage / name).values()]
    assert len(values) >= 2
    best = raylab.best_checkpoint(name, storage=lab.storage, **asked)
    assert best.metrics[metric] == choose(values)
    assert seals(best.path)[Path(best.path)]["metrics"] == best.metrics


def test_a_run_trained_for_a_loss_is_judged_by_it(tmp_path):
    experiment = EXPERIMENT.override({"train.monitor": "val/loss", "train.mode": "min", "train.epochs": 2})
    train_run(RunFolder(Folder.open(tmp_path / "run")), experiment, None, Lab(tmp_path, {}))
    losses = [seal["metrics"]["val/loss"] for seal in seals(tmp_path).values()]
    assert raylab.best_checkpoint("run", storage=tmp_path).metrics["val/loss"] == min(losses)
    assert raylab.best_checkpoint("run", mode="max", storage=tmp_path).metrics["val/loss"] == max(losses)


def test_a_metric_that_is_not_a_number_never_wins(lab):
    first, *_ = sorted(seals(lab.storage / "alone"))
    seal = json.loads((first / "checkpoint.json").read_text())
    seal["metrics"]["val/loss"] = float("nan")
    (first / "checkpoint.json").write_text(json.dumps(seal))
    for mode in ("min", "max"):
        assert Path(raylab.best_checkpoint("alone", "val/loss", mode, lab.storage).path) != first


@pytest.mark.parametrize("name", ["alone", "grid"])
def test_the_loaded_model_answers_as_the_trained_one_did(lab, name):
    best = raylab.best_checkpoint(name, storage=lab.storage)
    model = best.load_model("cpu")
    assert not any(module.training for module in model.modules())
    answers = answer(model)
    expected = lab.answers[best.run, best.epoch]
    assert answers.keys() == expected.keys() == {"verb", "noun"}
    assert all(torch.equal(answers[head], expected[head]) for head in expected)


def test_a_checkpoint_alone_gives_the_accuracy_it_was_saved_with(lab):
    best = raylab.best_checkpoint("grid", storage=lab.storage)
    rate = TRIALS[best.run]
    assert best.experiment == SPACE.trial({"optim.lr": rate})
    dataset = load_dataset(best.experiment.data)
    assert best.labels == dataset.labels
    assert best.heads == dataset.heads

    clips = ClipDataset.of(dataset, "val", best.experiment.data)
    batch = clips.__getitems__(range(len(clips)))
    model = best.load_model()
    with torch.no_grad():
        logits = model(best.transform(model)(batch["video"], batch["ids"], 0))
    right = torch.stack([logits[head].argmax(1) == batch["labels"][head] for head in best.heads])
    assert right.all(0).float().mean().item() == pytest.approx(best.metrics["val/action_top1"])
    assert right[0].float().mean().item() == pytest.approx(best.metrics["val/verb_top1"])


def test_a_copied_folder_is_enough(lab, tmp_path):
    """In a process of its own, with neither the data, nor the place it was trained in, nor Ray."""
    elsewhere = tmp_path / "elsewhere" / "a copy"
    shutil.copytree(lab.storage / "grid", elsewhere)
    shutil.rmtree(lab.storage)
    torch.save(VIDEO, tmp_path / "video.pt")
    program = (
        "import sys, torch, raylab\n"
        "best = raylab.best_checkpoint(sys.argv[1])\n"
        "with torch.no_grad(): answer = best.load_model()(torch.load('video.pt'))\n"
        "torch.save({'run': best.run, 'epoch': best.epoch, 'answer': answer}, 'answer.pt')\n"
        "assert 'ray' not in sys.modules\n"
    )
    environment = {**os.environ, "RAYLAB_CACHE": str(tmp_path / "empty"), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", program, elsewhere], cwd=tmp_path, env=environment, check=True)
    result = torch.load(tmp_path / "answer.pt")
    expected = lab.answers[result["run"], result["epoch"]]
    assert all(torch.equal(result["answer"][head], expected[head]) for head in expected)
    assert not (tmp_path / "empty").exists()


def test_a_run_still_going_has_a_best_checkpoint_and_unfinished_ones_are_not_seen(lab):
    run = RunFolder(Folder.open(lab.storage / "alone"))
    run.set_status("running")
    before = raylab.best_checkpoint("alone", storage=lab.storage)
    checkpoints = lab.storage / "alone" / "checkpoints"
    better = {"epoch": 9, "step": 99, "metrics": {**before.metrics, "val/action_top1": 2.0}}
    shutil.copytree(before.path, checkpoints / "step_00000099.partial-x1")
    (checkpoints / "step_00000099.partial-x1" / "checkpoint.json").write_text(json.dumps(better))
    shutil.copytree(before.path, checkpoints / "step_00000098", ignore=shutil.ignore_patterns("checkpoint.json"))
    run.write_checkpoint(lambda path: None, epoch=9, step=97, metrics={})  # in mid-epoch nothing is measured

    assert raylab.best_checkpoint("alone", storage=lab.storage) == before
    assert next(run for run in raylab.runs(lab.storage) if run.name == "alone").state == "running"
    with pytest.raises(RaylabError, match="step_00000098: no complete checkpoint"):
        Checkpoint.open(checkpoints / "step_00000098")

    (checkpoints / "step_00000099.partial-x1").rename(checkpoints / "step_00000099")
    assert raylab.best_checkpoint("alone", storage=lab.storage).epoch == 9


def test_before_the_first_checkpoint_the_message_says_so(lab):
    shutil.rmtree(lab.storage / "alone" / "checkpoints")
    with pytest.raises(RaylabError, match="alone: no checkpoint with metrics yet"):
        raylab.best_checkpoint("alone", storage=lab.storage)
    shutil.rmtree(lab.storage / "grid" / "trials")
    with pytest.raises(RaylabError, match="grid: no trial has started yet"):
        raylab.best_checkpoint("grid", storage=lab.storage)


# Names


def test_a_sweep_and_a_run_are_found_by_name_and_by_path(lab, monkeypatch):
    trial = lab.storage / "grid" / "trials" / "brisk"
    assert raylab.best_checkpoint(trial).run == "brisk"
    assert locate("grid/trials/brisk", lab.storage).path == str(trial)
    monkeypatch.chdir(lab.storage.parent)
    assert locate("grid").path == str(lab.storage / "grid")  # `results` is where verbs look
    monkeypatch.chdir(lab.storage)
    assert locate("grid", storage="nowhere").path == str(lab.storage / "grid")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "grit"}, "did you mean 'grid'"),
        ({"name": "xyz"}, "known: alone, grid"),
        ({"name": "grid", "metric": "val/verb_top2"}, r"did you mean 'val/verb_top\d'"),
        ({"name": "grid", "metric": "train/loss"}, "unknown metric 'train/loss'"),
        ({"name": "grid", "metric": "val/loss", "mode": "best"}, 'mode = \'best\': write "max" or "min"'),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(lab, arguments, message):
    with pytest.raises(RaylabError, match=message):
        raylab.best_checkpoint(**arguments, storage=lab.storage)


def test_an_empty_storage_and_one_that_is_a_file_are_told_apart(tmp_path):
    assert raylab.runs(tmp_path) == raylab.runs(tmp_path / "absent") == []
    with pytest.raises(RaylabError, match="holds none"):
        raylab.best_checkpoint("grid", storage=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RaylabError, match="is a file: name a folder"):
        raylab.runs(tmp_path / "file")


# Runs and the leaderboard


def test_runs_lists_those_of_sweeps_too(lab):
    (lab.storage / "something else").mkdir()
    found = {run.name: run for run in raylab.runs(lab.storage)}
    assert {name: (run.sweep, run.state, run.epochs) for name, run in found.items()} == {
        "alone": (None, "finished", 3),
        "brisk": ("grid", "finished", 3),
        "gentle": ("grid", "finished", 3),
        "wild": ("grid", "failed", 0),
    }
    assert found["wild"].best is None
    run = found["brisk"]
    assert run.experiment.optim.lr == TRIALS["brisk"]
    history = run.history()
    assert list(history["epoch"]) == [1, 2, 3]
    assert run.best == history["val/action_top1"].max()
    assert run.seconds == history["seconds"].iloc[-1] > 0
    assert run.best_checkpoint() == raylab.best_checkpoint(run.path)
    assert run.best_checkpoint("val/loss").metrics["val/loss"] in set(history["val/loss"])


def test_the_leaderboard_has_every_trial_best_first_and_its_files_agree(lab):
    sweep = SweepFolder(Folder.open(lab.storage / "grid"))
    board = sweep.write_leaderboard()
    assert list(board.columns) == [
        *("trial", "state", "epochs", "val/action_top1", "best_epoch"),
        *("train/action_top1", "gap/action_top1", "optim.lr", "seconds", "error"),
    ]
    assert sorted(board["trial"]) == ["brisk", "gentle", "wild"]
    scores = board["val/action_top1"]
    assert scores[0] >= scores[1]
    failed = board.iloc[-1]
    assert failed["trial"] == "wild"
    assert pd.isna(failed["val/action_top1"])
    assert (failed["state"], failed["optim.lr"]) == ("failed", 1e30)
    assert failed["error"] == "the loss is nan: lower optim.lr"
    for row in board.iloc[:-1].to_dict("records"):
        history = pd.DataFrame(sweep.run(row["trial"]).history()).set_index("epoch")
        at_best = history.loc[row["best_epoch"]]
        assert row["val/action_top1"] == at_best["val/action_top1"] == history["val/action_top1"].max()
        assert row["train/action_top1"] == at_best["train/action_top1"]
        assert row["gap/action_top1"] == pytest.approx(row["train/action_top1"] - row["val/action_top1"])
        assert row["optim.lr"] == TRIALS[row["trial"]]

    pd.testing.assert_frame_equal(pd.read_parquet(lab.storage / "grid" / "leaderboard.parquet"), board)
    table = pd.read_csv(lab.storage / "grid" / "leaderboard.csv")  # to CSV, an empty text is nothing
    pd.testing.assert_frame_equal(table.fillna({"error": ""}), board)


def test_pruning_keeps_the_best_trials_and_leaves_running_ones_alone(lab):
    sweep = SweepFolder(Folder.open(lab.storage / "grid"))
    sweep.run("third").create(SPACE.trial({"optim.lr": 1e-2}), "grid")
    sweep.run("third").set_status("running")
    shutil.copytree(lab.storage / "alone" / "checkpoints", lab.storage / "grid" / "trials" / "third" / "checkpoints")
    running = sorted(seals(sweep.run("third").folder.path))
    best, other, _ = sweep.leaderboard().query("state != 'running'")["trial"]
    kept = raylab.best_checkpoint(lab.storage / "grid" / "trials" / best)

    sweep.prune(2)
    assert [len(sweep.run(name).checkpoints()) for name in (best, other)] == [1, 1]
    sweep.prune(1)
    assert list(seals(sweep.run(best).folder.path)) == [Path(kept.path)]
    assert sweep.run(other).checkpoints() == []
    assert sorted(seals(sweep.run("third").folder.path)) == running


# Files that want to run code


class Mischief:
    """Unpickled, it writes a file."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.write_text, (self.trace, "ran")


@pytest.fixture
def poison(tmp_path):
    trace = tmp_path / "trace"
    content = pickle.dumps(Mischief(trace))
    pickle.loads(content)  # noqa: S301 - it does run where something unpickles it
    assert trace.exists()
    trace.unlink()
    yield content
    assert not trace.exists()


@pytest.mark.parametrize("file", ["checkpoint.json", "experiment.json", "labels.json", "model.safetensors"])
def test_a_poisoned_checkpoint_is_refused_by_name(lab, poison, file):
    best = raylab.best_checkpoint("alone", storage=lab.storage)
    (Path(best.path) / file).write_bytes(poison)
    with pytest.raises(RaylabError, match=file):
        Checkpoint.open(best.path).load_model()


@pytest.mark.parametrize("file", ["training.json", "training.safetensors", "model.safetensors"])
def test_a_run_does_not_go_on_from_a_poisoned_checkpoint(lab, poison, file):
    run = RunFolder(Folder.open(lab.storage / "alone"))
    (Path(run.latest().folder.path) / file).write_bytes(poison)
    with pytest.raises(Exception, match=r"(?i)utf-8|header"):
        Trainer(EXPERIMENT, load_dataset(EXPERIMENT.data), run, Worker(torch.device("cpu")))


@pytest.mark.parametrize("file", ["alone/run.json", "alone/status.json", "grid/sweep.json"])
def test_a_poisoned_run_or_sweep_is_refused_by_name(lab, poison, file):
    (lab.storage / file).write_bytes(poison)
    name, _, last = file.partition("/")
    with pytest.raises(RaylabError, match=last):
        if name == "alone":
            raylab.runs(lab.storage)
        else:
            SweepFolder(locate(name, lab.storage)).leaderboard()


def test_weights_of_another_model_are_refused_by_name(lab):
    best = raylab.best_checkpoint("alone", storage=lab.storage)
    labels = {head: names[:2] for head, names in best.labels.items()}
    (Path(best.path) / "labels.json").write_text(json.dumps(labels))
    with pytest.raises(RaylabError, match=r"model.safetensors: not weights of this model: (?s:.)*size mismatch"):
        Checkpoint.open(best.path).load_model()
