"""The handcrafted features: what each measures, its unit, and the paper that it comes from.

Pictures are luma from 0 (black) to 255 (white), at the resolution at which they were coded; grey levels are steps of
that scale. None of the measures of a frame changes when the picture is transposed, so that of a phone's upright
video, which is coded lying on its side, is the same. Where nothing varies, shares and the kurtosis are 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import pi, sqrt
from typing import Generic, TypeVar

import numpy as np

from raylab.handcrafted.container import Packets
from raylab.handcrafted.moments import BLOCK, Moments

Measured = TypeVar("Measured", Moments, Packets)

FORMAT = 1  # raise it when a change of the code changes a value: caches are told apart by it

_PLACE = np.add.outer(np.arange(BLOCK), np.arange(BLOCK))  # u + v of each coefficient
LOW, MIDDLE, HIGH = (_PLACE > 0) & (_PLACE < 5), (_PLACE > 4) & (_PLACE < 8), _PLACE > 7
"""Bands of the 63 AC coefficients of a block, by the sum of their two frequencies: 1 to 4, 5 to 7, 8 to 14."""


def noise_residual_energy(picture: Moments) -> float:
    """Mean square of what a high-pass filter leaves of the picture: sensor noise, grain, and the finest texture."""
    return float(picture.residual[1])


def noise_sigma(picture: Moments) -> float:
    """Standard deviation of white Gaussian noise with this mean absolute residual: less swayed by edges."""
    return float(sqrt(pi / 2) * picture.residual[0])


def noise_residual_kurtosis(picture: Moments) -> float:
    """3 for Gaussian noise all over the picture, more where the residual gathers at edges between smooth surfaces."""
    return _ratio(picture.residual[2], picture.residual[1] ** 2)


def dct_dc_energy(picture: Moments) -> float:
    """Mean square of the blocks' averages."""
    return float(picture.dct[0, 0])


def dct_low_energy(picture: Moments) -> float:
    """Energy of the 14 lowest frequencies of 8 × 8 blocks: u + v from 1 to 4."""
    return float(picture.dct[LOW].sum())


def dct_middle_energy(picture: Moments) -> float:
    """Energy of the 21 middle frequencies: u + v from 5 to 7."""
    return float(picture.dct[MIDDLE].sum())


def dct_high_energy(picture: Moments) -> float:
    """Energy of the 28 highest frequencies, u + v from 8 to 14: quantisation removes them first."""
    return float(picture.dct[HIGH].sum())


def dct_ac_share(picture: Moments) -> float:
    """AC / (DC + AC): how much of the picture's energy is variation inside blocks."""
    return _ratio(picture.dct.sum() - picture.dct[0, 0], picture.dct.sum())


def dct_high_share(picture: Moments) -> float:
    """High / (low + high): how much detail there is for the contrast that there is."""
    high = picture.dct[HIGH].sum()
    return _ratio(high, picture.dct[LOW].sum() + high)


def laplacian_variance(picture: Moments) -> float:
    """Variance of the four-neighbour Laplacian: small in a blurred picture."""
    return float(picture.laplacian[1] - picture.laplacian[0] ** 2)


def gradient_magnitude(picture: Moments) -> float:
    """Mean length of the gradient, by central differences."""
    return float(picture.slope[0] / 2)


def tenengrad(picture: Moments) -> float:
    """Mean square of the Sobel gradient, its kernels not divided by 8."""
    return picture.sobel


def brenner(picture: Moments) -> float:
    """Mean square of differences of pixels two apart, rows' and columns' added."""
    return float(picture.slope[1])


def block_boundary_excess(picture: Moments) -> float:
    """By how much neighbours differ more across the 8 × 8 grid than inside its blocks; below 0 if they differ less."""
    across, inside = _steps(picture)
    return across - inside


def block_boundary_share(picture: Moments) -> float:
    """Across / (across + inside): 0.5 without blocks, 1 for flat blocks, whatever the picture's contrast."""
    across, inside = _steps(picture)
    return _ratio(across, across + inside)


def bit_rate(packets: Packets) -> float:
    """Bytes of the video stream's packets over its length; sound and container do not count."""
    return packets.bit_rate


def frame_rate(packets: Packets) -> float:
    """Frames over the stream's length: the average, if frames come at varying intervals."""
    return packets.fps


def bits_per_pixel(packets: Packets) -> float:
    """Bits of the stream's packets over pixels of all its frames: the bit rate, whatever size and frame rate."""
    return 8 * packets.bytes / (packets.pixels * len(packets.times))


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


