"""TVSum's annotation files: the original `ydata-tvsum50.mat`, and `tvsum.h5` as most work on summaries has it.

`ydata-tvsum50.mat` (Y. Song et al., "TVSum: Summarizing Web Videos Using Titles", CVPR 2015,
https://github.com/yalesong/tvsum) is a MATLAB 7.3 file, which is HDF5. Its struct `tvsum50` has, for each video,
`video` (the YouTube id), `category`, `nframes`, `length` (seconds) and `user_anno`: what 20 annotators gave each frame,
1 (not important) to 5 (very important), one value for each two seconds. Here s becomes (s − 1) / 4.

`tvsum.h5` (K. Zhou et al., AAAI 2018, https://github.com/KaiyangZhou/pytorch-vsumm-reinforce, of the features and shots
of K. Zhang et al., ECCV 2016) has a group for each video:

| dataset | shape | |
|---|---|---|
| `n_frames` | () | of the video |
| `picks` | (steps,) | frames that were sampled: every fifteenth |
| `gtscore` | (steps,) | mean importance, 0 to 1 |
| `change_points` | (shots, 2) | first and last frame of each shot, inclusive |
| `user_summary` | (annotators, n_frames) | each annotator's summary, 0 or 1 |
| `video_name` | () | optional: of the file in `videos/`, without its ending |
| `fps` | () | optional, not in the public file: frames a second |
| `user_scores` | (annotators, n_frames) | optional, not in the public file: as `user_anno` |

`features`, `n_steps`, `n_frame_per_seg` and `gtsummary` are not used. The public file names its groups `video_1` to
`video_50`, which are the videos of the MATLAB file in its order, and has neither names nor frame rates: those of TVSum
are known here (`PUBLISHED`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from raylab.errors import RaylabError

STRUCT = "tvsum50"
AGAIN = "download it again, or make it anew"

Array = NDArray[Any]


class Published(NamedTuple):
    """A video of TVSum: its YouTube id, category, number of frames and length in seconds."""

    video: str
    category: str
    frames: int
    seconds: float


@dataclass(frozen=True)
class Recording:
    """One video, as an annotation file has it.

    Attributes:
        key: what splits call it: `video_1`, ….
        video: its id, the name of its file.
        frames: how many it has.
        rate: frames a second.
        category: empty where it is not known.
        scores: (A, frames), of each annotator in [0, 1]; None where they are not known.
        steps: frame numbers, ascending, and the mean score of each; None where scores are known.
        shots: int64 (S, 2), first and last frame, inclusive; None where they are not known.
        summaries: uint8 (A, frames); None where they are not known.
    """

    key: str
    video: str
    frames: int
    rate: float
    category: str = ""
    scores: Array | None = None
    steps: tuple[Array, Array] | None = None
    shots: NDArray[np.int64] | None = None
    summaries: NDArray[np.uint8] | None = None


def read_mat(path: Path, arrays: bool = True) -> dict[str, Recording]:
    """Video id → what the MATLAB file says of it, in its order.

    Args:
        path: the file.
        arrays: read scores too.

    Raises:
        RaylabError: it cannot be read, or is not as described above.
    """
    found: dict[str, Recording] = {}
    with _open(path, f"a MATLAB 7.3 (HDF5) file: save it with -v7.3, or {AGAIN}") as file:
        if not isinstance(struct := file.get(STRUCT), h5py.Group):
            raise RaylabError(f"{path}: has no struct {STRUCT}: {AGAIN}")
        cells = {name: _cells(path, struct, name) for name in ("video", "category", "nframes", "length", "user_anno")}
        if len({len(references) for references in cells.values()}) > 1:
            counts = ", ".join(f"{name} {len(references)}" for name, references in cells.items())
            raise RaylabError(f"{path}: {STRUCT}: fields of different lengths ({counts}): {AGAIN}")
        for index in range(len(cells["video"])):
            key = f"video_{index + 1}"
            where = f"{path}: {key}"
            values = {name: file[references[index]] for name, references in cells.items()}
            video = "".join(map(chr, values["video"][()].ravel().astype(int)))
            frames, seconds = (_positive(where, name, values[name]) for name in ("nframes", "length"))
            scores = None
            if arrays:
                given = _shaped(where, "user_anno", values["user_anno"], (None, int(frames)))
                scores = _levels(where, "user_anno", given)
            category = "".join(map(chr, values["category"][()].ravel().astype(int)))
            _add(found, path, Recording(key, _named(where, video), int(frames), frames / seconds, category, scores))
    return found


def read_h5(path: Path, arrays: bool = True) -> dict[str, Recording]:
    """Video id → what `tvsum.h5` says of it, by group: `video_2` before `video_10`.

    Args:
        path: the file.
        arrays: read scores, shots and summaries too.

    Raises:
        RaylabError: it cannot be read, or is not as described above.
    """
    found: dict[str, Recording] = {}
    with _open(path, f"an HDF5 file: {AGAIN}") as file:
        groups = {key: group for key, group in file.items() if isinstance(group, h5py.Group)}
        if not groups:
            raise RaylabError(f"{path}: has no groups, one for each video: {AGAIN}")
        for key in sorted(groups, key=lambda key: (len(key), key)):
            _add(found, path, _recording(f"{path}: {key}", key, groups[key], arrays))
    return found


def _recording(where: str, key: str, group: h5py.Group, arrays: bool) -> Recording:
    frames = int(_positive(where, "n_frames", _dataset(where, group, "n_frames")))
    number = int(key.removeprefix("video_")) if key.removeprefix("video_").isdecimal() else 0
    known = PUBLISHED[number - 1] if 0 < number <= len(PUBLISHED) and "video_name" not in group else None
    if known and known.frames != frames:
        known = None
    if "fps" in group:
        rate = _positive(where, "fps", group["fps"])
    elif known:
        rate = known.frames / known.seconds
    else:
        raise RaylabError(
            f"{where}: is no video of TVSum ({frames} frames), and has no dataset fps: add one, frames a second"
        )
    name = known.video if known else _text(group["video_name"]) if "video_name" in group else key
    category = known.category if known else _text(group["category"]) if "category" in group else ""
    about = Recording(key, _named(where, name), frames, rate, category)
    if not arrays:
        return about
    scores = steps = None
    if "user_scores" in group:
        scores = _levels(where, "user_scores", _shaped(where, "user_scores", group["user_scores"], (None, frames)))
    else:
        steps = _steps(where, group, frames)
    summaries = _shaped(where, "user_summary", _dataset(where, group, "user_summary"), (None, frames))
    if not np.isin(summaries, (0, 1)).all():
        raise RaylabError(f"{where}/user_summary: has values besides 0 and 1: {AGAIN}")
    shots = _shots(where, group, frames)
    return Recording(key, about.video, frames, rate, category, scores, steps, shots, summaries.astype(np.uint8))


def _steps(where: str, group: h5py.Group, frames: int) -> tuple[Array, Array]:
    picks = _shaped(where, "picks", _dataset(where, group, "picks"), (None,)).astype(np.int64)
    if not len(picks) or picks[0] < 0 or picks[-1] >= frames or (np.diff(picks) <= 0).any():
        raise RaylabError(f"{where}/picks: not ascending frame numbers from 0 to {frames - 1} (n_frames - 1): {AGAIN}")
    scores = _shaped(where, "gtscore", _dataset(where, group, "gtscore"), (len(picks),)).astype(np.float64)
    if not (np.isfinite(scores).all() and scores.min() >= 0 and scores.max() <= 1):
        span = f"{scores.min():g} to {scores.max():g}"
        raise RaylabError(f"{where}/gtscore: {span}, where importance is 0 to 1: scale it, or {AGAIN}")
    return picks, scores


def _shots(where: str, group: h5py.Group, frames: int) -> NDArray[np.int64]:
    shots = _shaped(where, "change_points", _dataset(where, group, "change_points"), (None, 2)).astype(np.int64)
    if len(shots) and shots[-1, 1] == frames:  # some files count the last frame of the last shot exclusively
        shots[-1, 1] = frames - 1
    firsts, lasts = shots[:, 0], shots[:, 1]
    gapless = len(shots) and firsts[0] == 0 and lasts[-1] == frames - 1 and (firsts[1:] == lasts[:-1] + 1).all()
    if not gapless or (lasts < firsts).any():
        rule = f"first and last frame of each shot, one after another, from 0 to {frames - 1} (n_frames - 1)"
        raise RaylabError(f"{where}/change_points: not {rule}: {AGAIN}")
    return shots


def _levels(where: str, name: str, scores: Array) -> NDArray[np.float32]:
    """Scores of 1 to 5 as 0 to 1."""
    if not (np.isfinite(scores).all() and scores.min() >= 1 and scores.max() <= 5):
        raise RaylabError(f"{where}/{name}: {scores.min():g} to {scores.max():g}, where scores are 1 to 5: {AGAIN}")
    return ((scores - 1) / 4).astype(np.float32)


def _add(found: dict[str, Recording], path: Path, recording: Recording) -> None:
    if other := found.get(recording.video):
        raise RaylabError(f"{path}: {recording.key} and {other.key} are both video {recording.video!r}: remove one")
    found[recording.video] = recording


def _named(where: str, video: str) -> str:
    if not video or video in (".", "..") or any(c in "/\\" or not c.isprintable() for c in video):
        raise RaylabError(f"{where}: video {video!r} is not the name of a file in videos/, without a folder: mend it")
    return video


@contextmanager
def _open(path: Path, kind: str) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        reason = error.strerror or str(error)
        raise RaylabError(f"{path}: cannot be read ({reason}): it should be {kind}") from None


def _cells(path: Path, struct: h5py.Group, name: str) -> list[h5py.Reference]:
    cells = struct.get(name)
    if not isinstance(cells, h5py.Dataset) or h5py.check_ref_dtype(cells.dtype) is not h5py.Reference:
        raise RaylabError(f"{path}: {STRUCT} has no field {name}, or it is no cell for each video: {AGAIN}")
    return list(cells[()].ravel())


def _dataset(where: str, group: h5py.Group, name: str) -> h5py.Dataset:
    found = group.get(name)
    if not isinstance(found, h5py.Dataset):
        raise RaylabError(f"{where}: has no dataset {name}, only {', '.join(group) or 'nothing'}: {AGAIN}")
    return found


def _shaped(where: str, name: str, dataset: h5py.Dataset, shape: tuple[int | None, ...]) -> Array:
    """Its content, numbers of this shape; None is any length but 0."""
    fits = len(dataset.shape) == len(shape) and all(
        there == length or (length is None and there) for there, length in zip(dataset.shape, shape, strict=True)
    )
    if not fits or dataset.dtype.kind not in "biuf":
        wanted = ", ".join("n" if length is None else str(length) for length in shape)
        raise RaylabError(f"{where}/{name}: {dataset.dtype} of shape {dataset.shape}, not numbers ({wanted}): {AGAIN}")
    content: Array = dataset[()]
    return content


def _positive(where: str, name: str, dataset: h5py.Dataset) -> float:
    value = dataset[()]
    if np.size(value) != 1 or dataset.dtype.kind not in "iuf" or not 0 < (number := float(np.ravel(value)[0])) < np.inf:
        raise RaylabError(f"{where}/{name}: {value!r} is not one number above 0: {AGAIN}")
    return number


def _text(dataset: h5py.Dataset) -> str:
    value = np.ravel(dataset[()])[0]
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _published(table: str) -> tuple[Published, ...]:
    rows = (line.split() for line in table.strip().splitlines())
    return tuple(Published(video, category, int(frames), float(seconds)) for video, category, frames, seconds in rows)


PUBLISHED = _published("""
AwmHb44_ouw VT 10597 353.593
98MoyGZKHXc VT 4688 187.524
J0nA4VgnoCo VT 14019 584.725
gzDbaEs1Rlg VT 7210 288.415
XzYM3PfTM4w VT 3327 111.015
HT5vyqe0Xaw VU 9671 322.711
sTEELN-vY30 VU 4468 148.956
vdmoEJ5YbrQ VU 9870 329.352
xwqBXPGE9pQ VU 7010 233.918
akI8YFjEmUw VU 3995 133.306
i3wAGJaaktw GA 4700 156.828
Bhxk-O1Y7Ho GA 13511 450.839
0tmA_C6XwfM GA 3532 141.293
3eYKfiOEJNs GA 4853 194.142
xxdtq8mxegs GA 4324 144.149
WG0MBPpPC6I MS 9534 397.689
Hl-__g2gn_A MS 5846 243.833
Yi4Ij2NM7U4 MS 9731 405.467
37rzWOQsNIw MS 5742 191.611
LRw_obCPUt0 MS 6241 260.319
cjibtmSLxQ4 PK 19406 647.535
b626MiF1ew4 PK 5661 235.891
XkqCExn6_Us PK 5631 187.896
GsAD1KT1xo8 PK 4356 145.357
PJrm840pAUI PK 6580 274.181
91IHQYk1IQM PR 3312 110.527
RBCABdttQmI PR 10917 364.275
z_6gVvQb2d0 PR 8281 276.317
fWutDQy1nnY PR 17527 585.863
4wU_LUjG5Ic PR 4005 167.044
VuWGsYPqAX8 FM 5412 216.503
JKpqYvAdIsw FM 3802 152.091
xmEERLqJ2kU FM 13365 445.962
byxOvuiIJV0 FM 3705 154.552
_xMr-HKMfVA FM 4463 148.933
WxtbjNsCQ8A BK 7959 265.567
uGu_10sucQo BK 4009 167.044
EE-bNr36nyA BK 2941 98.151
Se3oxnaPsz0 BK 4165 138.867
oDXZc0tZe04 BK 11414 380.854
qqR6AEXwxoQ BT 8073 269.375
EYqVtI9YWJA BT 5939 198.182
eQu1rNs0an0 BT 4931 164.537
JgHubY5Vw3Y BT 4304 143.615
iVt07TCkFM0 BT 2500 104.281
E11zDS9XGzg DS 15307 510.235
NyBmCxDoHJU DS 4740 189.614
kLxoNp-UchI DS 3896 130.008
jcoYJXDG9sw DS 5971 199.25
-esJrBWj2d8 DS 6912 230.412
""")
"""The 50 videos of TVSum, in the order of its MATLAB file."""
