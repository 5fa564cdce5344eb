"""A plain convolutional network on every frame, trained from nothing: what larger models are to be better than."""

from __future__ import annotations

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from raylab.models.freezing import Freezable


class NaiveCNN(Freezable):
    """Blocks of 3 × 3 convolution, batch norm, ReLU and 2 × 2 max pooling, then the mean over all places.

    Args:
        widths: channels of each block. The first is the stem, for `freeze`.
    """

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 256)) -> None:
        super().__init__("naive_cnn")
        self.width = widths[-1]
        self.mean, self.std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
        self.layers = nn.Sequential(*(_block(*pair) for pair in zip((3, *widths), widths, strict=False)))
        self.divide(block.parameters() for block in self.layers)

    def encode(self, video: Tensor) -> Tensor:
        """Normalised float (B, T, 3, H, W) → features of each frame, float (B, T, C)."""
        maps: Tensor = self.layers(video.flatten(0, 1))
        return maps.mean((2, 3)).reshape(*video.shape[:2], self.width)


def _block(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    )
