"""The built-in data set in TVSum's layout: what is in the videos is what is scored."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import av
import h5py
import numpy as np
import pytest
from scipy.stats import spearmanr

from raylab.config import DataConfig
from raylab.data.datasets import load_dataset
from raylab.data.kitchen import fingerprint, kitchen_root
from raylab.data.kitchen_keyframes import ANNOTATORS, KEYFRAMES, VIDEO_SECONDS, VIDEOS, Reel, plan_reels, render_reel
from raylab.data.kitchen_plan import LIMIT, digits
from raylab.data.tvsum_files import read_h5


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kitchen_root("tiny", tmp_path_factory.mktemp("cache"), layout=KEYFRAMES)


def reels(size: str = "tiny") -> tuple[Reel, ...]:
    return plan_reels(size)["all"]


def test_a_changed_plan_needs_a_new_format() -> None:
    plan = hashlib.sha256(repr((reels(), [reel.scores.tobytes() for reel in reels()])).encode()).hexdigest()[:10]
    assert (fingerprint("tiny", *KEYFRAMES.settings), plan) == ("a53569eed8", "f3ea3576bb"), (
        "raise kitchen.FORMAT, then renew both"
    )


def test_files_and_plan_agree(root: Path) -> None:
    planned = reels()
    assert len(planned) == VIDEOS["tiny"]
    listed = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert listed == {"tvsum.h5", "tvsum_splits.json"} | {f"videos/{reel.id}.mp4" for reel in planned}
    with h5py.File(root / "tvsum.h5") as file:
        for number, reel in enumerate(planned, start=1):
            group = file[f"video_{number}"]
            steps = len(group["picks"])
            assert {name: group[name].shape for name in group} == {
                **dict.fromkeys(("video_name", "category", "fps", "n_frames", "n_steps"), ()),
                **dict.fromkeys(("picks", "gtscore", "gtsummary"), (steps,)),
                **dict.fromkeys(("user_scores", "user_summary"), (ANNOTATORS, reel.frames)),
                "change_points": (len(reel.shots), 2),
                "n_frame_per_seg": (len(reel.shots),),
            }
            assert group["n_steps"][()] == steps == int(np.ceil(reel.frames / float(reel.fps) * 2))
            assert group["n_frame_per_seg"][()].sum() == reel.frames == group["n_frames"][()]
            scores = (group["user_scores"][()].astype(float) - 1) / 4
            np.testing.assert_allclose(group["gtscore"], scores[:, group["picks"][()]].mean(0), rtol=1e-6)
            summaries = group["user_summary"][()].sum(1)
            assert (summaries > 0).all() and (summaries <= 0.15 * reel.frames).all()
    folds = json.loads((root / "tvsum_splits.json").read_text())
    assert sorted(key for fold in folds for key in fold["test_keys"]) == sorted(f"video_{i + 1}" for i in range(10))


def test_the_reader_of_tvsum_reads_it(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setenv("RAYLAB_CACHE", str(root.parent))
    dataset = load_dataset(DataConfig(dataset="kitchen_keyframes", kitchen="tiny", sampling="rate", frames=60))
    assert {split: len(found.clips.videos) for split, found in dataset.splits.items()} == {"train": 8, "val": 2}
    assert not any(len(found.odd) for found in dataset.splits.values())
    assert len(dataset.splits["train"].clips) > 8  # some are longer than one window
    recorded = read_h5(root / "tvsum.h5")
    for reel in reels():
        known = dataset.importance[reel.id]
        assert (known.scores.shape[0], known.frames, known.category) == (ANNOTATORS, reel.frames, "kitchen")
        np.testing.assert_array_equal(known.shots, reel.shots)
        assert recorded[reel.id].rate == float(reel.fps)


def test_decoded_frames_are_the_rendered_ones(root: Path) -> None:
    reel = min(reels(), key=lambda reel: reel.frames)
    images = digits()[0][reel.images]
    expected = [
        av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24").to_ndarray(format="yuv420p")
        for frame in render_reel(reel, images)
    ]
    assert len(expected) == reel.frames
    with av.open(root / "videos" / f"{reel.id}.mp4") as container:
        decoded = [frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)]
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("size", ["tiny", "small", "medium", "large"])
def test_no_digit_stands_in_two_videos(size: str) -> None:
    planned = reels(size)
    shown = [image for reel in planned for image in reel.images]
    assert len(set(shown)) == len(shown)
    assert len({reel.id for reel in planned}) == VIDEOS[size]
    seconds = [reel.frames / float(reel.fps) for reel in planned]
    assert min(seconds) >= VIDEO_SECONDS[0] and max(seconds) > 30 > min(seconds)


def test_scenes_and_shots_cover_each_video() -> None:
    for reel in reels("small"):
        edges = [0, *(scene.stop for scene in reel.scenes)]
        assert edges == sorted(set(edges))
        shots = reel.shots
        assert shots[0, 0] == 0 and shots[-1, 1] == reel.frames - 1
        np.testing.assert_array_equal(shots[1:, 0], shots[:-1, 1] + 1)
        assert set(edges[1:-1]) <= set(shots[:, 0].tolist())
        assert (shots[:, 1] - shots[:, 0] + 1).min() >= 0.5 * float(reel.fps)


def test_digits_stay_in_the_picture_and_swell_where_it_matters() -> None:
    for reel in reels():
        start = 0
        for scene in reel.scenes:
            seconds = np.arange(start, scene.stop) / float(reel.fps)
            start = scene.stop
            poses = [scene.pose(second) for second in seconds.tolist()]
            assert all(max(abs(p.x), abs(p.y)) + p.size / 2 <= LIMIT + 1e-9 for p in poses)
            np.testing.assert_allclose(
                [p.size for p in poses], scene.poses[0].size * (1 + 0.85 * scene.importance(seconds)), rtol=1e-9
            )
            for time, strength in zip(scene.times[1:-1], scene.strengths, strict=True):
                assert scene.importance(np.array([time]))[0] >= strength
            assert len(scene.times) == len(scene.poses) == len(scene.strengths) + 2


def test_annotators_agree_a_little_and_their_mean_is_good() -> None:
    pairs, means = [], []
    for reel in reels("small")[:12]:
        scores = reel.scores
        assert scores.shape == (ANNOTATORS, reel.frames) and scores.min() >= 1 and scores.max() <= 5
        correlation = spearmanr(scores, axis=1).statistic
        pairs.append(correlation[np.triu_indices(ANNOTATORS, 1)].mean())
        means.append(spearmanr(scores.mean(0), reel.importance).statistic)
    assert 0.2 < np.mean(pairs) < 0.32  # TVSum: 0.204
    assert np.mean(means) > 0.75
