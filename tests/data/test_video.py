"""Frames picked by time: from videos whose pixels spell each frame's number, and from real, awkward files."""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from films import sound
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.io import write_jpeg

from raylab.data.container import EPSILON, VideoError, frames_near, open_video
from raylab.data.extracted import read_extracted
from raylab.data.video import DECODERS, frame_numbers, probe, read_frames, stream_frames
from raylab.errors import RaylabError

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
VIDEOS = SHARED / "videos"
needs_shared = pytest.mark.skipif(not VIDEOS.exists(), reason=f"no test videos in {VIDEOS}")

BITS, BLOCK = 8, 16
NTSC = Fraction(30000, 1001)


def picture(number: int) -> np.ndarray:
    """Grey columns spell the number in binary, dark 0 and light 1, below a red stripe that fixes the orientation."""
    columns = [200 if number >> bit & 1 else 50 for bit in range(BITS)]
    image = np.repeat(np.repeat(np.array([columns], np.uint8), 3 * BLOCK, 0), BLOCK, 1)
    image = np.stack([image] * 3, axis=-1)
    image[:BLOCK] = (220, 30, 30)
    return image


def numbers(frames: Tensor) -> list[int]:
    """What `picture` wrote, read back from (T, 3, H, W)."""
    light = frames[:, 0, BLOCK:].float().mean(1).reshape(len(frames), BITS, BLOCK).mean(2) > 125
    return (light * 2 ** torch.arange(BITS)).sum(1).tolist()


def encode(path: Path, seconds: list[Fraction], gop: int = 50, bframes: int = 0, codec: str = "libx264") -> list[float]:
    """Write one numbered frame at each time; returns the times after the first frame's, as floats."""
    base = Fraction(1, 90000)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = BITS * BLOCK, 3 * BLOCK, "yuv420p"
        stream.time_base = stream.codec_context.time_base = base
        stream.options = {"g": str(gop), "bf": str(bframes), "sc_threshold": "0", "preset": "fast", "crf": "12"}
        for number, second in enumerate(seconds):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = round(second / base), base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return [float(second - seconds[0]) for second in seconds]


def remux(source: Path, target: Path, earlier: float = 0, **options: str) -> Path:
    """Copy the packets; those moved to before 0 s are hidden by MP4's edit list."""
    with av.open(str(source)) as given, av.open(str(target), "w", options=options) as out:
        stream = given.streams.best("video")
        copy = out.add_stream_from_template(stream)
        for packet in given.demux(stream):
            if packet.dts is not None:
                packet.pts -= round(earlier / packet.time_base)
                packet.dts -= round(earlier / packet.time_base)
                packet.stream = copy
                out.mux(packet)
    return target


def constant(fps: Fraction | int, frames: int = 120, start: float = 0) -> list[Fraction]:
    return [Fraction(start) + Fraction(number) / fps for number in range(frames)]


def variable(frames: int = 120) -> list[Fraction]:
    """Gaps from 1/90 s to 0.6 s, in no pattern."""
    steps = np.random.default_rng(0).choice([1000, 1500, 3003, 4500, 54000], frames - 1)
    return [Fraction(int(ticks), 90000) for ticks in [0, *np.cumsum(steps)]]


FILES = {
    "constant.mp4": (constant(25), 12, 0),
    "bframes.mp4": (constant(NTSC), 50, 3),
    "one_gop.mp4": (constant(2 * NTSC), 250, 2),
    "variable.mp4": (variable(), 50, 0),
    "variable_bframes.mp4": (variable(), 20, 3),
    "variable.mkv": (variable(), 12, 3),
    "milliseconds.mkv": (constant(2 * NTSC), 50, 2),
    "late.mkv": (constant(30, start=7.5), 50, 3),
    "late.mp4": (constant(30, start=2), 50, 3),
    "intra.mov": (constant(50), 1, 0),
    "transport.ts": (constant(25), 12, 2),
}


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[float]]]:
    folder = tmp_path_factory.mktemp("videos")
    return {
        name: (folder / name, encode(folder / name, seconds, gop, bframes))
        for name, (seconds, gop, bframes) in FILES.items()
    }


@pytest.fixture(params=DECODERS)
def decoder(request: pytest.FixtureRequest, files: dict[str, tuple[Path, list[float]]]) -> str:
    try:
        read_frames(files["constant.mp4"][0], [0.0], request.param)
    except VideoError:
        raise
    except RaylabError as error:
        pytest.skip(str(error))
    return request.param


