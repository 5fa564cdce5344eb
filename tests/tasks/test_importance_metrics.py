"""Figures against scipy, against every pair and every way to break a tie, and by hand; the metric in pieces."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr

from raylab.data.importance import Importance
from raylab.data.windows import windows
from raylab.tasks.importance_metrics import (
    FIGURES,
    ImportanceMetrics,
    average,
    figures,
    join,
    kendall,
    precision,
    spearman,
)

FPS = 2.0
LEVELS = st.lists(st.tuples(*[st.integers(0, 4)] * 4), min_size=2, max_size=30)  # a score, and three annotators'


def importance(samples: int, annotators: int = 5, seed: int = 0) -> Importance:
    """Of a video of 10 frames a second, in shots of a second."""
    rng = np.random.default_rng(seed)
    frames = samples * 5
    begins = np.arange(0, frames, 10)
    shots = np.stack([begins, np.minimum(begins + 9, frames - 1)], 1)
    scores = rng.integers(0, 5, (annotators, samples)) / 4
    return Importance(scores.astype(np.float32), shots, frames, np.arange(0, frames, 5))


@settings(max_examples=50, deadline=None)
@given(LEVELS)
def test_correlations_are_those_of_scipy(rows: list[tuple[int, ...]]) -> None:
    levels = np.array(rows, np.float64).T
    scores, references = levels[:2], levels[1:]
    found = {spearmanr: spearman(scores, references), kendalltau: kendall(scores, references)}
    for published, values in found.items():
        for (i, one), (j, other) in product(enumerate(scores), enumerate(references)):
            if np.ptp(other) == 0:
                assert math.isnan(values[i, j])
            elif np.ptp(one) == 0:
                assert values[i, j] == 0
            else:
                assert values[i, j] == pytest.approx(published(one, other).statistic, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=6), st.data())
def test_precision_is_the_mean_over_all_ways_to_break_ties(rows: list[tuple[int, int]], data: st.DataObject) -> None:
    scores, reference = np.array(rows, np.float64).T
    count = data.draw(st.integers(1, len(rows)))
    relevant = reference >= sorted(reference)[-count]
    orders = (np.array(order) for order in permutations(range(len(rows))))
    shares = [relevant[order[np.argsort(-scores[order], kind="stable")][:count]].mean() for order in orders]
    assert precision(scores, reference, count) == pytest.approx(np.mean(shares))
    assert precision(reference, reference, count) == 1


def test_by_hand() -> None:
    # 20 samples of 100 frames, shots of 10 frames: one shot is 15 % of the video, three samples are keyframes.
    rising, other = np.arange(20) / 19, np.arange(20)[::-1] / 19
    truth = replace(importance(20), scores=np.stack([rising, rising, other]).astype(np.float32))
    found = figures(rising, truth)
    assert list(found) == list(FIGURES)
    assert found["spearman_mean"] == found["kendall_mean"] == pytest.approx(1)
    assert found["spearman_annotators"] == found["kendall_annotators"] == pytest.approx(1 / 3)
    assert found["mse"] == pytest.approx(np.mean((rising - (2 * rising + other) / 3) ** 2), abs=1e-6)
    assert found["precision_15"] == 1
    assert found["f1"] == pytest.approx(2 / 3)  # the last shot, which is that of two of three


def test_scores_that_rank_nothing_gain_nothing() -> None:
    truth = importance(40)
    found = figures(np.full(40, 0.5), truth)
    assert [found[name] for name in FIGURES if "_mean" in name or "_annotators" in name] == [0, 0, 0, 0]
    assert found["precision_15"] < 0.5
    silent = replace(truth, scores=np.concatenate([truth.scores, np.full((1, 40), 0.5, np.float32)]))
    scores = np.random.default_rng(1).random(40)
    for name in ("spearman_annotators", "kendall_annotators"):
        assert figures(scores, silent)[name] == pytest.approx(figures(scores, truth)[name])  # who says one thing
    nothing = replace(truth, scores=np.full((2, 40), 0.5, np.float32))
    assert math.isnan(figures(scores, nothing)["spearman_mean"])
    assert all(math.isnan(value) for value in figures(np.where(scores > 0.9, np.nan, scores), truth).values())


def test_a_video_without_annotators_is_judged_by_its_mean_alone() -> None:
    known = importance(40)
    mean_only = Importance(
        known.scores[:0], known.shots, known.frames, known.picks, known.references, published_mean=known.mean
    )
    scores = np.random.default_rng(1).random(40)
    found, whole = figures(scores, mean_only), figures(scores, known)
    for name in FIGURES:
        assert math.isnan(found[name]) if "annotators" in name else found[name] == pytest.approx(whole[name])
    rows = [found, whole]
    assert average(rows)["kendall_annotators"] == whole["kendall_annotators"]  # where it is nan, it does not count


def test_several_scorings_are_averaged() -> None:
    truth, several = importance(40), np.random.default_rng(1).random((3, 40))
    assert figures(several, truth) == pytest.approx(average([figures(scores, truth) for scores in several]))


def test_samples_that_were_not_seen_take_no_part() -> None:
    truth, scores = importance(40), np.random.default_rng(1).random(40).astype(np.float32)
    seen = np.arange(40) < 24
    found = figures(np.where(seen, scores, 7), truth, seen)
    cut = importance(24)
    cut = replace(cut, scores=truth.scores[:, :24])
    alone = figures(scores[:24], cut)
    for name in FIGURES[:-1]:
        assert found[name] == pytest.approx(alone[name])
    assert found["f1"] == figures(np.where(seen, scores, 0), truth)["f1"]


def split(samples: dict[str, int], window: int) -> tuple[list, dict[str, Importance]]:
    clips = [clip for video, n in samples.items() for clip in windows(video, n / FPS, 10.0, FPS, window)]
    return clips, {video: importance(n, seed=n) for video, n in samples.items()}


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 150), st.integers(1, 70), st.integers(0, 1000))
def test_windows_are_put_together_as_they_were_cut(samples: int, window: int, seed: int) -> None:
    clips, known = split({"a": samples, "b": 3}, window)
    whole = {video: np.random.default_rng(seed).random(n) for video, n in (("a", samples), ("b", 3))}
    rows = np.full((len(clips), window), np.nan)
    for row, clip in zip(rows, clips, strict=True):
        first = round(clip.start * FPS)
        part = whole[clip.video][first : first + window]
        row[: len(part)] = part
    joined = join(clips, rows, known, FPS)
    assert list(joined) == ["a", "b"]
    for video, (scores, seen) in joined.items():
        assert np.array_equal(scores, whole[video])
        assert seen.all()


SAMPLES, WINDOW = {"a": 150, "b": 60, "c": 7}, 60


def filled(metric: ImportanceMetrics, batches: list[list[int]], said: torch.Tensor) -> ImportanceMetrics:
    for batch in batches:
        at = torch.tensor(batch)
        metric.update({"importance": said[at]}, {"window": at, "importance": torch.zeros(len(at), WINDOW)})
    return metric


def test_the_metric_is_the_same_in_any_order_and_divided_among_workers() -> None:
    clips, known = split(SAMPLES, WINDOW)
    said = torch.rand(len(clips), WINDOW, generator=torch.Generator().manual_seed(0))

    def fresh() -> ImportanceMetrics:
        return ImportanceMetrics(clips, known, FPS, WINDOW)

    whole = filled(fresh(), [[0, 1], [2, 3], [4]], said)
    expected = average(
        [figures(scores, known[video]) for video, (scores, _) in join(clips, said.numpy(), known, FPS).items()]
    )
    assert {name: value.item() for name, value in whole.compute().items()} == expected
    workers = filled(fresh(), [[4, 0], [2]], said)
    workers.merge_state(filled(fresh(), [[3, 1]], said))
    assert workers.compute() == whole.compute()
    resumed = fresh()
    resumed.load_state_dict(filled(fresh(), [[4], [1, 2]], said).state_dict())
    assert filled(resumed, [[3, 0]], said).compute() == whole.compute()
    whole.reset()
    assert filled(whole, [[0, 1, 2, 3, 4]], said).compute() == workers.compute()


def test_the_metric_judges_what_was_seen() -> None:
    clips, known = split(SAMPLES, WINDOW)
    said = torch.rand(len(clips), WINDOW, generator=torch.Generator().manual_seed(0))
    metric = filled(ImportanceMetrics(clips, known, FPS, WINDOW), [[1, 3]], said.half())
    middle = np.zeros(150, np.float32)
    middle[60:120] = said[1].half().float()
    rows = [figures(middle, known["a"], middle > 0), figures(said[3].half().float().numpy(), known["b"])]
    assert {name: value.item() for name, value in metric.compute().items()} == pytest.approx(average(rows))
