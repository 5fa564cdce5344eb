"""What the measures say of pictures whose answer is known, and what leaves them as they are."""

from __future__ import annotations

import io

import numpy as np
import pytest
from films import texture
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_sample_image

from raylab.handcrafted import measures
from raylab.handcrafted.measures import FEATURES, HIGH, LOW, MIDDLE, OF_FRAMES
from raylab.handcrafted.moments import Moments

UNIT_POWER = {"grey levels²": 2, "grey levels": 1, "grey levels/pixel": 1, "1": 0}


def measure(picture: np.ndarray) -> dict[str, float]:
    moments = Moments.of(np.ascontiguousarray(picture, np.float32))
    return {measure.name: measure.of(moments) for measure in OF_FRAMES}


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """A real photograph's luma, uint8 (300, 450), resized by a ratio that dissolves the blocks of its own JPEG file."""
    picture = Image.fromarray(load_sample_image("china.jpg")).convert("L")
    return np.asarray(picture.resize((450, 300), Image.Resampling.LANCZOS))


def jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


# Noise.


@pytest.mark.parametrize("sigma", [0.5, 2, 10, 25])
def test_white_noise_is_measured(sigma: float) -> None:
    random = np.random.default_rng(0)
    found = measure(128 + random.normal(0, sigma, (480, 640)))
    assert found["noise_sigma"] == pytest.approx(sigma, rel=0.01)
    assert found["noise_residual_energy"] == pytest.approx(sigma**2, rel=0.02)
    assert found["noise_residual_kurtosis"] == pytest.approx(3, rel=0.05)
    assert found["laplacian_variance"] == pytest.approx(20 * sigma**2, rel=0.02)  # 4² + 4 · 1²
    assert found["tenengrad"] == pytest.approx(24 * sigma**2, rel=0.02)  # twice 4 · 1² + 2 · 2²
    assert found["brenner"] == pytest.approx(4 * sigma**2, rel=0.02)
    assert found["gradient_magnitude"] == pytest.approx(sigma * np.sqrt(np.pi) / 2, rel=0.02)  # Rayleigh
    for band, name in ((LOW, "low"), (MIDDLE, "middle"), (HIGH, "high")):
        assert found[f"dct_{name}_energy"] == pytest.approx(sigma**2 * band.sum() / 64, rel=0.02)
    assert found["dct_high_share"] == pytest.approx(28 / 42, rel=0.02)
    assert found["block_boundary_share"] == pytest.approx(0.5, abs=0.002)


def test_noise_is_measured_in_a_photograph(photo: np.ndarray) -> None:
    """What noise adds to the energy of the residual is its variance, whatever the picture."""
    noise = np.random.default_rng(0).normal(0, 6, photo.shape)
    clean, noisy = measure(photo), measure(photo + noise)
    assert noisy["noise_residual_energy"] - clean["noise_residual_energy"] == pytest.approx(36, rel=0.05)


def test_noise_ignores_slopes() -> None:
    y, x = np.mgrid[:64, :80]
    found = measure(40 + x + 2 * y)
    assert found["noise_residual_energy"] == found["noise_sigma"] == found["laplacian_variance"] == 0
    assert found["gradient_magnitude"] == pytest.approx(np.sqrt(5))
    assert found["brenner"] == pytest.approx(4 + 16)
    assert found["tenengrad"] == pytest.approx(64 + 256)


def test_a_constant_laplacian_does_not_vary() -> None:
    y, x = np.mgrid[:32, :32] - 16
    assert measure(x * x / 4 + y * y / 4)["laplacian_variance"] == pytest.approx(0, abs=1e-6)


def test_noise_all_over_is_told_from_edges() -> None:
    squares = np.kron(np.random.default_rng(0).integers(0, 2, (20, 20)), np.full((16, 16), 200))
    noise = np.random.default_rng(1).normal(128, 5, squares.shape)
    assert measure(squares)["noise_residual_kurtosis"] > 20 > measure(noise)["noise_residual_kurtosis"]


# DCT bands.


@pytest.mark.parametrize(("u", "v"), [(0, 0), (0, 1), (2, 2), (4, 1), (3, 4), (0, 7), (5, 3), (7, 7)])
def test_one_frequency_falls_into_its_band(u: int, v: int) -> None:
    def cosine(frequency: int) -> np.ndarray:
        return np.cos(np.pi * frequency * (2 * np.arange(8) + 1) / 16)

    block = 50 * np.outer(cosine(u), cosine(v))
    found = measure(100 * (u + v > 0) + np.tile(block, (4, 5)))
    names = {0: "dc", **dict.fromkeys(range(1, 5), "low"), **dict.fromkeys(range(5, 8), "middle")}
    band = names.get(u + v, "high")
    energies = {name: found[f"dct_{name}_energy"] for name in ("dc", "low", "middle", "high")}
    expected = dict.fromkeys(energies, 0.0) | {"dc": 100.0**2} | {band: (block**2).mean()}
    assert energies == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_bands_part_the_coefficients() -> None:
    assert (LOW.sum(), MIDDLE.sum(), HIGH.sum()) == (14, 21, 28)
    assert not np.any(LOW & MIDDLE | MIDDLE & HIGH | LOW & HIGH)


