import os
import shutil
from pathlib import Path

import pytest

from raylab.data.store.sources import BLOCK, SOURCES, UNREADABLE, Seen, look, read_seen, write_seen
from raylab.errors import RaylabError

SIZES = [0, 1, 1000, BLOCK, 3 * BLOCK, 4 * BLOCK - 1, 10 * BLOCK]


def seen(path: Path, known: Seen | None = None) -> Seen:
    return look({"v": path}, {"v": known} if known else {})["v"]


def content(size: int) -> bytes:
    return bytes(i * i % 251 for i in range(size))


@pytest.mark.parametrize("size", SIZES)
def test_a_copy_under_another_name_has_the_same_fingerprint(tmp_path: Path, size: int) -> None:
    (tmp_path / "a").write_bytes(content(size))
    shutil.copy(tmp_path / "a", tmp_path / "b")
    one, other = seen(tmp_path / "a"), seen(tmp_path / "b")
    assert one.fingerprint == other.fingerprint
    assert (one.path, one.size) == (str(tmp_path / "a"), size)


@pytest.mark.parametrize("size", SIZES[1:])
def test_another_file_of_the_same_size_has_another(tmp_path: Path, size: int) -> None:
    found = set()
    for name, at in {"whole": None, "first": 0, "last": size - 1}.items():
        spoilt = bytearray(content(size))
        if at is not None:
            spoilt[at] ^= 255
        (tmp_path / name).write_bytes(spoilt)
        found.add(seen(tmp_path / name).fingerprint)
    assert len(found) == (3 if size > 1 else 2)


def test_every_byte_of_a_small_file_counts(tmp_path: Path) -> None:
    whole = content(3 * BLOCK)
    for at in range(0, len(whole), 9_973):
        (tmp_path / "a").write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        (tmp_path / "b").write_bytes(whole)
        assert seen(tmp_path / "a").fingerprint != seen(tmp_path / "b").fingerprint


def test_only_files_of_another_size_or_time_are_opened(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(content(1000))
    known = Seen("elsewhere", 1000, path.stat().st_mtime_ns, "as it was")
    assert seen(path, known) == Seen(str(path), 1000, known.modified, "as it was")
    os.utime(path, (1, 1))
    assert seen(path, known).fingerprint == seen(path).fingerprint != "as it was"


def test_a_file_that_was_only_touched_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(content(1000))
    before = seen(path)
    os.utime(path, (1, 1))
    after = seen(path, before)
    assert after.fingerprint == before.fingerprint
    assert after.modified == 10**9


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    for number in range(1, 12):
        (tmp_path / "frames" / f"frame_{number:010d}.jpg").parent.mkdir(exist_ok=True)
        (tmp_path / "frames" / f"frame_{number:010d}.jpg").write_bytes(content(number))
    return tmp_path / "frames"


def test_a_folder_of_frames(frames: Path) -> None:
    before = seen(frames)
    assert before.size == 11
    shutil.copytree(frames, frames.with_name("copy"))
    assert seen(frames.with_name("copy")).fingerprint == before.fingerprint
    (frames / "frame_0000000001.jpg").write_bytes(b"other")
    os.utime(frames, (1, 1))
    assert seen(frames, before).fingerprint != before.fingerprint
    (frames / "frame_0000000001.jpg").write_bytes(content(1))
    (frames / "frame_0000000012.jpg").write_bytes(b"more")
    assert seen(frames, before).fingerprint != before.fingerprint


def test_what_else_lies_beside_frames_does_not_matter(frames: Path) -> None:
    before = seen(frames)
    (frames / ".thumbnails").mkdir()
    (frames / "Thumbs.db").touch()
    assert seen(frames, before).fingerprint == before.fingerprint


def test_an_empty_folder_is_seen(tmp_path: Path) -> None:
    assert seen(tmp_path).size == 0


def test_a_file_that_cannot_be_opened_is_seen_as_such_and_changes_when_it_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "absent.mp4"
    before = seen(path)
    assert before == Seen(str(path), UNREADABLE, UNREADABLE, "No such file or directory")
    path.write_bytes(content(1))
    assert seen(path, before) == seen(path)
    assert seen(path).fingerprint != before.fingerprint


def test_what_was_seen_is_kept(tmp_path: Path) -> None:
    assert read_seen(tmp_path) == {}
    found = {"P01_01": Seen("/a b/ü.MP4", 7, 1_700_000_000_123_456_789, "ab"), "../odd": Seen("/c", 0, 1, "cd")}
    write_seen(tmp_path, found)
    assert read_seen(tmp_path) == found
    assert [path.name for path in tmp_path.iterdir()] == [SOURCES]
    write_seen(tmp_path, {})
    assert read_seen(tmp_path) == {}


@pytest.mark.parametrize("spoilt", [b"", b"ARROW1", b"\0" * 999])
def test_a_damaged_list_is_named_with_the_remedy(tmp_path: Path, spoilt: bytes) -> None:
    (tmp_path / SOURCES).write_bytes(spoilt)
    with pytest.raises(RaylabError, match=r"sources\.arrow: cannot be read .*: delete it and run `raylab prepare`"):
        read_seen(tmp_path)
