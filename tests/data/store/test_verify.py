import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from scenes import building, clip, encode, extract, prepare, spread_over

from raylab.data.store.build import Building
from raylab.data.store.manifest import Manifest
from raylab.data.store.verify import Comparison, suspects

CLIPS = spread_over(["wide", "frames"], 40)


@pytest.fixture(scope="module")
def made(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Building:
    store = building(tmp_path_factory.mktemp("stores"))
    prepare(store, CLIPS, sources)
    return store


@pytest.fixture
def store(made: Building, tmp_path: Path) -> Building:
    return replace(made, folder=Path(shutil.copytree(made.folder, tmp_path / "store")))


def faults(store: Building, sources: Mapping[str, Path]) -> list[str]:
    every = suspects(store, Manifest.read(store.folder))
    return [fault for suspect in every for fault in Comparison(store, sources).faults(suspect)]


def test_a_sound_store_has_no_faults(made: Building, sources: dict[str, Path]) -> None:
    assert faults(made, sources) == []
    every = list(suspects(made, Manifest.read(made.folder)))
    assert sorted(held.id for suspect in every for held in suspect.clips.values()) == sorted(c.id for c in CLIPS)


def test_shards_that_are_gone_or_damaged(store: Building, sources: dict[str, Path]) -> None:
    gone, spoilt, cut = sorted(store.folder.glob("shards/*"))
    gone.unlink()
    content = bytearray(spoilt.read_bytes())
    content[len(content) // 2] ^= 1
    spoilt.write_bytes(content)
    os.truncate(cut, 1000)
    assert faults(store, sources) == [f"{gone}: is gone", f"{spoilt}: is damaged", f"{cut}: is damaged"]
    assert faults(store, {}) == faults(store, sources), "without the videos too"
    for path in (spoilt, cut):
        path.unlink()
    prepare(store, CLIPS, sources)
    assert faults(store, sources) == []


def test_a_video_that_was_replaced_unnoticed(store: Building, sources: dict[str, Path], tmp_path: Path) -> None:
    changed = {**sources, "wide": encode(tmp_path / "other.mp4", first=5, count=45)}
    found = faults(store, changed)
    assert len(found) == sum(each.video == "wide" for each in CLIPS)
    assert all("clip wide_" in fault and str(tmp_path / "other.mp4") in fault for fault in found)
    assert any(f"differs from {tmp_path / 'other.mp4'} by " in fault for fault in found)
    assert faults(store, {"frames": sources["frames"]}) == [], "videos that are not at hand are not compared"


def test_one_wrong_frame_is_found(sources: dict[str, Path], tmp_path: Path) -> None:
    folder = extract(tmp_path / "frames")
    store, clips = building(tmp_path, frames=(16,)), [clip("c", "v", 0, 16), clip("d", "v", 16, 32)]
    prepare(store, clips, {"v": folder})
    assert faults(store, {"v": folder}) == []
    shutil.copy(folder / "frame_0000000010.jpg", folder / "frame_0000000009.jpg")
    (fault,) = faults(store, {"v": folder})
    assert f"clip c differs from {folder} by " in fault


def test_other_rounding_is_no_fault(store: Building, sources: dict[str, Path], tmp_path: Path) -> None:
    again = encode(tmp_path / "again.mp4", crf=10)
    assert again.read_bytes() != sources["wide"].read_bytes()
    assert faults(store, {"wide": again}) == []


def test_what_can_no_longer_be_read_or_has_other_frames(
    store: Building, sources: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    found = faults(store, {"wide": tmp_path / "text.mp4"})
    assert len(found) == 20
    assert all("can no longer be read: " in fault and "text.mp4" in fault for fault in found)
    other = encode(tmp_path / "other.mp4", 64, 64)
    assert all(f"has other frames than {other}" in fault for fault in faults(store, {"wide": other}))
    assert len(faults(store, {"wide": other})) == 20


def test_unreadable_clips_are_not_suspects(sources: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    store = building(tmp_path)
    broken = {**sources, "text": tmp_path / "text.mp4"}
    prepare(store, spread_over(["wide", "text"], 10), broken)
    assert faults(store, broken) == []
    assert sum(len(suspect.clips) for suspect in suspects(store, Manifest.read(store.folder))) == 5
