"""Metadata reader: one CSV file with the path and the label of every video, to be divided by raylab.

`metadata.csv` has a heading and the columns `path` (under the root) and `label`; a column `group`, if there is one,
names what must not be divided between training and validation: a scene, a person, the source of a generated video.
Other columns are not read.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from raylab.data import labelled
from raylab.data.clips import Annotations, Clip, ClipTable, Dataset, Issue, IssueTable, limit
from raylab.data.files import reading, scan
from raylab.data.labelled import HEAD, unsafe
from raylab.data.splits import POOLED
from raylab.errors import RaylabError

if TYPE_CHECKING:
    from raylab.config import DataConfig

FORMAT = 1  # raise it when a change of the code changes what is read: caches are told apart by it
SETTINGS = ("max_clips",)
FILE = "metadata.csv"
COLUMNS = ("path", "label")
GROUP = "group"

REMEDY = (
    "set data.root=PATH to the folder that the videos' paths begin in, data.annotations=PATH to the folder with "
    f"{FILE} if that is another"
)


def annotation_files(config: DataConfig, splits: Sequence[str] = POOLED) -> dict[str, Path]:
    """The file, as `all`.

    Args:
        config: `annotations`, else `root`, is the folder that holds it.
        splits: `train` and `val`; there is no other.

    Raises:
        RaylabError: it is missing, the folder cannot be listed, or a split is asked for that it cannot give.
    """
    for split in splits:
        if split not in POOLED:
            raise RaylabError(f"{split}: {FILE} is divided into {' and '.join(POOLED)} alone")
    if config.split == "official":
        raise RaylabError(f"data.split = official: {FILE} has no published splits: set data.split=stratified")
    path = Path(config.annotations or config.root).absolute() / FILE
    if path not in scan(path.parent, lambda entry: entry.name == FILE and entry.is_file()):
        raise RaylabError(f"{path}: not found; {REMEDY}")
    return {"all": path}


def read_dataset(files: Mapping[str, Path], config: DataConfig) -> Dataset:
    """Read the file.

    Args:
        files: what `annotation_files` finds.
        config: `max_clips` is used: at most so many clips, evenly spaced.

    Returns:
        All clips as `train` and none as `val`, until they are divided; one head `label` whose classes are the labels,
        sorted; no sources.

    Raises:
        RaylabError: the file cannot be read, lacks a column, or has no clips.
    """
    path = files["all"]
    remedy = f"{FILE} needs a heading with {' and '.join(COLUMNS)}, and a row for each video"
    read, labels = read_annotations(path)
    whole = limit(read, path, config.max_clips, remedy)
    return Dataset({"train": whole, "val": Annotations(whole.clips.take([]))}, {HEAD: labels})


def read_annotations(path: Path) -> tuple[Annotations, list[str]]:
    """The clips of the file, and the names of their classes. A clip is a whole video; its id is the video's path.

    Rows that cannot be trusted are rejected and listed.

    Args:
        path: CSV as Python's `csv` reads it, UTF-8 with or without a byte order mark.

    Raises:
        RaylabError: the file cannot be read, or lacks a column.
    """
    rows: dict[str, tuple[int, str, str]] = {}
    rejected: list[Issue] = []
    for line, row in _rows(path):
        written, label = row["path"], row["label"]
        video = str(PurePosixPath(written))
        if not written or not label:
            fault = "incomplete", f"path {written!r}, label {label!r}: give both"
        elif reason := unsafe(written, label=label, group=row[GROUP]):
            fault = "unsafely named", reason
        elif video in rows:
            fault = "duplicate", f"path {video!r} stands already in line {rows[video][0]}"
        else:
            rows[video] = line, label, row[GROUP] or video
            continue
        rejected.append(Issue(str(path), line, *fault))
    labels = sorted({label for _, label, _ in rows.values()})
    classes = {label: index for index, label in enumerate(labels)}
    clips = (
        Clip(video, video, 0.0, math.inf, 1, 2, {HEAD: classes[label]}, group=group)
        for video, (_, label, group) in rows.items()
    )
    return Annotations(ClipTable.of(clips), IssueTable.of(rejected)), labels


def find_sources(config: DataConfig, videos: Mapping[str, str]) -> dict[str, Path]:
    """The file of each video; as for a labelled folder."""
    return labelled.find_sources(config, videos, REMEDY)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The number of the line on which each row ends, and its cells: of `COLUMNS` and `GROUP`, empty where not given."""
    with reading(path), path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            heading = [name.strip() for name in next(reader, [])]
            for column in COLUMNS:
                if column not in heading:
                    raise RaylabError(f"{path}: {_lacking(column, heading)}")
            for cells in reader:
                if any(map(str.strip, cells)):
                    given = dict(zip(heading, map(str.strip, cells), strict=False))
                    yield reader.line_num, {column: given.get(column, "") for column in (*COLUMNS, GROUP)}
        except csv.Error as error:
            raise RaylabError(f"{path}:{reader.line_num}: not CSV ({error}); quote cells that hold commas") from None


def _lacking(column: str, heading: Sequence[str]) -> str:
    return f"no column {column!r} in the heading {', '.join(heading) or '(empty)'}: its first line names the columns"
