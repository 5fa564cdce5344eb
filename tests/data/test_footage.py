import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.io import write_jpeg

from raylab.data.clips import Clip
from raylab.data.container import EPSILON
from raylab.data.footage import frames_at_rate, positions, read_positions
from raylab.data.sampling import frame_numbers
from raylab.errors import RaylabError

FPS, COUNT = 25, 50


def encode(path: Path, fps: Fraction, count: int = COUNT) -> Path:
    """Grey frames, 4 levels brighter from one to the next."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"g": "12", "crf": "4"})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv444p"
        for number in range(count):
            grey = np.full((32, 32, 3), 10 + 4 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return path


def clip(first: int, stop: int, fps: Fraction | int = FPS) -> Clip:
    """The frames first … stop - 1, counted from 1."""
    return Clip("c", "v", float((first - 1) / fps), float((stop - 1) / fps), first, stop, {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frames")
    for number in range(1, COUNT + 1):
        grey = torch.full((3, 32, 32), 6 + 4 * number, dtype=torch.uint8)
        write_jpeg(grey, str(folder / f"frame_{number:010d}.jpg"), quality=95)
    return folder


RATES = [Fraction(FPS), Fraction(30000, 1001), Fraction(60000, 1001)]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[Fraction, Path]:
    root = tmp_path_factory.mktemp("videos")
    return {rate: encode(root / f"{index}.mp4", rate) for index, rate in enumerate(RATES)}


def seen(source: Path, where: list[float]) -> list[int]:
    """The numbers of the frames at these positions, counted from 1."""
    return ((read_positions(source, where, "pyav").float().mean((1, 2, 3)) - 6) / 4).round().int().tolist()


@pytest.mark.parametrize("rate", RATES, ids=str)
@pytest.mark.parametrize(("first", "stop"), [(1, 51), (8, 31), (21, 22), (47, 51), (30, 33)])
@pytest.mark.parametrize("frames", [1, 2, 7, 16, 40])
def test_a_video_shows_the_frames_that_would_be_extracted(
    videos: dict[Fraction, Path], rate: Fraction, first: int, stop: int, frames: int
) -> None:
    video = videos[rate]
    found = np.array(seen(video, positions(clip(first, stop, rate), video, frames)))
    exact = np.linspace(first, stop - 1, frames)
    halfway = np.abs(exact % 1 - 0.5) < EPSILON * rate + 1e-6  # between two frames, where either is nearest
    assert np.array_equal(found[~halfway], np.array(frame_numbers(first, stop, frames))[~halfway])
    assert np.abs(found - exact).max() < 0.5 + EPSILON * rate + 1e-6


@given(first=st.integers(1, 40), length=st.integers(1, 10), frames=st.integers(1, 20))
def test_positions_of_extracted_frames_are_their_numbers(folder: Path, first: int, length: int, frames: int) -> None:
    numbers = frame_numbers(first, first + length, frames)
    where = positions(clip(first, first + length), folder, frames)
    assert where == numbers
    assert seen(folder, where) == numbers


def test_positions_may_be_read_in_any_order_and_again(folder: Path, videos: dict[Fraction, Path]) -> None:
    for source in (folder, videos[RATES[0]]):
        where = positions(clip(1, 51), source, 5)
        order = [3, 0, 3, 4, 1, 2, 0]
        straight = seen(source, where)
        assert seen(source, [where[at] for at in order]) == [straight[at] for at in order]


@given(length=st.integers(1, COUNT), rate=st.floats(0.01, 60))
def test_frames_at_rate_are_the_fewest_that_lie_close_enough(folder: Path, length: int, rate: float) -> None:
    frames = frames_at_rate(clip(1, 1 + length), folder, rate)
    span = (length - 1) / FPS  # from the first frame to the last
    assert 1 <= frames <= length
    if frames < length:
        assert span / (frames - 1) <= 1 / rate + 1e-6
    if frames > 2:
        assert span / (frames - 2) > 1 / rate - 1e-6, "one fewer would do"


@given(first=st.integers(1, 40), length=st.integers(1, 10), rate=st.floats(0.1, 60))
def test_a_video_has_as_many_frames_at_a_rate_as_its_extracted_frames(
    folder: Path, videos: dict[Fraction, Path], first: int, length: int, rate: float
) -> None:
    stretch = clip(first, first + length)
    assert frames_at_rate(stretch, videos[RATES[0]], rate) == frames_at_rate(stretch, folder, rate)


def test_all_frames_at_a_rate_above_the_video_s(folder: Path) -> None:
    stretch = clip(5, 27)
    frames = frames_at_rate(stretch, folder, 100)
    assert positions(stretch, folder, frames) == list(range(5, 27))


def test_a_clip_past_the_end_of_its_video(videos: dict[Fraction, Path]) -> None:
    video = videos[RATES[0]]
    late = replace(clip(41, 51), stop=99.0)
    assert seen(video, positions(late, video, 4)) == [41, 44, 47, 50]
    assert frames_at_rate(late, video, 25) == 10
    for ask in (lambda c: positions(c, video, 4), lambda c: frames_at_rate(c, video, 25)):
        with pytest.raises(RaylabError, match=r"starts at 5\.00 s, but .*0\.mp4 ends at 2\.00 s; replace the file"):
            ask(replace(late, start=5.0))


def test_a_video_that_is_replaced_is_looked_at_again(tmp_path: Path) -> None:
    video = encode(tmp_path / "v.mp4", RATES[0], 50)
    whole = replace(clip(1, 51), stop=99.0)
    assert seen(video, positions(whole, video, 3))[-1] == 50
    encode(video, RATES[0], 21)
    os.utime(video, (1, 1))  # clocks of filesystems are coarse
    assert seen(video, positions(whole, video, 3)) == [1, 11, 21]


@pytest.mark.parametrize("name", ["absent.mp4", "text.mp4"])
def test_what_is_not_a_video_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(RaylabError, match=name):
        positions(clip(1, 9), tmp_path / name, 4)
