"""Checkpoints of the original VideoMAE code, which AMD shares: reading them, and downloading AMD's.

Source: Z. Zhao et al., "Asymmetric Masked Distillation for Pre-Training Small Foundation Models", CVPR 2024;
https://github.com/MCG-NJU/AMD, docs/MODEL_ZOO.md.
"""

from __future__ import annotations

import hashlib
import re
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor
from transformers import VideoMAEConfig

from raylab.errors import RaylabError

HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}
"""Width → attention heads of the published networks. No weight tells how many there are."""
HEAD_WIDTH = 64  # of other widths
EPS = 1e-6  # of every LayerNorm; transformers' VideoMAE has 1e-12 by default, and 1e-5 before the classifier

FOLDER = "ssv2_models"
_SECONDS = (5.0, 30.0)  # to wait for a connection, and for the next bytes
_CONTAINERS = ("model", "module")
_PREFIXES = ("backbone.", "encoder.")
_NAMES = {
    "patch_embed.proj": "videomae.embeddings.patch_embeddings.projection",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "attn.q_bias": "attention.attention.query.bias",
    "attn.v_bias": "attention.attention.value.bias",
    "fc_norm": "fc_norm",
    "head": "classifier",
}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Published:
    """A file of AMD's model zoo.

    Attributes:
        name: what it is called here.
        drive: its id on Google Drive.
        sha256: its digest, where known.
    """

    name: str
    drive: str
    sha256: str | None = None

    @property
    def address(self) -> str:
        return f"https://drive.google.com/uc?id={self.drive}"


PUBLISHED = {
    "vit_s": Published("amd_vit_s_ssv2.pth", "1ynDyu3K_INoZjaNLzFIaYCo6kjBOwG__"),
    "vit_b": Published("amd_vit_b_ssv2.pth", "1zc3ITIp4rR-dSelH0KaqMA9ahyju7sV2"),
}


def fetch_assistant(which: str, folder: Path | None = None) -> Path:
    """AMD's network, fine-tuned on Something-Something V2, downloaded once; an interrupted download goes on.

    Args:
        which: a key of `PUBLISHED`.
        folder: where it is kept; by default `ssv2_models` in the working folder.

    Raises:
        RaylabError: it is not there and cannot be downloaded, or is not what was published; says how to do it by hand.
    """
    published = PUBLISHED[which]
    path = (folder or Path(FOLDER)).absolute() / published.name
    if path.is_file():
        return path
    by_hand = (
        f"Download it with a browser from {published.address} and save it as {path}; or set "
        "distill.assistant_model_path=FILE where you have it, or distill.assistant=null to do without"
    )
    try:
        import gdown
    except ImportError:
        raise RaylabError(
            f"distill.assistant = {which}: {path} is not there, and gdown, which downloads it, is not installed: "
            f'pip install "raylab[amd]". {by_hand}'
        ) from None
    part = path.with_name(f"{path.name}.part")  # gdown resumes what lies beside it, and renames it when it is whole
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{path.name}.lock")):  # two at once would write into one partial file
            if not path.is_file():
                gdown.download(published.address, str(part), quiet=True, resume=True, timeout=_SECONDS, retries=2)
                _check_download(part, published)
                part.replace(path)
    except Exception as error:  # gdown's own, requests', and the filesystem's
        what = " ".join(str(error).split()) or type(error).__name__
        raise RaylabError(f"distill.assistant = {which}: cannot be downloaded ({what}). {by_hand}") from None
    return path


def _check_download(part: Path, published: Published) -> None:
    """Refuse, and remove, what is not a checkpoint: Google Drive may answer with a page in place of the file."""
    try:
        sha256 = hashlib.sha256(part.read_bytes()).hexdigest()
        if published.sha256 not in (None, sha256):
            raise RaylabError(f"its SHA-256 is {sha256}, not {published.sha256}")
        read_original(part)
    except RaylabError:
        part.unlink()
        raise


def read_original(path: Path) -> tuple[VideoMAEConfig, dict[str, Tensor]]:
    """A checkpoint of the original code, in the names of transformers.

    The state dict may lie under `model` or `module`, and its keys have the prefix `backbone.` or `encoder.`. The number
    of heads follows from the width (`HEADS`).

    Returns:
        The structure, for clips of 16 × 224², and the weights, keys as `VideoMAEForVideoClassification` has them.

    Raises:
        RaylabError: the file is damaged, would run code when loaded, or has other keys.
    """
    try:
        with torch.serialization.safe_globals([Namespace]):  # the settings it was trained with, plain data
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no error of its own for a damaged file
        raise RaylabError(
            f"{path}: cannot be read as a checkpoint of tensors ({type(error).__name__}): expected a fine-tuned "
            "network of the AMD or VideoMAE model zoo"
        ) from None
    for container in _CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(container), dict):
            content = content[container]
            break
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise RaylabError(f"{path}: holds no state dict under {' or '.join(_CONTAINERS)}, nor is it one")
    state = {_without_prefix(key): value.float() for key, value in content.items()}
    config = _structure(path, state)
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        renamed.update(_rename(path, key, value))
    return config, renamed


def _without_prefix(key: str) -> str:
    return next((key.removeprefix(prefix) for prefix in _PREFIXES if key.startswith(prefix)), key)


def _structure(path: Path, state: Mapping[str, Tensor]) -> VideoMAEConfig:
    try:
        width, channels, tubelet, side, _ = state["patch_embed.proj.weight"].shape
        hidden, _ = state["blocks.0.mlp.fc1.weight"].shape
        classes, _ = state["head.weight"].shape
    except (KeyError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else "its tensors have other shapes"
        raise RaylabError(f"{path}: not a fine-tuned VideoMAE of the original code: {what}") from None
    heads = HEADS.get(width, width // HEAD_WIDTH)
    if not heads or width % heads:
        raise RaylabError(f"{path}: width {width}: no VideoMAE of that width is known, nor how many heads it has")
    blocks = [int(found[1]) for key in state if (found := _BLOCK.fullmatch(key))]
    return VideoMAEConfig(
        num_channels=channels,
        tubelet_size=tubelet,
        patch_size=side,
        hidden_size=width,
        num_hidden_layers=max(blocks) + 1,
        num_attention_heads=heads,
        intermediate_size=hidden,
        layer_norm_eps=EPS,
        use_mean_pooling=True,
        num_labels=classes,
    )


def _rename(path: Path, key: str, value: Tensor) -> dict[str, Tensor]:
    """One tensor under its name in transformers; that of queries, keys and values as three."""
    block = _BLOCK.fullmatch(key)
    prefix, name = (f"videomae.encoder.layer.{block[1]}.", block[2]) if block else ("", key)
    if block and name == "attn.qkv.weight":
        parts = zip(("query", "key", "value"), value.tensor_split(3), strict=True)
        return {f"{prefix}attention.attention.{part}.weight": weight.contiguous() for part, weight in parts}
    if name in _NAMES:
        return {prefix + _NAMES[name]: value}
    stem, _, kind = name.rpartition(".")
    if stem not in _NAMES:
        raise RaylabError(f"{path}: {key}: a fine-tuned VideoMAE of the original code has no such tensor")
    return {f"{prefix}{_NAMES[stem]}.{kind}": value}
