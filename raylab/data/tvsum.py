"""TVSum reader: videos, each frame of which 20 people have scored for importance.

Annotations are read from `tvsum.h5`, from `ydata-tvsum50.mat`, or from both (`raylab.data.tvsum_files`): then shots and
summaries are those of the first, the annotators' scores those of the second. The public `tvsum.h5` alone has the mean
score only, so that no figure against single annotators can be had.

A clip is a window of at most `data.frames` samples, `data.fps` a second: see `raylab.data.windows`. Its labels are the
scores in `Dataset.importance`.

What is not published is made:

- shots, without `change_points`, by kernel temporal segmentation of the videos, where `tvsum_shots.json` has them
  (`python -m raylab.data.tvsum_shots`); else shots of two seconds, as TVSum's annotators saw the videos;
- summaries, without `user_summary`, from each annotator's scores and the shots (`raylab.data.keyshots`);
- splits, without `tvsum_splits.json`: five, the videos dealt out to them in a shuffled order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raylab.data.clips import Annotations, Clip, ClipTable, Dataset, Issue, IssueTable
from raylab.data.files import reading, scan
from raylab.data.importance import Importance
from raylab.data.keyshots import summarize
from raylab.data.shots import as_shots, uniform_shots
from raylab.data.tvsum_files import Recording, read_h5, read_mat
from raylab.data.windows import pick, windows
from raylab.errors import RaylabError
from raylab.storage import replacing

if TYPE_CHECKING:  # pydantic takes longer to import than this module to read a file
    from raylab.config import DataConfig

FORMAT = 1  # raise it when a change of the code changes what is read: caches are told apart by it
SETTINGS = ("fps", "frames", "fold", "max_clips")
FILES = {"h5": "tvsum.h5", "mat": "ydata-tvsum50.mat", "splits": "tvsum_splits.json", "shots": "tvsum_shots.json"}
SPLITS = {"train": "train_keys", "val": "test_keys"}
FOLDS = 5
SEED = 0  # of the order in which videos are dealt to folds that are not published
VIDEOS = "videos"
ENDINGS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".flv", ".mpg")
SECONDS, RATE = 1.0, 0.01
"""How far a video file may be from its annotation: in length, and in frame rate, as a share of it."""

REMEDY = (
    f"set data.root=PATH to the folder with {FILES['h5']} or {FILES['mat']} and {VIDEOS}/, data.annotations=PATH if "
    "those files are in another; data.dataset=kitchen_keyframes is the built-in data instead"
)


def annotation_files(config: DataConfig, splits: Sequence[str] = ("train", "val")) -> dict[str, Path]:
    """Those of `FILES` that there are.

    Args:
        config: `annotations`, else `root`, is the folder that holds them.
        splits: `train` and `val`.

    Raises:
        RaylabError: neither file of annotations is there, the folder cannot be listed, or there is no such split.
    """
    for split in splits:
        if split not in SPLITS:
            raise RaylabError(f"split {split}: TVSum has train and val, which is the test split of data.fold: take one")
    folder = Path(config.annotations or config.root).absolute()
    names = set(FILES.values())
    there = {path.name for path in scan(folder, lambda entry: entry.name in names and entry.is_file())}
    if not {FILES["h5"], FILES["mat"]} & there:
        looked = [f"  {folder / FILES[what]}, or" for what in ("h5", "mat")]
        raise RaylabError("\n".join(["TVSum's annotations not found; looked for", *looked, REMEDY]))
    return {what: folder / name for what, name in FILES.items() if name in there}


def read_dataset(files: Mapping[str, Path], config: DataConfig) -> Dataset:
    """Read TVSum's annotations. No video is needed.

    Args:
        files: what `annotation_files` finds.
        config: `fps`, `frames` and `fold` are used, and `max_clips`: as many whole videos of each split, evenly
            spaced, as have no more windows than that.

    Returns:
        `train` and `val`, no heads, the importance of every video; no sources.

    Raises:
        RaylabError: a file cannot be read or is malformed, files do not fit together, or there is no such fold.
    """
    found = recordings(files)
    known = _read_shots(files["shots"], found) if "shots" in files else {}
    importance = {video: _importance(about, config.fps, known.get(video)) for video, about in found.items()}
    main = files.get("h5") or files["mat"]
    number = {video: at for at, video in enumerate(found, start=1)}
    splits = {}
    for split, videos in _splits(files.get("splits"), main, found, config.fold).items():
        cut = [_windows(found[video], config) for video in videos]
        clips = _whole_videos(cut, config.max_clips)
        held = [found[video] for video in dict.fromkeys(clip.video for clip in clips)]
        odd = [
            Issue(str(main), number[about.video], "videos with shots of two seconds", reason)
            for about in held
            if about.shots is None and about.video not in known
            for reason in [f"video {about.video}: no change_points: python -m raylab.data.tvsum_shots finds them"]
        ]
        splits[split] = Annotations(ClipTable.of(clips), odd=IssueTable.of(odd))
    return Dataset(splits, {}, importance=importance)


def find_sources(config: DataConfig, videos: Mapping[str, str]) -> dict[str, Path]:
    """The file of each video, `ID.mp4` or with another of `ENDINGS`.

    Args:
        config: `root`, `annotations` and `source` are used.
        videos: by id.

    Raises:
        RaylabError: videos are missing, cannot be read or are not those that were annotated, a folder cannot be
            listed, or extracted frames are asked for.
    """
    if config.source == "frames":
        raise RaylabError("data.source = frames: TVSum is read from video files: set data.source=videos")
    folder = Path(config.root).absolute() / VIDEOS
    there: dict[str, list[Path]] = {}
    for path in scan(folder, lambda entry: entry.name.lower().endswith(ENDINGS) and entry.is_file()):
        there.setdefault(path.stem, []).append(path)
    missing = [video for video in videos if video not in there]
    if missing:
        first = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        raise RaylabError(
            f"{len(missing):,} of {len(videos):,} videos are missing: {first}\n"
            f"looked for {folder / missing[0]}{ENDINGS[0]}, or with another ending of {', '.join(ENDINGS)}\n{REMEDY}"
        )
    twice = next((video for video in videos if len(there[video]) > 1), None)
    if twice is not None:
        raise RaylabError(f"video {twice}: {' and '.join(map(str, there[twice]))}: remove all but one")
    sources = {video: there[video][0] for video in videos}
    found = recordings(annotation_files(config), arrays=False)
    with ThreadPoolExecutor(8) as threads:  # they wait for the filesystem
        list(threads.map(_check_file, sources.values(), (found[video] for video in sources)))
    return sources


def write_shots(config: DataConfig, shots: Mapping[str, Sequence[int]]) -> Path:
    """Keep shots beside the annotations, for `read_dataset`.

    Args:
        config: `annotations`, else `root`, is the folder.
        shots: video id → the frames that its shots but the first begin with.

    Returns:
        The file.

    Raises:
        OSError: it cannot be written.
    """
    path = Path(config.annotations or config.root).absolute() / FILES["shots"]
    with replacing(path) as writing:
        writing.write_text(json.dumps(shots), encoding="utf-8")
    return path


def recordings(files: Mapping[str, Path], arrays: bool = True) -> dict[str, Recording]:
    """Video id → what all files together say of it.

    Args:
        files: what `annotation_files` finds.
        arrays: read scores, shots and summaries too.

    Raises:
        RaylabError: a file cannot be read or is malformed, or they do not fit together.
    """
    original = read_mat(files["mat"], arrays) if "mat" in files else {}
    if "h5" not in files:
        return original
    merged = read_h5(files["h5"], arrays)
    for video in [video for video in merged if video in original]:
        one, other = merged[video], original[video]
        if one.frames != other.frames:
            raise RaylabError(
                f"{files['h5']}: {one.key}: n_frames {one.frames} of video {video}, which has {other.frames} in "
                f"{files['mat']}: download both again"
            )
        merged[video] = replace(one, rate=other.rate, category=other.category, scores=other.scores, steps=None)
    return merged


def _importance(recording: Recording, fps: float, known: Any) -> Importance:
    """What is known of a video at the rate of its samples."""
    picks = pick(recording.frames, recording.rate, fps)
    shots = recording.shots if known is None else known
    if shots is None:
        shots = uniform_shots(recording.frames, recording.rate)
    scores, mean, summaries = np.zeros((0, len(picks)), np.float32), None, recording.summaries
    if recording.scores is not None:
        scores = np.ascontiguousarray(recording.scores[:, picks])
        if summaries is None:
            made = [summarize(own, shots, recording.frames, picks) for own in scores]
            summaries = np.stack(made)
    elif recording.steps is not None:
        at, values = recording.steps
        nearest = np.searchsorted((at[1:] + at[:-1]) / 2, picks)
        mean = values[nearest].astype(np.float32)
    return Importance(scores, shots, recording.frames, picks, summaries, recording.category, mean)


def _splits(path: Path | None, main: Path, recordings: Mapping[str, Recording], fold: int) -> dict[str, list[str]]:
    """Split → its videos, in the order of the annotations."""
    folds = _read_splits(path, recordings) if path else _dealt(main, list(recordings))
    if fold >= len(folds):
        raise RaylabError(f"data.fold = {fold}: {path or main} has splits 0 to {len(folds) - 1}: set one of these")
    return folds[fold]


def _dealt(main: Path, videos: list[str]) -> list[dict[str, list[str]]]:
    if len(videos) < FOLDS:
        raise RaylabError(
            f"{main}: {len(videos)} videos, too few for {FOLDS} splits: write {FILES['splits']} beside it, a list of "
            '{"train_keys": ["video_1", …], "test_keys": […]}'
        )
    order = np.random.default_rng(SEED).permutation(len(videos))
    held = [set(order[fold::FOLDS].tolist()) for fold in range(FOLDS)]
    return [
        {split: [video for at, video in enumerate(videos) if (at in val) == (split == "val")] for split in SPLITS}
        for val in held
    ]


def _read_splits(path: Path, recordings: Mapping[str, Recording]) -> list[dict[str, list[str]]]:
    """The folds of a file: a list of `{"train_keys": […], "test_keys": […]}`, in which videos go by key or by id."""
    again = "download it again, or remove it for splits made here"
    content = _read_json(path, again)
    names = {found.key: video for video, found in recordings.items()} | {video: video for video in recordings}
    if not isinstance(content, list) or not content:
        raise RaylabError(f"{path}: not a list of splits: {again}")
    folds = []
    for number, fold in enumerate(content):
        where = f"{path}: split {number}"
        taken: dict[str, list[str]] = {}
        for split, field in SPLITS.items():
            keys = fold.get(field) if isinstance(fold, dict) else None
            if not isinstance(keys, list) or not keys or not all(isinstance(key, str) for key in keys):
                raise RaylabError(f"{where}: {field} is no list of videos: {again}")
            if unknown := [key for key in keys if key not in names]:
                raise RaylabError(f"{where}: {field} names {unknown[0]!r}, which the annotations do not have: {again}")
            chosen = {names[key] for key in keys}
            taken[split] = [video for video in recordings if video in chosen]
        if both := set(taken["train"]) & set(taken["val"]):
            raise RaylabError(f"{where}: {recordings[min(both)].key} is in train_keys and in test_keys: {again}")
        folds.append(taken)
    return folds


def _read_shots(path: Path, recordings: Mapping[str, Recording]) -> dict[str, Any]:
    """Video → shots, of those that have none of their own."""
    again = "remove it, and run python -m raylab.data.tvsum_shots again"
    content = _read_json(path, again)
    if not isinstance(content, dict):
        raise RaylabError(f"{path}: not shots by video: {again}")
    shots = {}
    for video, found in recordings.items():
        changes = content.get(video)
        if found.shots is not None or changes is None:
            continue
        edges = [0, *changes, found.frames] if isinstance(changes, list) else []
        if not edges or not all(type(edge) is int for edge in edges) or (np.diff(edges) <= 0).any():
            raise RaylabError(f"{path}: {video}: not ascending frame numbers below {found.frames}: {again}")
        shots[video] = as_shots(changes, found.frames)
    return shots


def _read_json(path: Path, again: str) -> Any:
    with reading(path):
        text = path.read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except ValueError as error:
        raise RaylabError(f"{path}: not JSON ({error}): {again}") from None


def _windows(recording: Recording, config: DataConfig) -> list[Clip]:
    seconds = recording.frames / recording.rate
    return windows(recording.video, seconds, recording.rate, config.fps, config.frames)


def _whole_videos(cut: list[list[Clip]], most: int | None) -> list[Clip]:
    """The windows of as many videos, evenly spaced, as have no more than `most`; of one, at least."""
    for count in range(len(cut), 0, -1):
        clips = [clip for i in range(count) for clip in cut[i * len(cut) // count]]
        if most is None or len(clips) <= most:
            return clips
    return cut[0][:most]


def _check_file(path: Path, recording: Recording) -> None:
    from raylab.data.video import probe  # which imports PyTorch

    info = probe(path)
    seconds = recording.frames / recording.rate
    if abs(info.duration - seconds) > SECONDS or abs(info.fps / recording.rate - 1) > RATE:
        raise RaylabError(
            f"{path}: {info.duration:.2f} s at {info.fps:.3f} frames a second, where {recording.key} was annotated "
            f"over {seconds:.2f} s at {recording.rate:.3f} ({recording.frames} frames): it is another version of the "
            "video; take the published one"
        )
