"""Summaries against every choice of shots, and against the protocol spelled out frame by frame."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylab.data.keyshots import f1, knapsack, portion, summarize

ITEMS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)), max_size=9)


def by_trying(values: list[int], weights: list[int], capacity: int) -> int:
    choices = product((0, 1), repeat=len(values))
    fitting = (chosen for chosen in choices if np.dot(chosen, weights) <= capacity)
    return max(int(np.dot(chosen, values)) for chosen in fitting)


@settings(max_examples=50, deadline=None)
@given(ITEMS, st.integers(0, 30))
def test_a_knapsack_holds_the_best_of_all_choices(items: list[tuple[int, int]], capacity: int) -> None:
    values, weights = (np.array([item[at] for item in items], np.int64) for at in (0, 1))
    chosen = knapsack(values, weights, capacity)
    assert chosen.dtype == bool
    assert weights[chosen].sum() <= capacity
    assert values[chosen].sum() == by_trying(values.tolist(), weights.tolist(), capacity)


def test_what_adds_nothing_stays_out() -> None:
    assert knapsack(np.array([2.0, 2.0, 0.0]), np.array([3, 3, 1]), 5).tolist() == [True, False, False]
    assert knapsack(np.array([1.0, 5.0]), np.array([2, 9]), 8).tolist() == [True, False]
    assert knapsack(np.array([1.0]), np.array([1]), 0).tolist() == [False]


def spelled_out(scores: list[float], shots: list[tuple[int, int]], frames: int, picks: list[int]) -> list[int]:
    """The same, one frame and one choice at a time."""
    each = [scores[max(at for at, pick in enumerate(picks) if pick <= frame)] for frame in range(frames)]
    values = [float(np.mean(each[first : last + 1])) for first, last in shots]
    lengths = [last - first + 1 for first, last in shots]
    choices = [c for c in product((0, 1), repeat=len(shots)) if np.dot(c, lengths) <= int(0.15 * frames)]
    best = max(choices, key=lambda chosen: np.dot(chosen, values))
    return [best[shot] for shot, length in enumerate(lengths) for _ in range(length)]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_a_summary_is_the_published_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(6, 30, rng.integers(3, 10))  # a sample of its own in each, so that no two are worth the same
    frames, begins = int(lengths.sum()), np.cumsum(lengths) - lengths
    shots = np.stack([begins, begins + lengths - 1], 1)
    picks = np.arange(0, frames, rng.integers(1, 6))
    scores = rng.random(len(picks)) + 0.01
    summary = summarize(scores, shots, frames, picks)
    assert (summary.dtype, summary.shape) == (np.uint8, (frames,))
    assert summary.tolist() == spelled_out(scores.tolist(), shots.tolist(), frames, picks.tolist())


def test_a_shot_is_worth_its_mean_and_costs_its_length() -> None:
    # 20 of 140 frames fit: not the long shot that is worth most, but the best of the short ones, then what still fits.
    shots = np.array([[0, 99], [100, 111], [112, 119], [120, 139]])
    scores = np.repeat([0.9, 0.5, 0.2, 0.6], [10, 1, 1, 2])
    picks = np.array([*range(0, 100, 10), 100, 112, 120, 130])
    summary = summarize(scores, shots, 140, picks)
    assert portion(140) == 21
    assert np.flatnonzero(summary).tolist() == list(range(100, 120))  # 0.5 + 0.2 > 0.6


def test_f1_by_hand() -> None:
    summary = np.array([1, 1, 0, 0], np.uint8)
    references = np.array([[1, 0, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], np.uint8)
    assert f1(summary, references) == pytest.approx((2 / 3 + 0 + 1 + 0) / 4)
    assert f1(np.zeros(4, np.uint8), references[3:]) == 0
    assert math.isnan(f1(summary, references[:0]))


def test_many_frames_of_a_long_video_are_counted() -> None:
    frames = 70_000  # past what a product of uint8, or of int16, can count
    assert f1(np.ones(frames, np.uint8), np.ones((2, frames), np.uint8)) == 1
