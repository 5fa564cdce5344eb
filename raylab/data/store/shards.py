"""Shards: Arrow files of whole clips, written once, read through a memory map."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raylab.data.store.manifest import PREPARE
from raylab.errors import RaylabError
from raylab.storage import replacing

OPEN_SHARDS = 4096
"""Shards a process keeps mapped: a million clips' worth. Linux allows a process 65,530 mappings."""

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("positions", pa.list_(pa.float64())),
        ("squares", pa.list_(pa.binary())),
        ("sides", pa.list_(pa.binary())),
    ]
)


@dataclass(frozen=True)
class StoredClip:
    """One clip as a shard holds it.

    Attributes:
        id: the clip's.
        height: of the whole frame, pixels.
        width: of the whole frame, pixels.
        positions: of its frames in the video, ascending: see `raylab.data.footage`.
        squares: JPEG images of the centre squares, buffers.
        sides: JPEG images of what lies beside them; None where there is nothing, or where it was not kept.
    """

    id: str
    height: int
    width: int
    positions: list[float]
    squares: list[Any]
    sides: list[Any]


def shard_path(folder: Path, name: str) -> Path:
    """A shard's file, in a store's folder or in that of a copy."""
    return folder / "shards" / f"{name}.arrow"


def write_shard(path: Path, clips: Iterable[StoredClip]) -> None:
    """Write clips one by one: no more than one of them is in memory."""
    with replacing(path) as writing, pa.ipc.new_file(str(writing), SCHEMA) as writer:
        for clip in clips:
            writer.write_batch(pa.record_batch([[getattr(clip, name)] for name in SCHEMA.names], schema=SCHEMA))


def read_clip(path: Path, row: int, frames: int | None = None, fractions: Sequence[float] | None = None) -> StoredClip:
    """One clip of a shard. Its images are views of the mapped file, not copies.

    Args:
        path: the shard.
        row: of the clip.
        frames: how many of its frames, evenly spaced; all of them by default.
        fractions: instead of evenly spaced, those nearest to these fractions of the clip, in [0, 1).

    Raises:
        OSError, ValueError, LookupError, pa.ArrowException: it is gone or damaged: see `reading`.
    """
    batch = _open(path).get_batch(row)
    batch.validate(full=True)  # or a damaged offset would end the process when it is used
    column = {name: batch.column(name) for name in SCHEMA.names}
    # Not `to_numpy`: it would import pandas, in every loader process.
    positions = np.asarray(np.from_dlpack(column["positions"].values), np.float64)
    chosen = list(range(len(positions))) if frames is None else nearest(positions, frames, fractions)
    return StoredClip(
        id=column["id"][0].as_py(),
        height=column["height"][0].as_py(),
        width=column["width"][0].as_py(),
        positions=positions[chosen].tolist(),
        squares=_images(column["squares"].values, chosen),
        sides=_images(column["sides"].values, chosen),
    )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever is wrong with a shard, or with an image in it, becomes a `RaylabError` that names the file."""
    try:
        yield
    except (OSError, ValueError, LookupError, pa.ArrowException) as error:
        raise RaylabError(f"{path}: cannot be read ({error}): delete it and {PREPARE}") from None


def _images(column: pa.BinaryArray, chosen: Sequence[int]) -> list[memoryview | None]:
    """Views of some values of a column; None for those that are null."""
    if column.null_count == len(column):
        return [None] * len(chosen)
    _, ends, content = column.buffers()
    offsets = np.frombuffer(ends, np.int32)[column.offset :].tolist()
    bytes_ = memoryview(content).cast("B")
    return [bytes_[offsets[i] : offsets[i + 1]] for i in chosen]


def nearest(positions: NDArray[np.float64], frames: int, fractions: Sequence[float] | None = None) -> list[int]:
    """Indices of the stored frames that are nearest to `frames` evenly spaced ones, or to fractions of the clip.

    Evenly spaced, exactly those that `raylab.data.footage.positions` would name, where the store was made for that many
    frames.
    """
    first, last = positions[0], positions[-1]
    evenly = fractions is None
    wanted = np.linspace(first, last, frames) if evenly else first + np.asarray(fractions) * (last - first)
    if evenly and (positions % 1 == 0).all():  # frame numbers, not seconds
        wanted = np.rint(wanted)
    between = (positions[1:] + positions[:-1]) / 2
    indices: list[int] = np.searchsorted(between, wanted).tolist()
    return indices


@lru_cache(maxsize=OPEN_SHARDS)
def _open(path: Path) -> pa.RecordBatchFileReader:
    with pa.memory_map(str(path)) as file:  # closing it gives the descriptor back, not the mapping
        return pa.ipc.open_file(file.read_buffer())


def digest(path: Path) -> str:
    """BLAKE2 of a file's bytes."""
    with path.open("rb") as file:
        content = blake2b(digest_size=16)
        while block := file.read(1 << 20):
            content.update(block)
    return content.hexdigest()
