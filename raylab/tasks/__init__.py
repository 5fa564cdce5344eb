"""What is learned: models with a loss and metrics. Pure PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from raylab.config import Experiment
from raylab.tasks.base import Task, TaskOutput

__all__ = ["TASKS", "Task", "TaskOutput", "build_task"]

Labels = Mapping[str, Sequence[str]]


def _action(experiment: Experiment, labels: Labels, checkpoint: Path | None) -> Task:
    from raylab.models.registry import build_model
    from raylab.tasks.action import ActionTask

    heads = {head: len(names) for head, names in labels.items()}
    return ActionTask(build_model(experiment.model, heads, checkpoint=checkpoint), heads, experiment.loss)


def _distillation(experiment: Experiment, labels: Labels, checkpoint: Path | None) -> Task:
    from raylab.tasks.distillation import DistillationTask

    return DistillationTask(experiment, labels, checkpoint)


def _keyframes(experiment: Experiment, labels: Labels, checkpoint: Path | None) -> Task:
    from raylab.tasks.keyframes import KeyframesTask

    return KeyframesTask(experiment, checkpoint)


def _classification(experiment: Experiment, labels: Labels, checkpoint: Path | None) -> Task:
    from raylab.tasks.classification import ClassificationTask

    return ClassificationTask(experiment, labels, checkpoint)


TASKS: dict[str, Callable[[Experiment, Labels, Path | None], Task]] = {
    "action": _action,
    "distillation": _distillation,
    "keyframes": _keyframes,
    "classification": _classification,
}


def build_task(experiment: Experiment, labels: Labels, checkpoint: Path | None = None) -> Task:
    """The task an experiment names.

    Args:
        experiment: names the task, the model and the loss.
        labels: head name → names of its classes.
        checkpoint: the folder of a checkpoint whose weights will fill the model; without one it starts as
            `model.pretrained` says.
    """
    task = TASKS[experiment.task](experiment, labels, checkpoint)
    task.experiment = experiment
    return task
