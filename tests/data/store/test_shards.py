import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenes import refusals

from raylab.data.sampling import frame_numbers, frame_times
from raylab.data.store.shards import (
    StoredClip,
    _open,
    digest,
    nearest,
    read_clip,
    reading,
    shard_path,
    write_shard,
)
from raylab.errors import RaylabError

COUNTS = st.lists(st.integers(1, 64), min_size=1, max_size=4, unique=True)


@st.composite
def stored_clips(draw: st.DrawFn) -> StoredClip:
    positions = sorted(draw(st.sets(st.floats(0, 1e5), min_size=1, max_size=6)))
    squares = [draw(st.binary(max_size=20)) for _ in positions]
    sides = [draw(st.binary(max_size=20)) for _ in positions] if draw(st.booleans()) else [None] * len(positions)
    return StoredClip(draw(st.text(max_size=9)), draw(st.integers(1, 9999)), 7, positions, squares, sides)


def plain(clip: StoredClip) -> tuple[object, ...]:
    squares, sides = (
        [image if image is None else bytes(image) for image in images] for images in (clip.squares, clip.sides)
    )
    return clip.id, clip.height, clip.width, clip.positions, squares, sides


@given(clips=st.lists(stored_clips(), min_size=1, max_size=5))
def test_clips_come_back_as_they_were_written(
    clips: list[StoredClip], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("shard") / "a.arrow"
    write_shard(path, clips)
    assert [plain(read_clip(path, row)) for row in range(len(clips))] == [plain(clip) for clip in clips]


def numbered(positions: list[float], id: str = "c") -> StoredClip:
    """A clip whose image number i is the text i."""
    images = [str(i).encode() for i in range(len(positions))]
    return StoredClip(id, 4, 8, positions, images, [b"beside " + image for image in images])


def test_only_the_frames_asked_for_are_given(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.arrow", [numbered([1.0, 2.0, 4.0, 5.0, 9.0])])
    clip = read_clip(tmp_path / "a.arrow", 0, 3)
    assert clip.positions == [1.0, 5.0, 9.0]
    assert list(map(bytes, clip.squares)) == [b"0", b"3", b"4"]
    assert list(map(bytes, clip.sides)) == [b"beside 0", b"beside 3", b"beside 4"]


def test_images_are_views_of_the_mapped_file(tmp_path: Path) -> None:
    content = bytes(1 << 20)
    write_shard(tmp_path / "a.arrow", [StoredClip("c", 4, 4, [1.0, 2.0], [content, content], [None, None])])
    before = pa.total_allocated_bytes()
    clip = read_clip(tmp_path / "a.arrow", 0)
    assert pa.total_allocated_bytes() - before < 1 << 16
    assert all(isinstance(image, memoryview) and image.readonly for image in clip.squares)
    _open.cache_clear()
    (tmp_path / "a.arrow").unlink()
    assert clip.squares[1] == content, "a view keeps its file mapped"


@given(counts=COUNTS, start=st.floats(0, 4000), length=st.floats(0.05, 60), fps=st.sampled_from([25, 29.97, 50, 59.94]))
def test_nearest_are_the_frames_of_every_count_that_a_store_was_made_for(
    counts: list[int], start: float, length: float, fps: float
) -> None:
    grids = {n: [time + 0.5 / fps for time in frame_times(start, start + length, fps, n)] for n in counts}
    stored = np.array(sorted({position for grid in grids.values() for position in grid}))
    for frames, grid in grids.items():
        assert np.abs(stored[nearest(stored, frames)] - grid).max() < 1e-9


@given(counts=COUNTS, start=st.integers(1, 200_000), length=st.integers(1, 3000))
def test_nearest_numbers_are_exactly_those_of_every_count(counts: list[int], start: int, length: int) -> None:
    grids = {n: frame_numbers(start, start + length, n) for n in counts}
    stored = np.array(sorted({float(number) for grid in grids.values() for number in grid}))
    for frames, grid in grids.items():
        assert stored[nearest(stored, frames)].tolist() == grid


@given(stored=st.lists(st.floats(0, 100), min_size=1, max_size=40, unique=True), frames=st.integers(1, 50))
def test_nearest_of_any_positions(stored: list[float], frames: int) -> None:
    positions = np.array(sorted(stored)) + 0.25
    wanted = np.linspace(positions[0], positions[-1], frames)
    chosen = nearest(positions, frames)
    distances = np.abs(positions[chosen] - wanted)
    assert np.allclose(distances, np.abs(positions[:, None] - wanted).min(0))
    assert chosen == sorted(chosen)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[StoredClip]:
        yield numbered([1.0])
        raise RaylabError("no more")

    with pytest.raises(RaylabError, match="no more"):
        write_shard(tmp_path / "a.arrow", broken())
    assert list(tmp_path.iterdir()) == []


def test_an_empty_shard(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.arrow", [])
    with pytest.raises(RaylabError, match=r"a\.arrow: cannot be read"), reading(tmp_path / "a.arrow"):
        read_clip(tmp_path / "a.arrow", 0)


def test_open_files_stay_few(tmp_path: Path) -> None:
    _open.cache_clear()
    write_shard(tmp_path / "0.arrow", [numbered([1.0])])
    process, before = psutil.Process(), psutil.Process().num_fds()
    for number in range(300):
        link = tmp_path / f"{number}.arrow"
        if number:
            os.link(tmp_path / "0.arrow", link)
        read_clip(link, 0)
    assert _open.cache_info().currsize == 300
    assert process.num_fds() < before + 10


def test_damage_is_an_error_or_another_image_but_never_a_crash(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.arrow", [numbered([1.0, 2.0, 3.0], id) for id in ("one", "two")])
    imports = "from raylab.data.store.shards import _open, read_clip, reading"
    read = "_open.cache_clear()\n        with reading(damaged): [bytes(i) for i in read_clip(damaged, 1, 2).squares]"
    assert refusals(tmp_path / "a.arrow", imports, read) > 300


def test_an_absent_shard_is_named_with_the_remedy(tmp_path: Path) -> None:
    path = shard_path(tmp_path, "abc")
    assert path == tmp_path / "shards" / "abc.arrow"
    with (
        pytest.raises(RaylabError, match=r"abc\.arrow: cannot be read .*: delete it and run `raylab prepare`"),
        reading(path),
    ):
        read_clip(path, 0)


def test_the_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    content = random.Random(0).randbytes(3 << 20)
    found = set()
    for name, text in {"a": content, "b": content, "c": content[:-1] + b"\0", "d": b""}.items():
        (tmp_path / name).write_bytes(text)
        found.add(digest(tmp_path / name))
    assert len(found) == 3
    assert {len(text) for text in found} == {32}
