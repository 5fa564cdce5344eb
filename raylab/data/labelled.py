"""Labelled-folder reader: lists of video files, each with the label of the whole video.

`train.csv`, `val.csv` and `test.csv` have one video a line: its path, white space and its label, the last word of the
line (`videos/video1.mp4 A`). Paths may contain spaces; they begin in the root. Source: the lists that VideoMAE's
fine-tuning reads, https://github.com/MCG-NJU/VideoMAE/blob/main/DATASET.md, here with labels by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from raylab.data.clips import Annotations, Clip, ClipTable, Dataset, Issue, IssueTable, limit
from raylab.data.files import reading, scan
from raylab.errors import RaylabError

if TYPE_CHECKING:  # pydantic takes longer to import than this module to read a file
    from raylab.config import DataConfig

FORMAT = 1  # raise it when a change of the code changes what is read: caches are told apart by it
SETTINGS = ("max_clips",)
SPLITS = {"train": "train.csv", "val": "val.csv", "test": "test.csv"}
HEAD = "label"

REMEDY = (
    "set data.root=PATH to the folder that the videos' paths begin in, data.annotations=PATH to the folder with "
    f"{', '.join(SPLITS.values())} if that is another; data.dataset=kitchen_labelled is the built-in data instead"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a list: its number, from 1, and its label."""

    line: int
    label: str


def annotation_files(config: DataConfig, splits: Sequence[str] = ("train", "val")) -> dict[str, Path]:
    """The lists of these splits, and as `classes` that of train, which has the class names.

    Args:
        config: `annotations`, else `root`, is the folder that holds them.
        splits: some of `SPLITS`.

    Raises:
        RaylabError: files are missing, or the folder cannot be listed.
    """
    folder = Path(config.annotations or config.root).absolute()
    files = {"classes": folder / SPLITS["train"], **{split: folder / SPLITS[split] for split in splits}}
    names = set(SPLITS.values())
    there = scan(folder, lambda entry: entry.name in names and entry.is_file())
    missing = [f"  {path}" for path in dict.fromkeys(files.values()) if path not in there]
    if missing:
        raise RaylabError("\n".join(["lists of labelled videos not found; looked for", *missing, REMEDY]))
    return files


def read_dataset(files: Mapping[str, Path], config: DataConfig) -> Dataset:
    """Read a labelled folder's lists.

    Args:
        files: what `annotation_files` finds.
        config: `max_clips` is used: at most so many clips of each split, evenly spaced.

    Returns:
        The splits that `files` has, one head `label` whose classes are the labels of `classes`, sorted; no sources.

    Raises:
        RaylabError: a file cannot be read, or a split has no clips.
    """
    train, _ = _read_list(files["classes"])
    labels = sorted({row.label for row in train.values()})
    splits = {
        split: read_annotations(files[split], labels, {} if split == "train" else train)
        for split in SPLITS
        if split in files
    }
    remedy = "a row is a path, white space and a label: videos/video1.mp4 A"
    splits = {split: limit(read, files[split], config.max_clips, remedy) for split, read in splits.items()}
    return Dataset(splits, {HEAD: labels})


def read_annotations(path: Path, labels: Sequence[str], train: Mapping[str, Row]) -> Annotations:
    """Read one list. A clip is a whole video, from 0 to infinity; its id is the video's path.

    Rows that cannot be trusted are rejected and listed; so are, as odd, the rows kept whose video is in `train` too.

    Args:
        path: the list, UTF-8 with or without a byte order mark.
        labels: class names, by class index.
        train: video → its row in the training list; empty where that is the list to be read.

    Raises:
        RaylabError: the file cannot be read.
    """
    classes = {label: index for index, label in enumerate(labels)}
    rows, rejected = _read_list(path, classes)
    odd = [
        Issue(str(path), row.line, "also in train", f"path {video!r} stands in line {train[video].line} of train.csv")
        for video, row in rows.items()
        if video in train
    ]
    clips = (
        Clip(video, video, 0.0, math.inf, 1, 2, {HEAD: classes[row.label]}, group=video) for video, row in rows.items()
    )
    return Annotations(ClipTable.of(clips), IssueTable.of(rejected), IssueTable.of(odd))


def find_sources(config: DataConfig, videos: Mapping[str, str], remedy: str = REMEDY) -> dict[str, Path]:
    """The file of each video.

    Folders are listed once each, whatever the number of videos. No path leads out of the root (`unsafe` sees to that),
    but links that stand under it are followed.

    Args:
        config: `root` and `source` are used.
        videos: by id, their path under the root.
        remedy: what to do about missing videos.

    Raises:
        RaylabError: videos are missing, a folder cannot be listed, or extracted frames are asked for.
    """
    if config.source == "frames":
        raise RaylabError("data.source = frames: a labelled folder holds video files: set data.source=videos")
    root = Path(config.root).absolute()
    sources = {video: root / video for video in sorted(videos)}
    names = {path.name for path in sources.values()}
    folders = {path.parent for path in sources.values()}
    there = {path for folder in folders for path in scan(folder, lambda e: e.name in names and e.is_file())}
    missing = [video for video, path in sources.items() if path not in there]
    if missing:
        first = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        raise RaylabError(
            f"{len(missing):,} of {len(sources):,} videos are missing: {first}\nlooked for under {root}\n{remedy}"
        )
    return sources


def _read_list(path: Path, labels: Container[str] | None = None) -> tuple[dict[str, Row], list[Issue]]:
    """Video → its row, in file order, and the rows that are rejected: for their label too, where `labels` is given."""
    rows: dict[str, Row] = {}
    rejected: list[Issue] = []
    with reading(path), path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, start=1):
            words = text.strip().rsplit(maxsplit=1)
            if not words:
                continue
            video = str(PurePosixPath(words[0]))
            fault = _fault(words, labels)
            if not fault and video in rows:
                fault = "duplicate", f"path {video!r} stands already in line {rows[video].line}"
            if fault:
                rejected.append(Issue(str(path), line, *fault))
            else:
                rows[video] = Row(line, words[1])
    return rows, rejected


def _fault(words: list[str], labels: Container[str] | None) -> tuple[str, str] | None:
    """Kind and reason, where a row cannot be trusted by itself."""
    if len(words) == 1:
        return "without label", f"{words[0]!r} stands alone: a row is a path, white space and a label"
    written, label = words
    if reason := unsafe(written, label=label):
        return "unsafely named", reason
    if labels is not None and label not in labels:
        return "of unknown class", f"label {label!r} is not in train.csv"
    return None


def unsafe(written: str, **names: str) -> str | None:
    """Why a path, or one of these names, cannot be trusted; None where all can."""
    path = PurePosixPath(written)
    elsewhere = path.is_absolute() or ".." in path.parts or not path.parts
    if elsewhere or "\\" in written or _CONTROL.search(written):
        return (
            f"path {written!r} is not a path under the root (no leading /, no .., no backslash, no control characters)"
        )
    for kind, name in names.items():
        if _CONTROL.search(name):
            return f"{kind} {name!r} has control characters"
    return None


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
