"""One pass over a picture: the averages that all handcrafted features of a frame are made of.

The picture is taken strip by strip, so that the dozen arrays between its pixels and the averages stay in the
processor's cache; features that start from the same differences share them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 8
"""Side of the blocks of JPEG, MPEG-2 and MPEG-4, and of the larger transform of H.264, in pixels."""

SMALLEST = 2 * BLOCK
"""Least height and width of a picture, in pixels: one boundary between blocks."""

_STRIP = 1 << 16  # pixels: arrays of 256 KiB


@dataclass(frozen=True)
class Moments:
    """Averages over one picture with luma x from 0 (black) to 255 (white).

    Window averages are over all pixels that have eight neighbours.

    Attributes:
        residual: E|r|, E r² and E r⁴ of r = N * x / 6 with N = [1 -2 1]ᵀ[1 -2 1]; divided by 6, the norm of N, white
            noise keeps its variance.
        laplacian: E l and E l² of l = [0 1 0; 1 -4 1; 0 1 0] * x.
        slope: E s and E s² of s² = (x[i, j + 1] - x[i, j - 1])² + (x[i + 1, j] - x[i - 1, j])².
        sobel: E of the squared Sobel gradient, kernels [1 2 1]ᵀ[-1 0 1] and its transpose.
        columns: float64 (width - 1,), mean |x[:, j + 1] - x[:, j]| for each j.
        rows: float64 (height - 1,), the same between rows.
        dct: float64 (8, 8), mean square of each orthonormal DCT-II coefficient over the 8 × 8 blocks from the top left
            corner, vertical frequency first, divided by 64: their sum is the mean of x² over the blocks.
    """

    residual: NDArray[np.float64]
    laplacian: NDArray[np.float64]
    slope: NDArray[np.float64]
    sobel: float
    columns: NDArray[np.float64]
    rows: NDArray[np.float64]
    dct: NDArray[np.float64]

    @classmethod
    def of(cls, luma: NDArray[np.float32]) -> Moments:
        """The averages over a picture of shape (height, width), both at least `SMALLEST`."""
        height, width = luma.shape
        windows, columns, rows = np.zeros(8), np.zeros(width - 1), np.zeros(height - 1)
        dct = np.zeros(BLOCK * BLOCK)
        step = max(1, _STRIP // (width * BLOCK)) * BLOCK
        for top in range(0, height, step):
            bottom = min(top + step, height)
            windows += _window_sums(luma[max(top - 1, 0) : bottom + 1])
            columns += np.abs(np.diff(luma[top:bottom])).sum(axis=0)
            rows[top:bottom] = np.abs(np.diff(luma[top : bottom + 1], axis=0)).mean(axis=1)
            dct += _dct_sums(luma[top:bottom])
        windows /= (height - 2) * (width - 2)
        blocks = (height // BLOCK) * (width // BLOCK)
        return cls(
            residual=windows[:3],
            laplacian=windows[3:5],
            slope=windows[5:7],
            sobel=float(windows[7]),
            columns=columns / height,
            rows=rows,
            dct=dct.reshape(BLOCK, BLOCK) / (blocks * BLOCK * BLOCK),
        )


def _window_sums(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sums over the inner pixels of a strip: `Moments.residual`, `laplacian`, `slope`, `sobel`, one after another."""
    if len(x) < 3:
        return np.zeros(8)
    dx, dy = x[:, 2:] - x[:, :-2], x[2:] - x[:-2]
    curve = _bend(x)
    r = _bend(curve.T).T
    r /= 6
    laplacian = _bend(x[1:-1].T).T + curve[:, 1:-1]
    sx, sy = _smooth(dx), _smooth(dy.T).T
    squares = r * r
    slopes = dx[1:-1] ** 2 + dy[:, 1:-1] ** 2
    return np.array(
        [
            np.abs(r).sum(),
            squares.sum(),
            _square_sum(squares),
            laplacian.sum(),
            _square_sum(laplacian),
            np.sqrt(slopes).sum(),
            slopes.sum(),
            _square_sum(sx) + _square_sum(sy),
        ],
        np.float64,
    )


def _bend(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """[1 -2 1] down the columns."""
    return x[2:] - 2 * x[1:-1] + x[:-2]


def _smooth(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """[1 2 1] down the columns."""
    return x[2:] + 2 * x[1:-1] + x[:-2]


def _square_sum(x: NDArray[np.float32]) -> float:
    return float(np.einsum("ij,ij->", x, x))


def _dct_sums(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sums over the whole blocks of a strip of the 64 squared coefficients."""
    down, across = len(x) // BLOCK, x.shape[1] // BLOCK
    blocks = x[: down * BLOCK, : across * BLOCK].reshape(down, BLOCK, across, BLOCK).swapaxes(1, 2)
    corners = blocks[:, :, :1, :1]  # without them, a flat block has no other coefficients, to the bit
    coefficients = (blocks - corners).reshape(-1, BLOCK * BLOCK) @ _BASIS
    coefficients[:, 0] += BLOCK * corners.ravel()
    return np.einsum("ij,ij->j", coefficients, coefficients).astype(np.float64)


def _basis() -> NDArray[np.float32]:
    """(64, 64): pixels of a block → its orthonormal DCT-II."""
    frequency = np.arange(BLOCK)[:, None]
    cosines = np.cos(np.pi * frequency * (2 * np.arange(BLOCK) + 1) / (2 * BLOCK))
    cosines *= np.where(frequency, np.sqrt(2 / BLOCK), np.sqrt(1 / BLOCK))
    return np.kron(cosines, cosines).T.astype(np.float32)


_BASIS = _basis()
