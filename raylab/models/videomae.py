"""VideoMAE, as transformers has it, with one classifier: a student to train, or a network to learn from.

Source: Z. Tong et al., "VideoMAE: Masked Autoencoders are Data-Efficient Learners for Self-Supervised Video
Pre-Training", NeurIPS 2022.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEForVideoClassification
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import logging as transformers_logging

from raylab.errors import RaylabError
from raylab.models.amd import EPS, HEADS, read_original

log = logging.getLogger(__name__)

_NEW = ("classifier.", "fc_norm.")
"""What weights may lack: the classifier, and the norm before it, which pre-training does not have."""
_LEFT = ("decoder.", "encoder_to_decoder.", "mask_token", "videomae.layernorm.")
"""What weights may have besides: the decoder of pre-training, and the norm before it."""
_AUTHORS = "models--MCG-NJU--"
"""Where the hub's cache has the authors' own networks, of which it is known what they were trained with."""


class VideoMAE(VideoMAEForVideoClassification):  # type: ignore[misc]
    """VideoMAE with a linear classifier on the mean of its tokens, for clips of any length and size.

    Positions are fixed sines and cosines, so no weight depends on how many tokens a clip has.

    Attributes:
        head: what its logits are called.
        mean, std: per RGB channel, for pixels in [0, 1]; the caller normalises with them.
        classes: names of the classes that its classifier was trained for; empty where it was not.
    """

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__(config)
        self.head = "label"
        self.mean: tuple[float, ...] = tuple(IMAGENET_DEFAULT_MEAN)
        self.std: tuple[float, ...] = tuple(IMAGENET_DEFAULT_STD)
        self.classes: list[str] = []

    @property
    def depth(self) -> int:
        """Number of layers."""
        return int(self.config.num_hidden_layers)

    def forward(self, video: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """Normalised float (B, T, 3, H, W) → {head: logits (B, classes)}.

        The last frame is repeated where T is not a multiple of the tubelet's length.

        Raises:
            RaylabError: H or W is not a multiple of the patch's side.
        """
        missing = -video.shape[1] % self.config.tubelet_size
        if missing:
            video = torch.cat([video, video[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
        self.fit(video.shape[1], video.shape[-2], video.shape[-1], video.device)
        logits: Tensor = super().forward(pixel_values=video).logits
        return {self.head: logits}

    def fit(self, frames: int, height: int, width: int, device: torch.device | None = None) -> None:
        """Prepare for clips of this many frames and pixels, which `config` says from now on.

        Frames are rounded up to whole tubelets.

        Raises:
            RaylabError: height or width is not a multiple of the patch's side.
        """
        embeddings, config = self.videomae.embeddings, self.config
        patches, positions = embeddings.patch_embeddings, embeddings.position_embeddings
        side = int(config.patch_size)
        if height % side or width % side:
            wrong = height if height % side else width
            raise RaylabError(
                f"data.size = {wrong}: VideoMAE cuts frames into patches of {side}²: set a multiple of {side}"
            )
        frames += -frames % config.tubelet_size
        tokens = frames // config.tubelet_size * (height // side) * (width // side)
        if patches.image_size == (height, width) and positions.shape[1] == tokens:
            if device is not None and positions.device != device:
                embeddings.position_embeddings = positions.to(device)
            return
        config.num_frames, config.image_size = frames, height if height == width else [height, width]
        patches.image_size = (height, width)
        patches.num_patches = embeddings.num_patches = tokens
        embeddings.position_embeddings = _positions(tokens, config.hidden_size).to(device)

    def set_dropout(self, probability: float) -> None:
        """Dropout behind every attention and every feed-forward layer."""
        self.config.hidden_dropout_prob = probability
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = probability


def network(config: VideoMAEConfig, classes: int | None = None) -> VideoMAE:
    """A network with random weights.

    Args:
        config: its structure.
        classes: of its classifier, in place of the configuration's.
    """
    config = VideoMAEConfig.from_dict(config.to_dict())
    if classes is not None:
        config.num_labels = classes
    with _small(config) as (frames, height, width):
        model = VideoMAE(config)
    model.fit(frames, height, width)
    return model


def load_network(path: Path, classes: int | None = None) -> VideoMAE:
    """A network with its weights, on the CPU, float32.

    Args:
        path: what `find_network` gives: a folder of transformers, or a checkpoint of the original code.
        classes: of its classifier. Weights of a classifier of another size are dropped, with a notice. None keeps the
            classifier as it is; its weights are 0 where there is none.

    Raises:
        RaylabError: the files are damaged, would run code, or hold another network; a tensor is missing or left over.
    """
    model = _from_folder(path, classes) if path.is_dir() else _from_original(path, classes)
    return model.eval()


def network_like(path: Path, classes: int) -> VideoMAE:
    """The network that `load_network` would load, with random weights.

    Raises:
        RaylabError: as for `load_network`.
    """
    if not path.is_dir():
        return network(read_original(path)[0], classes)
    model = network(_with_classes(_folder_config(path), classes))
    model.mean, model.std = _normalisation(path)
    return model


def read_config(path: Path) -> VideoMAEConfig:
    """The structure of the network that `load_network` would load.

    Raises:
        RaylabError: as for `load_network`.
    """
    return _folder_config(path) if path.is_dir() else read_original(path)[0]


def _from_original(path: Path, classes: int | None) -> VideoMAE:
    config, state = read_original(path)
    own = config.num_labels
    model = network(config, classes)
    if classes not in (None, own):
        _notice(path, f"its classifier has {own} classes, not {classes}: it is dropped, a new one begins at random")
        state = {key: value for key, value in state.items() if not key.startswith("classifier.")}
    elif classes is None:
        assert model.fc_norm is not None  # noqa: S101 - the structure has mean pooling
        model.fc_norm.eps = EPS  # where it need not be what transformers would make of the weights
    try:
        result = model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # sizes differ
        raise RaylabError(f"{path}: not the weights of its VideoMAE: {error}") from None
    _check_keys(path, [key for key in result.missing_keys if not key.startswith("classifier.")], result.unexpected_keys)
    return model


def _from_folder(path: Path, classes: int | None) -> VideoMAE:
    config = _folder_config(path)
    trained = not _pretraining(config) and classes in (None, config.num_labels)
    names = [config.id2label[index] for index in range(config.num_labels)]
    if classes is not None:
        config = _with_classes(config, classes)
    with _small(config) as (frames, height, width), _quiet():
        try:
            loaded: Any = VideoMAE.from_pretrained(
                path,
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except Exception as error:  # transformers and its readers each have their own
            raise RaylabError(f"{path}: cannot be read as a VideoMAE of transformers ({error})") from None
    model: VideoMAE = loaded[0]
    info: dict[str, Any] = loaded[1]
    model.fit(frames, height, width)
    replaced = [key for key, *_ in info["mismatched_keys"]]
    missing = [key for key in info["missing_keys"] if not key.startswith(_NEW)]
    unexpected = [key for key in info["unexpected_keys"] if not key.startswith(_LEFT)]
    _check_keys(path, missing + [key for key in replaced if not key.startswith("classifier.")], unexpected)
    begun = sorted({key.partition(".")[0] for key in [*info["missing_keys"], *replaced]})
    if begun and classes is not None:
        _notice(path, f"no {' and '.join(begun)} for {classes} classes: new, with random weights")
    elif "classifier" in begun:
        nn.init.zeros_(model.classifier.weight)  # a draw would make another network of it each time
    model.classes = names if trained and not begun else []
    model.mean, model.std = _normalisation(path)
    return model


def _pretraining(config: VideoMAEConfig) -> bool:
    return "VideoMAEForPreTraining" in (config.architectures or [])


def _with_classes(config: VideoMAEConfig, classes: int) -> VideoMAEConfig:
    # What pre-training leaves is the first token's; fine-tuning classifies the mean of all (the paper, section 4).
    config.use_mean_pooling = config.use_mean_pooling or _pretraining(config)
    config.num_labels = classes
    return config


def _folder_config(path: Path) -> VideoMAEConfig:
    file = path / "config.json"
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RaylabError(f"{file}: cannot be read ({error}): name a folder of transformers") from None
    kind = content.get("model_type") if isinstance(content, dict) else None
    if kind != "videomae":
        raise RaylabError(f"{file}: model_type = {kind!r}: not a VideoMAE")
    try:
        config = VideoMAEConfig.from_dict(content)
    except Exception as error:  # transformers' checks of values have their own
        raise RaylabError(f"{file}: {' '.join(str(error).split())}") from None
    heads = HEADS.get(config.hidden_size)
    if heads and config.num_attention_heads != heads:
        if any(part.startswith(_AUTHORS) for part in path.parts):
            _notice(
                path, f"num_attention_heads = {config.num_attention_heads} is taken as {heads}: the original code's"
            )
            config.num_attention_heads = heads
            return config
        raise RaylabError(
            f"{file}: num_attention_heads = {config.num_attention_heads}: VideoMAE of width "
            f"{config.hidden_size} is trained with {heads}, and its weights mean nothing in another number: correct it"
        )
    return config


def _normalisation(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that a folder's image-processor settings name; ImageNet's where there are none."""
    file = path / "preprocessor_config.json"
    try:
        settings: Any = json.loads(file.read_text(encoding="utf-8"))
        return tuple(settings["image_mean"]), tuple(settings["image_std"])
    except (FileNotFoundError, KeyError):
        return tuple(IMAGENET_DEFAULT_MEAN), tuple(IMAGENET_DEFAULT_STD)
    except (OSError, ValueError, TypeError) as error:
        raise RaylabError(f"{file}: cannot be read ({error}): mend it, or delete it for ImageNet's mean") from None


