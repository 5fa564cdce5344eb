"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable

from raylab.config import DataConfig
from raylab.data import epic
from raylab.data.clips import Dataset
from raylab.data.kitchen import kitchen_root


def _kitchen(config: DataConfig) -> Dataset:
    root = kitchen_root(config.kitchen)
    return epic.load(config.model_copy(update={"root": str(root), "annotations": None}))


DATASETS: dict[str, Callable[[DataConfig], Dataset]] = {"epic": epic.load, "kitchen": _kitchen}


def load_dataset(config: DataConfig) -> Dataset:
    """Clips, class names and video files of the data set that `config` names.

    Raises:
        RaylabError: files are missing or malformed; the message says which, and what to do.
    """
    return DATASETS[config.dataset](config)
