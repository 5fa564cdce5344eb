"""Clips that cannot be read, and folders that cannot be written."""

import shutil
from pathlib import Path

import pytest
from scenes import COUNT, building, clip, contents, extract, held, planned, prepare, shown, shown_directly, spread_over

from raylab.data.clips import Clip, ClipTable
from raylab.errors import RaylabError

CLIPS = 50
REAL = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "videos"


def test_unreadable_clips_are_named_and_tried_again(sources: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    broken = {**sources, "text": tmp_path / "text.mp4"}
    clips = [*spread_over(list(broken), 21), Clip("late", "wide", 9.0, 10.0, 1, 20, {"verb": 1, "noun": 1})]
    store = building(tmp_path)
    manifest = prepare(store, clips, broken)
    assert (manifest.clips, len(manifest.unreadable)) == (18, 4)
    reasons = {clip.id: clip.reason for clip in manifest.unreadable}
    assert reasons.keys() == {"text_6", "text_13", "text_20", "late"}
    assert "text.mp4" in reasons["text_6"]
    assert "starts at 9.00 s, but" in reasons["late"]
    assert held(store).keys() == {each.id for each in clips} - reasons.keys()
    shutil.copy(sources["tall"], tmp_path / "text.mp4")
    before = contents(store.folder / "shards")
    mended = prepare(store, clips, broken)
    assert [clip.id for clip in mended.unreadable] == ["late"]
    assert before.items() < contents(store.folder / "shards").items()
    assert shown(store, "text_6") == shown_directly(clips[6], sources["tall"])


def test_a_video_of_which_nothing_can_be_read_leaves_no_shard(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    store = building(tmp_path)
    for _ in range(2):
        manifest = prepare(store, [clip("c", "v", 1, 5), clip("d", "v", 2, 5)], {"v": tmp_path / "text.mp4"})
        assert (manifest.clips, manifest.shards, [c.id for c in manifest.unreadable]) == (0, {}, ["c", "d"])
    assert not list(store.folder.glob("shards/*"))


def test_an_interrupted_preparation_with_unreadable_clips(sources: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    broken = {**sources, "text": tmp_path / "text.mp4"}
    clips = spread_over(list(broken), CLIPS)
    whole, again = building(tmp_path / "whole"), building(tmp_path / "again")
    for pieces in (1, 0, 2):
        prepare(again, clips, broken, pieces)
    assert prepare(whole, clips, broken) == prepare(again, clips, broken)
    assert contents(whole.folder) == contents(again.folder)


def test_extracted_frames_of_two_sizes_are_one_unreadable_clip(tmp_path: Path) -> None:
    folder = extract(tmp_path / "frames", count=20)
    other = extract(tmp_path / "other", 64, 64, count=20)
    shutil.copy(other / "frame_0000000009.jpg", folder)
    (folder / "frame_0000000015.jpg").write_bytes(b"not a picture")
    clips = [clip("whole", "v", 0, 6), clip("mixed", "v", 7, 11), clip("spoilt", "v", 12, 16)]
    manifest = prepare(building(tmp_path), clips, {"v": folder})
    assert [each.id for each in manifest.unreadable] == ["mixed", "spoilt"]
    assert "frames of 64×64 and 96×64 pixels in one clip" in manifest.unreadable[0].reason
    assert "frame_0000000015.jpg" in manifest.unreadable[1].reason


@pytest.mark.skipif(not REAL.exists(), reason=f"no test videos in {REAL}")
def test_real_files_good_and_bad(tmp_path: Path) -> None:
    names = ["arm_wrestling.mp4", "video_90.mov", "test.avi", "unordered.mov", "corrupted.mp4", "h265_video.mp4"]
    sources = {name: REAL / name for name in names}
    clips = [Clip(name, name, 0.0, 4.9, 1, 120, {"verb": 1}) for name in names]
    manifest = prepare(building(tmp_path, frames=(4, 16)), clips, sources)
    assert [each.id for each in manifest.unreadable] == ["corrupted.mp4"]
    assert "corrupted.mp4" in manifest.unreadable[0].reason
    assert manifest.clips == len(names) - 1


def test_a_store_that_cannot_be_written_says_what_to_do(sources: dict[str, Path], tmp_path: Path) -> None:
    store, clips = building(tmp_path), [clip("c", "wide", 1, 5)]
    store.folder.mkdir()
    (store.folder / "shards").write_text("a file where a folder should be")
    with pytest.raises(
        RaylabError, match=r"4f-32px-q90: cannot be written .*: free some space there, or set data\.store"
    ):
        prepare(store, clips, sources)


def test_a_writer_that_does_not_see_the_folder_says_so(sources: dict[str, Path], tmp_path: Path) -> None:
    store = building(tmp_path)
    (piece,) = store.plan(*planned(store, [clip("c", "wide", 1, 5)], sources))
    with pytest.raises(
        RaylabError, match=r"4f-32px-q90: not seen on .*: set data\.store=FOLDER to one on shared storage"
    ):
        store.write(piece)


def test_an_unreadable_clip_that_the_data_set_no_longer_has_is_forgotten(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    store, kept, lost = building(tmp_path), clip("kept", "wide", 0, 9), clip("lost", "wide", COUNT + 5, COUNT + 9)
    assert [each.id for each in prepare(store, [kept, lost], sources).unreadable] == ["lost"]
    assert store.seal(ClipTable.of([kept, lost])).unreadable
    sealed = store.seal(ClipTable.of([kept]))
    assert (sealed.unreadable, sealed.clips) == ([], 1)
