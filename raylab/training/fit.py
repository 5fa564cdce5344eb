"""Classifiers of handcrafted features: fitted at once, with the records and the checkpoint of any other run.

A checkpoint is a folder as `training.state` describes it, with `model.skops` and `features.json` in place of
`model.safetensors`, and of its training the history alone.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from raylab.config import Experiment
from raylab.data.clips import Dataset
from raylab.errors import RaylabError, unknown_name
from raylab.handcrafted.clips import NAMES, Described, describe
from raylab.models.feature_classifier import FeatureClassifier
from raylab.tasks import Task, build_task
from raylab.training.loop import Report
from raylab.training.recorder import Recorder
from raylab.training.runfolder import RunFolder
from raylab.training.state import LossMean, Progress, numbers
from raylab.training.usage import peak_memory

if TYPE_CHECKING:
    from torchmetrics import Metric


def fit(experiment: Experiment, dataset: Dataset, run: RunFolder, report: Report) -> Progress:
    """Fit what `experiment` names to the features of `dataset`, unless its run has a checkpoint already.

    Args:
        experiment: its model is one that is `handcrafted`.
        dataset: its clips, whole videos.
        run: where the checkpoint and the metrics go.
        report: called with the row of metrics: a run has one epoch.

    Raises:
        RaylabError: videos cannot be read, a class has no clip, or the task has no metric of the name that decides.
    """
    run.clean()
    if latest := run.latest():
        progress = Progress(**latest.folder.read_json("training.json")["progress"])
        run.write_history(progress.history)
        report(progress.history[-1])
        return progress
    started = time.monotonic()
    task = build_task(experiment, dataset.labels)
    task.watch(dataset)
    valid = [f"val/{name}" for name in ("loss", *task.loss_names, *task.metric_names)]
    if experiment.monitor not in valid:
        raise unknown_name("metric (train.monitor or search.metric)", experiment.monitor, valid)
    clips = {split: describe(dataset, split, experiment.data) for split in ("train", "val")}
    waited = time.monotonic() - started
    model = task.model
    assert isinstance(model, FeatureClassifier)  # noqa: S101 - so it is registered
    model.fit(clips["train"].values, clips["train"].labels[model.head], NAMES)

    training, val = (judge(task, clips[split], split) for split in ("train", "val"))
    monitored = val[experiment.monitor]
    if not math.isfinite(monitored):
        raise RaylabError(f"{experiment.monitor} is {monitored}: choose another search.metric")
    seconds = time.monotonic() - started
    row = {
        "epoch": 1,
        "step": 1,
        "best": monitored,
        "best_epoch": 1,
        **training,
        **val,
        **{f"gap/{name[4:]}": training[f"train/{name[4:]}"] - value for name, value in val.items()},
        "clips_per_second": len(clips["train"].ids) / seconds,
        "data_wait": waited / seconds,
        "memory": peak_memory(torch.device("cpu")),
        "seconds": seconds,
    }
    progress = Progress(epoch=1, step=1, best=monitored, best_epoch=1, seconds=seconds, history=[row])

    def write(folder: Path) -> None:
        (folder / "experiment.json").write_text(json.dumps(experiment.to_dict(), indent=1))
        (folder / "labels.json").write_text(json.dumps(dataset.labels))
        (folder / "training.json").write_text(json.dumps({"progress": asdict(progress)}))
        model.save(folder)

    run.write_checkpoint(write, epoch=1, step=1, metrics=val)
    Recorder(run, experiment, 0).epoch(progress.history, {}, done=True)
    report(row)
    return progress


@torch.no_grad()
def judge(task: Task, clips: Described, split: str) -> dict[str, float]:
    """Losses and metrics of all clips at once, under `split/`."""
    task.eval()
    labels = {head: torch.from_numpy(values) for head, values in clips.labels.items()}
    batch: dict[str, Any] = {"video": torch.from_numpy(clips.values), "labels": labels, "ids": clips.ids}
    metric: Metric = task.metrics(split)
    loss = LossMean(["loss", *task.loss_names])
    output = task(batch)
    metric.update(output.predictions, labels)
    loss.update({"loss": output.loss, **output.losses}, len(clips.ids))
    return numbers({**loss.compute(), **metric.compute()}, split)
