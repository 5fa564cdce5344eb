"""The data that a model is judged on: a split, with the classes that the model was trained for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raylab.config import Experiment
from raylab.data.clips import Dataset
from raylab.data.datasets import load_dataset
from raylab.errors import RaylabError

if TYPE_CHECKING:
    from raylab.evaluation.predictions import Views
    from raylab.results import Checkpoint


def changed(experiment: Experiment, overrides: Mapping[str, Any]) -> Experiment:
    """An experiment with other data settings.

    Raises:
        RaylabError: a setting is not one of the data's.
    """
    foreign = [path for path in overrides if not path.startswith("data.")]
    if foreign:
        raise RaylabError(f"{foreign[0]}: a trained model's settings stay as they are; change data.… settings only")
    return experiment.override(overrides)


def open_split(experiment: Experiment, checkpoint: Checkpoint, split: str, views: Views) -> Dataset:
    """One split, with the frames that the views need.

    Raises:
        RaylabError: it is not there, or its classes are not those that the model was trained for.
    """
    dataset = load_dataset(views.reading(experiment.data), (split,), views.crops)
    if dataset.labels != checkpoint.labels:
        differ = [head for head in {**dataset.labels, **checkpoint.labels} if _differ(head, dataset, checkpoint)]
        raise RaylabError(
            f"{checkpoint.path}: the model was trained for other {' and '.join(differ)} classes than those of "
            f"data.dataset = {experiment.data.dataset}, data.root = {experiment.data.root}"
        )
    return dataset


def has_labels(dataset: Dataset, split: str) -> bool:
    """Whether the classes of a split's clips are known, or the importance of their frames."""
    return bool(dataset.splits[split].clips[0].labels or dataset.importance)


def _differ(head: str, dataset: Dataset, checkpoint: Checkpoint) -> bool:
    return dataset.labels.get(head) != checkpoint.labels.get(head)
