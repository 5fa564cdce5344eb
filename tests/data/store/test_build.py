import os
import random
import shutil
import signal
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
from scenes import (
    COUNT,
    FPS,
    building,
    clip,
    contents,
    encode,
    held,
    planned,
    prepare,
    shown,
    shown_directly,
    spread_over,
)

from raylab.data.footage import read_positions
from raylab.data.store import jpeg
from raylab.data.store.build import FRAMES_AT_ONCE, Building
from raylab.data.store.manifest import MANIFEST, Manifest
from raylab.data.store.shards import read_clip, shard_path
from raylab.storage import PARTIAL

SHORT_SIDES = {"wide": 64, "tall": 48, "square": 64, "double": 64, "odd": 55, "frames": 64}

# What is written.


@pytest.mark.parametrize("short_side", [32, 256])
def test_a_store_holds_the_frames_of_every_count(sources: dict[str, Path], tmp_path: Path, short_side: int) -> None:
    store = building(tmp_path, frames=(1, 3, 8), short_side=short_side, quality=95)
    clips = spread_over(list(sources), 12)
    manifest = prepare(store, clips, sources)
    assert (manifest.clips, manifest.unreadable) == (12, [])
    for each in clips:
        source = sources[each.video]
        for frames in (1, 3, 8):
            assert shown(store, each.id, frames) == shown_directly(each, source, frames)
        shard, row = held(store)[each.id]
        stored = read_clip(shard_path(store.folder, shard), row)
        assert min(stored.height, stored.width) == min(short_side, SHORT_SIDES[each.video])


@pytest.mark.parametrize("video", ["wide", "tall", "square", "double", "odd", "frames"])
def test_whole_frames_can_be_put_together_again(sources: dict[str, Path], tmp_path: Path, video: str) -> None:
    store = building(tmp_path, frames=(4,), short_side=256, quality=95)
    prepare(store, [clip("c", video, 3, 30)], sources)
    stored = read_clip(shard_path(store.folder, held(store)["c"][0]), 0)
    whole = jpeg.decode_whole(stored.squares, stored.sides, wide=stored.width > stored.height)
    direct = read_positions(sources[video], stored.positions, "pyav")
    assert whole.shape == direct.shape == (4, 3, stored.height, stored.width)
    assert (whole.float() - direct.float()).abs().mean((1, 2, 3)).max() < 2


def test_frames_per_second(sources: dict[str, Path], tmp_path: Path) -> None:
    store = building(tmp_path, frames=(), fps=FPS)
    assert COUNT > FRAMES_AT_ONCE
    prepare(store, [clip(video, video, 0, COUNT) for video in sources], sources)
    for video in sources:
        assert shown(store, video) == list(range(COUNT)), "all of them, over more than one reading"
    sparse = building(tmp_path, frames=(), fps=5)
    prepare(sparse, [clip("c", "wide", 0, 41), clip("d", "frames", 7, 9)], sources)
    assert shown(sparse, "c") == list(range(0, 41, 5))
    assert shown(sparse, "d") == [7, 8]


def test_clips_with_fewer_frames_than_asked(sources: dict[str, Path], tmp_path: Path) -> None:
    store = building(tmp_path, frames=(16,))
    tiny = [clip(f"{video}_{length}", video, 20, 20 + length) for video in ("wide", "frames") for length in (1, 2, 5)]
    prepare(store, tiny, sources)
    for each in tiny:
        found = shown(store, each.id, 16)
        assert len(found) == 16
        assert found == sorted(found)
        assert set(found) == set(range(20, each.stop_frame - 1))


@pytest.mark.parametrize("id", ["../../up", "/raylab/was/here", "a/b", "'; rm -rf \"", "ü😀\n", ".", "", "a" * 300])
def test_ids_never_become_paths(sources: dict[str, Path], tmp_path: Path, id: str) -> None:
    store = building(tmp_path / "deep" / "down")
    video = {id: sources["wide"]}
    prepare(store, [replace(clip("c", "wide", 3, 9), id=id, video=id)], video)
    assert held(store).keys() == {id}
    (shard,) = Manifest.read(store.folder).shards
    index = Manifest.read(store.folder).index
    assert contents(tmp_path / "deep").keys() == {
        f"down/{store.settings.name}/{name}" for name in (index, MANIFEST, "sources.arrow", f"shards/{shard}.arrow")
    }
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


# Going on.


CLIPS = 50  # four shards


