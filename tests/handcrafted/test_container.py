"""Bit rate and frame rate counted from packets, whatever the header says or leaves out."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from films import SHARED, film, remux, texture

from raylab.data.container import VideoError, open_video
from raylab.handcrafted.container import Packets

needs_shared = pytest.mark.skipif(not SHARED.exists(), reason=f"no test videos in {SHARED}")


def read(path: Path) -> Packets:
    with open_video(path) as (container, stream):
        return Packets.read(path, container, stream)


@needs_shared
@pytest.mark.parametrize(
    "name", ["arm_wrestling.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4", "h265_video.mp4", "video_90.mov"]
)
def test_as_an_honest_header_says(name: str) -> None:
    found = read(SHARED / name)
    with av.open(str(SHARED / name)) as container:
        stream = container.streams.best("video")
        assert found.bit_rate == pytest.approx(stream.bit_rate, rel=1e-4)
        assert found.fps == pytest.approx(float(stream.average_rate))
        assert len(found.times) == stream.frames
        assert found.pixels == stream.width * stream.height


@needs_shared
def test_header_without_duration_frames_or_bit_rate() -> None:
    found = read(SHARED / "flipping_a_pancake.mkv")
    with av.open(str(SHARED / "flipping_a_pancake.mkv")) as container:
        sizes = [packet.size for packet in container.demux(video=0)]
    assert len(found.times) == 310
    assert found.seconds == pytest.approx(310 / 30, abs=0.001)
    assert found.bytes == sum(sizes)


@pytest.mark.parametrize("suffix", ["mkv", "mov", "ts", "avi", "flv"])
def test_the_container_does_not_matter(suffix: str, tmp_path: Path) -> None:
    codec = "mpeg4" if suffix == "avi" else "libx264"
    source = film(tmp_path / "a.mp4", [texture(48, 64, n) for n in range(30)], codec=codec)
    expected, found = read(source), read(remux(source, tmp_path / f"b.{suffix}"))
    assert expected.fps == pytest.approx(25)
    assert found.fps == pytest.approx(25, rel=1e-3)
    assert found.times == pytest.approx(expected.times, abs=1e-3)
    # A transport stream repeats the parameter sets of H.264 that MP4 keeps apart.
    assert found.bytes == pytest.approx(expected.bytes, abs=2500 if suffix == "ts" else 100)


def test_a_live_recording_has_no_duration_at_all(tmp_path: Path) -> None:
    source = film(tmp_path / "a.mp4", [texture(48, 64, n) for n in range(30)])
    live = remux(source, tmp_path / "b.mkv", live="1")
    with av.open(str(live)) as container:
        assert container.duration is None and container.streams.video[0].duration is None
    assert read(live).bit_rate == pytest.approx(read(source).bit_rate, rel=1e-3)


def test_sound_does_not_count() -> None:
    if not SHARED.exists():
        pytest.skip(f"no test videos in {SHARED}")
    path = SHARED / "nasa_13013.mp4"
    assert read(path).bytes < 0.5 * path.stat().st_size


def test_frames_at_varying_intervals(tmp_path: Path) -> None:
    gaps = [40, 40, 400, 20, 20, 20, 500, 40]
    found = read(film(tmp_path / "a.mkv", [texture(48, 64, n) for n in range(9)], gaps=gaps))
    assert found.times == pytest.approx(np.cumsum([0, *gaps]) / 1000)
    assert found.seconds == pytest.approx(1.08 * 9 / 8)


def test_one_frame_lasts_as_long_as_the_frame_rate_says(tmp_path: Path) -> None:
    for suffix in ("mp4", "mkv"):
        found = read(film(tmp_path / f"a.{suffix}", [texture(48, 64)]))
        assert (len(found.times), found.times[0]) == (1, 0)
        assert found.seconds == pytest.approx(0.04, abs=0.001)
        assert found.bit_rate == pytest.approx(8 * found.bytes / 0.04, rel=0.03)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_file_that_is_cut_short_is_refused(suffix: str, tmp_path: Path) -> None:
    source = film(tmp_path / "whole.mp4", [texture(48, 64, n) for n in range(150)])
    path = remux(source, tmp_path / f"cut.{suffix}", **({"movflags": "faststart"} if suffix == "mp4" else {}))
    assert read(path).seconds == pytest.approx(6, abs=0.01)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(VideoError, match=rf"cut\.{suffix}: "):
        read(path)


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts"])
def test_a_video_that_begins_late_is_whole(suffix: str, tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", [texture(48, 64, n) for n in range(25)])
    late = remux(path, tmp_path / f"late.{suffix}", later=7.5)
    assert read(late).times == pytest.approx(np.arange(25) / 25, abs=1e-3)
