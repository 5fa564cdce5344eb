"""Telling whether a video is still the one that was read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import pyarrow as pa

from raylab.data.store.index import read_rows, write_rows
from raylab.errors import RaylabError

BLOCKS = 4
BLOCK = 1 << 16
UNREADABLE = -1
"""The size of a video that cannot be opened."""
SOURCES = "sources.arrow"
SCHEMA = pa.schema(
    [
        ("video", pa.string()),
        ("path", pa.string()),
        ("size", pa.int64()),
        ("modified", pa.int64()),
        ("fingerprint", pa.string()),
    ]
)


@dataclass(frozen=True)
class Seen:
    """A video as it was found.

    Attributes:
        path: the file, or the folder of extracted frames.
        size: bytes, or number of frames in the folder.
        modified: nanoseconds since 1970.
        fingerprint: digest of the size and of blocks of the content; it survives copying and renaming.
    """

    path: str
    size: int
    modified: int
    fingerprint: str


def look(sources: Mapping[str, Path], known: Mapping[str, Seen]) -> dict[str, Seen]:
    """Each video as it is now; only those with another size or time than before are opened.

    Four blocks of each are read, not the whole: a video that was encoded anew differs in all of them (in an MP4 file
    one end holds the lengths of all frames), while a change of single bytes between them goes unnoticed.

    One that cannot be opened is seen as such: its clips will be found unreadable, and it changes when it is mended.
    """
    with ThreadPoolExecutor(16) as threads:  # they wait for the filesystem
        return dict(zip(sources, threads.map(_look, sources.values(), map(known.get, sources)), strict=True))


def fingerprint(source: Path) -> str:
    """That of one video or folder of frames, looked at anew only when its time has changed.

    Raises:
        RaylabError: it cannot be opened.
    """
    try:
        return _fingerprint(source, source.stat().st_mtime_ns)
    except OSError as error:
        raise RaylabError(f"{source}: cannot be read ({error.strerror})") from None


@lru_cache(maxsize=1 << 16)
def _fingerprint(source: Path, modified: int) -> str:
    return _open(source, None).fingerprint


def _look(source: Path, known: Seen | None) -> Seen:
    try:
        return _open(source, known)
    except OSError as error:
        return Seen(str(source), UNREADABLE, UNREADABLE, str(error.strerror))


def _open(source: Path, known: Seen | None) -> Seen:
    status = source.stat()
    names = None
    if source.is_dir():  # of which other programs may keep files beside the frames
        names = sorted(name for name in os.listdir(source) if name.startswith("frame_"))  # noqa: PTH208 - 100,000 of them
    size = status.st_size if names is None else len(names)
    if known and (known.size, known.modified) == (size, status.st_mtime_ns):
        return Seen(str(source), size, status.st_mtime_ns, known.fingerprint)
    content = blake2b(str(size).encode(), digest_size=16)
    for block in range(BLOCKS):
        if names is None:
            content.update(_read(source, (size - BLOCK) * block // (BLOCKS - 1)))
        elif names:
            name = names[(len(names) - 1) * block // (BLOCKS - 1)]
            content.update(name.encode() + _read(source / name, 0))
    return Seen(str(source), size, status.st_mtime_ns, content.hexdigest())


def _read(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(offset, 0))
        return file.read(BLOCK)


def read_seen(folder: Path) -> dict[str, Seen]:
    """The videos of a store as they were when it was prepared.

    Raises:
        RaylabError: the file that says so is damaged.
    """
    path = folder / SOURCES
    if not path.exists():
        return {}
    return {row.pop("video"): Seen(**row) for row in read_rows(path, SCHEMA).to_pylist()}


def write_seen(folder: Path, seen: Mapping[str, Seen]) -> None:
    rows = [{"video": video, **vars(found)} for video, found in seen.items()]
    write_rows(folder / SOURCES, pa.Table.from_pylist(rows, schema=SCHEMA))
