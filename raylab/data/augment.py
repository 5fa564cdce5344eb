"""Batches of uint8 clips to normalised floats, on whatever device they are; training clips are augmented on the way.

Everything but erasing is two maps, drawn on the CPU: one of coordinates (crop, rotation, flip), one of colours (jitter,
grayscale). A clip is resampled once and coloured once, and a GPU is never waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, exp, log, radians, sin, sqrt
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional

from raylab.config import DataConfig

FORMAT = 2  # raise it when a change of the code changes what comes out: what is kept of outputs is told apart by it
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Array = NDArray[np.float64]
Range = tuple[float, float]

# Linear maps of an RGB colour: to itself, to black, to its luma (ITU-R BT.601), to its cross product with grey.
SAME, NONE = np.eye(3), np.zeros((3, 3))
LUMA = np.tile([0.299, 0.587, 0.114], (3, 1))
AROUND_GREY = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / sqrt(3)


@dataclass(frozen=True)
class Recipe:
    """What may happen to a training clip, besides a horizontal flip.

    Attributes:
        rotation: degrees, either way.
        crop: share of the picture's area that is kept, at an aspect of 3:4 to 4:3; None for the centre crop.
        brightness, contrast, saturation: factors lie within 1 ± this.
        hue: turns of the colour circle, either way.
        grayscale: probability.
        erasing: probability of one erased rectangle, of `erased` of the area.
        erased: a range of shares.
    """

    rotation: float = 0.0
    crop: Range | None = None
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale: float = 0.0
    erasing: float = 0.0
    erased: Range = (0.02, 0.33)


RECIPES: dict[str, Recipe | None] = {
    "aggressive": Recipe(
        rotation=15, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale=0.1, erasing=0.15
    ),
    "mild": Recipe(crop=(0.85, 1.0), brightness=0.2, contrast=0.2, erasing=0.1, erased=(0.02, 0.1)),
    "none": None,
}


class Box(NamedTuple):
    """A rectangle in a picture of height and width 1."""

    top: float
    left: float
    height: float
    width: float

    @classmethod
    def draw(cls, random: Random, area: Range, aspect: Range) -> Box:
        """Uniform in area and place, and in the logarithm of height / width as far as the picture allows."""
        share = random.uniform(*area)
        lowest, highest = max(aspect[0], share), min(aspect[1], 1 / share)
        ratio = exp(random.uniform(log(lowest), log(highest)))
        height, width = sqrt(share * ratio), sqrt(share / ratio)
        return cls(random.uniform(0, 1 - height), random.uniform(0, 1 - width), height, width)


class Draw(NamedTuple):
    """One clip's parameters.

    Attributes:
        warp: (2, 3), output → input coordinates, x before y, both in [-1, 1].
        colour: (3, 6), of an RGB colour stacked on the clip's mean colour.
        erase: what is blanked, if anything.
    """

    warp: Array
    colour: Array
    erase: Box | None


class ClipTransform:
    """Crop, augment (training only) and normalise a batch of clips.

    All frames of a clip are augmented with the same parameters, drawn from (seed, epoch, clip id) alone: the
    batch a clip stands in, its rank, the number of workers and the model change nothing: with the same seed, frames and
    size all models see the same pixels, each in its own normalisation.

    - `aggressive`: flip, rotation ±15°, centre crop, colour jitter (brightness, contrast and saturation 0.4, as in
      ResNet training on ImageNet; hue 0.1), grayscale 0.1, random erasing 0.15 (Zhong et al., arXiv:1708.04896).
    - `mild`: random resized crop of 85–100 % of the area, flip, jitter (brightness, contrast 0.2), random
      erasing 0.1 of 2–10 % of the area.
    - `none`, and always when `train` is false: the centre crop.

    Jitter is that of torchvision in random order, as one linear map (after Karras et al., arXiv:2006.06676): colours
    are clamped once, after all of it; hue turns about the grey axis; contrast pivots on the mean of the clip.
    What rotation uncovers takes the mean colour of ImageNet before jitter, what erasing removes takes it after all.

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
        self.recipe = RECIPES[config.augment] if train else None
        self.size = config.size
        self.hflip = config.hflip
        self.seed = seed
        self.mean = 255 * torch.tensor(mean).view(3, 1, 1)
        self.scale = 1 / (255 * torch.tensor(std).view(3, 1, 1))
        self.fill = 255 * torch.tensor(IMAGENET_MEAN).view(3, 1, 1)  # whatever the model: all see the same pixels
        self.about = f"{FORMAT} {self.size} {list(mean)} {list(std)} {self.recipe} {self.hflip if self.recipe else ''}"

    @classmethod
    def for_model(cls, model: Any, config: DataConfig, train: bool, seed: int) -> ClipTransform:
        """The transform with the normalisation `model` was pretrained with (its `mean` and `std`)."""
        return cls(config, train, seed, model.mean, model.std)

    def signature(self, id: str, epoch: int) -> str:
        """Text that is the same for two clips of equal pixels if, and only if, they are transformed alike."""
        return f"{self.about} {self.seed}/{epoch}/{id}" if self.recipe else self.about

    def __call__(self, video: Tensor, ids: Sequence[str], epoch: int) -> Tensor:
        """Transform one batch.

        Args:
            video: uint8 (B, T, 3, S, S), with S at least `config.size`, on any device.
            ids: the B clip ids.
            epoch: whose draw to use.

        Returns:
            float32 (B, T, 3, size, size) on the same device.
        """
        if self.mean.device != video.device:
            self.mean, self.scale, self.fill = (t.to(video.device) for t in (self.mean, self.scale, self.fill))
        if self.recipe is None:
            cropped: Tensor = functional.center_crop(video, [self.size, self.size])
            # Not channels last, as the loader has them: convolutions would follow, against the layout of their weights.
            return cropped.to(torch.float32, memory_format=torch.contiguous_format).sub_(self.mean).mul_(self.scale)
        draws = [self.draw(self.recipe, id, epoch, video.shape[-1]) for id in ids]
        warps = _send([draw.warp for draw in draws], video.device)
        colours = _send([draw.colour for draw in draws], video.device)
        out = video.new_empty(*video.shape[:3], self.size, self.size, dtype=torch.float32)
        # One by one: in a batch, the last bits of a clip could depend on how many there are.
        for clip, warp, colour, draw, augmented in zip(video, warps, colours, draws, out, strict=True):
            self._augment(clip, warp, colour, draw.erase, augmented)
        return out

    def draw(self, recipe: Recipe, id: str, epoch: int, side: int) -> Draw:
        """The parameters of one clip of `side` pixels; no generator but its own is touched."""
        random = Random(f"{self.seed}/{epoch}/{id}")
        return Draw(
            warp=_warp(recipe, random, self.hflip, self.size / side),
            colour=_colour(recipe, random),
            erase=Box.draw(random, recipe.erased, (0.3, 3.3)) if random.random() < recipe.erasing else None,
        )

    def _augment(self, clip: Tensor, warp: Tensor, colour: Tensor, erase: Box | None, out: Tensor) -> None:
        frames = len(clip)
        grid = F.affine_grid(warp[None], [1, 1, self.size, self.size], align_corners=False).expand(frames, -1, -1, -1)
        # Around the colour that fills, the zeros outside the picture are that colour.
        centred = F.grid_sample(clip.float().sub_(self.fill), grid, align_corners=False).flatten(2)
        own, of_mean = colour[:, :3], colour[:, 3:]
        around = self.fill.flatten()
        offset = own @ around + of_mean @ (around + centred.mean((0, 2)))
        torch.baddbmm(offset[:, None], own.expand(frames, -1, -1), centred, out=out.flatten(2))
        out.clamp_(0, 255).sub_(self.mean).mul_(self.scale)
        if erase:
            top, left, height, width = (round(self.size * value) for value in erase)
            out[..., top : top + height, left : left + width] = (self.fill - self.mean) * self.scale


