"""Luma of decoded frames: the stored samples, on one scale for all depths and ranges."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange
from films import film, planar, texture

from raylab.handcrafted.luma import luma

LIMITED = 255 / 219


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv422p", "yuv444p", "yuva420p", "yuv410p", "nv12", "nv21"])
@pytest.mark.parametrize("shape", [(48, 64), (37, 51)])
def test_eight_bits(pixels: str, shape: tuple[int, int]) -> None:
    """Samples lie in rows that are longer than the picture."""
    picture = texture(*shape)
    np.testing.assert_allclose(luma(planar(picture, pixels)), (picture - 16.0) * LIMITED, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize(("pixels", "bits"), [("yuv420p10le", 10), ("yuv422p10le", 10), ("yuv444p12le", 12)])
def test_more_bits_keep_the_scale_and_the_finer_steps(pixels: str, bits: int) -> None:
    picture = texture(48, 64).astype(np.uint16) << bits - 8
    picture[::2] += 1
    expected = (picture / (1 << bits - 8) - 16) * LIMITED
    np.testing.assert_allclose(luma(planar(picture, pixels)), expected, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv420p10le"])
def test_full_range_by_the_files_word(pixels: str) -> None:
    bits = 10 if pixels.endswith("10le") else 8
    picture = np.linspace(0, (1 << bits) - 1, 256).round().astype(np.uint16 if bits > 8 else np.uint8)
    frame = planar(np.tile(picture, (16, 1)), pixels)
    frame.color_range = ColorRange.JPEG
    np.testing.assert_allclose(luma(frame)[0], np.arange(256), atol=0.13)


def test_full_range_by_the_formats_name() -> None:
    assert luma(planar(np.full((16, 16), 255, np.uint8), "yuvj420p")).max() == 255


def test_grey_is_full_unless_it_says_otherwise() -> None:
    frame = planar(np.full((16, 16), 235, np.uint8), "gray")
    assert luma(frame).max() == 235
    frame.color_range = ColorRange.MPEG
    assert luma(frame).max() == pytest.approx(255)


def test_blacker_than_black_is_kept() -> None:
    assert luma(planar(np.zeros((16, 16), np.uint8), "yuv420p")).min() == pytest.approx(-16 * LIMITED)


@pytest.mark.parametrize("pixels", ["rgb24", "bgr0", "gbrp", "gbrp10le", "yuyv422", "p010le"])
def test_formats_without_a_plane_of_luma(pixels: str) -> None:
    """A grey ramp from black to white, brought to the format by FFmpeg."""
    ramp = np.repeat(np.linspace(0, 255, 64).round().astype(np.uint8), 16).reshape(64, 16).T
    grey = av.VideoFrame.from_ndarray(np.stack([ramp] * 3, axis=-1).copy(), format="rgb24")
    np.testing.assert_allclose(luma(grey.reformat(format=pixels)), ramp, atol=2)


def test_what_was_encoded_without_loss_is_what_is_measured(tmp_path: Path) -> None:
    picture = texture(50, 70)
    path = film(tmp_path / "a.mp4", [picture] * 3, options={"qp": "0"})
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            np.testing.assert_allclose(luma(frame), (picture - 16.0) * LIMITED, rtol=1e-6, atol=1e-4)
