"""The built-in data set as a labelled folder: the clips of the plan, each alone in a video."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from raylab.config import DataConfig
from raylab.data.datasets import load_dataset
from raylab.data.footage import frames_at_rate
from raylab.data.kitchen import fingerprint, kitchen_root, render_frames
from raylab.data.kitchen_labelled import LABELLED, plan_clips
from raylab.data.kitchen_plan import VERBS, digits, plan

LISTS = {"train": "train.csv", "val": "val.csv", "test": "test.csv"}


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kitchen_root("tiny", tmp_path_factory.mktemp("cache"), layout=LABELLED)


def test_lists_files_and_plan_agree(root: Path) -> None:
    planned = plan_clips("tiny")
    videos = [video for split in planned.values() for video in split]
    listed = {path.relative_to(root) for path in root.rglob("*") if path.is_file()}
    assert listed == {Path(name) for name in LISTS.values()} | {LABELLED.path(video) for video in videos}
    assert {str(path.parent) for path in listed} > {"videos/P01 kitchen"}
    for split, found in planned.items():
        rows = (root / LISTS[split]).read_text().splitlines()
        assert rows == [f"{LABELLED.path(video)} {VERBS[video.segments[0].verb]}" for video in found]
        assert Counter(row.rpartition(" ")[2] for row in rows) == dict.fromkeys(VERBS, len(rows) // len(VERBS))


def test_the_reader_of_labelled_folders_reads_it(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setenv("RAYLAB_CACHE", str(root.parent))
    dataset = load_dataset(DataConfig(dataset="kitchen_labelled", kitchen="tiny"), list(LISTS))
    summaries = [found.summary() for found in dataset.splits.values()]
    assert summaries == ["48 clips", "24 clips", "24 clips"]
    assert dataset.labels == {"label": sorted(VERBS)}
    assert set(dataset.sources) == {
        str(LABELLED.path(video)) for videos in plan_clips("tiny").values() for video in videos
    }
    of_each_rate = {video.fps: video for video in plan_clips("tiny")["train"]}
    assert len(of_each_rate) == 5
    for video in of_each_rate.values():
        clip = next(clip for clip in dataset.splits["train"].clips if clip.id == str(LABELLED.path(video)))
        assert frames_at_rate(clip, dataset.sources[clip.video], 1000.0) == video.frames


def test_a_changed_plan_needs_a_new_format() -> None:
    content = hashlib.sha256(repr(plan_clips("tiny")).encode()).hexdigest()[:10]
    assert (fingerprint("tiny"), content) == ("3eb3c94431", "d210590980"), (
        "raise kitchen.FORMAT, then renew both values"
    )


@pytest.mark.parametrize("size", ["tiny", "small", "medium"])
def test_its_clips_are_those_of_the_plan_and_of_as_many_new_ones_for_the_test(size: str) -> None:
    planned, clips = plan(size), plan_clips(size)
    for split, name in (("train", "train"), ("val", "validation")):
        drawn = [
            [(s.verb, s.image, s.first, s.last, s.ink) for v in videos for s in v.segments]
            for videos in (clips[split], planned[name])
        ]
        assert drawn[0] == drawn[1]
    assert len(clips["test"]) == len(clips["val"])
    poses = {split: {video.segments[0].first for video in videos} for split, videos in clips.items()}
    assert not poses["test"] & (poses["val"] | poses["train"])
    images = {split: {digits()[0][v.segments[0].image].tobytes() for v in videos} for split, videos in clips.items()}
    assert not images["train"] & (images["val"] | images["test"])
    assert len({video.id for videos in clips.values() for video in videos}) == sum(map(len, clips.values()))
    assert {video.fps for video in clips["train"]} == {video.fps for video in planned["train"]}


@pytest.mark.parametrize("verb", range(len(VERBS)))
def test_a_video_shows_its_clip_alone_and_reversed_one_of_the_opposite_verb(verb: int) -> None:
    number, video = next((i, v) for i, v in enumerate(plan_clips("tiny")["train"]) if v.segments[0].verb == verb)
    (segment,) = video.segments
    images = digits()[0][[segment.image]]
    frames = [np.asarray(frame) for frame in render_frames(video, images)]

    from_plan = [(v, s) for v in plan("tiny")["train"] for s in v.segments][number]
    whole = [np.asarray(f) for f in render_frames(from_plan[0], digits()[0][[s.image for s in from_plan[0].segments]])]
    rest = segment.start
    assert rest >= 1
    np.testing.assert_array_equal(frames, whole[from_plan[1].start - rest : from_plan[1].stop + rest])

    turned = replace(segment, verb=verb ^ 1, first=segment.last, last=segment.first)
    backward = [np.asarray(frame) for frame in render_frames(replace(video, segments=(turned,)), images)]
    np.testing.assert_array_equal(frames[::-1], backward)


def test_its_decoded_frames_are_the_rendered_ones(root: Path) -> None:
    for split in plan_clips("tiny").values():
        expected = [
            av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24").to_ndarray(format="yuv420p")
            for frame in render_frames(split[0], digits()[0][[split[0].segments[0].image]])
        ]
        with av.open(root / LABELLED.path(split[0])) as container:
            decoded = [frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)]
        np.testing.assert_array_equal(decoded, expected)