def _check_keys(path: Path, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    found = [
        f"{what} {', '.join(keys)}"
        for what, given in (("without", missing), ("with", unexpected))
        if (keys := sorted(given)[:3])
    ]
    if found:
        raise RaylabError(f"{path}: not the weights of its VideoMAE: {' and '.join(found)}")


def _notice(path: Path, text: str) -> None:
    log.warning("%s: %s", path, text)


@contextmanager
def _small(config: VideoMAEConfig) -> Iterator[tuple[int, int, int]]:
    """Inside, `config` has clips of one token; transformers takes seconds to compute the positions of many.

    Yields:
        The frames, height and width that it has otherwise.
    """
    frames, size = config.num_frames, config.image_size
    config.num_frames, config.image_size = config.tubelet_size, config.patch_size
    try:
        yield frames, *([size, size] if isinstance(size, int) else size)
    finally:
        config.num_frames, config.image_size = frames, size


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, transformers does not report what `_check_keys` judges."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _positions(tokens: int, width: int) -> Tensor:
    """Position vectors, float32 (1, tokens, width): sine and cosine in turn, as the original code has them."""
    rates = 10000 ** (torch.arange(0, width, 2, dtype=torch.double, device="cpu") / width)
    angles = torch.arange(tokens, dtype=torch.double, device="cpu")[:, None] / rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1).float()[None]
