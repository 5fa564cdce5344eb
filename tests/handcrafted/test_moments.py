"""The one pass over a picture against scipy, and against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
from films import texture
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from raylab.handcrafted.moments import SMALLEST, Moments

SIDES = st.integers(SMALLEST, 41)
PICTURES = st.tuples(SIDES, SIDES).flatmap(lambda shape: arrays(np.uint8, shape))


def by_scipy(picture: np.ndarray) -> dict[str, object]:
    x = picture.astype(np.float64)
    inner = np.s_[1:-1, 1:-1]
    second = np.array([1, -2, 1])
    residual = np.abs(ndimage.convolve(x, np.outer(second, second) / 6)[inner])
    laplacian = ndimage.laplace(x)[inner]
    slope = np.hypot(ndimage.convolve1d(x, [1, 0, -1], 0), ndimage.convolve1d(x, [1, 0, -1], 1))[inner]
    sobel = (ndimage.sobel(x, 0) ** 2 + ndimage.sobel(x, 1) ** 2)[inner]
    height, width = x.shape
    blocks = [x[i : i + 8, j : j + 8] for i in range(0, height - 7, 8) for j in range(0, width - 7, 8)]
    return {
        "residual": [(residual**power).mean() for power in (1, 2, 4)],
        "laplacian": [laplacian.mean(), (laplacian**2).mean()],
        "slope": [slope.mean(), (slope**2).mean()],
        "sobel": sobel.mean(),
        "columns": [np.abs(x[:, j + 1] - x[:, j]).mean() for j in range(width - 1)],
        "rows": [np.abs(x[i + 1] - x[i]).mean() for i in range(height - 1)],
        "dct": np.mean([scipy.fft.dctn(block, norm="ortho") ** 2 for block in blocks], axis=0) / 64,
    }


def assert_same(picture: np.ndarray, rtol: float) -> None:
    found = Moments.of(picture.astype(np.float32))
    for name, expected in by_scipy(picture).items():
        np.testing.assert_allclose(getattr(found, name), expected, rtol, atol=1e-3, err_msg=name)


@settings(deadline=None, max_examples=60)
@given(PICTURES)
def test_as_scipy_has_it(picture: np.ndarray) -> None:
    assert_same(picture, 1e-5)


@pytest.mark.parametrize("shape", [(239, 426), (401, 719), (16, 9001), (9001, 16), (70, 1031), (73, 8191)])
def test_strips_leave_no_seams(shape: tuple[int, int]) -> None:
    picture = texture(*shape)
    picture[::3] = 255 - picture[::3]
    assert_same(picture, 3e-5)


def test_high_frequencies_survive_beside_bright_blocks() -> None:
    random = np.random.default_rng(0)
    picture = 250 + 0.1 * random.standard_normal((256, 256))
    found = Moments.of(picture.astype(np.float32)).dct
    np.testing.assert_allclose(found.ravel()[1:] * 64, 0.01, rtol=0.2)


def test_residual_by_hand() -> None:
    """A single bright pixel leaves N / 6 of its brightness around it."""
    picture = np.zeros((32, 32), np.float32)
    picture[10, 20] = 60
    residual = Moments.of(picture).residual * 30 * 30
    np.testing.assert_allclose(residual, [4 * 10 + 4 * 20 + 40, 4 * 100 + 4 * 400 + 1600, 4e4 + 4 * 16e4 + 256e4])


def test_parseval() -> None:
    picture = texture(64, 48).astype(np.float32)
    assert Moments.of(picture).dct.sum() == pytest.approx((picture.astype(np.float64) ** 2).mean(), rel=1e-5)


@pytest.mark.parametrize("level", [0, 1, 37.3, 254.99, 255])
def test_a_flat_picture_has_nothing_but_its_level(level: float) -> None:
    found = Moments.of(np.full((100, 203), level, np.float32))
    assert not any(np.any(part) for part in (found.residual, found.laplacian, found.slope, found.columns, found.rows))
    assert found.sobel == 0
    assert found.dct[0, 0] == pytest.approx(level**2, rel=1e-5)
    assert np.count_nonzero(found.dct) == (level > 0)
