"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from raylab.config import DataConfig
from raylab.data import epic, labelled, metadata, tvsum
from raylab.data.annotation_cache import cached, content, digest
from raylab.data.clips import Dataset
from raylab.data.kitchen import EPIC, Layout, kitchen_root
from raylab.data.kitchen_aura import AURA
from raylab.data.kitchen_keyframes import KEYFRAMES
from raylab.data.kitchen_labelled import LABELLED
from raylab.data.splits import POOLED, divide
from raylab.data.store.find import find_store
from raylab.errors import RaylabError


class Reader(Protocol):
    """A module that knows one layout of files. What it reads is cached, where the videos lie is not.

    Attributes:
        FORMAT: of what it reads; raised when a change of the code changes that.
        SETTINGS: of `DataConfig`, those that decide what it reads from given files.
    """

    FORMAT: int

    @property
    def SETTINGS(self) -> tuple[str, ...]: ...

    def annotation_files(self, config: DataConfig, splits: Sequence[str]) -> dict[str, Path]:
        """The files that the annotations of these splits are read from, by what they hold."""

    def read_dataset(self, files: Mapping[str, Path], config: DataConfig) -> Dataset:
        """Clips and class names, without sources: a function of the files' content and of `SETTINGS` alone."""

    def find_sources(self, config: DataConfig, videos: Mapping[str, str]) -> dict[str, Path]:
        """The source of each video, as `Dataset` has them; `videos` is video id → group."""


@dataclass(frozen=True)
class Entry:
    """One data set: how it is laid out, and `locate`, which names its folders in the settings of a run."""

    reader: Reader
    locate: Callable[[DataConfig], DataConfig] = lambda config: config


def _render(layout: Layout[Any], config: DataConfig) -> DataConfig:
    root = kitchen_root(config.kitchen, layout=layout)
    return config.model_copy(update={"root": str(root), "annotations": None})


DATASETS = {
    "epic": Entry(epic),
    "kitchen": Entry(epic, partial(_render, EPIC)),
    "labelled": Entry(labelled),
    "kitchen_labelled": Entry(labelled, partial(_render, LABELLED)),
    "tvsum": Entry(tvsum),
    "kitchen_keyframes": Entry(tvsum, partial(_render, KEYFRAMES)),
    "metadata": Entry(metadata),
    "kitchen_aura": Entry(metadata, partial(_render, AURA)),
}


def load_annotations(config: DataConfig, splits: Sequence[str] = ("train", "val")) -> Dataset:
    """Clips and class names of the data set that `config` names. Videos need not be there.

    Annotations are parsed once: later calls map them from the cache folder, for as long as the files are unchanged.

    Args:
        config: `dataset` and what says where it lies; `split`, and what annotations are read by (`Reader.SETTINGS`).
        splits: those that are wanted; files of others need not be there.

    Raises:
        RaylabError: files are missing or malformed; the message says which, and what to do.
    """
    entry = DATASETS[config.dataset]
    reader, located = entry.reader, entry.locate(config)
    regrouped = config.split != "official" and not set(splits).isdisjoint(POOLED)
    files = reader.annotation_files(located, list(dict.fromkeys([*splits, *(POOLED if regrouped else ())])))
    key = digest(files, config.dataset, reader.FORMAT, *(getattr(config, name) for name in reader.SETTINGS))
    dataset = cached(key, lambda: reader.read_dataset(files, located))
    if regrouped:
        dataset = divide(dataset, config)
    return replace(dataset, splits={split: dataset.splits[split] for split in splits})


def fingerprint(config: DataConfig) -> dict[str, Any]:
    """What tells whether two runs have learnt from the same annotations, wherever these lie.

    Returns:
        `{"annotations": 32 hex digits of the files' content, "train": clips, "val": clips}`.

    Raises:
        RaylabError: files are missing or malformed.
    """
    entry = DATASETS[config.dataset]
    splits = POOLED if config.split != "official" else ("train", "val")
    files = entry.reader.annotation_files(entry.locate(config), list(splits))
    found = load_annotations(config).splits
    return {"annotations": content(files), **{split: len(its.clips) for split, its in found.items()}}


def load_dataset(config: DataConfig, splits: Sequence[str] = ("train", "val"), crops: int = 1) -> Dataset:
    """What `load_annotations` returns, and where the clips' frames come from.

    Args:
        config: as there; `sampling`; `store`, and what a store must hold.
        splits: those that are wanted; files and videos of others need not be there.
        crops: of each frame, as for `ClipDataset`.

    Raises:
        RaylabError: as there; `sampling` does not fit the data set; videos are missing; or `store` names a folder
            without a store that will do.
    """
    dataset = load_annotations(config, splits)
    if (config.sampling == "rate") != bool(dataset.importance):
        scored, sampling = ("are", "rate") if dataset.importance else ("are not", "uniform")
        raise RaylabError(
            f"data.sampling = {config.sampling}: single frames {scored} scored in data.dataset = {config.dataset}: set "
            f"data.sampling={sampling}"
        )
    clips = {split: annotations.clips for split, annotations in dataset.splits.items()}
    stored, refusals = find_store(config, stores_folder(config), clips, crops)
    if stored:
        return replace(dataset, stored=stored)
    videos = {video: group for table in clips.values() for video, group in table.videos.items()}
    entry = DATASETS[config.dataset]
    return replace(dataset, sources=entry.reader.find_sources(entry.locate(config), videos), refusals=refusals)


def stores_folder(config: DataConfig) -> Path:
    """The folder of clip stores: the one that `store` names, else one beside the data."""
    if isinstance(config.store, str):
        return Path(config.store).absolute()
    return _beside(config, "clip-stores")


def outputs_folder(config: DataConfig, cache: bool | str) -> Path:
    """The folder of what frozen networks say of clips: the one that `cache` names, else one beside the data."""
    return Path(cache).absolute() if isinstance(cache, str) else _beside(config, "frozen-outputs")


def _beside(config: DataConfig, name: str) -> Path:
    return Path(DATASETS[config.dataset].locate(config).root).absolute() / name
