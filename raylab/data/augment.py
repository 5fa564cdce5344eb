"""Batches of uint8 clips to normalised floats, on whatever device they are; training clips are augmented on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from raylab.config import DataConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Colour = Sequence[int]


def _aggressive(config: DataConfig, blank: Colour) -> v2.Transform:
    # Rotating before the crop turns most of the empty corners out of the picture.
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(config.hflip),
            v2.RandomRotation(15, interpolation=v2.InterpolationMode.BILINEAR, fill=blank),
            v2.CenterCrop(config.size),
            v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
            v2.RandomGrayscale(0.1),
            v2.RandomErasing(0.15, value=blank),
        ]
    )


def _mild(config: DataConfig, blank: Colour) -> v2.Transform:
    return v2.Compose(
        [
            v2.RandomResizedCrop(config.size, scale=(0.85, 1.0), antialias=True),
            v2.RandomHorizontalFlip(config.hflip),
            v2.ColorJitter(brightness=0.2, contrast=0.2),
            v2.RandomErasing(0.1, scale=(0.02, 0.1), value=blank),
        ]
    )


def _none(config: DataConfig, blank: Colour) -> v2.Transform:
    return v2.CenterCrop(config.size)


AUGMENTATIONS: dict[str, Callable[[DataConfig, Colour], v2.Transform]] = {
    "aggressive": _aggressive,
    "mild": _mild,
    "none": _none,
}


class ClipTransform:
    """Crop, augment (training only) and normalise a batch of clips.

    All frames of a clip are augmented with the same parameters, drawn from (seed, epoch, clip id) alone: the
    batch a clip stands in, its rank and the number of workers change nothing.

    - `aggressive`: flip, rotation ±15°, centre crop, colour jitter (brightness, contrast and saturation 0.4, as in
      ResNet training on ImageNet; hue 0.1), grayscale 0.1, random erasing 0.15 (Zhong et al., arXiv:1708.04896).
    - `mild`: random resized crop of 85–100 % of the area, flip, jitter (brightness, contrast 0.2), random
      erasing 0.1 of 2–10 % of the area.
    - `none`, and always when `train` is false: the centre crop.

    What rotation uncovers and erasing removes takes the mean colour, which normalises to about 0.

    Args:
        config: `size`, `augment` and `hflip` are used.
        train: augment as `config.augment` says.
        seed: the experiment's seed.
        mean: of each RGB channel, on a scale of 0–1.
        std: likewise.
    """

    def __init__(
        self,
        config: DataConfig,
        train: bool,
        seed: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        blank = [round(255 * channel) for channel in mean]
        self.pipeline = AUGMENTATIONS[config.augment if train else "none"](config, blank)
        self.seed = seed
        self.mean = list(mean)
        self.std = list(std)

    @classmethod
    def for_model(cls, model: Any, config: DataConfig, train: bool, seed: int) -> ClipTransform:
        """The transform with the normalisation `model` was pretrained with (its `mean` and `std`)."""
        return cls(config, train, seed, model.mean, model.std)

    def __call__(self, video: Tensor, ids: Sequence[str], epoch: int) -> Tensor:
        """Transform one batch.

        Args:
            video: uint8 (B, T, 3, S, S), with S at least `config.size`, on any device.
            ids: the B clip ids.
            epoch: whose draw to use.

        Returns:
            float32 (B, T, 3, size, size) on the same device.
        """
        # torchvision draws from the CPU's global generator: seeded for each clip, and put back afterwards.
        with torch.random.fork_rng(devices=[]):
            clips = [self._augment(clip, id, epoch) for clip, id in zip(video, ids, strict=True)]
        floats = functional.to_dtype(torch.stack(clips), torch.float32, scale=True)
        normalised: Tensor = functional.normalize(floats, self.mean, self.std, inplace=True)
        return normalised

    def _augment(self, clip: Tensor, id: str, epoch: int) -> Tensor:
        digest = blake2b(f"{self.seed}/{epoch}/{id}".encode(), digest_size=8).digest()
        torch.default_generator.manual_seed(int.from_bytes(digest, "little"))  # unlike torch.manual_seed: CPU only
        augmented: Tensor = self.pipeline(clip)
        return augmented
