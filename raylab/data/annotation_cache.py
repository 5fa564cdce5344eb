"""Annotations parsed once on a node: Arrow files in the cache folder, which every process maps into memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from raylab.data.clips import Annotations, ClipTable, Dataset, IssueTable
from raylab.data.importance import read_importance, write_importance
from raylab.data.table import RecordTable
from raylab.errors import RaylabError
from raylab.storage import cache_folder, replacing

FORMAT = 3  # raise it when a change of the code changes the files of an entry
KEPT_DAYS = 30
"""An entry that was not opened for so long is removed when another is written."""

_IMPORTANCE = "importance.safetensors"
_SEAL = "dataset.json"  # labels, subsets and lengths; written last, so an entry without it is not complete


def digest(files: Mapping[str, Path], *settings: object) -> str:
    """32 hex digits that change with the files, their content or their place, and with what they are read with.

    Raises:
        RaylabError: a file cannot be read.
    """
    contents = {what: (str(path), _sha256(path)) for what, path in files.items()}
    return hashlib.sha256(repr((FORMAT, settings, contents)).encode()).hexdigest()[:32]


def content(files: Mapping[str, Path]) -> str:
    """32 hex digits that change with what files hold, wherever they lie.

    Raises:
        RaylabError: a file cannot be read.
    """
    return hashlib.sha256(repr(sorted((what, _sha256(path)) for what, path in files.items())).encode()).hexdigest()[:32]


def cached(key: str, read: Callable[[], Dataset]) -> Dataset:
    """What `read` returns, from the cache if it was read before.

    An entry that cannot be opened is read and written again. Files are replaced one by one, and those of one key are
    all alike, so it does not matter how many processes write it at once. Without a writable cache folder the data set
    stays in this process's memory.

    Args:
        key: tells data sets apart (`digest`).
        read: reads the data set, without sources.
    """
    entry = cache_folder() / "annotations" / key
    with suppress(Exception):  # whatever is wrong with an entry, reading again mends it
        return _open(entry)
    dataset = read()
    with suppress(OSError, RaylabError):
        _write(entry, dataset)
        _remove_unused(entry.parent)
        return _open(entry)
    return dataset


def _open(entry: Path) -> Dataset:
    about = json.loads((entry / _SEAL).read_text(encoding="utf-8"))
    splits = {}
    for split, lengths in about["splits"].items():
        splits[split] = Annotations(
            clips=ClipTable.open(_file(entry, split, "clips")),
            rejected=IssueTable.open(_file(entry, split, "rejected")),
            odd=IssueTable.open(_file(entry, split, "odd")),
        )
        if lengths != {name: len(table) for name, table in _tables(splits[split])}:
            raise ValueError(f"{entry}: not the lengths that {_SEAL} has for {split}")
    with suppress(OSError):  # a cache that others wrote
        os.utime(entry)
    tail = {head: frozenset(classes) for head, classes in about["tail"].items()}
    importance = read_importance(entry / _IMPORTANCE, about["importance"]) if about["importance"] else {}
    return Dataset(splits, about["labels"], unseen=frozenset(about["unseen"]), tail=tail, importance=importance)


def _write(entry: Path, dataset: Dataset) -> None:
    lengths = {}
    for split, read in dataset.splits.items():
        lengths[split] = {name: len(table) for name, table in _tables(read)}
        for name, table in _tables(read):
            table.write(_file(entry, split, name))
    if dataset.importance:
        write_importance(entry / _IMPORTANCE, dataset.importance)
    with replacing(entry / _SEAL) as writing:
        about = {
            "labels": dataset.labels,
            "unseen": sorted(dataset.unseen),
            "tail": {head: sorted(classes) for head, classes in dataset.tail.items()},
            "splits": lengths,
            "importance": {video: (known.frames, known.category) for video, known in dataset.importance.items()},
        }
        writing.write_text(json.dumps(about), encoding="utf-8")


def _tables(read: Annotations) -> list[tuple[str, RecordTable[Any]]]:
    return [("clips", read.clips), ("rejected", read.rejected), ("odd", read.odd)]


def _file(entry: Path, split: str, table: str) -> Path:
    return entry / f"{split}-{table}.arrow"


def _remove_unused(folder: Path) -> None:
    """Processes that have mapped an entry keep it: a mapped file outlives its name."""
    for entry in folder.iterdir():
        with suppress(FileNotFoundError):  # another process removed it
            if entry.stat().st_mtime < time.time() - KEPT_DAYS * 86_400:
                shutil.rmtree(entry, ignore_errors=True)


def _sha256(path: Path) -> str:
    content = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                content.update(chunk)
    except OSError as error:
        raise RaylabError(f"{path}: cannot be read ({error.strerror})") from None
    return content.hexdigest()
