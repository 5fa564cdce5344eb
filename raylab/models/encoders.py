"""Frame encoders: any image model of timm, applied to every frame of a clip."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import timm
from timm.models import group_parameters, is_model_in_modules
from torch import Tensor, nn
from torch.nn import Parameter

from raylab.config import ModelConfig
from raylab.errors import RaylabError
from raylab.models.freezing import Freezable
from raylab.models.weights import encoder_config, fetch_encoder_weights, read_weights


class FrameEncoder(Freezable):
    """A timm image model without its classifier, frame by frame.

    Args:
        name: a timm model, with or without a tag: `resnet50`, `resnet50.a1_in1k`.
        weights: a weight file for it; None for random weights.
        channels: of a frame; a first convolution trained on three is adapted to another number by timm.
        any_size: a ViT takes frames of any size that its patches divide, its positions interpolated.

    Attributes:
        width: C, the number of features of a frame.
        mean, std: per RGB channel, for pixels in [0, 1]: what the encoder's published weights were trained with.

    Blocks, for `freeze`, are timm's coarse groups after the stem.

    Raises:
        RaylabError: timm has no such model, or the file does not hold its weights.
    """

    def __init__(self, name: str, weights: Path | None = None, channels: int = 3, any_size: bool = False) -> None:
        super().__init__(name)
        config = encoder_config(name)
        resizes = any_size and is_model_in_modules(name, "vision_transformer")
        options: dict[str, Any] = {"in_chans": channels, **({"dynamic_img_size": True} if resizes else {})}
        encoder: Any = (
            timm.create_model(name, num_classes=0, **options)
            if weights is None
            else _load(name, config, weights, options)
        )
        self.encoder: nn.Module = encoder
        self.width: int = encoder.head_hidden_size
        self.mean = tuple(config["mean"])
        self.std = tuple(config["std"])
        fixed = config.get("fixed_input_size") and not resizes
        self._fixed_size = tuple(config["input_size"][1:]) if fixed else None
        self._patch = max(encoder.patch_embed.patch_size) if resizes else 1
        self.divide(_groups(encoder))

    def encode(self, video: Tensor) -> Tensor:
        """Normalised float (B, T, channels, H, W) → features, float (B, T, C).

        Raises:
            RaylabError: the encoder takes frames of one size only, and these have another, or its patches do not fit.
        """
        size = tuple(video.shape[-2:])
        if self._fixed_size not in (None, size):
            raise RaylabError(
                f"{self.name} takes frames of {self._fixed_size}, not {size}: set data.size={self._fixed_size[0]}"
            )
        if any(side % self._patch for side in size):
            raise RaylabError(
                f"{self.name} takes frames of a multiple of {self._patch}, not {size}: "
                f"set data.size={max(round(size[0] / self._patch), 1) * self._patch}"
            )
        features: Tensor = self.encoder(video.flatten(0, 1))
        return features.reshape(*video.shape[:2], self.width)


def build_encoder(
    config: ModelConfig, frozen_blocks: int = 0, channels: int = 3, any_size: bool = False
) -> FrameEncoder:
    """The frame encoder of a model, with the weights that `config.pretrained` says.

    Args:
        config: the model section of an experiment, completed.
        frozen_blocks: kept fixed unless `config.frozen_blocks` says otherwise.
        channels: of a frame.
        any_size: as for `FrameEncoder`.

    Raises:
        RaylabError: as `fetch_encoder_weights`, `FrameEncoder` and `Freezable.freeze`.
    """
    assert config.encoder is not None, "build_model fills in the encoder"  # noqa: S101
    weights = fetch_encoder_weights(config.encoder, config.pretrained)
    encoder = FrameEncoder(config.encoder, weights, channels, any_size)
    encoder.freeze(frozen_blocks if config.frozen_blocks is None else config.frozen_blocks)
    return encoder


def _groups(encoder: Any) -> list[list[Parameter]]:
    """The parameters of the stem and of each block, in order; empty where timm does not divide the model."""
    try:
        groups = group_parameters(encoder, encoder.group_matcher(coarse=True))
    except (AttributeError, AssertionError):  # a few of timm's models have no, or no coarse, grouping
        return []
    parameters = dict(encoder.named_parameters())
    return [[parameters[name] for name in groups[index]] for index in sorted(groups)]


def _load(name: str, config: Mapping[str, Any], path: Path, options: Mapping[str, Any]) -> Any:
    """The encoder with the weights of `path`, every one of them; only a classifier may be there or not.

    Args:
        name: a timm model.
        config: timm's facts about it.
        path: a weight file.
        options: what `timm.create_model` is told besides.
    """
    state = read_weights(path)
    classes = _classes(state, config)
    # With as many classes as the file has, timm loads strictly, and still converts older key layouts.
    overlay = {"state_dict": state, "num_classes": classes, "label_offset": 0}
    encoder: Any
    try:
        encoder = timm.create_model(
            name, pretrained=True, num_classes=classes, pretrained_cfg_overlay=overlay, **options
        )
    except (RuntimeError, LookupError) as error:
        lines = str(error).splitlines() if isinstance(error, RuntimeError) else [f"its keys cannot be read, at {error}"]
        more = [f"… and {len(lines) - 8} more"] if len(lines) > 8 else []
        reasons = "\n  ".join([*(shorten(line, 300) for line in lines[:8]), *more])
        raise RaylabError(
            f"{path}: not the weights of {name}; set model.encoder to the model they were saved from\n  {reasons}"
        ) from None
    del encoder.pretrained_cfg["state_dict"]
    encoder.reset_classifier(0)
    return encoder


def _classes(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> int:
    """Rows of the classifier in a state dict: 0 in timm's layout without one, timm's own number in other layouts."""
    classifier, stem = (
        value[0] if isinstance(value, tuple | list) else value for value in (config["classifier"], config["first_conv"])
    )
    if f"{classifier}.weight" in state:
        return len(state[f"{classifier}.weight"])
    return 0 if f"{stem}.weight" in state else config["num_classes"]