# Sharpness.


def test_blur_lowers_all_sharpness_more_and_more(photo: np.ndarray) -> None:
    blurred = [measure(ndimage.gaussian_filter(photo.astype(float), sigma)) for sigma in (0, 0.7, 1.5, 3)]
    falling = [m.name for m in OF_FRAMES if m.group == "sharpness"] + [
        "dct_high_energy",
        "dct_high_share",
        "noise_sigma",
    ]
    for name in falling:
        values = [found[name] for found in blurred]
        assert values == sorted(values, reverse=True) and len(set(values)) == 4, name
    assert blurred[2]["laplacian_variance"] < 0.1 * blurred[0]["laplacian_variance"]


# Blocks.


def test_jpeg_shows_its_blocks_the_more_the_harder_it_compresses(photo: np.ndarray) -> None:
    raw, *compressed = [measure(photo), *(measure(jpeg(photo, quality)) for quality in (90, 50, 20, 5))]
    assert raw["block_boundary_share"] == pytest.approx(0.5, abs=0.005)
    assert abs(raw["block_boundary_excess"]) < 0.2
    for name in ("block_boundary_excess", "block_boundary_share"):
        values = [raw[name], *(found[name] for found in compressed)]
        assert values == sorted(values), name
    assert compressed[-1]["block_boundary_excess"] > 10 * abs(raw["block_boundary_excess"])
    high = [found["dct_high_share"] for found in (raw, *compressed[1:])]
    assert high == sorted(high, reverse=True)


def test_blocks_off_the_grid_do_not_count(photo: np.ndarray) -> None:
    compressed = jpeg(photo, 10)
    on, off = measure(compressed), measure(compressed[3:, 3:])
    assert on["block_boundary_share"] > 0.6
    assert off["block_boundary_share"] < 0.5


def test_flat_blocks_are_all_boundary() -> None:
    found = measure(np.kron(np.random.default_rng(0).integers(0, 256, (5, 6)), np.ones((8, 8))))
    assert found["block_boundary_share"] == 1
    assert found["dct_low_energy"] == found["dct_high_energy"] == 0


# What leaves them as they are.

BYTES = st.tuples(st.integers(16, 33), st.integers(16, 33)).flatmap(lambda shape: arrays(np.uint8, shape))


@settings(deadline=None, max_examples=40)
@given(BYTES)
def test_transposing_changes_nothing(picture: np.ndarray) -> None:
    assert measure(picture.T) == pytest.approx(measure(picture), rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("flip", [np.s_[::-1], np.s_[:, ::-1]])
def test_mirroring_whole_blocks_changes_nothing(flip: object) -> None:
    picture = texture(64, 80)
    assert measure(picture[flip]) == pytest.approx(measure(picture), rel=1e-4)


def test_contrast_scales_by_the_power_in_the_unit() -> None:
    picture = texture(57, 83).astype(np.float32)
    found, fainter = measure(picture), measure(picture / 4)
    for m in OF_FRAMES:
        assert fainter[m.name] == pytest.approx(found[m.name] / 4 ** UNIT_POWER[m.unit], rel=1e-5), m.name


def test_brightness_moves_nothing_but_dc() -> None:
    picture = texture(57, 83).astype(np.float32)
    found, brighter = measure(picture), measure(picture + 10)
    for m in OF_FRAMES:
        if m.name not in ("dct_dc_energy", "dct_ac_share"):
            assert brighter[m.name] == pytest.approx(found[m.name], rel=1e-4, abs=1e-5), m.name


@settings(deadline=None, max_examples=40)
@given(st.one_of(BYTES, st.integers(0, 255).map(lambda level: np.full((17, 31), level, np.uint8))))
def test_always_finite_and_shares_between_0_and_1(picture: np.ndarray) -> None:
    for name, value in measure(picture).items():
        assert np.isfinite(value), name
        assert not name.endswith("_share") or 0 <= value <= 1, name


# The table.


def test_the_vector_is_frozen() -> None:
    """Whoever changes names or their order makes stored vectors and models useless: raise FORMAT with them."""
    of_frames = [
        "noise_residual_energy",
        "noise_sigma",
        "noise_residual_kurtosis",
        "dct_dc_energy",
        "dct_low_energy",
        "dct_middle_energy",
        "dct_high_energy",
        "dct_ac_share",
        "dct_high_share",
        "laplacian_variance",
        "gradient_magnitude",
        "tenengrad",
        "brenner",
        "block_boundary_excess",
        "block_boundary_share",
    ]
    statistics = [f"{name}_{statistic}" for statistic in ("mean", "std") for name in of_frames]
    names = [*statistics, "bit_rate", "frame_rate", "bits_per_pixel"]
    assert ([feature.name for feature in FEATURES], measures.FORMAT) == (names, 1)


def test_every_feature_says_what_it_is() -> None:
    for feature in FEATURES:
        assert feature.meaning and feature.unit, feature
        assert feature.source or feature.group == "codec", feature
    groups = dict.fromkeys(feature.group for feature in FEATURES)
    assert list(groups) == ["noise", "dct", "sharpness", "blocks", "codec"]
