"""EPIC-KITCHENS-100 reader: annotation CSV files, and the video files or extracted frames behind them.

Format: https://github.com/epic-kitchens/epic-kitchens-100-annotations. Source: D. Damen et al., "Rescaling
Egocentric Vision: Collection, Pipeline and Challenges for EPIC-KITCHENS-100", IJCV 2022.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from raylab.data.clips import Annotations, Clip, ClipTable, Dataset, Issue, IssueTable, limit
from raylab.data.epic_sources import REMEDY
from raylab.data.epic_sources import find_sources as find_sources  # part of what a reader offers
from raylab.data.files import reading, scan
from raylab.errors import RaylabError

if TYPE_CHECKING:  # pydantic takes longer to import than this module to read a file
    from raylab.config import DataConfig

FORMAT = 2  # raise it when a change of the code changes what is read: caches are told apart by it
SETTINGS = ("max_clips",)
SPLITS = {
    "train": "EPIC_100_train.csv",
    "val": "EPIC_100_validation.csv",
    "test": "EPIC_100_test_timestamps.csv",  # without labels
}
LABELLED = ("train", "val")
CLASSES = {"verb": "EPIC_100_verb_classes.csv", "noun": "EPIC_100_noun_classes.csv"}
TAIL = {"verb": "EPIC_100_tail_verbs.csv", "noun": "EPIC_100_tail_nouns.csv"}
UNSEEN = "EPIC_100_unseen_participant_ids_validation.csv"
VIDEO_INFO = "EPIC_100_video_info.csv"
OPTIONAL = {"video_info": VIDEO_INFO, "unseen": UNSEEN, **{f"tail_{head}": name for head, name in TAIL.items()}}

ANNOTATION_FOLDERS = ("", "annotations", "epic-kitchens-100-annotations")

FRAME_TOLERANCE = 30
"""Frames that `start_frame` may lie away from `start_timestamp` × fps before the row is listed as odd."""

T = TypeVar("T")
Row = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """One row of `EPIC_100_video_info.csv`: duration in seconds, frames per second."""

    duration: float
    fps: float


def annotation_files(config: DataConfig, splits: Sequence[str] = LABELLED) -> dict[str, Path]:
    """The CSV files of EPIC-KITCHENS-100, by what they hold: some of `SPLITS`, each of `CLASSES`, some of `OPTIONAL`.

    They are taken from one folder, the first to hold most of the splits' files: `config.annotations` if given, else of
    the root and its `ANNOTATION_FOLDERS`. Without `EPIC_100_video_info.csv`, times are not checked against the videos.

    Args:
        config: `root` and `annotations` are used.
        splits: the splits that are wanted.

    Raises:
        RaylabError: files are missing, or a folder cannot be listed.
    """
    if config.annotations:
        folders = [Path(config.annotations).absolute()]
    else:
        folders = [Path(config.root).absolute() / name for name in ANNOTATION_FOLDERS]
    needed = {split: SPLITS[split] for split in splits} | CLASSES
    wanted = needed | OPTIONAL
    names = set(wanted.values())
    there = {f: {at.name for at in scan(f, lambda e: e.name in names and e.is_file())} for f in folders}
    held = {folder: sum(SPLITS[split] in there[folder] for split in splits) for folder in folders}
    found = [folder for folder in folders if held[folder] and held[folder] == max(held.values())][:1]
    missing = [folder / name for folder in found or folders for name in needed.values() if name not in there[folder]]
    if missing:
        lines = [f"  {path}" for path in missing]
        raise RaylabError("\n".join(["EPIC-KITCHENS-100 annotations not found; looked for", *lines, REMEDY]))
    return {what: folder / name for folder in found for what, name in wanted.items() if name in there[folder]}


def read_dataset(files: Mapping[str, Path], config: DataConfig) -> Dataset:
    """Read EPIC-KITCHENS-100's annotations.

    Args:
        files: what `annotation_files` finds.
        config: `max_clips` is used: at most so many clips of each split, evenly spaced.

    Returns:
        The splits that `files` has, heads `verb` and `noun`; no sources.

    Raises:
        RaylabError: a file cannot be read, or a split has no clips.
    """
    labels = {head: read_classes(files[head]) for head in CLASSES}
    classes = {head: len(names) for head, names in labels.items()}
    videos = read_video_info(files["video_info"]) if "video_info" in files else None
    splits = {
        split: read_annotations(files[split], classes if split in LABELLED else {}, videos)
        for split in SPLITS
        if split in files
    }
    remedy = "take the official file"
    splits = {split: limit(read, files[split], config.max_clips, remedy) for split, read in splits.items()}
    unseen = frozenset(read_names(files["unseen"])) if "unseen" in files else frozenset()
    tail = {
        head: frozenset(read_tail(files[f"tail_{head}"], head, classes[head]))
        for head in TAIL
        if f"tail_{head}" in files
    }
    return Dataset(splits, labels, unseen=unseen, tail=tail)


def read_annotations(
    path: Path, classes: Mapping[str, int], videos: Mapping[str, VideoInfo] | None = None
) -> Annotations:
    """Read one `EPIC_100_*.csv`.

    Columns are found by name; those not needed here may be absent. Rows that cannot be trusted are rejected
    and listed; so are, among the rows kept, those that

    - have a `start_frame` more than `FRAME_TOLERANCE` from timestamp × fps. Most published numbers count 60
      frames a second where the video has 59.94, so they hold for the official extracted frames only;
    - stop after their video ends: `stop` is clamped to its duration;
    - repeat the video, times and labels of an earlier row, or name a video that `videos` does not have.

    Args:
        path: the CSV file, UTF-8 with or without a byte order mark.
        classes: head → number of classes; each head has a column `<head>_class`.
        videos: video id → duration and frame rate; None skips the checks against the video.

    Raises:
        RaylabError: the file cannot be read, is not CSV, or lacks a column.
    """
    names = ("narration_id", "participant_id", "video_id")
    numbers = ("start_timestamp", "stop_timestamp", "start_frame", "stop_frame")
    columns = (*names, *numbers, *(f"{head}_class" for head in classes))
    rejected: list[Issue] = []
    odd: list[Issue] = []

    def clips() -> Iterator[Clip]:
        seen: dict[object, int] = {}
        for line, clip in _table(path, columns, lambda row: _clip(row, classes), rejected):
            if clip.id in seen:
                reason = f"narration_id {clip.id!r} stands already in line {seen[clip.id]}"
                rejected.append(Issue(str(path), line, "duplicate", reason))
                continue
            seen[clip.id] = line
            info = videos.get(clip.video) if videos is not None else None
            if info and clip.start >= info.duration:
                reason = f"start_timestamp {clip.start:.3f} s is past the end of {clip.video} ({info.duration:.3f} s)"
                rejected.append(Issue(str(path), line, "past the end", reason))
                continue
            segment = (clip.video, clip.start, clip.stop, *clip.labels.values())
            oddities = _oddities(clip, info) if videos is not None else {}
            if seen.setdefault(segment, line) != line:
                oddities["repeated"] = f"same video, times and labels as line {seen[segment]}"
            odd.extend(Issue(str(path), line, kind, reason) for kind, reason in oddities.items())
            yield replace(clip, stop=info.duration) if info and clip.stop > info.duration else clip

    table = ClipTable.of(clips())  # which fills the lists
    return Annotations(table, IssueTable.of(rejected), IssueTable.of(odd))


def read_classes(path: Path) -> list[str]:
    """Class names (column `key`) by class index (column `id`).

    Raises:
        RaylabError: the file cannot be read, or its ids are not 0..n-1.
    """
    rows = _strict_table(path, ("id", "key"), lambda row: (_whole(row, "id"), row["key"]))
    ids = sorted(index for index, _ in rows)
    if not ids or ids != list(range(len(ids))):
        wrong = next((f"found id {found}, not {want}" for want, found in enumerate(ids) if found != want), "found none")
        raise RaylabError(f"{path}: class ids must be 0 to n - 1, each once: {wrong}; take the official file")
    return [name for _, name in sorted(rows)]


def read_video_info(path: Path) -> dict[str, VideoInfo]:
    """Video id → duration and frame rate.

    Raises:
        RaylabError: the file cannot be read, or a row holds no positive duration and fps.
    """

    def parse(row: Row) -> tuple[str, VideoInfo]:
        return row["video_id"], VideoInfo(_positive(row, "duration"), _positive(row, "fps"))

    return dict(_strict_table(path, ("video_id", "duration", "fps"), parse))


def read_names(path: Path) -> list[str]:
    """The participants of `EPIC_100_unseen_participant_ids_validation.csv`.

    Raises:
        RaylabError: the file cannot be read, or a row is not a plain name.
    """
    return _strict_table(path, ("participant_id",), lambda row: _name(row, "participant_id"))


def read_tail(path: Path, head: str, classes: int) -> list[int]:
    """The rare classes of `EPIC_100_tail_verbs.csv` or `EPIC_100_tail_nouns.csv`.

    Args:
        path: the file.
        head: its column, `verb` or `noun`.
        classes: how many classes there are.

    Raises:
        RaylabError: the file cannot be read, or a row is not a class.
    """

    def parse(row: Row) -> int:
        value = _whole(row, head)
        if value >= classes:
            raise _Rejected("of unknown class", f"{head} {value} is not among 0 to {classes - 1}")
        return value

    return _strict_table(path, (head,), parse)


class _Rejected(Exception):
    def __init__(self, kind: str, reason: str) -> None:
        self.kind = kind
        self.reason = reason


def _table(
    path: Path, columns: Iterable[str], parse: Callable[[Row], T], rejected: list[Issue]
) -> Iterator[tuple[int, T]]:
    """Line number and parsed row of each row; those that `parse` refuses go to `rejected`."""
    line = 1
    try:
        with reading(path), path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            missing = [column for column in columns if column not in header]
            if missing:
                raise RaylabError(f"{path}: no column {', '.join(missing)}; its columns: {', '.join(header) or 'none'}")
            line = reader.line_num + 1
            for cells in reader:
                try:
                    if cells:  # not a blank line
                        yield line, _parse(header, cells, parse)
                except _Rejected as refusal:
                    rejected.append(Issue(str(path), line, refusal.kind, refusal.reason))
                line = reader.line_num + 1  # a quoted cell may span lines: a row is named by its first
    except csv.Error as error:
        raise RaylabError(f"{path}:{line}: not CSV ({error}); check the quotes of the row that begins here") from None


def _parse(header: list[str], cells: list[str], parse: Callable[[Row], T]) -> T:
    if len(cells) != len(header):
        raise _Rejected("unreadable", f"{len(cells)} cells where the header has {len(header)}")
    return parse(dict(zip(header, cells, strict=True)))


def _strict_table(path: Path, columns: Iterable[str], parse: Callable[[Row], T]) -> list[T]:
    rejected: list[Issue] = []
    rows = [row for _, row in _table(path, columns, parse, rejected)]
    if rejected:
        raise RaylabError(f"{len(rejected):,} bad rows; take the official file:\n" + "\n".join(map(str, rejected[:5])))
    return rows


def _clip(row: Row, classes: Mapping[str, int]) -> Clip:
    clip = Clip(
        id=_name(row, "narration_id"),
        video=_name(row, "video_id"),
        start=_seconds(row, "start_timestamp"),
        stop=_seconds(row, "stop_timestamp"),
        start_frame=_whole(row, "start_frame"),
        stop_frame=_whole(row, "stop_frame"),
        labels={head: _whole(row, f"{head}_class") for head in classes},
        group=_name(row, "participant_id"),
    )
    if clip.stop <= clip.start:
        raise _Rejected("empty", f"stop_timestamp {clip.stop:.3f} s is not after start_timestamp {clip.start:.3f} s")
    if clip.stop_frame <= clip.start_frame:
        raise _Rejected("empty", f"stop_frame {clip.stop_frame} is not after start_frame {clip.start_frame}")
    if clip.start_frame < 1:
        raise _Rejected("unreadable", "start_frame 0: extracted frames are numbered from 1")
    for head, label in clip.labels.items():
        if label >= classes[head]:
            raise _Rejected("of unknown class", f"{head}_class {label} is not among 0 to {classes[head] - 1}")
    return clip


def _oddities(clip: Clip, info: VideoInfo | None) -> dict[str, str]:
    if info is None:
        return {"without video info": f"video_id {clip.video!r} is not in {VIDEO_INFO}"}
    found = {}
    expected = clip.start * info.fps
    if abs(clip.start_frame - expected) > FRAME_TOLERANCE:
        found["with frame numbers off"] = (
            f"start_frame {clip.start_frame} is {abs(clip.start_frame - expected):.1f} frames from "
            f"start_timestamp {clip.start:.3f} s × {info.fps:.2f} fps"
        )
    if clip.stop > info.duration:
        found["clamped"] = (
            f"stop_timestamp {clip.stop:.3f} s clamped to the end of {clip.video} ({info.duration:.3f} s)"
        )
    return found


_TIMESTAMP = re.compile(r"([0-9]{1,4}):([0-5][0-9]):([0-5][0-9](?:\.[0-9]+)?)")
_WHOLE = re.compile(r"[0-9]{1,9}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


def _seconds(row: Row, column: str) -> float:
    match = _TIMESTAMP.fullmatch(row[column])
    if not match:
        raise _Rejected("unreadable", f"{column} {row[column]!r} is not a time HH:MM:SS.sss")
    hours, minutes, seconds = match.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _whole(row: Row, column: str) -> int:
    if not _WHOLE.fullmatch(row[column]):
        raise _Rejected("unreadable", f"{column} {row[column]!r} is not a whole number of 0 or more")
    return int(row[column])


def _positive(row: Row, column: str) -> float:
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise _Rejected("unreadable", f"{column} {row[column]!r} is not a positive number")
    return value


def _name(row: Row, column: str) -> str:
    if not _NAME.fullmatch(row[column]):
        raise _Rejected("unsafely named", f"{column} {row[column]!r} is not a plain name (letters, digits, _ . -)")
    return row[column]
