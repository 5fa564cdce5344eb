"""Folders in both of TVSum's layouts, small, with videos of known frames."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np

from raylab.config import DataConfig
from raylab.data.tvsum import annotation_files, read_dataset

RATE = Fraction(10)
LENGTHS = {"a": 100, "-b_": 75, "c": 43, "d": 30, "e": 151}  # frames
VIDEOS = list(LENGTHS)


def levels(video: str, annotators: int = 20) -> np.ndarray:
    """(A, frames), 1 to 5, a value for each two seconds."""
    frames = LENGTHS[video]
    rng = np.random.default_rng(VIDEOS.index(video))
    return rng.integers(1, 6, (annotators, -(-frames // 20))).repeat(20, 1)[:, :frames]


def write_mat(folder: Path, **changes: Callable[[int], Any]) -> Path:
    """The MATLAB file; `changes` are fields → number of the video → value in place of the right one."""
    path = folder / "ydata-tvsum50.mat"
    right: dict[str, Callable[[int], Any]] = {
        "video": lambda i: np.array([[ord(c)] for c in VIDEOS[i]], np.uint16),
        "category": lambda i: np.array([[ord(c)] for c in "VT"], np.uint16),
        "nframes": lambda i: np.array([[float(LENGTHS[VIDEOS[i]])]]),
        "length": lambda i: np.array([[LENGTHS[VIDEOS[i]] / float(RATE)]]),
        "user_anno": lambda i: levels(VIDEOS[i]).astype(np.float64),
        "gt_score": lambda i: levels(VIDEOS[i]).mean(0, keepdims=True),
    }
    with h5py.File(path, "w") as file:
        struct, refs = file.create_group("tvsum50"), file.create_group("#refs#")
        for name, value in {**right, **changes}.items():
            cells = struct.create_dataset(name, (len(VIDEOS), 1), h5py.ref_dtype)
            for i in range(len(VIDEOS)):
                cells[i, 0] = refs.create_dataset(f"{name}{i}", data=value(i)).ref
    return path


SHOTS = {video: [[0, 19], [20, frames - 1]] for video, frames in LENGTHS.items()}


def write_h5(folder: Path, remove: tuple[str, ...] = (), **changes: Any) -> Path:
    """`tvsum.h5`, with names and rates; `changes` are of the second video."""
    path = folder / "tvsum.h5"
    with h5py.File(path, "w") as file:
        for number, (video, frames) in enumerate(LENGTHS.items(), start=1):
            picks = np.arange(0, frames, 5)
            scores = levels(video)
            content = {
                "video_name": video,
                "fps": float(RATE),
                "n_frames": np.array(frames),
                "picks": picks,
                "gtscore": (scores[:, picks].mean(0) - 1) / 4,
                "change_points": np.array(SHOTS[video]),
                "user_summary": (scores > 3).astype(np.float32),
                "features": np.zeros((len(picks), 4), np.float32),
                **(changes if number == 2 else {}),
            }
            for name, value in content.items():
                if number != 2 or name not in remove:
                    file.create_dataset(f"video_{number}/{name}", data=value)
    return path


def splits(folder: Path, *folds: tuple[list[str], list[str]]) -> None:
    content = [{"train_keys": train, "test_keys": test} for train, test in folds]
    (folder / "tvsum_splits.json").write_text(json.dumps(content))


def encode(path: Path, frames: int, fps: Fraction = RATE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for number in range(frames):
            picture = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 20 + number % 200, np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def config(root: Path, **changes: Any) -> DataConfig:
    asked = {"dataset": "tvsum", "root": str(root), "sampling": "rate", "frames": 8, "store": False, **changes}
    return DataConfig.model_validate(asked)


def read(root: Path, **changes: Any) -> Any:
    asked = config(root, **changes)
    return read_dataset(annotation_files(asked), asked)
