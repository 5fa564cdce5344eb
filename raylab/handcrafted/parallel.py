"""The handcrafted features of many videos, on all CPUs of the cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raylab.cluster.connect import connect
from raylab.cluster.spread import spread
from raylab.errors import RaylabError
from raylab.handcrafted.cache import FeatureCache, default_folder
from raylab.handcrafted.extract import HandcraftedSettings, extract
from raylab.handcrafted.measures import FEATURES

Outcome = tuple[Path, "NDArray[np.float64] | str"]
Run = Callable[[Callable[[Path], Outcome], Iterable[Path]], Iterable[Outcome]]


def on_cluster(measure: Callable[[Path], Outcome], videos: Iterable[Path]) -> Iterable[Outcome]:
    """Each video on a CPU of the cluster, in the order in which they are done."""
    connect()
    return spread(measure, videos)


@dataclass(frozen=True)
class Extracted:
    """The features of those videos that can be read.

    Attributes:
        videos: in the order in which they were asked for.
        values: float64 (len(videos), len(FEATURES)).
        unreadable: the other videos → why they cannot be read.
    """

    videos: list[Path]
    values: NDArray[np.float64]
    unreadable: dict[Path, str]


def extract_all(
    videos: Sequence[Path],
    settings: HandcraftedSettings | None = None,
    folder: Path | None = None,
    show: Callable[[Iterable[Outcome], int], Iterable[Outcome]] | None = None,
    run: Run = on_cluster,
) -> Extracted:
    """The vector of each video, from the cache if it was computed before; a cluster is joined only if one was not.

    Each vector is kept as soon as it is there: what is killed goes on where it was. Videos that cannot be read are
    tried again every time.

    Args:
        videos: files, each seen under the same path on all nodes.
        settings: by default, those of `HandcraftedSettings`.
        folder: of the cache; by default, in the user's cache folder.
        show: passes on (video, its vector or why there is none) as each is computed, of so many in all.
        run: calls a function of each video; `map` does so in this process, without a cluster.

    Raises:
        RaylabError: the cache cannot be written, or the cluster not be joined.
    """
    settings = settings or HandcraftedSettings()
    cache = FeatureCache(folder or default_folder(), settings)
    videos = list(dict.fromkeys(videos))
    found: dict[Path, NDArray[np.float64]] = {}
    unreadable: dict[Path, str] = {}
    missing: dict[Path, str] = {}
    with ThreadPoolExecutor(16) as threads:  # they wait for the filesystem
        for video, looked_up in zip(videos, threads.map(partial(_look_up, cache), videos), strict=True):
            if isinstance(looked_up, RaylabError):
                unreadable[video] = str(looked_up)
                continue
            key, vector = looked_up
            if vector is None:
                missing[video] = key
            else:
                found[video] = vector
    if missing:
        done = run(partial(_measure, settings), missing)
        for video, outcome in show(done, len(missing)) if show else done:
            if isinstance(outcome, str):
                unreadable[video] = outcome
            else:
                cache.write(missing[video], outcome)
                found[video] = outcome
    readable = [video for video in videos if video in found]
    values = np.array([found[video] for video in readable]).reshape(-1, len(FEATURES))
    return Extracted(readable, values, {video: unreadable[video] for video in videos if video in unreadable})


def _look_up(cache: FeatureCache, video: Path) -> tuple[str, NDArray[np.float64] | None] | RaylabError:
    try:
        key = cache.key(video)
    except RaylabError as error:
        return error
    return key, cache.read(key)


def _measure(settings: HandcraftedSettings, video: Path) -> Outcome:
    try:
        return video, extract(video, settings)
    except RaylabError as error:
        return video, str(error)
