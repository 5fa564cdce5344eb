"""Every registered model trains under Ray's `TorchTrainer`, on two workers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from raylab.config import Experiment
from raylab.models.registry import find_model, list_models

NAMES = [entry.name for entry in list_models() if not entry.handcrafted]
# What an experiment of each task has, besides what all have here.
TASKS: dict[str, dict[str, Any]] = {
    "action": {},
    "distillation": {
        "data.dataset": "kitchen_labelled",
        "distill.pretrained": False,
        "distill.cache": False,
        "optim.lr": 1e-3,
    },
    "keyframes": {
        "data.dataset": "kitchen_keyframes",
        "data.sampling": "rate",
        "optim.lr": 1e-3,
    },
    "classification": {
        "data.dataset": "kitchen_aura",
        "data.split": "stratified",
        "data.folds": 2,
        "data.max_clips": 32,
    },
}


def two_steps_of_each(config: dict[str, Any]) -> None:
    """What each worker runs: all models in turn; each rank writes what it saw."""
    import torch
    import torch.distributed as dist

    from raylab.data.datasets import load_dataset
    from raylab.storage import Folder
    from raylab.training.loop import Trainer, Worker
    from raylab.training.runfolder import RunFolder

    torch.set_num_threads(1)
    worker, seen = Worker.current(torch.device("cpu")), {}
    for name in config["models"]:
        entry = find_model(name)
        settings = {"model.name": name, "task": entry.task, **{f"model.{part}": False for part in entry.parts}}
        experiment = Experiment.parse(config["experiment"]).override(settings | config["tasks"][entry.task])
        run = RunFolder(Folder.open(Path(config["folder"]) / name))
        if worker.rank == 0:
            run.create(experiment)
        dist.barrier()
        trainer = Trainer(experiment, load_dataset(experiment.data), run, worker)
        task = trainer.state.task
        parameters = {f"model.{key}": p for key, p in task.model.named_parameters()}
        if task.auxiliary:
            parameters |= {f"auxiliary.{key}": p for key, p in task.auxiliary.named_parameters()}
        before = {key: value.detach().clone() for key, value in parameters.items()}
        trainer.train_epoch()
        seen[name] = {
            "steps": trainer.state.progress.step,
            "loss": float(trainer.state.loss.compute()["loss"]),
            "figures": {figure: float(value) for figure, value in trainer.state.metric.compute().items()},
            "still": [key for key, p in parameters.items() if p.requires_grad and torch.equal(p, before[key])],
            "moved": [key for key, p in parameters.items() if not p.requires_grad and not torch.equal(p, before[key])],
            "sums": {key: value.double().sum().item().hex() for key, value in parameters.items()},
        }
    (Path(config["folder"]) / f"rank{worker.rank}.json").write_text(json.dumps(seen))


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, small_experiment: Experiment) -> list[dict[str, Any]]:
    """What each of two workers saw, by model."""
    base = {"name": "resnet18_avg", "scale": "tiny", "pretrained": False, "dropout": 0.3}
    # Two steps: some residual branches begin at zero, and what lies before gets no gradient in the first.
    changes = {"data.max_clips": 16, "data.batch_size": 4, "optim.lr": 0.1, "train.clip_norm": None}
    experiment = Experiment.parse({**small_experiment.to_dict(), "model": base}).override(changes)
    folder = tmp_path_factory.mktemp("models")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # which a worker cannot import
    TorchTrainer(
        two_steps_of_each,
        train_loop_config={"models": NAMES, "tasks": TASKS, "experiment": experiment.to_dict(), "folder": str(folder)},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=str(folder / "ray")),
    ).fit()
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", NAMES)
def test_two_workers_move_every_trainable_weight_alike(seen: list[dict[str, Any]], name: str) -> None:
    first, second = (rank[name] for rank in seen)
    assert first["steps"] == 2
    assert 0 < first["loss"] < 100
    assert first["figures"] == second["figures"]
    assert first["still"] == first["moved"] == []
    assert first["sums"] == second["sums"]