def _warp(recipe: Recipe, random: Random, hflip: float, centre: float) -> Array:
    """Flip, rotate, crop, from where the picture's side is 1 and that of the centre crop `centre`."""
    flip = -1 if random.random() < hflip else 1
    angle = radians(random.uniform(-recipe.rotation, recipe.rotation))
    margin = (1 - centre) / 2
    crop = Box.draw(random, recipe.crop, (3 / 4, 4 / 3)) if recipe.crop else Box(margin, margin, centre, centre)
    rotation = np.array([[cos(angle), -sin(angle)], [sin(angle), cos(angle)]])
    middle = np.array([2 * crop.left + crop.width - 1, 2 * crop.top + crop.height - 1])
    warp = np.column_stack([rotation * [crop.width, crop.height], rotation @ middle])
    return warp * [[flip], [1]]


def _colour(recipe: Recipe, random: Random) -> Array:
    """Jitter in random order, then grayscale."""
    brightness, contrast, saturation = (
        random.uniform(1 - strength, 1 + strength)
        for strength in (recipe.brightness, recipe.contrast, recipe.saturation)
    )
    turn = radians(360 * random.uniform(-recipe.hue, recipe.hue))
    # Each makes A·c + B·m of a colour c, where m is the mean of all colours at that moment.
    steps = [
        (brightness * SAME, NONE),
        (contrast * SAME, (1 - contrast) * LUMA),
        (saturation * SAME + (1 - saturation) * LUMA, NONE),
        (cos(turn) * SAME + (1 - cos(turn)) / 3 + sin(turn) * AROUND_GREY, NONE),
    ]
    random.shuffle(steps)
    if random.random() < recipe.grayscale:
        steps.append((LUMA, NONE))
    own, of_mean = SAME, NONE
    for a, b in steps:
        own, of_mean = a @ own, a @ of_mean + b @ (own + of_mean)
    return np.column_stack([own, of_mean])


def _send(parameters: list[Array], device: torch.device) -> Tensor:
    """Float32 on the device; from page-locked memory, since any other copy would wait for the GPU."""
    tensor = torch.from_numpy(np.stack(parameters)).float()
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
