"""Shots of a video, where nobody has annotated them: kernel temporal segmentation of colour histograms.

D. Potapov, M. Douze, Z. Harchaoui and C. Schmid, "Category-specific video summarization", ECCV 2014, section 3: the
video is cut into the segments with the least variance within them, in the feature space of a kernel, found exactly by
dynamic programming; how many there are is what minimises that variance plus a penalty on their number. Here their
descriptors are replaced by colour histograms, which are cheap: of each quarter of the picture, 8 × 8 × 8 colours, and
the kernel is the inner product of their square roots (Hellinger's kernel, 1 for equal histograms).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLES = 2.0
"""A second, of the frames that shots are found in: a boundary is this exact."""
SHORTEST = 1.0
"""Seconds of the shortest shot that is looked for."""
MOST = 0.25
"""Shots for each sample, at most: one every two seconds, as in TVSum's annotation."""
WEIGHT = 0.5
"""Of the penalty on the number of shots: histograms of two shots are more alike than the paper's descriptors."""
BINS = 8
QUARTERS = 2
WIDTH = 160
FRAMES_AT_ONCE = 32

Array = NDArray[np.float64]


def change_points(features: NDArray[Any], shortest: int = 1, most: int | None = None, weight: float = 1.0) -> list[int]:
    """Where a sequence changes: kernel temporal segmentation with the inner product as the kernel.

    The objective is L / n + weight · m / 2n · (log(n / m) + 1) for m change points, where L is the sum over segments of
    squared distances to their mean (equations 6 and 9 of the paper; the number of segments is free).

    Args:
        features: (n, D); best of unit length, so that `weight` means the same for every video.
        shortest: length of the shortest segment.
        most: change points, at most; as many as fit, if not given.
        weight: of the penalty. More makes fewer segments.

    Returns:
        The first index of each segment but the first, ascending.
    """
    n = len(features)
    fit = n // shortest - 1
    most = max(0, fit if most is None else min(most, fit))
    costs = _costs(np.asarray(features, np.float64), shortest)
    best = costs[0]  # best[j]: least cost of the first j with m change points
    totals, origins = [best[n]], []
    for _ in range(most):
        ways = best[:, None] + costs  # [i, j]: the last segment begins at i
        origin = ways.argmin(0)
        best = ways[origin, np.arange(n + 1)]
        origins.append(origin.astype(np.int32))
        totals.append(best[n])
    m = np.arange(1, most + 1)
    penalties = np.concatenate([[0.0], m / (2 * n) * (np.log(n / m) + 1)])
    number = int(np.argmin(np.array(totals) / n + weight * penalties))
    found, end = [], n
    for origin in reversed(origins[:number]):
        end = int(origin[end])
        found.append(end)
    return found[::-1]


def _costs(features: Array, shortest: int) -> Array:
    """[i, j]: the sum of squared distances to the mean of features i to j − 1; infinite for segments too short."""
    n = len(features)
    kernel = features @ features.T
    own = np.concatenate([[0.0], np.cumsum(np.diag(kernel))])
    block = np.zeros((n + 1, n + 1))
    block[1:, 1:] = kernel.cumsum(0).cumsum(1)
    corner = np.diag(block)
    length = np.arange(n + 1)[None] - np.arange(n + 1)[:, None]
    inside = corner[None] + corner[:, None] - block - block.T
    costs = own[None] - own[:, None] - inside / np.maximum(length, 1)
    return np.where(length >= shortest, np.maximum(costs, 0.0), np.inf)


def histograms(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Square roots of colour histograms.

    Args:
        frames: RGB (T, H, W, 3).

    Returns:
        (T, 2048), of unit length.
    """
    step = 256 // BINS
    colours = (frames // step).astype(np.int64) @ np.array([BINS * BINS, BINS, 1])
    rows, columns = (np.arange(size) * QUARTERS // size for size in colours.shape[1:])
    cells = QUARTERS * QUARTERS * BINS**3
    bins = colours + (rows[:, None] * QUARTERS + columns) * BINS**3
    counts = np.stack([np.bincount(picture.ravel(), minlength=cells) for picture in bins])
    shares: NDArray[np.float32] = np.sqrt(counts / bins[0].size).astype(np.float32)
    return shares


def find_shots(source: Path, frames: int, rate: float) -> NDArray[np.int64]:
    """The shots of a video file.

    Args:
        source: the file.
        frames: of the video, as its annotation counts them.
        rate: frames a second, likewise.

    Returns:
        int64 (S, 2), first and last frame of each, inclusive; together they are all frames.

    Raises:
        RaylabError: the video cannot be read.
    """
    from torchvision.transforms.v2 import functional

    from raylab.data.video import read_frames
    from raylab.data.windows import pick

    picks = pick(frames, rate, SAMPLES)
    features = []
    for first in range(0, len(picks), FRAMES_AT_ONCE):
        times = [k / SAMPLES for k in range(first, min(first + FRAMES_AT_ONCE, len(picks)))]
        pictures = read_frames(source, times)
        if pictures.shape[3] > WIDTH:
            pictures = functional.resize(pictures, [pictures.shape[2] * WIDTH // pictures.shape[3], WIDTH])
        features.append(histograms(pictures.permute(0, 2, 3, 1).numpy()))
    changes = change_points(np.concatenate(features), round(SHORTEST * SAMPLES), round(MOST * len(picks)), WEIGHT)
    return as_shots(picks[changes].tolist(), frames)


def uniform_shots(frames: int, rate: float, seconds: float = 2.0) -> NDArray[np.int64]:
    """Shots of equal length, as TVSum's annotators saw the videos; the last may be shorter."""
    count = max(1, round(frames / rate / seconds))
    return as_shots(sorted({round(k * seconds * rate) for k in range(1, count)}), frames)


def as_shots(changes: Sequence[int], frames: int) -> NDArray[np.int64]:
    """Shots, int64 (S, 2), from the frames that each but the first begins with."""
    firsts = np.array([0, *changes], np.int64)
    return np.stack([firsts, np.append(firsts[1:], frames) - 1], 1)
