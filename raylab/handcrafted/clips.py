"""Handcrafted features of the clips of a data set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raylab.config import DataConfig
from raylab.data.clips import ClipTable, Dataset
from raylab.data.datasets import load_dataset
from raylab.errors import RaylabError
from raylab.handcrafted.extract import HandcraftedSettings
from raylab.handcrafted.measures import FEATURES
from raylab.handcrafted.parallel import Run, extract_all, on_cluster

NAMES = [feature.name for feature in FEATURES]


@dataclass(frozen=True)
class Described:
    """The clips of a split by their features.

    Attributes:
        ids: of the clips.
        values: float64 (clips, features).
        labels: head → int64 (clips,).
    """

    ids: list[str]
    values: NDArray[np.float64]
    labels: dict[str, NDArray[np.int64]]


def describe(dataset: Dataset, split: str, config: DataConfig, run: Run = map) -> Described:
    """The features of every clip of a split, each a whole video; those that a clip store has left out are left out.

    Args:
        dataset: that `config` names.
        split: of it.
        config: `frames` of each video are measured.
        run: computes what is not in the cache, by default in this process.

    Raises:
        RaylabError: a clip is a part of a video, or a video is missing or cannot be read.
    """
    clips, stored = dataset.splits[split].clips, dataset.stored.get(split)
    if stored:
        clips = clips.take(stored.chosen.tolist())
    paths = _videos(clips, dataset, split, config)
    found = extract_all(paths, HandcraftedSettings(frames=config.frames), run=run)
    if found.unreadable:
        path, reason = next(iter(found.unreadable.items()))
        raise RaylabError(
            f"{split}: {len(found.unreadable)} of {len(paths)} videos cannot be read, the first: {reason}; remove them "
            f"from the data set, or `raylab prepare` a clip store, which leaves them out ({path.name})"
        )
    row = {path: at for at, path in enumerate(found.videos)}
    labels = {head: np.array([clip.labels[head] for clip in clips], np.int64) for head in dataset.heads}
    return Described([clip.id for clip in clips], found.values[[row[path] for path in paths]], labels)


def prepare(configs: Iterable[DataConfig], run: Run = on_cluster) -> int:
    """Compute what `describe` will need of these data sets' clips, on all CPUs of the cluster; the number of videos.

    Runs find it in the cache: none of them waits for CPUs that others hold.

    Raises:
        RaylabError: as `describe`.
    """
    seen: set[str] = set()
    for config in {config.frames: config for config in configs}.values():
        dataset = load_dataset(config)
        for split in dataset.splits:
            seen.update(describe(dataset, split, config, run).ids)
    return len(seen)


def _videos(clips: ClipTable, dataset: Dataset, split: str, config: DataConfig) -> Sequence[Path]:
    for clip in clips:
        if clip.start > 0 or math.isfinite(clip.stop):
            raise RaylabError(
                f"clip {clip.id}: is {clip.start:g} to {clip.stop:g} s of {clip.video}: handcrafted features are of "
                "whole videos: set data.dataset=metadata or labelled"
            )
    sources = dataset.sources or load_dataset(config.model_copy(update={"store": False}), (split,)).sources
    return [sources[clip.video] for clip in clips]