def expected(appears: list[float], times: list[float]) -> list[int]:
    return [max(bisect_right(appears, time + EPSILON) - 1, 0) for time in times]


@pytest.mark.parametrize("name", FILES)
def test_picks_the_frame_on_screen(name: str, decoder: str, files: dict[str, tuple[Path, list[float]]]) -> None:
    path, appears = files[name]
    if name == "transport.ts" and decoder != "pyav":
        with pytest.raises(VideoError, match=r"transport\.ts.*pyav"):
            read_frames(path, [0], decoder)
        return
    last = len(appears) - 1
    assert numbers(read_frames(path, appears, decoder)) == list(range(last + 1)), "a frame's own time picks it"
    middle = [(a + b) / 2 for a, b in pairwise(appears)]
    shuffled = [51, 3, 100, 3, 117, 0, 52, 51]
    assert numbers(read_frames(path, [middle[n] for n in shuffled], decoder)) == shuffled
    for number in (0, 49, 50, 51, 77, last):
        assert numbers(read_frames(path, [appears[number]], decoder)) == [number], "one seek for one frame"
    edges = [appears[-1] + 0.001, 1e6, -3.0, -1e-9, 0.0]
    assert numbers(read_frames(path, edges, decoder)) == [last, last, 0, 0, 0]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_times_in_any_order(data: st.DataObject, files: dict[str, tuple[Path, list[float]]]) -> None:
    path, appears = files[data.draw(st.sampled_from(["variable_bframes.mp4", "one_gop.mp4", "transport.ts"]))]
    times = data.draw(st.lists(st.floats(-1, appears[-1] + 1), min_size=1, max_size=12))
    # A container may round a time by half a tick: closer than that to the tolerance, either neighbour is right.
    low = expected(appears, [time - 2e-5 for time in times])
    high = expected(appears, [time + 2e-5 for time in times])
    found = numbers(read_frames(path, times))
    assert all(number in (a, b) for number, a, b in zip(found, low, high, strict=True))


@pytest.mark.parametrize("name", FILES)
def test_frames_one_after_another_are_the_same_and_have_numbers(
    name: str, files: dict[str, tuple[Path, list[float]]]
) -> None:
    path, appears = files[name]
    times = [-1.0, *np.arange(0.003, appears[-1] + 1, 0.13).tolist()]
    streamed = torch.stack(list(stream_frames(path, times)))
    assert torch.equal(streamed, read_frames(path, times))
    assert frame_numbers(path, times[:-8]) == numbers(streamed)[:-8]


def test_frames_hidden_by_an_edit_list_are_not_counted(decoder: str, tmp_path: Path) -> None:
    encode(tmp_path / "whole.mp4", constant(25, 100), gop=50, bframes=2)
    path = remux(tmp_path / "whole.mp4", tmp_path / "trimmed.mp4", earlier=20 / 25)
    if decoder == "decord":
        with pytest.raises(VideoError, match=r"trimmed\.mp4.*pyav"):
            read_frames(path, [0.0], decoder)
        return
    assert numbers(read_frames(path, [0.0, 0.04, 1.0, 2.0, 9.0], decoder)) == [20, 21, 45, 70, 99]


def test_shape_and_type(decoder: str, files: dict[str, tuple[Path, list[float]]]) -> None:
    frames = read_frames(str(files["bframes.mp4"][0]), np.linspace(0, 2, 5), decoder)
    assert frames.shape == (5, 3, 3 * BLOCK, BITS * BLOCK)
    assert frames.dtype == torch.uint8
    assert frames.is_contiguous(memory_format=torch.channels_last)
    red = frames[:, :, 4 : BLOCK - 4].float().mean((0, 2, 3))
    assert torch.allclose(red, torch.tensor([220.0, 30.0, 30.0]), atol=12), "RGB, top row first"


