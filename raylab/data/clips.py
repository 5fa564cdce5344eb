"""What every annotation reader produces: clips, label maps and a list of what was odd."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa

from raylab.data.table import KEYED, RecordTable
from raylab.errors import RaylabError

if TYPE_CHECKING:
    from typing_extensions import Self

    from raylab.data.importance import Importance
    from raylab.data.store.reader import StoredFrames


@dataclass(frozen=True, slots=True)
class Clip:
    """One annotated stretch of one video.

    Attributes:
        id: unique within its data set (EPIC: `narration_id`; a labelled folder: the video's path).
        video: the video's id.
        start: seconds from the video's first frame, inclusive.
        stop: seconds, exclusive; past the end stands for the end, infinity for a whole video of any length.
        start_frame: 1-based number of the first extracted frame, inclusive.
        stop_frame: 1-based number just past the last extracted frame.
        labels: head name → class index, e.g. `{"verb": 3, "noun": 17}`; the same heads in every clip.
        group: what must not be divided between splits (EPIC: the participant; a labelled folder: the video).
    """

    id: str
    video: str
    start: float
    stop: float
    start_frame: int
    stop_frame: int
    labels: dict[str, int]
    group: str = ""


class ClipTable(RecordTable[Clip]):
    """Clips as columns, all with the same heads."""

    record = Clip
    columns: ClassVar[dict[str, pa.DataType]] = {
        "id": pa.string(),
        "video": pa.string(),
        "start": pa.float64(),
        "stop": pa.float64(),
        "start_frame": pa.int64(),
        "stop_frame": pa.int64(),
        "labels": KEYED,
        "group": pa.string(),
    }

    @classmethod
    def of(cls, records: Iterable[Clip]) -> Self:
        """A table of these clips, in memory; a table is returned as it is.

        Raises:
            RaylabError: a clip has other heads than the first.
        """
        return super().of(records if isinstance(records, cls) else _of_one_kind(records))

    @property
    def videos(self) -> dict[str, str]:
        """Video id → group of its first clip, of every video that has clips, in their order."""
        videos, groups = self.column("video").dictionary_encode(), self.column("group")
        _, first = np.unique(np.from_dlpack(videos.indices), return_index=True)
        return {video: groups[at].as_py() for video, at in zip(videos.dictionary.to_pylist(), first, strict=True)}


def _of_one_kind(clips: Iterable[Clip]) -> Iterator[Clip]:
    heads = None
    for clip in clips:
        heads = clip.labels.keys() if heads is None else heads
        if clip.labels.keys() != heads:
            raise RaylabError(
                f"clip {clip.id}: labels for {', '.join(clip.labels) or 'no head'}, where the clips before it have "
                f"{', '.join(heads) or 'none'}: give every clip the same heads"
            )
        yield clip


@dataclass(frozen=True, slots=True)
class Issue:
    """One thing wrong or odd in an annotation file."""

    file: str
    line: int
    kind: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


class IssueTable(RecordTable[Issue]):
    """Issues as columns."""

    record = Issue
    columns: ClassVar[dict[str, pa.DataType]] = {
        "file": pa.string(),
        "line": pa.int64(),
        "kind": pa.string(),
        "reason": pa.string(),
    }


@dataclass(frozen=True, slots=True)
class Annotations:
    """The clips of one annotation file.

    Attributes:
        clips: the rows that could be read, in file order.
        rejected: rows left out, each with file, line and reason.
        odd: rows kept although something about them is unusual.
    """

    clips: ClipTable
    rejected: IssueTable = field(default_factory=lambda: IssueTable.of([]))
    odd: IssueTable = field(default_factory=lambda: IssueTable.of([]))

    def summary(self) -> str:
        """One line: how many clips, and how many rows of each kind of oddity."""
        found = pa.concat_tables([self.rejected.table, self.odd.table])["kind"].value_counts()
        kinds = {count["values"]: count["counts"] for count in found.to_pylist()}
        clips = len(self.clips)
        parts = [f"{clips:,} clip{'s' * (clips != 1)}", *(f"{n:,} {kind}" for kind, n in sorted(kinds.items()))]
        return ", ".join(parts)


def limit(annotations: Annotations, path: Path, most: int | None, remedy: str) -> Annotations:
    """At most so many clips, evenly spaced; all of them where `most` is None.

    Raises:
        RaylabError: there are none; names the file, the first row that was rejected and the remedy.
    """
    clips = annotations.clips
    if not clips:
        rejected = annotations.rejected
        first = f", the first: {rejected[0]}" if rejected else ""
        raise RaylabError(f"{path}: no clips; rows rejected: {len(rejected):,}{first}; {remedy}")
    if most is None or most >= len(clips):
        return annotations
    return replace(annotations, clips=clips.take([i * len(clips) // most for i in range(most)]))


@dataclass(frozen=True, slots=True)
class Dataset:
    """Everything training needs to know of a data set, before any frame is decoded.

    Attributes:
        splits: split name (`train`, `val`, or `test`, for EPIC without labels) → its annotations.
        labels: head name → class names, by class index.
        sources: video id → video file, or folder of extracted frames; empty where a clip store has the frames.
        stored: split name → its frames in a clip store; empty where they are decoded from the sources.
        refusals: why clip stores that are there do not serve.
        unseen: groups of `val` that have no clip in `train`, as published; empty where that is not known.
        tail: head name → rare classes, as published; empty where they are not known.
        importance: video id → how important its frames are, of all videos in the splits; empty where that is not known.
    """

    splits: dict[str, Annotations]
    labels: dict[str, list[str]]
    sources: dict[str, Path] = field(default_factory=dict)
    stored: dict[str, StoredFrames] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)
    unseen: frozenset[str] = frozenset()
    tail: dict[str, frozenset[int]] = field(default_factory=dict)
    importance: dict[str, Importance] = field(default_factory=dict)

    @property
    def heads(self) -> dict[str, int]:
        """Head name → number of classes."""
        return {head: len(names) for head, names in self.labels.items()}

    @property
    def origin(self) -> str:
        """Where frames come from, in words: videos as they were recorded, or JPEG of them."""
        return next((f"clip store {frames.store.folder.name}" for frames in self.stored.values()), "video")
