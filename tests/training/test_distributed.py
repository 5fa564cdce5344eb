"""Ray Train with real worker processes, one of which is killed under way."""

import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

import raylab
from raylab.config import ResourceConfig
from raylab.data.datasets import load_dataset
from raylab.errors import RaylabError
from raylab.storage import Folder
from raylab.training.loop import Worker, train
from raylab.training.runfolder import RunFolder


@pytest.mark.slow
def test_ray_trains_the_same_bits_on_through_a_killed_worker(tmp_path, small_experiment):
    experiment = small_experiment.override({"train.checkpoint_minutes": 1e-9, "train.epochs": 3})
    undisturbed = RunFolder(Folder.open(tmp_path / "undisturbed"))
    undisturbed.create(experiment)
    train(experiment, load_dataset(experiment.data), undisturbed, Worker(torch.device("cpu")), lambda row: None)

    killed = RunFolder(Folder.open(tmp_path / "killed"))
    victims = []

    def kill_after_the_second_checkpoint():
        while (latest := killed.latest()) is None or latest.step < 2:
            time.sleep(0.01)
        for process in psutil.Process().children(recursive=True):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                process.send_signal(signal.SIGKILL)
                victims.append(process.pid)

    assassin = threading.Thread(target=kill_after_the_second_checkpoint, daemon=True)
    assassin.start()
    run = raylab.fit(experiment, name="killed", storage=tmp_path)
    assert len(victims) == 1
    assert (run.state, run.epochs) == ("finished", 3)
    one, other = (load_file(Path(r.latest().folder.path) / "model.safetensors") for r in (undisturbed, killed))
    assert all(torch.equal(one[name], other[name]) for name in one)

    again = raylab.fit(experiment, name="killed", storage=tmp_path)  # the same call finds the finished run
    assert again.history().equals(run.history())


def test_two_ray_workers_count_every_validation_clip_once(tmp_path, small_experiment):
    experiment = small_experiment.override({"resources.workers": 2, "data.batch_size": 5, "train.epochs": 1})
    run = raylab.fit(experiment, storage=tmp_path)
    correct = run.history()["val/verb_top1"][0] * 24
    assert correct == pytest.approx(round(correct), abs=1e-4)
    checkpoint = run.best_checkpoint("val/verb_top1")
    assert checkpoint.metrics["val/verb_top1"] == run.history()["val/verb_top1"][0]


def test_a_failed_run_tells_its_cause_and_keeps_the_traceback(tmp_path, small_experiment):
    from raylab.training.trainer import TrainingFailed

    experiment = small_experiment.override({"optim.name": "sgd", "optim.lr": 1e30, "train.clip_norm": None})
    with pytest.raises(TrainingFailed, match=r"lower optim\.lr"):
        raylab.fit(experiment, name="diverged", storage=tmp_path)
    (run,) = raylab.runs(tmp_path)
    assert run.state == "failed"
    assert "lower optim.lr" in run.folder.status()["error"]


def test_asking_for_more_than_the_cluster_has_fails_at_once(tmp_path, small_experiment):
    experiment = small_experiment.override({"resources.workers": 4, "resources.cpus_per_worker": 1000})
    with pytest.raises(RaylabError, match=r"4 × \(1000 CPUs \+ 0 GPUs\).*lower resources.cpus_per_worker"):
        raylab.fit(experiment, storage=tmp_path)


def test_another_experiment_does_not_take_over_a_runs_name(tmp_path, small_experiment):
    RunFolder(Folder.open(tmp_path / "mine")).create(small_experiment)
    with pytest.raises(RaylabError, match=r"optim.lr 0.0001 → 0.001.*--fresh"):
        raylab.fit(small_experiment.override({"optim.lr": 1e-3}), name="mine", storage=tmp_path)
    more_workers = small_experiment.override({"resources.workers": 2})
    RunFolder(Folder.open(tmp_path / "mine")).create(more_workers)


@pytest.mark.parametrize(
    ("config", "nodes", "workers_at_once", "per_worker"),
    [
        ({}, [{"CPU": 2}], 2, {"CPU": 1}),
        ({"workers": 2}, [{"CPU": 3}], 1, {"CPU": 1}),
        ({}, [{"CPU": 16, "GPU": 4}], 4, {"CPU": 4, "GPU": 1}),
        ({"workers": 4}, [{"CPU": 16, "GPU": 4}, {"CPU": 16, "GPU": 4}, {"CPU": 8}], 2, {"CPU": 4, "GPU": 1}),
        ({"gpus_per_worker": 0.5, "cpus_per_worker": 2}, [{"CPU": 16, "GPU": 4}], 8, {"CPU": 2, "GPU": 0.5}),
        ({"cpus_per_worker": 3}, [{"CPU": 4}, {"CPU": 4}], 2, {"CPU": 3}),  # workers do not span nodes
    ],
)
def test_demand_is_what_the_nodes_can_hold(config, nodes, workers_at_once, per_worker):
    from raylab.cluster.capacity import Demand

    demand = Demand.of(ResourceConfig(**config), nodes)
    assert demand.fits(nodes) == workers_at_once
    assert demand.per_worker() == per_worker
