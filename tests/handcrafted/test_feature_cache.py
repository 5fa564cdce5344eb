"""What is kept of a video's features, and what makes it another video."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from films import film, texture

from raylab.errors import RaylabError
from raylab.handcrafted import cache as cache_module
from raylab.handcrafted.cache import FeatureCache
from raylab.handcrafted.extract import HandcraftedSettings, extract
from raylab.handcrafted.measures import FEATURES


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "kept", HandcraftedSettings())


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return film(tmp_path_factory.mktemp("videos") / "a.mp4", [texture(48, 64, n) for n in range(5)])


def files(cache: FeatureCache) -> list[Path]:
    return [path for path in cache.folder.rglob("*") if path.is_file()]


def test_what_is_written_is_read_to_the_bit(cache: FeatureCache, video: Path) -> None:
    vector, key = extract(video), cache.key(video)
    assert cache.read(key) is None
    cache.write(key, vector)
    kept = cache.read(key)
    assert kept is not None and kept.dtype == np.float64 and kept.tobytes() == vector.tobytes()
    assert len(files(cache)) == 1


def test_awkward_numbers_survive(cache: FeatureCache) -> None:
    vector = np.random.default_rng(0).standard_normal(len(FEATURES)) * 10.0 ** np.arange(-16, 17)
    vector[:3] = 0.0, 5e-324, 1.7976931348623157e308
    cache.write("ab" * 20, vector)
    assert cache.read("ab" * 20).tobytes() == vector.tobytes()


def test_the_key_is_of_content_settings_and_format(
    cache: FeatureCache, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = cache.key(video)
    moved = tmp_path / "b.mov"
    moved.write_bytes(video.read_bytes())
    os.utime(moved, (0, 0))
    assert cache.key(moved) == key
    for place in (0, len(moved.read_bytes()) // 2, -1):
        content = bytearray(video.read_bytes())
        content[place] ^= 1
        moved.write_bytes(content)
        assert cache.key(moved) != key
    assert FeatureCache(cache.folder, HandcraftedSettings(frames=8)).key(video) != key
    monkeypatch.setattr(cache_module, "FORMAT", 0)
    assert cache.key(video) != key


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-20],
        lambda text: "[1.0]",
        lambda text: text.replace("bit_rate", "bitrate"),
        lambda text: text.replace('"frame_rate": 25.0', '"frame_rate": NaN'),
        lambda text: text.replace('"frame_rate": 25.0', '"frame_rate": "25.0"'),
    ],
)
def test_a_damaged_entry_is_computed_again(damage: object, cache: FeatureCache) -> None:
    key, vector = "cd" * 20, np.arange(len(FEATURES), dtype=np.float64)
    vector[-2] = 25.0
    cache.write(key, vector)
    (path,) = files(cache)
    damaged = damage(path.read_text())
    assert damaged != path.read_text()
    path.write_text(damaged)
    assert cache.read(key) is None
    cache.write(key, vector)
    assert cache.read(key).tolist() == vector.tolist()


def test_many_writers_leave_one_whole_entry(cache: FeatureCache) -> None:
    vector = np.arange(len(FEATURES), dtype=np.float64)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: cache.write("ef" * 20, vector), range(64)))
    assert [path.name for path in files(cache)] == [f"{'ef' * 20}.json"]
    assert cache.read("ef" * 20).tolist() == vector.tolist()


def test_nothing_but_finite_numbers_is_kept(cache: FeatureCache) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        cache.write("ab" * 20, np.full(len(FEATURES), np.nan))
    assert files(cache) == []


def test_a_file_that_cannot_be_read_is_named(cache: FeatureCache, tmp_path: Path) -> None:
    with pytest.raises(RaylabError, match=r"gone\.mp4: cannot be read \(No such file"):
        cache.key(tmp_path / "gone.mp4")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file")
    cache = FeatureCache(tmp_path / "kept", HandcraftedSettings())
    with pytest.raises(RaylabError, match=r"kept: cannot be written .* RAYLAB_CACHE"):
        cache.write("ab" * 20, np.zeros(len(FEATURES)))
