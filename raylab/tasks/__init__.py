"""What is learned: models with a loss and metrics. Pure PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from raylab.config import Experiment
from raylab.models.registry import build_model
from raylab.tasks.action import ActionTask
from raylab.tasks.base import Task, TaskOutput

__all__ = ["TASKS", "ActionTask", "Task", "TaskOutput", "build_task"]

TASKS: dict[str, Callable[[Experiment, Mapping[str, int], bool], Task]] = {
    "action": lambda experiment, heads, pretrained: ActionTask(
        build_model(experiment.model, heads, pretrained=pretrained), heads, experiment.loss
    ),
}


def build_task(experiment: Experiment, heads: Mapping[str, int], pretrained: bool = True) -> Task:
    """The task an experiment names.

    Args:
        experiment: names the task, the model and the loss.
        heads: head name → number of classes.
        pretrained: whether to load the encoder's weights; False where a checkpoint follows.
    """
    return TASKS[experiment.task](experiment, heads, pretrained)
