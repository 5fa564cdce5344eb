"""What is said of TVSum's files where they are wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import savemat
from tvsum_folder import LENGTHS, VIDEOS, levels, read, write_h5, write_mat

from raylab.errors import RaylabError


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
