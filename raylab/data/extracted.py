"""Frames that were extracted from videos beforehand, as EPIC-KITCHENS-100 publishes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, read_file

from raylab.data.container import VideoError


def read_extracted(folder: Path | str, numbers: Sequence[int]) -> Tensor:
    """Frames extracted to `frame_0000000001.jpg`, `frame_0000000002.jpg`, … as EPIC-KITCHENS-100 publishes them.

    Args:
        folder: where one video's frames are.
        numbers: 1-based frame numbers; in any order, with or without repetition. Numbers past the last frame
            give the last frame.

    Returns:
        uint8 RGB of shape (len(numbers), 3, height, width).

    Raises:
        VideoError: the folder or a frame is missing, a frame is not a JPEG image, or their sizes differ.
    """
    folder = Path(folder)
    images: dict[Path, Tensor] = {}
    paths = extracted_paths(folder, numbers)
    for path in dict.fromkeys(paths):
        try:
            images[path] = decode_jpeg(read_file(str(path)), mode=ImageReadMode.RGB)
        except RuntimeError as error:
            cause = str(error).strip().splitlines()[0]
            raise VideoError(f"{path}: not a readable JPEG image ({cause}); extract it again") from error
    sizes = {f"{image.shape[2]}×{image.shape[1]}" for image in images.values()}
    if len(sizes) > 1:
        raise VideoError(f"{folder}: frames of {' and '.join(sorted(sizes))} pixels in one clip; extract them again")
    return torch.stack([images[path] for path in paths])


def extracted_paths(folder: Path, numbers: Sequence[int]) -> list[Path]:
    """The files of these frames; arguments and errors are those of `read_extracted`."""
    return [_extracted(folder, number) for number in numbers]


def _extracted(folder: Path, number: int) -> Path:
    path = folder / f"frame_{number:010d}.jpg"
    if path.exists():
        return path
    existing = sorted(folder.glob("frame_" + "[0-9]" * 10 + ".jpg"))
    if not existing:
        raise VideoError(f"{folder}: no frames named like {path.name}; extract the video's frames there")
    first, last = (int(p.stem.removeprefix("frame_")) for p in (existing[0], existing[-1]))
    if number > last:
        return existing[-1]
    raise VideoError(f"{folder}: frame {number} is missing: frames {first} to {last} exist; extract them again")
