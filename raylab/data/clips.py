"""What every annotation reader produces: clips, label maps and a list of what was odd."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Clip:
    """One annotated stretch of one video.

    Attributes:
        id: unique within its data set (EPIC: `narration_id`).
        video: the video's id.
        start: seconds from the video's first frame, inclusive.
        stop: seconds, exclusive.
        start_frame: 1-based number of the first extracted frame, inclusive.
        stop_frame: 1-based number just past the last extracted frame.
        labels: head name → class index, e.g. `{"verb": 3, "noun": 17}`.
        group: what must not be divided between splits (EPIC: the participant).
    """

    id: str
    video: str
    start: float
    stop: float
    start_frame: int
    stop_frame: int
    labels: dict[str, int]
    group: str = ""


@dataclass(frozen=True, slots=True)
class Issue:
    """One thing wrong or odd in an annotation file."""

    file: Path
    line: int
    kind: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Annotations:
    """The clips of one annotation file.

    Attributes:
        clips: the rows that could be read, in file order.
        rejected: rows left out, each with file, line and reason.
        odd: rows kept although something about them is unusual.
    """

    clips: list[Clip]
    rejected: list[Issue] = field(default_factory=list)
    odd: list[Issue] = field(default_factory=list)

    def summary(self) -> str:
        """One line: how many clips, and how many rows of each kind of oddity."""
        kinds = Counter(issue.kind for issue in [*self.rejected, *self.odd])
        clips = len(self.clips)
        parts = [f"{clips:,} clip{'s' * (clips != 1)}", *(f"{n:,} {kind}" for kind, n in sorted(kinds.items()))]
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Everything training needs to know of a data set, before any frame is decoded.

    Attributes:
        splits: split name (`train`, `val`) → its annotations.
        labels: head name → class names, by class index.
        sources: video id → video file, or folder of extracted frames.
    """

    splits: dict[str, Annotations]
    labels: dict[str, list[str]]
    sources: dict[str, Path]

    @property
    def heads(self) -> dict[str, int]:
        """Head name → number of classes."""
        return {head: len(names) for head, names in self.labels.items()}