@pytest.fixture(scope="module")
def whole(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Building:
    store = building(tmp_path_factory.mktemp("whole"))
    assert prepare(store, spread_over(list(sources), CLIPS), sources).clips == CLIPS
    return store


@pytest.fixture(scope="module")
def undisturbed(whole: Building) -> dict[str, bytes]:
    return contents(whole.folder)


@pytest.mark.parametrize("pieces", [[0], [1], [3], [4], [1, 1, 1, 1], [2, 0, 1]])
def test_one_that_goes_on_ends_with_the_very_files(
    sources: dict[str, Path], tmp_path: Path, undisturbed: dict[str, bytes], pieces: list[int]
) -> None:
    store, clips = building(tmp_path / "again"), spread_over(list(sources), CLIPS)
    for some in pieces:
        prepare(store, clips, sources, some)
        assert Manifest.read(store.folder) is None
    prepare(store, clips, sources)
    assert contents(store.folder) == undisturbed


def test_shards_that_are_done_are_not_written_again(sources: dict[str, Path], tmp_path: Path) -> None:
    store, clips = building(tmp_path), spread_over(list(sources), CLIPS)
    prepare(store, clips, sources, 2)
    before = {path: path.stat().st_ino for path in store.folder.glob("shards/*")}
    prepare(store, clips, sources)
    assert len(before) == 2
    assert all(path.stat().st_ino == inode for path, inode in before.items())


def test_killed_anywhere_and_continued(sources: dict[str, Path], tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    store, clips = building(tmp_path / "killed"), spread_over(list(sources), CLIPS)
    rng, killed = random.Random(0), 0
    for turn in range(12):
        process = get_context("fork").Process(target=prepare, args=(store, clips, sources))
        process.start()
        written = len(contents(store.folder)) if store.folder.exists() else 0
        while process.is_alive() and (
            not store.folder.exists() or len(list(store.folder.rglob("*"))) < written + turn % 3
        ):
            time.sleep(0.001)
        process.join(rng.uniform(0, 0.1))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed > 2
    prepare(store, clips, sources)
    assert contents(store.folder) == undisturbed


def test_leavings_of_every_step_are_swept_up(
    sources: dict[str, Path], tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    store, clips = building(tmp_path / "left"), spread_over(list(sources), CLIPS)
    prepare(store, clips, sources, 2)
    parts = contents(store.folder / "parts")
    for part in list(store.folder.glob("parts/*"))[:1]:
        part.unlink()  # killed between a shard and its part
    for place in ("", "shards", "parts"):
        (store.folder / place / f"x.arrow{PARTIAL}0").write_bytes(b"half")  # killed while writing
    (store.folder / "index-0000000000000000.arrow").write_bytes(b"no manifest yet")
    prepare(store, clips, sources)
    assert contents(store.folder) == undisturbed
    for name, part in parts.items():  # killed between the manifest and the removal of the parts
        (store.folder / "parts" / name).write_bytes(part)
    prepare(store, clips, sources)
    assert contents(store.folder) == undisturbed


def test_nothing_to_do_changes_nothing(
    sources: dict[str, Path], tmp_path: Path, whole: Building, undisturbed: dict[str, bytes]
) -> None:
    store = replace(whole, folder=shutil.copytree(whole.folder, tmp_path / "store"))
    assert prepare(store, spread_over(list(sources), CLIPS), sources) == Manifest.read(whole.folder)
    assert contents(store.folder) == undisturbed


# What changes.


def test_growth_reads_what_is_new_alone(sources: dict[str, Path], tmp_path: Path) -> None:
    store, clips = building(tmp_path), spread_over(list(sources), 40)
    first = prepare(store, clips[:25], sources)
    before = contents(store.folder / "shards")
    grown = prepare(store, clips, sources)
    assert (first.clips, grown.clips) == (25, 40)
    after = contents(store.folder / "shards")
    assert before.items() < after.items()
    assert sum(shard.clips for name, shard in grown.shards.items() if name not in first.shards) == 15
    assert all(numbers for each in clips if (numbers := shown(store, each.id)))


def test_fewer_clips_take_nothing_away(sources: dict[str, Path], tmp_path: Path) -> None:
    store, clips = building(tmp_path), spread_over(list(sources), 20)
    prepare(store, clips, sources)
    assert prepare(store, clips[:5], sources).clips == 20


def test_a_changed_segment_is_read_again(sources: dict[str, Path], tmp_path: Path) -> None:
    store, clips = building(tmp_path), spread_over(list(sources), 20)
    prepare(store, clips, sources)
    before = held(store)
    changed = [replace(clip(clips[0].id, clips[0].video, 10, 40)), *clips[1:]]
    assert prepare(store, changed, sources).clips == 20
    after = held(store)
    assert [id for id in before if before[id] != after[id]] == [clips[0].id]
    assert shown(store, clips[0].id) == [10, 20, 29, 39]


def test_a_changed_video_is_read_again(tmp_path: Path) -> None:
    videos = {name: encode(tmp_path / f"{name}.mp4") for name in ("one", "two")}
    store, clips = building(tmp_path), [clip(f"{v}_{i}", v, i, i + 9) for v in videos for i in range(10)]
    prepare(store, clips, videos)
    before = held(store)
    other = encode(tmp_path / "other.mp4", count=40, first=5).read_bytes()
    size = videos["one"].stat().st_size
    assert len(other) < size
    videos["one"].write_bytes(other.ljust(size, b"\0"))  # of the same size
    os.utime(videos["one"], (1, 1))
    prepare(store, clips, videos)
    after = held(store)
    assert {id for id in before if before[id] != after[id]} == {f"one_{i}" for i in range(10)}
    assert (shown(store, "one_3")[0], shown(store, "two_3")[0]) == (8, 3)


def test_what_was_replaced_is_kept_until_the_next_preparation(sources: dict[str, Path], tmp_path: Path) -> None:
    store, clips = building(tmp_path), [clip("c", "wide", 3, 9)]
    old = prepare(store, clips, sources)
    new = prepare(store, [clip("c", "wide", 3, 10)], sources)
    assert new.shards.keys().isdisjoint(old.shards)
    for name, exists in ((old, True), (new, True)):
        assert (store.folder / name.index).exists() == exists
        assert all(shard_path(store.folder, shard).exists() == exists for shard in name.shards)
    prepare(store, [clip("c", "wide", 3, 10)], sources)
    assert not (store.folder / old.index).exists()
    assert {path.stem for path in store.folder.glob("shards/*")} == new.shards.keys()


@pytest.mark.parametrize("lost", [1, 2, 4])
def test_shards_deleted_by_hand_are_written_again(
    sources: dict[str, Path], tmp_path: Path, whole: Building, lost: int
) -> None:
    store = replace(whole, folder=shutil.copytree(whole.folder, tmp_path / "store"))
    for path in sorted(store.folder.glob("shards/*"))[:lost]:
        path.unlink()
    assert len(store.rows()) < CLIPS
    assert prepare(store, spread_over(list(sources), CLIPS), sources).clips == CLIPS
    assert {id: shown(store, id) for id in held(store)} == {id: shown(whole, id) for id in held(whole)}


def test_an_index_deleted_by_hand_is_made_again(
    sources: dict[str, Path], tmp_path: Path, whole: Building, undisturbed: dict[str, bytes]
) -> None:
    store = replace(whole, folder=shutil.copytree(whole.folder, tmp_path / "store"))
    (store.folder / Manifest.read(store.folder).index).unlink()
    prepare(store, spread_over(list(sources), CLIPS), sources)
    assert contents(store.folder) == undisturbed


def test_an_interrupted_plan_for_other_clips_is_not_lost(sources: dict[str, Path], tmp_path: Path) -> None:
    store, clips = building(tmp_path), spread_over(list(sources), CLIPS)
    prepare(store, clips[:40], sources, 2)
    before = contents(store.folder / "shards")
    manifest = prepare(store, clips[5:], sources)
    assert before.items() < contents(store.folder / "shards").items()
    assert sum(shard.clips for shard in manifest.shards.values()) == manifest.clips >= CLIPS - 5
    assert {each.id for each in clips[5:]} <= held(store).keys()
    assert not list(store.folder.glob("parts/*"))


def test_stores_of_other_settings_lie_side_by_side(sources: dict[str, Path], tmp_path: Path) -> None:
    clips = spread_over(list(sources), 5)
    one, other = building(tmp_path), building(tmp_path, quality=50)
    prepare(one, clips, sources)
    before = contents(one.folder)
    prepare(other, clips, sources)
    assert contents(one.folder) == before
    sizes = [sum(shard.bytes for shard in Manifest.read(store.folder).shards.values()) for store in (one, other)]
    assert sizes[0] > sizes[1]


# How work is shared out.


@pytest.mark.parametrize("count", [1, 15, 16, 17, 100, 1024, 1025, 20_000])
def test_a_plan_shares_clips_out(sources: dict[str, Path], tmp_path: Path, count: int) -> None:
    store = building(tmp_path)
    plan = store.plan(*planned(store, spread_over(["wide"], count), sources))
    assert len(plan) == count
    sizes = [len(rows) for rows in plan.pieces.values()]
    assert sum(sizes) == count
    assert all(16 <= size <= 256 for size in sizes[:-1])
    assert len(sizes) <= max(64, -(-count // 256))
    first = next(iter(plan))
    assert [each.id for each, _, _ in first.clips] == [f"wide_{i}" for i in range(sizes[0])]
    assert {source for _, _, source in first.clips} == {sources["wide"]}


def test_a_part_whose_shard_is_gone_adds_nothing(sources: dict[str, Path], tmp_path: Path) -> None:
    """As after a writer that outlived the preparation it belonged to."""
    store = building(tmp_path)
    clips = spread_over(["wide"], 20)
    prepare(store, clips, sources, pieces=1)
    next(store.folder.glob("shards/*.arrow")).unlink()
    assert (store.seal().clips, store.seal().shards) == (0, {})
    assert prepare(store, clips, sources).clips == len(clips)
