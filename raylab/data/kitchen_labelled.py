"""`kitchen_labelled`: the clips of the built-in data set, each a video of its own, in a labelled folder.

The labels are the eight verbs. At both ends of a video the digit stands still for a moment, so that a whole video, too,
is exactly the time reversal of one with the opposite verb.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from raylab.data.kitchen import Layout, Splits, render_frames, rest_frames
from raylab.data.kitchen_plan import VERBS, Video, plan
from raylab.data.labelled import SPLITS


def plan_clips(size: str) -> Splits:
    """Split (`train`, `val`, `test`) → its videos, one for each segment of `kitchen_plan.plan`."""
    planned = plan(size, test=True).values()
    return {
        split: tuple(_alone(video, number) for video in videos for number in range(len(video.segments)))
        for split, videos in zip(SPLITS, planned, strict=True)
    }


def _alone(video: Video, number: int) -> Video:
    """A video of one segment, with the rest around its motion and no gap."""
    segment, rest = video.segments[number], rest_frames(video.fps)
    segment = replace(segment, start=rest, stop=rest + segment.stop - segment.start)
    return replace(video, id=f"{video.id}_{number}", frames=segment.stop + rest, segments=(segment,))


def _path(video: Video) -> Path:
    return Path("videos", f"{video.participant} kitchen", f"{video.id}.mp4")


def _write_lists(folder: Path, splits: Splits) -> None:
    for split, videos in splits.items():
        rows = [f"{_path(video).as_posix()} {VERBS[video.segments[0].verb]}\n" for video in videos]
        (folder / SPLITS[split]).write_text("".join(rows), encoding="utf-8")


LABELLED = Layout("kitchen-labelled", plan_clips, render_frames, _path, _write_lists)
