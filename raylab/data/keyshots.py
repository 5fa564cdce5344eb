"""Summaries of videos: the shots that are worth most, within 15 % of a video's length.

The protocol of K. Zhang et al., "Video Summarization with Long Short-term Memory", ECCV 2016, as the public code of
later work has it (https://github.com/KaiyangZhou/pytorch-vsumm-reinforce, https://github.com/e-apostolidis/PGL-SUM):
a frame of the video has the score of the last sample before it, a shot is worth the *mean* of its frames, and costs
its length.
"""

from __future__ import annotations

from math import nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHARE = 0.15
"""The part of a video that a summary may last, and of its frames that are keyframes."""


def portion(frames: int, share: float = SHARE) -> int:
    """How many of so many frames a share is, rounded down as in the public code."""
    return int(share * frames)


def summarize(
    scores: NDArray[Any], shots: NDArray[np.integer[Any]], frames: int, picks: NDArray[np.integer[Any]]
) -> NDArray[np.uint8]:
    """The best summary of a video.

    Args:
        scores: (N,), of its samples.
        shots: (S, 2), first and last frame of each shot, both inclusive.
        frames: of the video.
        picks: (N,), ascending, the frame that each sample is.

    Returns:
        uint8 (frames,), 1 in the shots chosen.
    """
    owner = np.searchsorted(picks, np.arange(frames), side="right") - 1
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(scores, np.float64)[owner.clip(0)])])
    begins, ends = shots[:, 0], np.minimum(shots[:, 1] + 1, frames)
    lengths = ends - begins
    chosen = knapsack((sums[ends] - sums[begins]) / lengths, lengths, portion(frames))
    summary = np.zeros(frames, np.uint8)
    for begin, end in zip(begins[chosen], ends[chosen], strict=True):
        summary[begin:end] = 1
    return summary


def knapsack(values: NDArray[Any], weights: NDArray[np.integer[Any]], capacity: int) -> NDArray[np.bool_]:
    """Which items are worth most together, of those that fit: exact, by dynamic programming.

    Args:
        values: (S,), not negative.
        weights: int (S,), not negative.
        capacity: that their weights may add up to.

    Returns:
        bool (S,); of choices that are worth the same, one that does without the last items.
    """
    best = np.zeros(capacity + 1)  # by the capacity that is used, of the items so far
    taken = np.zeros((len(values), capacity + 1), bool)
    for item, (value, weight) in enumerate(zip(values, weights, strict=True)):
        if weight <= capacity:
            with_it = best[: capacity + 1 - weight] + value
            taken[item, weight:] = with_it > best[weight:]
            np.maximum(best[weight:], with_it, out=best[weight:])
    chosen = np.zeros(len(values), bool)
    for item in reversed(range(len(values))):
        chosen[item] = taken[item, capacity]
        capacity -= int(weights[item]) * chosen[item]
    return chosen


def f1(summary: NDArray[np.uint8], references: NDArray[np.uint8]) -> float:
    """The harmonic mean of precision and recall against each reference (A, frames), averaged over them: in [0, 1].

    It is 0 against a reference that shares no frame with the summary, nan where there is no reference.
    """
    if not len(references):
        return nan
    shared = references @ summary.astype(np.int64)
    lengths = references.sum(1, dtype=np.int64) + int(summary.sum())
    return float(np.mean(2 * shared / np.maximum(lengths, 1)))
