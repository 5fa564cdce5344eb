"""Shots: where sequences of known boundaries change, and where real videos do."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations, pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raylab.data.shots import as_shots, change_points, find_shots, histograms, uniform_shots
from raylab.data.video import probe

VIDEOS = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "videos"


def steps(lengths: list[int], seed: int, noise: float = 0.02) -> NDArray[np.float64]:
    """Unit vectors about one direction for each length, orthogonal to each other."""
    rng = np.random.default_rng(seed)
    means = np.repeat(np.eye(len(lengths), 32), lengths, axis=0)
    features = means + rng.normal(0, noise, means.shape)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


@settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(4, 40), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_known_boundaries_are_found(lengths: list[int], seed: int) -> None:
    assert change_points(steps(lengths, seed), shortest=2) == np.cumsum(lengths)[:-1].tolist()


@settings(deadline=None, max_examples=30)
@given(
    features=st.lists(st.lists(st.floats(-1, 1), min_size=2, max_size=2), min_size=1, max_size=9),
    shortest=st.integers(1, 3),
    weight=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_no_other_segmentation_is_better(features: list[list[float]], shortest: int, weight: float) -> None:
    x = np.array(features)
    n = len(x)

    def objective(changes: tuple[int, ...]) -> float:
        edges = [0, *changes, n]
        parts = [x[first:stop] for first, stop in pairwise(edges)]
        within = sum(((part - part.mean(0)) ** 2).sum() for part in parts)
        m = len(changes)
        return within / n + (weight * m / (2 * n) * (np.log(n / m) + 1) if m else 0.0)

    every = [changes for m in range(n) for changes in combinations(range(1, n), m)]
    allowed = [c for c in every if min(np.diff([0, *c, n])) >= min(shortest, n) or not c]
    found = tuple(change_points(x, shortest, weight=weight)) if n >= shortest else ()
    assert found in allowed
    assert objective(found) == pytest.approx(min(map(objective, allowed)), abs=1e-9)


def test_settings_bound_the_number_of_shots() -> None:
    features = steps([5] * 6, 0)
    assert len(change_points(features)) == 5
    assert len(change_points(features, most=2)) == 2
    assert change_points(features, most=0) == []
    assert change_points(features, weight=1e6) == []
    assert change_points(features[:1]) == []
    assert min(np.diff([0, *change_points(features, shortest=8), 30])) >= 8


def test_histograms_have_unit_length_and_see_colour_and_place() -> None:
    frames = np.zeros((4, 20, 30, 3), np.uint8)
    frames[1] += 200
    frames[2, :10, :15] = 255
    frames[3, 10:, 15:] = 255
    found = histograms(frames)
    assert found.shape == (4, 2048)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    kernel = found @ found.T
    assert kernel[0, 1] == 0
    assert kernel[0, 2] == pytest.approx(0.75)
    assert kernel[2, 3] == pytest.approx(0.5)


@given(frames=st.integers(1, 5_000), rate=st.sampled_from([8.0, 23.976, 29.97, 60.0]))
@settings(deadline=None)
def test_uniform_shots_cover_all_frames_two_seconds_each(frames: int, rate: float) -> None:
    shots = uniform_shots(frames, rate)
    assert shots[0, 0] == 0 and shots[-1, 1] == frames - 1
    np.testing.assert_array_equal(shots[1:, 0], shots[:-1, 1] + 1)
    lengths = shots[:, 1] - shots[:, 0] + 1
    assert (lengths >= 1).all()
    assert (abs(lengths[:-1] / rate - 2) <= 1 / rate + 1e-9).all()
    assert len(shots) == 1 or lengths[-1] / rate <= 3 + 1 / rate


def test_shots_from_changes() -> None:
    assert as_shots([], 7).tolist() == [[0, 6]]
    assert as_shots([2, 5], 7).tolist() == [[0, 1], [2, 4], [5, 6]]


def test_cuts_of_a_video_are_found_to_half_a_second(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scenes = [rng.integers(0, 256, (6, 8, 3), np.uint8).repeat(12, 0).repeat(12, 1) for _ in range(4)]
    lengths, fps = [50, 23, 71, 36], Fraction(10)
    with av.open(tmp_path / "cuts.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 96, 72, "yuv420p"
        for number, scene in enumerate(np.repeat(np.arange(4), lengths).tolist()):
            frame = av.VideoFrame.from_ndarray(np.roll(scenes[scene], number % 12, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    shots = find_shots(tmp_path / "cuts.mp4", sum(lengths), float(fps))
    assert shots[-1, 1] == sum(lengths) - 1
    np.testing.assert_allclose(shots[1:, 0], np.cumsum(lengths)[:-1], atol=5)


@pytest.mark.skipif(not VIDEOS.is_dir(), reason="no shared/data/videos")
@pytest.mark.parametrize(
    ("name", "begins"),
    [("nasa_13013.mp4", [0, 6, 8.5]), ("bikes.mp4", [0, 1.5, 3.5, 5.5, 7.5]), ("bigbuckbunny.mp4", [0])],
)
def test_real_videos_are_cut_where_one_sees_it(name: str, begins: list[float]) -> None:
    source = VIDEOS / name
    info = probe(source)
    frames = round(info.duration * info.fps)
    shots = find_shots(source, frames, info.fps)
    np.testing.assert_allclose(shots[:, 0] / info.fps, begins, atol=0.5)
    assert shots[-1, 1] == frames - 1
    np.testing.assert_array_equal(shots[1:, 0], shots[:-1, 1] + 1)
