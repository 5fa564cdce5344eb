"""TVSum: both layouts of its annotations, the public file, and what is said of files that are wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pytest
from scipy.io import savemat

from raylab.config import DataConfig
from raylab.data.datasets import load_annotations, load_dataset
from raylab.data.keyshots import summarize
from raylab.data.tvsum import annotation_files, find_sources, read_dataset, recordings
from raylab.data.tvsum_files import PUBLISHED, read_h5, read_mat
from raylab.errors import RaylabError

REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "tvsum"
RATE = Fraction(10)
LENGTHS = {"a": 100, "-b_": 75, "c": 43, "d": 30, "e": 151}  # frames
VIDEOS = list(LENGTHS)

real = pytest.mark.skipif(not REAL.is_dir(), reason="no shared/data/tvsum")


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


# ---- both layouts


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


# ---- splits and windows


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


# ---- videos


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


# ---- files that are wrong


@pytest.mark.parametrize(
    ("remove", "changes", "said"),
    [
        (("user_summary",), {}, r"video_2: has no dataset user_summary, only .*change_points"),
        (("n_frames",), {}, r"video_2: has no dataset n_frames"),
        (("picks",), {}, r"video_2: has no dataset picks"),
        (("gtscore",), {}, r"video_2: has no dataset gtscore"),
        (("change_points",), {}, r"video_2: has no dataset change_points"),
        (("fps",), {}, r"video_2: is no video of TVSum \(75 frames\), and has no dataset fps"),
        ((), {"fps": 0.0}, r"video_2/fps: .*0\.0.* is not one number above 0"),
        ((), {"n_frames": [75, 75]}, r"video_2/n_frames: .* is not one number"),
        ((), {"n_frames": 74}, r"video_2/user_summary: float32 of shape \(20, 75\), not numbers \(n, 74\)"),
        ((), {"user_summary": np.zeros(75)}, r"video_2/user_summary: .* shape \(75,\), not numbers \(n, 75\)"),
        ((), {"user_summary": np.zeros((0, 75))}, r"video_2/user_summary: .* shape \(0, 75\)"),
        ((), {"user_summary": np.full((20, 75), 0.5)}, r"video_2/user_summary: has values besides 0 and 1"),
        ((), {"user_scores": np.zeros((20, 75))}, r"video_2/user_scores: 0 to 0, where scores are 1 to 5"),
        ((), {"gtscore": np.zeros(14)}, r"video_2/gtscore: .* shape \(14,\), not numbers \(15\)"),
        ((), {"gtscore": np.full(15, 4.0)}, r"video_2/gtscore: 4 to 4, where importance is 0 to 1"),
        ((), {"gtscore": np.full(15, np.nan)}, r"video_2/gtscore: nan to nan"),
        ((), {"picks": np.arange(15) * 6}, r"video_2/picks: not ascending frame numbers from 0 to 74"),
        ((), {"picks": np.zeros(15)}, r"video_2/picks: not ascending"),
        ((), {"change_points": [[0, 19], [21, 74]]}, r"video_2/change_points: not first and last frame of each shot"),
        ((), {"change_points": [[0, 19], [20, 70]]}, r"video_2/change_points: .* from 0 to 74"),
        ((), {"change_points": [[0, 74, 1]]}, r"video_2/change_points: .* shape \(1, 3\), not numbers \(n, 2\)"),
        ((), {"video_name": "../a"}, r"video_2: video '\.\./a' is not the name of a file in videos/"),
        ((), {"video_name": "a"}, r"video_2 and video_1 are both video 'a'"),
        ((), {"video_name": ""}, r"video_2: video '' is not the name"),
    ],
)
def test_an_h5_that_is_wrong(tmp_path: Path, remove: tuple[str, ...], changes: dict[str, Any], said: str) -> None:
    path = write_h5(tmp_path, remove, **changes)
    with pytest.raises(RaylabError, match=said) as error:
        read(tmp_path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"user_anno": lambda i: levels(VIDEOS[i])[:, 1:].astype(float)},
            r"video_1/user_anno: .* not numbers \(n, 100\)",
        ),
        ({"user_anno": lambda i: levels(VIDEOS[i]) + 1.0}, r"video_1/user_anno: 2 to 6, where scores are 1 to 5"),
        ({"user_anno": lambda i: levels(VIDEOS[i]).T.astype(float)}, r"shape \(100, 20\), not numbers \(n, 100\)"),
        ({"nframes": lambda i: np.zeros((1, 1))}, r"video_1/nframes: .* is not one number above 0"),
        ({"length": lambda i: np.full((1, 1), np.inf)}, r"video_1/length: .*inf.* is not one number"),
        ({"video": lambda i: np.array([[ord("/")]], np.uint16)}, r"video_1: video '/' is not the name of a file"),
        ({"video": lambda i: np.array([[ord("x")]], np.uint16)}, r"video_2 and video_1 are both video 'x'"),
    ],
)
def test_a_mat_that_is_wrong(tmp_path: Path, changes: dict[str, Callable[[int], Any]], said: str) -> None:
    path = write_mat(tmp_path, **changes)
    with pytest.raises(RaylabError, match=said) as error:
        read(tmp_path)
    assert str(path) in str(error.value)


def test_mat_files_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "ydata-tvsum50.mat"
    savemat(path, {"tvsum50": np.zeros(3)})  # MATLAB 5
    with pytest.raises(
        RaylabError, match=r"tvsum50\.mat: cannot be read .* MATLAB 7\.3 \(HDF5\) file: save it with -v7\.3"
    ):
        read(tmp_path)
    with h5py.File(path, "w") as file:
        file.create_dataset("other", data=1)
    with pytest.raises(RaylabError, match=r"has no struct tvsum50"):
        read(tmp_path)
    write_mat(tmp_path)
    with h5py.File(path, "a") as file:
        del file["tvsum50/length"]
    with pytest.raises(RaylabError, match=r"tvsum50 has no field length"):
        read(tmp_path)
    content = write_mat(tmp_path).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(RaylabError, match=r"cannot be read .*truncated"):
        read(tmp_path)


def test_an_h5_without_groups(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "tvsum.h5", "w") as file:
        file.create_dataset("video_1", data=1)
    with pytest.raises(RaylabError, match=r"has no groups, one for each video"):
        read(tmp_path)


def test_files_that_do_not_fit_together(tmp_path: Path) -> None:
    write_h5(tmp_path)
    write_mat(
        tmp_path,
        nframes=lambda i: np.array([[float(LENGTHS[VIDEOS[i]] - 1)]]),
        user_anno=lambda i: levels(VIDEOS[i])[:, 1:] * 1.0,
    )
    with pytest.raises(RaylabError, match=r"video_1: n_frames 100 of video a, which has 99 in .*\.mat"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[]", "not a list of splits"),
        ("[3]", "split 0: train_keys is no list of videos"),
        ('[{"train_keys": ["video_1"]}]', "split 0: test_keys is no list"),
        ('[{"train_keys": [], "test_keys": ["video_1"]}]', "train_keys is no list"),
        (
            '[{"train_keys": ["video_9"], "test_keys": ["video_1"]}]',
            "train_keys names 'video_9', which the annotations",
        ),
        ('[{"train_keys": ["video_1"], "test_keys": ["a"]}]', "video_1 is in train_keys and in test_keys"),
    ],
)
def test_splits_that_are_wrong(tmp_path: Path, content: str, said: str) -> None:
    write_mat(tmp_path)
    (tmp_path / "tvsum_splits.json").write_text(content)
    with pytest.raises(RaylabError, match=r"tvsum_splits\.json: .*" + said):
        read(tmp_path)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"a": 3}', '{"a": [50, 50]}', '{"a": [100]}', '{"a": [0, 3]}', '{"a": ["x"]}']
)
def test_shots_that_are_wrong(tmp_path: Path, content: str) -> None:
    write_mat(tmp_path)
    (tmp_path / "tvsum_shots.json").write_text(content)
    with pytest.raises(RaylabError, match=r"tvsum_shots\.json: .*tvsum_shots again"):
        read(tmp_path)


# ---- the published files


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
