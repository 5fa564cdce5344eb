"""Frames to JPEG and back: the centre square, and apart from it what lies beside it.

Training needs the centre square alone, and a JPEG can only be decoded from its beginning: kept apart, the sides of a
16:9 picture, 44 % of it, cost nothing to leave out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional

Picture = NDArray[np.uint8]


def shrink(frames: Tensor, short_side: int) -> Tensor:
    """Frames whose short side is at most `short_side`, antialiased; never enlarged.

    Args:
        frames: uint8 (T, 3, H, W).
    """
    if min(frames.shape[-2:]) <= short_side:
        return frames
    smaller: Tensor = functional.resize(frames, [short_side], antialias=True)
    return smaller


def encode(frames: Tensor, quality: int, sides: bool) -> list[tuple[bytes, bytes | None]]:
    """Each frame as two JPEG images: its centre square, and what is left and right (or above and below) of it, joined.

    Args:
        frames: uint8 (T, 3, H, W).
        quality: 1 to 100; chroma is subsampled 4:2:0.
        sides: whether to keep the second; there is none in a square frame.
    """
    pictures = frames.permute(0, 2, 3, 1).contiguous().numpy()
    return [_encode_one(picture, quality, sides) for picture in pictures]


def _encode_one(picture: Picture, quality: int, sides: bool) -> tuple[bytes, bytes | None]:
    axis = int(picture.shape[1] > picture.shape[0])  # along which the picture is longer
    side = picture.shape[1 - axis]
    first = _before(picture.shape[axis], side)
    before, square, after = np.split(picture, [first, first + side], axis=axis)
    beside = np.concatenate([before, after], axis=axis)
    return _compress(square, quality), _compress(beside, quality) if sides and beside.size else None


def _before(length: int, side: int) -> int:
    """Pixels before the centre square: as torchvision's `center_crop` rounds."""
    return round((length - side) / 2)


def _compress(picture: Picture, quality: int) -> bytes:
    compressed: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(picture), quality=quality, colorspace="RGB", colorsubsampling="420"
    )
    return compressed


def decode_squares(images: Sequence[Any], place: Tensor) -> None:
    """Decode the centre squares of one clip, in the size of `place`.

    Images more than twice as large as needed are decoded at a half, a quarter or an eighth of their size, which
    libjpeg-turbo does in less time.

    Args:
        images: JPEG images of one size, as buffers.
        place: uint8 (len(images), S, S, 3), contiguous, to be filled.
    """
    side = place.shape[1]
    # Not a factor between 1 and 2: libjpeg-turbo has no vector code for it, and the whole is decoded sooner.
    wanted = {"min_height": side, "min_width": side, "min_factor": 2}
    height, width, *_ = simplejpeg.decode_jpeg_header(images[0], **wanted)
    fits = (height, width) == (side, side)
    pixels = place.numpy() if fits else np.empty((len(images), height, width, 3), np.uint8)
    for image, picture in zip(images, pixels, strict=True):
        simplejpeg.decode_jpeg(image, colorspace="RGB", buffer=picture, **wanted)
    if not fits:
        squares = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        place.copy_(functional.resize(squares, [side, side], antialias=True).permute(0, 2, 3, 1))


def decode_on(device: torch.device, images: Sequence[Tensor], side: int) -> Tensor:
    """Centre squares, of any size, decoded by torchvision: on a GPU by nvJPEG.

    Args:
        device: where to decode.
        images: uint8 (bytes,) each, on the CPU.
        side: height and width wanted.

    Returns:
        uint8 (len(images), 3, side, side) on the device.
    """
    squares = decode_jpeg(list(images), mode=ImageReadMode.RGB, device=device)
    return torch.stack([functional.resize(square, [side, side], antialias=True) for square in squares])


def decode_whole(squares: Sequence[Any], sides: Sequence[Any], wide: bool) -> Tensor:
    """The whole frames of one clip, put together again.

    Args:
        squares: JPEG images of the centre squares.
        sides: of what lies beside them; all None where the frames are square.
        wide: whether the sides lie left and right of the square, not above and below.

    Returns:
        uint8 (len(squares), 3, H, W), channels last in memory.
    """
    pictures = [_join(_expand(square), beside, int(wide)) for square, beside in zip(squares, sides, strict=True)]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def _join(square: Picture, image: Any, axis: int) -> Picture:
    if image is None:
        return square
    beside, side = _expand(image), square.shape[axis]
    before, after = np.split(beside, [_before(side + beside.shape[axis], side)], axis=axis)
    return np.concatenate([before, square, after], axis=axis)


def _expand(image: Any) -> Picture:
    picture: Picture = simplejpeg.decode_jpeg(image, colorspace="RGB")
    return picture