def test_only_the_stretch_needed_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "damaged.mp4"
    appears = encode(path, constant(25, 200), gop=20)
    with av.open(str(path)) as container:
        middle = [packet for packet in container.demux(video=0) if packet.pts is not None][90:110]
    content = bytearray(path.read_bytes())
    for packet in middle:
        content[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(content)
    assert numbers(read_frames(path, [appears[n] for n in (5, 70, 130, 199)])) == [5, 70, 130, 199]
    with pytest.raises(VideoError, match=r"damaged\.mp4"):
        read_frames(path, [appears[95]])


@pytest.mark.parametrize("name", ["short.mp4", "short.mkv"])
def test_nothing_is_decoded_twice(name: str, tmp_path: Path) -> None:
    encode(tmp_path / name, constant(30), gop=15, bframes=3)
    for spacing in (4, 6, 20):
        with open_video(tmp_path / name) as (container, stream):
            targets = [round(n / 30 / stream.time_base) for n in range(0, 120, spacing)]
            decoded = [pts for pts, _ in frames_near(container, stream, targets)]
        assert decoded == sorted(set(decoded))


@pytest.mark.parametrize("name", ["constant.mp4", "bframes.mp4", "variable.mp4", "late.mkv", "transport.ts"])
def test_probe(name: str, files: dict[str, tuple[Path, list[float]]]) -> None:
    path, appears = files[name]
    info = probe(path)
    assert (info.path, info.width, info.height, info.rotation) == (path, BITS * BLOCK, 3 * BLOCK, 0)
    assert info.frames == (len(appears) if path.suffix == ".mp4" else None)
    assert appears[-1] <= info.duration <= appears[-1] + 0.7
    if not name.startswith("variable"):
        assert info.fps == pytest.approx((len(appears) - 1) / appears[-1], rel=0.01)


def test_same_frames_in_loader_workers(files: dict[str, tuple[Path, list[float]]]) -> None:
    path, appears = files["variable_bframes.mp4"]
    times = [[appears[n], appears[n + 40]] for n in range(0, 80, 10)]
    loader = DataLoader(_Clips(path, times), batch_size=2, num_workers=2, multiprocessing_context="fork")
    found = [numbers(clip) for batch in loader for clip in batch]
    assert found == [[n, n + 40] for n in range(0, 80, 10)]


class _Clips(torch.utils.data.Dataset[Tensor]):
    def __init__(self, path: Path, times: list[list[float]]) -> None:
        self.path, self.times = path, times

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, index: int) -> Tensor:
        return read_frames(self.path, self.times[index])


REAL = {  # name: width, height, frames to be seen, seconds, rotation
    "arm_wrestling.mp4": (340, 256, 280, 10.0, 0),
    "av1_video.mkv": (640, 360, 125, 5.0, 0),
    "bikes.mp4": (640, 272, 250, 10.0, 0),
    "carphone_distorted.mp4": (176, 144, 120, 4.004, 0),
    "flipping_a_pancake.mkv": (426, 240, 310, 10.333, 0),
    "h265_video.mp4": (128, 128, 10, 1.0, 0),
    "nasa_13013.mp4": (480, 270, 390, 13.013, 0),
    "part_0.mp4": (340, 256, 32, 1.067, 0),
    "test.avi": (320, 240, 164, 6.56, 0),
    "unordered.mov": (50, 50, 4, 0.125, 0),
    "video_0.mov": (568, 320, 3, 0.1, 0),
    "video_90.mov": (320, 568, 3, 0.1, 90),
    "video_180.mov": (568, 320, 3, 0.1, 180),
    "video_270.mov": (320, 568, 3, 0.1, 270),
}
REFUSED = {
    ("decord", "av1_video.mkv"),
    ("decord", "h265_video.mp4"),
    ("decord", "test.avi"),
    ("torchcodec", "test.avi"),
}


@needs_shared
@pytest.mark.parametrize("name", REAL)
def test_probe_of_real_files(name: str) -> None:
    width, height, frames, duration, rotation = REAL[name]
    info = probe(VIDEOS / name)
    assert (info.width, info.height, info.rotation) == (width, height, rotation)
    assert info.duration == pytest.approx(duration, abs=0.001)
    assert info.frames == (None if name.endswith(".mkv") else frames)


