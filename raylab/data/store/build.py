"""Writing a store: what is missing becomes pieces of work, each piece one shard, and finished shards one index.

A preparation that is killed loses the shards it was writing, no more. Which clips share a shard follows from the clips
that the index lacks alone, so that one that goes on writes the very files of one that was never disturbed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from socket import gethostname

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raylab.data.clips import Clip, ClipTable
from raylab.data.footage import frames_at_rate, positions, positions_at_rate, read_positions
from raylab.data.store import index, jpeg
from raylab.data.store.manifest import Manifest, Shard, StoreSettings, Unreadable
from raylab.data.store.shards import StoredClip, digest, shard_path, write_shard
from raylab.errors import RaylabError
from raylab.storage import PARTIAL

SHARD_CLIPS = (16, 256)  # fewest and most clips of a shard
SHARDS = 64  # to be shared out among processes, where that leaves each shard enough clips
FRAMES_AT_ONCE = 32


@dataclass(frozen=True)
class Piece:
    """The clips of one shard to be: each with its content key and its source."""

    name: str
    clips: list[tuple[Clip, bytes, Path]]


@dataclass(frozen=True)
class Plan:
    """What a store lacks. Iterating makes the pieces one by one: a million clips need not be objects at once."""

    clips: ClipTable
    keys: Sequence[bytes]
    sources: Mapping[str, Path]
    pieces: dict[str, NDArray[np.int64]]

    def __len__(self) -> int:
        """Clips still to be read."""
        return sum(map(len, self.pieces.values()))

    def __iter__(self) -> Iterator[Piece]:
        for name, rows in self.pieces.items():
            clips = [(self.clips[row], self.keys[row]) for row in rows.tolist()]
            yield Piece(name, [(clip, key, self.sources[clip.video]) for clip, key in clips])

    def without(self, names: set[str]) -> Plan:
        pieces = {name: rows for name, rows in self.pieces.items() if name not in names}
        return Plan(self.clips, self.keys, self.sources, pieces)


@dataclass(frozen=True)
class Building:
    """A store being prepared: `plan` what is missing, `write` each piece, then `seal`.

    One process at a time may plan and seal; any number, on any node, may write.

    Attributes:
        folder: of the store.
        settings: of the store.
        decoder: for video files.
    """

    folder: Path
    settings: StoreSettings
    decoder: str

    def plan(self, clips: ClipTable, keys: Sequence[bytes], sources: Mapping[str, Path]) -> Plan:
        """What is left to do for the store to hold these clips; those that could not be read are tried again.

        Args:
            clips: all that the store is to hold.
            keys: the content key of each.
            sources: video id → video file, or folder of extracted frames.
        """
        self.sweep_out()
        plan, finished = self._missing(clips, keys, sources), {path.stem for path in self._parts()}
        if finished - plan.pieces.keys():  # made by an earlier plan, for other clips: keep what they hold
            self.seal(clips)
            plan, finished = self._missing(clips, keys, sources), set()
        return plan.without(finished)

    def _missing(self, clips: ClipTable, keys: Sequence[bytes], sources: Mapping[str, Path]) -> Plan:
        missing = np.flatnonzero(~index.holds(self.rows(), clips, keys))
        size = int(np.clip(-(-len(missing) // SHARDS), *SHARD_CLIPS))
        ids = clips.table["id"].take(missing).to_pylist()
        pieces = {}
        for first in range(0, len(missing), size):
            rows = missing[first : first + size]
            content = blake2b(digest_size=12)
            for id, row in zip(ids[first : first + size], rows.tolist(), strict=True):
                content.update(keys[row] + id.encode() + b"\0")
            pieces[content.hexdigest()] = rows
        return Plan(clips, keys, sources, pieces)

    def rows(self) -> pa.Table:
        """The index as it was last sealed, without the clips of shards that somebody has deleted."""
        manifest = Manifest.read(self.folder)
        if manifest is None or not (self.folder / manifest.index).exists():
            return index.SCHEMA.empty_table()
        return self._at_hand(index.read_rows(self.folder / manifest.index))

    def _at_hand(self, rows: pa.Table) -> pa.Table:
        names = rows["shard"].drop_null().unique().to_pylist()
        gone = [name for name in names if not shard_path(self.folder, name).exists()]
        return rows.filter(pc.invert(pc.is_in(rows["shard"], pa.array(gone, pa.string())))) if gone else rows

    def write(self, piece: Piece) -> tuple[int, int]:
        """Write one shard, and beside it the rows that it adds to the index.

        Returns:
            How many clips it was to hold, and how many of them could not be read.

        Raises:
            RaylabError: the shard cannot be written.
        """
        if not self.folder.is_dir():
            raise RaylabError(
                f"{self.folder}: not seen on {gethostname()}: set data.store=FOLDER to one on shared storage"
            )
        errors: dict[str, str] = {}

        def readable() -> Iterator[StoredClip]:
            for clip, _, source in piece.clips:
                try:
                    yield self.read(clip, source)
                except RaylabError as error:
                    errors[clip.id] = str(error)

        path = shard_path(self.folder, piece.name)
        try:
            write_shard(path, readable())
            shard = Shard(clips=len(piece.clips) - len(errors), bytes=path.stat().st_size, digest=digest(path))
            if not shard.clips:
                path.unlink()
            rows = index.rows_of(piece.name, [(clip, key) for clip, key, _ in piece.clips], errors)
            sealed = rows.replace_schema_metadata({"shard": shard.model_dump_json()})
            index.write_rows(self.folder / "parts" / f"{piece.name}.arrow", sealed)
        except OSError as error:
            raise RaylabError(
                f"{self.folder}: cannot be written ({error}): free some space there, or set data.store=FOLDER"
            ) from None
        return len(piece.clips), len(errors)

    def read(self, clip: Clip, source: Path) -> StoredClip:
        """One clip as the store keeps it, from its video.

        Raises:
            RaylabError: its frames cannot be read.
        """
        settings = self.settings
        if settings.rate:
            wanted = positions_at_rate(clip, source, settings.rate)
        else:
            counts = (frames_at_rate(clip, source, settings.fps),) if settings.fps else settings.frames
            wanted = sorted(set(chain.from_iterable(positions(clip, source, frames) for frames in counts)))
        images: list[tuple[bytes, bytes | None]] = []
        for first in range(0, len(wanted), FRAMES_AT_ONCE):
            frames = read_positions(source, wanted[first : first + FRAMES_AT_ONCE], self.decoder)
            frames = jpeg.shrink(frames, settings.short_side)
            images += jpeg.encode(frames, settings.quality, settings.sides)
        squares, sides = zip(*images, strict=True)
        return StoredClip(clip.id, frames.shape[2], frames.shape[3], wanted, list(squares), list(sides))

    def seal(self, clips: ClipTable | None = None) -> Manifest:
        """Take finished shards into the index. Readers see the store as it was before, or all of it.

        Args:
            clips: of the data set. Unreadable ones that it no longer has are forgotten; by default, none is.
        """
        for left in self.folder.rglob(f"*{PARTIAL}*"):  # by writers that were killed; others have done their work
            left.unlink(missing_ok=True)
        old = Manifest.read(self.folder)
        parts = {path: index.read_rows(path) for path in self._parts()}
        rows = self._at_hand(index.merge([self.rows(), *parts.values()]))
        if clips is not None:
            rows = rows.filter(pc.or_(rows["error"].is_null(), pc.is_in(rows["id"], clips.column("id"))))
        shards = dict(old.shards) if old else {}
        for path, part in parts.items():
            shards[path.stem] = Shard.model_validate_json(part.schema.metadata[b"shard"])
        unreadable = rows.filter(rows["error"].is_valid()).select(["id", "video", "error"]).to_pylist()
        manifest = Manifest(
            settings=self.settings,
            index=f"index-{index.digest(rows)}.arrow",
            clips=rows.num_rows - len(unreadable),
            shards={name: shards[name] for name in sorted(rows["shard"].drop_null().unique().to_pylist())},
            unreadable=[Unreadable(id=row["id"], video=row["video"], reason=row["error"]) for row in unreadable],
        )
        index.write_rows(self.folder / manifest.index, rows)
        manifest.write(self.folder)
        for path in parts:
            path.unlink()
        return manifest

    def sweep_out(self) -> None:
        """Delete what nothing refers to: files of killed writers, and shards and indices that were replaced.

        Done at the beginning of a preparation, not at its end: until then runs may still read them.
        """
        manifest = Manifest.read(self.folder)
        shards = {path.stem for path in self._parts()} | set(manifest.shards if manifest else ())
        for path in self.folder.rglob("*"):
            replaced = path.match("shards/*.arrow") and path.stem not in shards
            outdated = path.match("index-*.arrow") and not (manifest and path.name == manifest.index)
            if PARTIAL in path.name or replaced or outdated:
                path.unlink(missing_ok=True)

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("parts/*.arrow"))
