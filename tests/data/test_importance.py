"""Importance: kept whole in the cache, the mean where only that is known."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from raylab.data.annotation_cache import cached
from raylab.data.clips import Annotations, ClipTable, Dataset
from raylab.data.importance import Importance, read_importance, write_importance
from raylab.data.windows import windows


def some(annotators: int = 3, summaries: bool = True) -> Importance:
    rng = np.random.default_rng(annotators)
    return Importance(
        scores=rng.random((annotators, 8), np.float32),
        shots=np.array([[0, 9], [10, 39]]),
        frames=40,
        picks=np.arange(0, 40, 5),
        summaries=rng.integers(0, 2, (annotators, 40)).astype(np.uint8) if summaries else None,
        category="VT",
        published_mean=None if annotators else rng.random(8, np.float32),
    )


def assert_same(one: Importance, other: Importance) -> None:
    assert (one.frames, one.category) == (other.frames, other.category)
    for name in ("scores", "shots", "picks", "summaries", "published_mean", "mean"):
        left, right = getattr(one, name), getattr(other, name)
        assert (left is None) == (right is None), name
        if left is not None:
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)


ALL = {"-a_b": some(), "naïve/name": some(2, summaries=False), "c": some(0)}


def test_the_mean_is_over_annotators_or_as_published() -> None:
    known = some()
    np.testing.assert_array_equal(known.mean, known.scores.mean(0))
    only = some(0)
    assert only.mean is only.published_mean and len(only.scores) == 0


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    about = {video: (known.frames, known.category) for video, known in ALL.items()}
    write_importance(tmp_path / "all.safetensors", ALL)
    found = read_importance(tmp_path / "all.safetensors", about)
    assert list(found) == list(ALL)
    for video, known in ALL.items():
        assert_same(found[video], known)
    with pytest.raises(TypeError):
        read_importance(tmp_path / "all.safetensors", {"d": (1, "")})


@pytest.mark.parametrize("damage", [lambda path: os.truncate(path, 40), Path.unlink], ids=["truncated", "deleted"])
def test_the_annotation_cache_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    monkeypatch.setenv("RAYLAB_CACHE", str(tmp_path))
    clips = ClipTable.of(windows("c", 8, 5.0, 1.0, 3))
    dataset = Dataset({"train": Annotations(clips), "val": Annotations(clips)}, {}, importance=ALL)

    def unread() -> Dataset:
        raise AssertionError("read, though it was in the cache")

    cached("k", lambda: dataset)
    again = cached("k", unread)
    assert again.splits["train"].clips == clips and again.heads == {}
    for video, known in ALL.items():
        assert_same(again.importance[video], known)
    damage(tmp_path / "annotations" / "k" / "importance.safetensors")
    with pytest.raises(AssertionError, match="read, though"):
        cached("k", unread)
    assert_same(cached("k", lambda: dataset).importance["c"], ALL["c"])
