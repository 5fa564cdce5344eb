"""The index of a store: which clip stands in which shard. One memory-mapped copy serves all processes of a node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raylab.data.clips import Clip, ClipTable
from raylab.data.store.manifest import PREPARE
from raylab.errors import RaylabError
from raylab.storage import replacing

SEGMENT = ("video", "start", "stop", "start_frame", "stop_frame")
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("video", pa.string()),
        ("start", pa.float64()),
        ("stop", pa.float64()),
        ("start_frame", pa.int64()),
        ("stop_frame", pa.int64()),
        ("key", pa.binary(16)),
        ("shard", pa.string()),
        ("row", pa.int32()),
        ("error", pa.string()),
    ]
)
"""`key`: what the content is made of (`StoreSettings.content_key`). `shard` and `row` are null where the clip could not
be read, `error` where it could."""


def write_rows(path: Path, rows: pa.Table) -> None:
    with replacing(path) as writing, pa.ipc.new_file(str(writing), rows.schema) as writer:
        writer.write_table(rows.combine_chunks())


def read_rows(path: Path, schema: pa.Schema = SCHEMA) -> pa.Table:
    """The rows of an index, or of a part of one, memory-mapped.

    Raises:
        RaylabError: the file is gone, damaged, or holds something else than `schema` says.
    """
    try:
        with pa.memory_map(str(path)) as file:  # closing it gives the descriptor back, not the mapping
            rows = pa.ipc.open_file(file).read_all()
        rows.validate(full=True)  # or a damaged offset would end the process when it is used
        if rows.schema != schema:
            raise ValueError(f"columns {', '.join(rows.schema.names)}")
    except (OSError, ValueError, pa.ArrowException) as error:
        raise RaylabError(f"{path}: cannot be read ({error}): delete it and {PREPARE}") from None
    return rows


def rows_of(shard: str, clips: Sequence[tuple[Clip, bytes]], errors: Mapping[str, str]) -> pa.Table:
    """The rows that one shard adds.

    Args:
        shard: its name.
        clips: those it was to hold, with their content keys, in its order.
        errors: clip id → why it is not in there.
    """
    rows = []
    held = count()
    for clip, key in clips:
        place = {"error": errors[clip.id]} if clip.id in errors else {"shard": shard, "row": next(held)}
        rows.append({"id": clip.id, "key": key, **{name: getattr(clip, name) for name in SEGMENT}, **place})
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def merge(tables: Sequence[pa.Table]) -> pa.Table:
    """One index of several: the last row of each clip, in the order of the clips' ids."""
    rows = pa.concat_tables([SCHEMA.empty_table(), *(table.cast(SCHEMA) for table in tables)])
    rows = rows.append_column("order", pa.array(np.arange(rows.num_rows)))
    last = rows.group_by("id").aggregate([("order", "max")]).sort_by("id")
    return rows.take(last["order_max"]).drop_columns("order").combine_chunks()


def locate(index: pa.Table, clips: ClipTable) -> NDArray[np.int64]:
    """The row of the index for each clip; -1 where there is none, or one of another segment."""
    found = pc.index_in(clips.column("id"), value_set=index["id"])
    rows: NDArray[np.int64] = pc.fill_null(found, -1).to_numpy().astype(np.int64)
    known = np.flatnonzero(rows >= 0)
    same = pc.equal(clips.column("video").take(known), index["video"].take(rows[known])).to_numpy()
    for name in ("start", "stop", "start_frame", "stop_frame"):
        same &= clips.column(name).to_numpy()[known] == index[name].to_numpy()[rows[known]]
    rows[known[~same]] = -1
    pa.default_memory_pool().release_unused()  # the hash table of all ids
    return rows


def holds(index: pa.Table, clips: ClipTable, keys: Sequence[bytes]) -> NDArray[np.bool_]:
    """Whether each clip is there, readable, and made of the same content."""
    rows = locate(index, clips)
    known = np.flatnonzero(rows >= 0)
    entries = index.select(["key", "error"]).take(rows[known])
    ours = pa.chunked_array([pa.array([keys[row] for row in known.tolist()], pa.binary(16))])
    same = pc.and_(pc.equal(entries["key"], ours), pc.is_null(entries["error"]))
    held = np.zeros(len(rows), bool)
    held[known] = same.to_numpy()
    return held


def digest(rows: pa.Table) -> str:
    """Of the rows' content."""
    content = blake2b(digest_size=8)
    for batch in rows.combine_chunks().to_batches():
        content.update(batch.serialize())
    return content.hexdigest()
