"""Models that score frames: the keyframes of videos, in Python and as files.

Of each video a folder:

| file | content |
|---|---|
| `keyframe_0001_00-00-12.500.jpg` | a keyframe as it was recorded, upright; number and time in the video's order |
| `contact_sheet.jpg` | the keyframes side by side, at most the `TILES` most important |
| `importance.png` | the importance of all samples over time, keyframes marked |
| `keyframes.json` | what `Keyframes.record` gives |
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from raylab.data.dataset import Batch
from raylab.data.footage import fit
from raylab.data.keyshots import SHARE, portion
from raylab.data.sampling import sample_times
from raylab.data.video import frame_numbers, stream_frames
from raylab.errors import RaylabError
from raylab.evaluation.importance import say_importance
from raylab.evaluation.predictions import ONCE
from raylab.prediction.pictures import contact_sheet, curve, tile, timestamp
from raylab.prediction.stretch import Stretch, cut
from raylab.storage import Folder

if TYPE_CHECKING:
    from raylab.results import Checkpoint

RECORD = "keyframes.json"
QUALITY = 95
TILES = 100  # of a contact sheet: what a screen or two can show


@dataclass(frozen=True)
class Keyframe:
    """One keyframe.

    Attributes:
        seconds: of the video.
        frame: its number, from 0 in order of display.
        importance: 0 to 1.
        rank: among the keyframes; 1 is the most important.
    """

    seconds: float
    frame: int
    importance: float
    rank: int

    @property
    def file(self) -> str:
        """How its file's name ends."""
        return f"{timestamp(self.seconds).replace(':', '-')}.jpg"


@dataclass(frozen=True, eq=False)
class Keyframes:
    """What a model says of one video, or of a stretch of it.

    Attributes:
        video: the file, by its absolute path.
        where: the stretch.
        fps: samples a second.
        share: of the samples, that are keyframes.
        seconds: (N,), of the samples.
        frames: (N,), the frame that each sample is: its number, from 0 in order of display.
        importance: float32 (N,), 0 to 1.
        keyframes: in order of time.
        about: `model`, `checkpoint` and `epoch`, which say so.
    """

    video: Path
    where: Stretch
    fps: float
    share: float
    seconds: list[float]
    frames: list[int]
    importance: NDArray[np.float32]
    keyframes: list[Keyframe]
    about: dict[str, Any]

    @property
    def names(self) -> list[str]:
        """The file of each keyframe; sorted by name they are sorted by time."""
        digits = max(4, len(str(len(self.keyframes))))
        return [f"keyframe_{number:0{digits}}_{keyframe.file}" for number, keyframe in enumerate(self.keyframes, 1)]

    def record(self) -> dict[str, Any]:
        """All that is known, for JSON."""
        info = self.where.info
        return {
            "video": str(self.video),
            "width": info.width,
            "height": info.height,
            "video_fps": info.fps,
            "start": self.where.start,
            "stop": self.where.stop,
            **self.about,
            "fps": self.fps,
            "share": self.share,
            "keyframes": [
                {"file": name, "timestamp": timestamp(keyframe.seconds), **asdict(keyframe)}
                for name, keyframe in zip(self.names, self.keyframes, strict=True)
            ],
            "samples": {
                "seconds": self.seconds,
                "frame": self.frames,
                "importance": [round(float(value), 6) for value in self.importance],
            },
        }

    def pictures(self) -> Iterator[Image.Image]:
        """The keyframes, of the video's own size, upright, decoded one after another.

        Raises:
            RaylabError: the file cannot be read.
        """
        for frame in stream_frames(self.video, [keyframe.seconds for keyframe in self.keyframes]):
            yield Image.fromarray(frame.permute(1, 2, 0).numpy())

    def write(self, out: str | Path | Folder) -> Folder:
        """Write all files to a folder within `out`, which appears whole or not at all.

        It has the name of the video, without ending. Where `out` has a folder or file of that name from elsewhere, such
        as the keyframes of another video, a number is added; earlier keyframes of the same video are replaced.

        Args:
            out: a local folder or a URI; it need not exist.

        Returns:
            The folder of this video.

        Raises:
            RaylabError: the video cannot be read, or the folder cannot be written.
        """
        folder = out if isinstance(out, Folder) else Folder.open(out)
        try:
            name = _free_name(folder, self.video)
            with folder.new_folder(name, seal=RECORD) as filling:
                self._fill(filling)
        except OSError as error:
            raise RaylabError(f"{folder}: cannot be written ({error.strerror or error}); name another folder") from None
        return folder / name

    def _fill(self, folder: Path) -> None:
        tiles = []
        for name, keyframe, picture in zip(self.names, self.keyframes, self.pictures(), strict=True):
            picture.save(folder / name, quality=QUALITY)
            if keyframe.rank <= TILES:
                tiles.append(tile(picture, f"{timestamp(keyframe.seconds)}  {keyframe.importance:.2f}"))
        contact_sheet(tiles).save(folder / "contact_sheet.jpg", quality=QUALITY)
        marked = [keyframe.seconds for keyframe in self.keyframes], [keyframe.importance for keyframe in self.keyframes]
        curve(self.seconds, self.importance, marked).savefig(folder / "importance.png")
        (folder / RECORD).write_text(json.dumps(self.record(), indent=1), encoding="utf-8")


