"""The vector of a video: which frames it is made of, awkward and bad files, and one scene at two qualities."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from films import SHARED, film, planar, remux, sound, texture

from raylab.data.container import VideoError
from raylab.errors import RaylabError
from raylab.handcrafted.extract import HandcraftedSettings, extract
from raylab.handcrafted.luma import luma
from raylab.handcrafted.measures import FEATURES, OF_FRAMES
from raylab.handcrafted.moments import Moments

needs_shared = pytest.mark.skipif(not SHARED.exists(), reason=f"no test videos in {SHARED}")
LOSSLESS = {"qp": "0"}


def named(path: Path, frames: int = 16) -> dict[str, float]:
    vector = extract(path, HandcraftedSettings(frames=frames))
    assert vector.dtype == np.float64 and vector.shape == (len(FEATURES),) and np.isfinite(vector).all()
    return {feature.name: value for feature, value in zip(FEATURES, vector, strict=True)}


def of_pictures(pictures: list[np.ndarray], pixels: str = "yuv420p") -> dict[str, float]:
    """Mean and standard deviation over frames, from the pictures themselves."""
    moments = [Moments.of(luma(planar(picture, pixels))) for picture in pictures]
    found = {}
    for measure in OF_FRAMES:
        values = [measure.of(one) for one in moments]
        found |= {f"{measure.name}_mean": np.mean(values), f"{measure.name}_std": np.std(values)}
    return found


def assert_made_of(path: Path, pictures: list[np.ndarray], frames: int, pixels: str = "yuv420p") -> None:
    found, expected = named(path, frames), of_pictures(pictures, pixels)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("frames", "chosen"), [(1, [10]), (2, [5, 15]), (4, [2, 7, 13, 18]), (20, range(20)), (99, range(20))]
)
def test_frames_in_the_middle_of_equal_parts(frames: int, chosen: list[int], tmp_path: Path) -> None:
    pictures = [texture(48, 64, n) for n in range(21 if frames in (1, 4) else 20)]
    chosen = range(len(pictures)) if frames > len(pictures) else chosen
    path = film(tmp_path / "a.mp4", pictures, options=LOSSLESS | {"g": "8", "bf": "2"})
    assert_made_of(path, [pictures[n] for n in chosen], frames)


@pytest.mark.parametrize("gaps", [[40] * 29, [13, 400, 7, 7, 90] * 5 + [1000] * 4])
def test_each_frame_counts_once_whatever_its_length(gaps: list[int], tmp_path: Path) -> None:
    pictures = [texture(48, 64, n) for n in range(30)]
    assert_made_of(film(tmp_path / "a.mkv", pictures, options=LOSSLESS, gaps=gaps), pictures, 30)


@pytest.mark.parametrize(
    ("shape", "pixels", "codec"),
    [
        ((49, 71), "yuv444p", "libx264"),  # not multiples of 8, odd
        ((16, 16), "yuv420p", "libx264"),
        ((128, 48), "yuv420p", "libx264"),  # upright
        ((48, 64), "gray", "ffv1"),
        ((48, 64), "yuv420p10le", "libx264"),
        ((48, 64), "yuv422p10le", "ffv1"),
        ((48, 64), "yuv420p", "ffv1"),
    ],
)
def test_sizes_and_formats(shape: tuple[int, int], pixels: str, codec: str, tmp_path: Path) -> None:
    pictures = [texture(*shape, seed=n) for n in range(5)]
    if pixels.endswith("10le"):
        pictures = [picture.astype(np.uint16) * 4 + 1 for picture in pictures]
    options = LOSSLESS if codec == "libx264" else {}
    assert_made_of(film(tmp_path / "a.mkv", pictures, pixels, codec, options), pictures, 5, pixels)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_one_frame_does_not_vary(suffix: str, tmp_path: Path) -> None:
    picture = texture(48, 64)
    path = film(tmp_path / f"a.{suffix}", [picture], options=LOSSLESS)
    assert_made_of(path, [picture], 16)
    assert all(value == 0 for name, value in named(path).items() if name.endswith("_std"))


def test_without_duration(tmp_path: Path) -> None:
    pictures = [texture(48, 64, n) for n in range(40)]
    live = remux(film(tmp_path / "a.mp4", pictures, options=LOSSLESS), tmp_path / "b.mkv", live="1")
    assert_made_of(live, pictures, 40)
    assert named(live)["frame_rate"] == pytest.approx(25, rel=1e-3)


def test_the_pictures_are_measured_as_they_are_stored(tmp_path: Path) -> None:
    """A turn in the header changes nothing."""
    path = film(tmp_path / "a.mp4", [texture(48, 64, n) for n in range(5)])
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44
    content[matrix : matrix + 36] = np.array([0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30], ">i4").tobytes()
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(content)
    with av.open(str(turned)) as container:
        assert next(container.decode(video=0)).rotation in (-90, 90)
    assert named(turned) == named(path)


@needs_shared
@pytest.mark.parametrize(
    "name",
    [path.name for path in sorted(SHARED.glob("*.*")) if path.name not in ("README.md", "corrupted.mp4")] or ["none"],
)
def test_real_files(name: str) -> None:
    found = named(SHARED / name)
    assert 1e3 < found["bit_rate"] < 1e7 and 5 < found["frame_rate"] < 61
    assert all(0 <= value <= 1 for feature, value in found.items() if feature.endswith("_share_mean"))
    assert found["dct_dc_energy_mean"] > 100


@needs_shared
@pytest.mark.parametrize(
    "name", ["test.avi", "unordered.mov", "part_0.mp4", "h265_video.mp4", "carphone_distorted.mp4"]
)
def test_asked_for_all_frames_it_takes_each_once(name: str) -> None:
    """B-frames are stored in another order than they are shown in, and AVI has no times for showing."""
    with av.open(str(SHARED / name)) as container:
        moments = [Moments.of(luma(frame)) for frame in container.decode(container.streams.best("video"))]
    values = np.array([[measure.of(one) for measure in OF_FRAMES] for one in moments])
    found = extract(SHARED / name, HandcraftedSettings(frames=1000))
    np.testing.assert_allclose(found[:-3], [*values.mean(axis=0), *values.std(axis=0)], rtol=1e-9, atol=1e-12)


# Bad files.


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def words(path: Path) -> None:
    path.write_text("not a video\n" * 100, encoding="utf-8")


def missing(path: Path) -> None:
    pass


def raw(path: Path) -> None:
    """A stream without a container has no times."""
    film(path, [texture(48, 64)] * 3, format="h264")


def tiny(path: Path) -> None:
    film(path, [np.full((14, 32), 50, np.uint8)])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (nothing, "cannot be read"),
        (words, "cannot be read"),
        (missing, "No such file"),
        (Path.mkdir, "cannot be read"),
        (sound, "no video stream"),
        (raw, "states no times"),
        (tiny, "at least 16 × 16"),
    ],
)
def test_bad_files_are_named(make: object, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "bad file.mp4"
    make(path)
    with pytest.raises(VideoError, match=rf"bad file\.mp4: .*{reason}"):
        extract(path)


@needs_shared
def test_a_corrupted_file_is_named() -> None:
    with pytest.raises(RaylabError, match=r"corrupted\.mp4: cannot be read"):
        extract(SHARED / "corrupted.mp4")


# One scene at two qualities.

LESS, MORE, SAME = "less", "more", "same"

EXPECTED = {
    # x264 at a hundredth of the bits: coarse quantisation zeroes the high coefficients, and most blocks are skipped.
    "noise_residual_energy": (
        LESS,
        LESS,
    ),  # grain is the first thing quantised away; so is its change from frame to frame
    "noise_sigma": (LESS, LESS),  # the same
    "noise_residual_kurtosis": (MORE, MORE),  # what is left gathers at a few edges, others in each group of pictures
    "dct_dc_energy": (SAME, SAME),  # averages of blocks are what the coarsest quantisation still keeps
    "dct_low_energy": (LESS, LESS),  # weak contrast falls below the quantiser's step
    "dct_middle_energy": (LESS, LESS),  # more of it does
    "dct_high_energy": (LESS, LESS),  # nearly all of it does
    "dct_ac_share": (LESS, LESS),  # AC falls, DC does not
    "dct_high_share": (LESS, LESS),  # high falls far more than low
    "laplacian_variance": (LESS, LESS),  # detail is lost
    "gradient_magnitude": (LESS, LESS),  # the same, though the strong edges that rule it stay
    "tenengrad": (LESS, LESS),
    "brenner": (LESS, LESS),
    "block_boundary_excess": (MORE, MORE),  # skipped and flat blocks meet in steps, deblocked in part only
    "block_boundary_share": (MORE, MORE),
}


@pytest.fixture(scope="module")
def pair() -> tuple[dict[str, float], dict[str, float]]:
    if not SHARED.exists():
        pytest.skip(f"no test videos in {SHARED}")
    return named(SHARED / "carphone_pristine.mp4"), named(SHARED / "carphone_distorted.mp4")


@pytest.mark.parametrize("measure", EXPECTED)
@pytest.mark.parametrize("statistic", ["mean", "std"])
def test_compression_moves_each_feature_as_expected(measure: str, statistic: str, pair: tuple) -> None:
    pristine, distorted = (found[f"{measure}_{statistic}"] for found in pair)
    expected = EXPECTED[measure][statistic == "std"]
    if expected == SAME:
        assert distorted == pytest.approx(pristine, rel=0.05)
    elif expected == LESS:
        assert distorted < 0.9 * pristine
    else:
        assert distorted > 1.04 * pristine


def test_compression_lowers_the_rate_but_not_the_frame_rate(pair: tuple) -> None:
    pristine, distorted = pair
    assert distorted["bit_rate"] < 0.01 * pristine["bit_rate"]
    assert distorted["bits_per_pixel"] < 0.01 * pristine["bits_per_pixel"]
    assert distorted["frame_rate"] == pristine["frame_rate"]


def test_every_feature_has_an_expectation() -> None:
    assert list(EXPECTED) == [measure.name for measure in OF_FRAMES]


@pytest.fixture(scope="module")
def frames() -> list[list[Moments]]:
    """Every fourth frame of the pair."""
    if not SHARED.exists():
        pytest.skip(f"no test videos in {SHARED}")
    found = []
    for quality in ("pristine", "distorted"):
        with av.open(str(SHARED / f"carphone_{quality}.mp4")) as container:
            found.append([Moments.of(luma(frame)) for frame in list(container.decode(video=0))[::4]])
    return found


@pytest.mark.parametrize("measure", OF_FRAMES, ids=lambda measure: measure.name)
def test_nearly_every_pair_of_frames_tells_them_apart(measure: object, frames: list[list[Moments]]) -> None:
    """Any pristine frame against any distorted one, not only the means."""
    pristine, distorted = (np.array([measure.of(moments) for moments in quality]) for quality in frames)
    lower = (distorted[:, None] < pristine).mean()
    expected = EXPECTED[measure.name][0]
    assert {LESS: lower > 0.97, MORE: lower < 0.03, SAME: 0.1 < lower < 0.9}[expected], lower