def _steps(picture: Moments) -> tuple[float, float]:
    """Mean absolute difference of neighbours across the grid and inside blocks, averaged over rows and columns."""
    profiles = picture.columns, picture.rows
    across = [float(profile[BLOCK - 1 :: BLOCK].mean()) for profile in profiles]
    inside = [float(profile[np.arange(len(profile)) % BLOCK != BLOCK - 1].mean()) for profile in profiles]
    return sum(across) / 2, sum(inside) / 2


@dataclass(frozen=True)
class Measure(Generic[Measured]):
    """One number of a frame, or of a file.

    Attributes:
        of: computes it; its name and docstring are the measure's.
        group: as features are documented: noise, dct, sharpness, blocks, codec.
        unit: `1` for ratios.
        source: the paper that proposes it; None for what is simply counted.
    """

    of: Callable[[Measured], float]
    group: str
    unit: str
    source: str | None = None

    @property
    def name(self) -> str:
        return self.of.__name__


_RICH = "Fridrich & Kodovský, Rich models for steganalysis of digital images, IEEE TIFS 7(3), 2012 (SQUARE 3×3)"
_IMMERKAER = "Immerkær, Fast noise variance estimation, Computer Vision and Image Understanding 64(2), 1996"
_LOCAL = "Pan, Zhang & Lyu, Exposing image splicing with inconsistent local noise variances, ICCP 2012"
_AHMED = "Ahmed, Natarajan & Rao, Discrete cosine transform, IEEE Transactions on Computers C-23(1), 1974"
_FRANK = "Frank et al., Leveraging frequency analysis for deep fake image recognition, ICML 2020"
_DIATOM = "Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, ICPR 2000"
_PERTUZ = "Pertuz, Puig & García, Analysis of focus measure operators, Pattern Recognition 46(5), 2013"
_KROTKOV = "Krotkov, Focusing, International Journal of Computer Vision 1(3), 1987"
_BRENNER = "Brenner et al., An automated microscope for cytologic research, J. Histochem. Cytochem. 24(1), 1976"
_WANG = "Wang, Sheikh & Bovik, No-reference perceptual quality assessment of JPEG compressed images, ICIP 2002"

OF_FRAMES: tuple[Measure[Moments], ...] = (
    Measure(noise_residual_energy, "noise", "grey levels²", _RICH),
    Measure(noise_sigma, "noise", "grey levels", _IMMERKAER),
    Measure(noise_residual_kurtosis, "noise", "1", _LOCAL),
    Measure(dct_dc_energy, "dct", "grey levels²", _AHMED),
    Measure(dct_low_energy, "dct", "grey levels²", _AHMED),
    Measure(dct_middle_energy, "dct", "grey levels²", _AHMED),
    Measure(dct_high_energy, "dct", "grey levels²", _AHMED),
    Measure(dct_ac_share, "dct", "1", _FRANK),
    Measure(dct_high_share, "dct", "1", _FRANK),
    Measure(laplacian_variance, "sharpness", "grey levels²", _DIATOM),
    Measure(gradient_magnitude, "sharpness", "grey levels/pixel", _PERTUZ),
    Measure(tenengrad, "sharpness", "grey levels²", _KROTKOV),
    Measure(brenner, "sharpness", "grey levels²", _BRENNER),
    Measure(block_boundary_excess, "blocks", "grey levels", _WANG),
    Measure(block_boundary_share, "blocks", "1", _WANG),
)
"""Of each frame that is sampled; of a video, their mean and standard deviation over its frames."""

OF_FILES: tuple[Measure[Packets], ...] = (
    Measure(bit_rate, "codec", "bit/s"),
    Measure(frame_rate, "codec", "frames/s"),
    Measure(bits_per_pixel, "codec", "bit/pixel"),
)
"""Of a video file."""


@dataclass(frozen=True)
class Feature:
    """One entry of the vector of a video: its name, group, unit and source, and what it means."""

    name: str
    group: str
    unit: str
    source: str | None
    meaning: str


def _feature(measure: Measure[Moments] | Measure[Packets], suffix: str = "", over: str = "") -> Feature:
    meaning = (measure.of.__doc__ or "").rstrip(".")
    return Feature(measure.name + suffix, measure.group, measure.unit, measure.source, meaning + over)


FEATURES: tuple[Feature, ...] = (
    *(_feature(measure, "_mean", " (mean over frames)") for measure in OF_FRAMES),
    *(_feature(measure, "_std", " (standard deviation over frames)") for measure in OF_FRAMES),
    *map(_feature, OF_FILES),
)
"""The vector of a video, in order."""