class KeyframePredictor:
    """A checkpoint's model, ready to find keyframes.

    Args:
        checkpoint: to load.
        device: where the model runs; by default on the GPU if there is one.
        share: of a video's samples (distinct frames, `data.fps` a second), that are keyframes; one at least.

    Raises:
        RaylabError: the model gives no score to each frame, or its weights are damaged.
    """

    def __init__(self, checkpoint: Checkpoint, device: str | None = None, share: float = SHARE) -> None:
        experiment = checkpoint.experiment
        if experiment.task != "keyframes":
            raise RaylabError(
                f"{checkpoint.path}: the model names classes (task {experiment.task}), and scores no frames: leave "
                "--keyframes out, or name a run of python -m raylab.train keyframes"
            )
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.checkpoint, self.experiment, self.share = checkpoint, experiment, share
        self.model = checkpoint.load_model(self.device)
        self.transform = checkpoint.transform(self.model)

    def video(self, path: str | Path, start: float = 0.0, stop: float | None = None) -> Keyframes:
        """The keyframes of a video of any length, or of what lies between two moments of it.

        Frames are read one by one and scored window by window, as in training: memory does not grow with the video.
        They are decoded with PyAV, whatever `data.decoder` says: the frames are the same.

        Raises:
            RaylabError: the file cannot be read or has nothing between these moments, or scores are no numbers.
        """
        data, where = self.experiment.data, cut(path, start, stop)
        seconds = sample_times(where.start, where.stop, data.fps)
        squares = (fit(frame[None], data.side) for frame in stream_frames(path, seconds))
        windows = iter(lambda: list(islice(squares, data.frames)), [])
        importance = np.concatenate([self.score(torch.cat(window)) for window in windows])
        if not np.isfinite(importance).all():
            raise RaylabError(f"{self.checkpoint.path}: scores that are no numbers: take a checkpoint of another epoch")
        frames = frame_numbers(path, seconds)
        about = {
            "model": self.experiment.model.name,
            "checkpoint": self.checkpoint.path,
            "epoch": self.checkpoint.epoch,
        }
        chosen = choose(importance, frames, self.share)
        keyframes = [
            Keyframe(seconds[at], frames[at], round(float(importance[at]), 6), rank + 1)
            for at, rank in sorted(zip(chosen, count()))
        ]
        video = Path(path).absolute()
        return Keyframes(video, where, data.fps, self.share, seconds, frames, importance, keyframes, about)

    def score(self, frames: Tensor) -> NDArray[np.float32]:
        """The importance of uint8 frames (T, 3, S, S), transformed as in evaluation: (T,)."""
        video = self.transform(frames[None].to(self.device), [""], 0)
        mask = torch.ones(video.shape[:2], dtype=torch.bool, device=self.device)
        batch: Batch = {"video": video, "mask": mask, "ids": [""], "labels": {}}
        return say_importance(self.model, self.experiment, batch, ONCE)["importance"][0]


def choose(importance: NDArray[np.floating[Any]], frames: Sequence[int], share: float = SHARE) -> list[int]:
    """The most important samples: a share of the distinct frames, rounded down, but one at least.

    Args:
        importance: (N,).
        frames: (N,); of samples that are the same frame, only the most important counts.
        share: 0 to 1.

    Returns:
        Their places, the most important first; of equally important ones, the earlier.
    """
    best: dict[int, int] = {}
    for at in np.argsort(-importance, kind="stable"):
        best.setdefault(frames[at], int(at))
    return list(best.values())[: max(1, portion(len(best), share))]


def _free_name(out: Folder, video: Path) -> str:
    names = (video.stem if number == 1 else f"{video.stem}-{number}" for number in count(1))
    return next(name for name in names if not out.exists(name) or _video_of(out / name) == str(video))


def _video_of(folder: Folder) -> str | None:
    """The video whose keyframes a folder holds."""
    try:
        record = folder.read_json(RECORD)
    except (OSError, RaylabError):
        return None
    return record.get("video") if isinstance(record, dict) else None
