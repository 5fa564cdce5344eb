"""TVSum: both layouts of its annotations, its splits and videos, and the published file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from tvsum_folder import LENGTHS, RATE, SHOTS, VIDEOS, config, encode, levels, read, splits, write_h5, write_mat

from raylab.config import DataConfig
from raylab.data.datasets import load_annotations, load_dataset
from raylab.data.keyshots import summarize
from raylab.data.tvsum import annotation_files, find_sources, recordings
from raylab.data.tvsum_files import PUBLISHED, read_h5, read_mat
from raylab.errors import RaylabError

REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "tvsum"

real = pytest.mark.skipif(not REAL.is_dir(), reason="no shared/data/tvsum")


def test_scores_of_the_matlab_file(tmp_path: Path) -> None:
    write_mat(tmp_path)
    dataset = read(tmp_path)
    assert set(dataset.importance) == set(VIDEOS)
    assert dataset.heads == {}
    for video, frames in LENGTHS.items():
        known = dataset.importance[video]
        assert (known.frames, known.category) == (frames, "VT")
        assert known.picks.tolist() == list(range(0, frames, 5))
        np.testing.assert_allclose(known.scores, (levels(video)[:, known.picks] - 1) / 4)
        assert known.scores.dtype == np.float32
        assert known.shots.tolist()[:2] == ([[0, 19], [20, 39]] if frames > 50 else [[0, 19], [20, frames - 1]])
        assert known.shots[-1, 1] == frames - 1
        made = [summarize(own, known.shots, frames, known.picks) for own in known.scores]
        np.testing.assert_array_equal(known.summaries, made)
    odd = dataset.splits["train"].odd
    assert len(odd) == 4 and odd[0].kind == "videos with shots of two seconds"


def test_the_h5_alone_has_the_mean(tmp_path: Path) -> None:
    write_h5(tmp_path)
    for video, known in read(tmp_path).importance.items():
        assert known.scores.shape == (0, len(known.picks))
        np.testing.assert_allclose(known.mean, (levels(video)[:, known.picks].mean(0) - 1) / 4, rtol=1e-6)
        assert known.shots.tolist() == SHOTS[video]
        np.testing.assert_array_equal(known.summaries, levels(video) > 3)


def test_both_files_complete_each_other(tmp_path: Path) -> None:
    write_mat(tmp_path)
    write_h5(tmp_path, remove=("gtscore",), user_scores=np.ones((3, 75)))
    for video, known in read(tmp_path).importance.items():
        np.testing.assert_allclose(known.scores, (levels(video)[:, known.picks] - 1) / 4)
        assert known.shots.tolist() == SHOTS[video]
        assert known.category == "VT"


def test_scores_of_single_annotators_in_the_h5(tmp_path: Path) -> None:
    write_h5(tmp_path, user_scores=levels("-b_", 7), remove=("gtscore", "picks"))
    known = read(tmp_path).importance["-b_"]
    np.testing.assert_allclose(known.scores, (levels("-b_", 7)[:, known.picks] - 1) / 4)


def test_other_rates_take_other_frames(tmp_path: Path) -> None:
    write_mat(tmp_path)
    known = read(tmp_path, fps=4.0).importance["a"]
    assert known.picks.tolist() == [int(k * 2.5) for k in range(40)]
    clips = [clip for split in read(tmp_path, fps=4.0, frames=40).splits.values() for clip in split.clips]
    lengths = {clip.id: clip.stop - clip.start for clip in clips}
    assert lengths == {"a@0": 10.0, "-b_@0": 7.5, "c@0": 4.5, "d@0": 3.0, "e@0": 10.0, "e@1": 5.25}


def test_the_last_shot_may_be_counted_exclusively(tmp_path: Path) -> None:
    write_h5(tmp_path, change_points=np.array([[0, 19], [20, 75]]))
    assert read(tmp_path).importance["-b_"].shots.tolist() == [[0, 19], [20, 74]]


def test_groups_without_names_are_tvsums_videos(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "tvsum.h5", "w") as file:
        for number in (10, 2, 1):
            frames = PUBLISHED[number - 1].frames
            content = {
                "n_frames": frames,
                "picks": np.arange(0, frames, 15),
                "gtscore": np.linspace(0, 1, -(-frames // 15)),
                "change_points": np.array([[0, frames - 1]]),
                "user_summary": np.zeros((20, frames)),
            }
            for name, value in content.items():
                file.create_dataset(f"video_{number}/{name}", data=value)
    found = read_h5(tmp_path / "tvsum.h5")
    assert list(found) == ["AwmHb44_ouw", "98MoyGZKHXc", "akI8YFjEmUw"]
    assert found["98MoyGZKHXc"].rate == pytest.approx(4688 / 187.524)
    assert found["98MoyGZKHXc"].category == "VT"


def test_published_splits(tmp_path: Path) -> None:
    write_mat(tmp_path)
    splits(tmp_path, (["video_1", "video_3"], ["video_2"]), (["-b_", "e", "d"], ["a", "video_3"]))
    first, second = read(tmp_path), read(tmp_path, fold=1)
    assert [list(first.splits[split].clips.videos) for split in ("train", "val")] == [["a", "c"], ["-b_"]]
    assert [list(second.splits[split].clips.videos) for split in ("train", "val")] == [["-b_", "d", "e"], ["a", "c"]]
    assert [clip.id for clip in first.splits["train"].clips] == ["a@0", "a@1", "a@2", "c@0", "c@1"]
    with pytest.raises(RaylabError, match=r"data\.fold = 2: .*splits\.json has splits 0 to 1"):
        read(tmp_path, fold=2)


def test_splits_that_are_not_published_hold_out_each_video_once(tmp_path: Path) -> None:
    write_mat(tmp_path)
    held = []
    for fold in range(5):
        dataset = read(tmp_path, fold=fold)
        train, val = (set(dataset.splits[split].clips.videos) for split in ("train", "val"))
        assert train | val == set(VIDEOS) and not train & val
        held += val
    assert sorted(held) == sorted(VIDEOS)


def test_max_clips_takes_whole_videos(tmp_path: Path) -> None:
    write_mat(tmp_path)
    everything = read(tmp_path).splits["train"].clips
    counts = {video: sum(clip.video == video for clip in everything) for video in everything.videos}
    for most in (1, 2, 4, len(everything) - 1, len(everything)):
        clips = read(tmp_path, max_clips=most).splits["train"].clips
        assert 1 <= len(clips) <= most
        whole = all(sum(clip.video == video for clip in clips) == counts[video] for video in clips.videos)
        assert whole or len(clips.videos) == 1
    assert len(clips) == len(everything)


def test_shots_that_were_found_are_used(tmp_path: Path) -> None:
    write_mat(tmp_path)
    (tmp_path / "tvsum_shots.json").write_text(json.dumps({"a": [7, 60], "c": []}))
    dataset = read(tmp_path)
    assert dataset.importance["a"].shots.tolist() == [[0, 6], [7, 59], [60, 99]]
    assert dataset.importance["c"].shots.tolist() == [[0, 42]]
    odd = [issue.reason for split in dataset.splits.values() for issue in split.odd]
    assert len(odd) == 3 and not any("video a:" in reason or "video c:" in reason for reason in odd)
    assert read_mat(tmp_path / "ydata-tvsum50.mat", arrays=False)["a"].scores is None


def test_shots_are_found_by_a_command(tmp_path: Path) -> None:
    from raylab.data.tvsum_shots import tvsum_shots

    write_mat(tmp_path)
    for video, frames in LENGTHS.items():
        encode(tmp_path / "videos" / f"{video}.mp4", frames)
    tvsum_shots(tmp_path, workers=1)
    assert set(json.loads((tmp_path / "tvsum_shots.json").read_text())) == set(VIDEOS)
    dataset = load_dataset(config(tmp_path))
    assert not any(len(split.odd) for split in dataset.splits.values())
    assert all(known.shots[-1, 1] == known.frames - 1 for known in dataset.importance.values())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tvsum")
    write_mat(folder)
    endings = [".mp4", ".mkv", ".MP4", ".mov", ".mp4"]
    for (video, frames), ending in zip(LENGTHS.items(), endings, strict=True):
        encode(folder / "videos" / f"{video}{ending}", frames)
    return folder


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(root, tmp_path / "tvsum"))


def test_videos_are_found_by_their_names(root: Path) -> None:
    dataset = load_dataset(config(root))
    names = {video: path.name for video, path in dataset.sources.items()}
    assert names == {"a": "a.mp4", "-b_": "-b_.mkv", "c": "c.MP4", "d": "d.mov", "e": "e.mp4"}
    assert load_dataset(config(root)).splits["val"].clips == dataset.splits["val"].clips


def test_annotations_are_read_without_videos(tmp_path: Path) -> None:
    write_mat(tmp_path)
    assert set(load_annotations(config(tmp_path)).importance) == set(VIDEOS)
    with pytest.raises(RaylabError, match=r"5 of 5 videos are missing: .*\nlooked for .*videos.*\.mp4"):
        load_dataset(config(tmp_path))


def remove(folder: Path) -> None:
    (folder / "videos" / "d.mov").unlink()


def double(folder: Path) -> None:
    shutil.copy(folder / "videos" / "a.mp4", folder / "videos" / "a.mkv")


def shorten(folder: Path) -> None:
    encode(folder / "videos" / "e.mp4", 120)


def speed_up(folder: Path) -> None:
    encode(folder / "videos" / "e.mp4", 302, RATE * 2)


def spoil(folder: Path) -> None:
    (folder / "videos" / "a.mp4").write_bytes(b"no video")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (remove, r"1 of 5 videos are missing: d\n"),
        (double, r"video a: .*a\.mkv and .*a\.mp4: remove all but one"),
        (shorten, r"e\.mp4: 12\.00 s at 10\.000 frames a second, where video_5 was annotated over 15\.10 s"),
        (speed_up, r"e\.mp4: 15\.10 s at 20\.000 frames a second, .* at 10\.000 \(151 frames\)"),
        (spoil, r"a\.mp4: cannot be read"),
    ],
)
def test_videos_that_are_not_those_annotated(copy: Path, damage: Callable[[Path], None], said: str) -> None:
    damage(copy)
    with pytest.raises(RaylabError, match=said):
        load_dataset(config(copy))


def test_settings_that_mean_nothing(root: Path, tmp_path: Path) -> None:
    with pytest.raises(RaylabError, match=r"data\.sampling = uniform: single frames are scored .* data\.sampling=rate"):
        load_dataset(config(root, sampling="uniform"))
    with pytest.raises(RaylabError, match=r"data\.source = frames"):
        find_sources(config(root, source="frames"), {"a": "a"})
    with pytest.raises(RaylabError, match="split test: TVSum has train and val"):
        annotation_files(config(root), ["test"])
    with pytest.raises(RaylabError, match=r"annotations not found; looked for\n.*tvsum\.h5, or\n.*ydata-tvsum50\.mat"):
        annotation_files(config(tmp_path))
    with pytest.raises(
        RaylabError, match=r"data\.sampling = rate: single frames are not scored in data\.dataset = lab"
    ):
        for name in ("train", "val"):
            (tmp_path / f"{name}.csv").write_text("a.mp4 A")
        load_dataset(DataConfig(dataset="labelled", root=str(tmp_path), sampling="rate"))


@real
def test_the_published_annotations() -> None:
    found = recordings(annotation_files(config(REAL)))
    assert [(about.video, about.category, about.frames) for about in found.values()] == [row[:3] for row in PUBLISHED]
    assert [about.rate for about in found.values()] == pytest.approx([row.frames / row.seconds for row in PUBLISHED])
    assert {about.scores.shape[0] for about in found.values() if about.scores is not None} == {20}
    for fold in (0, 4):
        dataset = read(REAL, frames=60, fold=fold)
        train, val = (set(dataset.splits[split].clips.videos) for split in ("train", "val"))
        assert (len(train), len(val), len(train | val)) == (40, 10, 50)
    assert sum(len(split.clips) for split in dataset.splits.values()) == sum(
        -(-int(np.ceil(row.seconds * 2)) // 60) for row in PUBLISHED
    )
    clip = next(clip for split in dataset.splits.values() for clip in split.clips if clip.video == "AwmHb44_ouw")
    assert (clip.start, clip.stop) == (0.0, 30.0)