@cache
def reference(name: str) -> dict[float, np.ndarray]:
    """Some frames of a plain decode of the whole file in display order, turned as its header asks, by their times."""
    with av.open(str(VIDEOS / name)) as container:
        stream = container.streams.best("video")
        decoded = list(container.decode(stream))
        assert len(decoded) == REAL[name][2]
        last = len(decoded) - 1
        frames = {}
        for number in sorted({0, 1, last // 3, last // 3 + 1, last // 2, last - 1, last}):
            seconds = (decoded[number].pts - stream.start_time) * stream.time_base
            rgb = np.rot90(decoded[number].to_ndarray(format="rgb24"), REAL[name][4] // -90 % 4)
            frames[number / 25 if name == "test.avi" else float(seconds)] = rgb.astype(np.int16)
        return frames


@needs_shared
@pytest.mark.parametrize("name", REAL)
def test_real_files_frame_by_frame(name: str, decoder: str) -> None:
    if (decoder, name) in REFUSED:
        with pytest.raises(VideoError, match=f"{name}.*pyav"):
            read_frames(VIDEOS / name, [0.1], decoder)
        return
    frames = read_frames(VIDEOS / name, list(reference(name)), decoder).permute(0, 2, 3, 1).numpy()
    difference = np.abs(frames - np.stack(list(reference(name).values())))
    # Equal bit by bit with the FFmpeg versions tried (8.0, 5.1, decord's); another may round colours otherwise.
    assert difference.max() <= 3


@needs_shared
def test_corrupted_file_is_refused(decoder: str) -> None:
    with pytest.raises(VideoError, match=r"corrupted\.mp4"):
        read_frames(VIDEOS / "corrupted.mp4", np.linspace(0, 4.9, 16), decoder)


@pytest.mark.parametrize("keep", [0.5, 0.8])
@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv"])
def test_file_cut_short_is_refused(name: str, keep: float, decoder: str, tmp_path: Path) -> None:
    encode(tmp_path / "whole.mp4", constant(25, 200), gop=25, bframes=2)
    path = remux(tmp_path / "whole.mp4", tmp_path / name, **({"movflags": "faststart"} if name == "cut.mp4" else {}))
    assert numbers(read_frames(path, [7.96], decoder)) == [199]
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(VideoError, match=name):
        read_frames(path, [0.5, 7.96], decoder)
    assert numbers(read_frames(path, [0.4])) == [10], "what is there can be read"


@pytest.mark.parametrize("name", ["missing.mp4", "folder.mp4", "empty.mp4", "text.mp4", "headless.mp4", "sound.mp4"])
def test_what_is_not_a_video_is_refused(name: str, decoder: str, tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("start,stop\n" * 500)
    encode(tmp_path / "whole.mp4", constant(25, 20))
    (tmp_path / "headless.mp4").write_bytes((tmp_path / "whole.mp4").read_bytes()[:1500])
    sound(tmp_path / "sound.mp4")
    with pytest.raises(VideoError, match=name):
        read_frames(tmp_path / name, [0.0], decoder)
    with pytest.raises(VideoError, match=name):
        probe(tmp_path / name)


@pytest.mark.parametrize("times", [[], [math.nan], [0.0, math.inf]])
def test_times_must_be_numbers(times: list[float], files: dict[str, tuple[Path, list[float]]]) -> None:
    with pytest.raises(RaylabError, match=r"constant\.mp4: times = "):
        read_frames(files["constant.mp4"][0], times)


def test_unknown_decoder_names_the_nearest() -> None:
    with pytest.raises(RaylabError, match="did you mean 'decord'"):
        read_frames("any.mp4", [0.0], "decorde")


@pytest.mark.parametrize(("package", "remedy"), [("decord", "install decord"), ("torchcodec", r"raylab\[torchcodec\]")])
def test_missing_package_says_what_to_install(package: str, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (package, f"{package}.decoders"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RaylabError, match=remedy):
        read_frames("any.mp4", [0.0], package)


@pytest.fixture
def extracted(tmp_path: Path) -> Path:
    for number in (1, 2, 3, 5):
        image = torch.from_numpy(picture(number)).permute(2, 0, 1).contiguous()
        write_jpeg(image, str(tmp_path / f"frame_{number:010d}.jpg"), quality=95)
    return tmp_path


def test_extracted_frames(extracted: Path) -> None:
    frames = read_extracted(extracted, [3, 1, 3, 5, 6, 900])
    assert numbers(frames) == [3, 1, 3, 5, 5, 5]
    assert frames.shape == (6, 3, 3 * BLOCK, BITS * BLOCK)
    assert frames.dtype == torch.uint8


def test_missing_extracted_frames_are_named(extracted: Path) -> None:
    for number in (0, 4):
        with pytest.raises(VideoError, match=f"frame {number} is missing: frames 1 to 5 exist"):
            read_extracted(extracted, [1, number])
    with pytest.raises(VideoError, match=r"nowhere: no frames named like frame_0000000001\.jpg"):
        read_extracted(extracted / "nowhere", [1])
    (extracted / "frame_0000000004.jpg").write_bytes(b"not a picture")
    with pytest.raises(VideoError, match=r"frame_0000000004\.jpg: not a readable JPEG"):
        read_extracted(extracted, [4])
