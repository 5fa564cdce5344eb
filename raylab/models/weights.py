"""Published weights: where they come from, and reading them without running code."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import timm
import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from timm.models import get_pretrained_cfg, load_state_dict
from torch import Tensor

from raylab.config import ModelConfig
from raylab.errors import RaylabError, unknown_name
from raylab.models.registry import find_model

HUB = "hf-hub:"
_FILES = ("model.safetensors", "pytorch_model.bin")
_CONNECT_SECONDS = 5.0


def resolve_weights(config: ModelConfig) -> Path | None:
    """The weight file a model starts from, downloaded into the cache if need be; None where it starts from random.

    Weights of other parts are downloaded too. Called once before workers start, it keeps them from failing, or
    downloading, one by one.

    Raises:
        RaylabError: as `find_model`, `ModelEntry.check`, `fetch_encoder_weights` and `fetch_published_weights`.
    """
    entry = find_model(config.name)
    entry.check(config)
    for setting, address in entry.parts.items():
        fetch_published_weights(address, getattr(config, setting), f"model.{setting}")
    encoder = entry.complete(config).encoder
    if encoder:
        return fetch_encoder_weights(encoder, config.pretrained)
    return fetch_published_weights(entry.weights, config.pretrained) if entry.weights else None


def fetch_encoder_weights(encoder: str, pretrained: bool | str) -> Path | None:
    """The weight file of a timm model.

    Args:
        encoder: a timm model, with or without a tag.
        pretrained: True for timm's published weights, from the Hugging Face cache or else the hub; a path for a local
            file, `hf-hub:OWNER/NAME` for a repository of the hub; False for none.

    Raises:
        RaylabError: timm has no such model or no weights for it, the file does not exist, or the weights are not in
            the cache and the hub does not answer.
    """
    config = encoder_config(encoder)
    if isinstance(pretrained, str):
        return _named(pretrained)
    if not pretrained:
        return None
    repo = config.get("hf_hub_id")
    if not repo:
        raise RaylabError(
            f"model.pretrained = true: timm publishes no weights for {encoder}; set model.pretrained=false, or the "
            "path of a weight file"
        )
    return _from_hub(repo, f"ImageNet weights for {encoder}")


def fetch_published_weights(address: str, pretrained: bool | str, setting: str = "model.pretrained") -> Path | None:
    """The weight file of a model that is not timm's.

    Args:
        address: where its authors publish it, an https address; cached in the folder of `torch.hub`.
        pretrained: as for `fetch_encoder_weights`.
        setting: where that was said, for messages.

    Raises:
        RaylabError: the file does not exist, or is not in the cache and cannot be fetched.
    """
    if isinstance(pretrained, str):
        return _named(pretrained, setting)
    if not pretrained:
        return None
    path = Path(torch.hub.get_dir()) / "checkpoints" / address.rpartition("/")[2]
    if path.is_file():
        return path
    try:
        with urlopen(Request(address, method="HEAD"), timeout=_CONNECT_SECONDS):  # noqa: S310 - https, from a zoo file
            pass  # a download has no time limit of its own
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(address, str(path), progress=False)  # complete or not there
    except OSError as error:
        what = f"the published weights, {address},"
        raise _unreachable(what, str(path.parent), "the internet", error, setting) from None
    return path


def encoder_config(encoder: str) -> dict[str, Any]:
    """timm's facts about a model: `mean`, `std`, `input_size`, `classifier`, `hf_hub_id` …

    Raises:
        RaylabError: timm has no such model, or no such tag of it.
    """
    if not timm.is_model(encoder):
        raise unknown_name("encoder", encoder, timm.list_models())
    try:
        config: Any = get_pretrained_cfg(encoder)
    except RuntimeError:  # the tag is unknown
        tagged = timm.list_models(f"{encoder.split('.')[0]}.*", pretrained=True)
        raise unknown_name("encoder", encoder, tagged) from None
    return asdict(config)


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from a `.safetensors` file, or from a PyTorch file that holds tensors alone.

    PyTorch files may nest it under `state_dict`, `model` or `model_state` and carry the prefixes of DDP and
    `torch.compile`.

    Raises:
        RaylabError: the file is damaged, would run code when loaded, or holds something else.
    """
    try:
        state: dict[str, Tensor] = load_state_dict(str(path), weights_only=True)
        nested: Any = state.get("model_state")
        state = nested if isinstance(nested, dict) else state
    except Exception as error:  # every reader has its own way to reject a damaged file
        raise RaylabError(
            f"{path}: cannot be read as weights ({type(error).__name__}); expected a .safetensors file, or a PyTorch "
            "file that holds tensors alone (torch.save of a state dict)"
        ) from None
    strange = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if strange or not state:
        what = f"{strange[0]!r} is a {type(state[strange[0]]).__name__}" if strange else "it is empty"
        raise RaylabError(f"{path}: not a state dict: {what}; save the model's state_dict() and nothing else")
    return state


def _named(pretrained: str, setting: str = "model.pretrained") -> Path:
    """The file that a user named."""
    if pretrained.startswith(HUB):
        return _from_hub(pretrained.removeprefix(HUB), "the weights that model.pretrained names")
    path = Path(pretrained)
    if not path.is_file():
        raise RaylabError(f"{setting} = {pretrained}: no such file; set a weight file, {HUB}OWNER/NAME, true or false")
    return path


def _from_hub(repo: str, what: str) -> Path:
    for file in _FILES:
        cached = try_to_load_from_cache(repo, file)
        if isinstance(cached, str):
            return Path(cached)
    try:
        return _download(repo)
    except Exception as error:  # the hub's HTTP library, and so its errors, differ from version to version
        raise _unreachable(f"{what} ({repo})", constants.HF_HUB_CACHE, "the Hugging Face hub", error) from None


def _unreachable(what: str, cache: str, place: str, error: Exception, setting: str = "model.pretrained") -> RaylabError:
    return RaylabError(
        f"{what} are not in the cache {cache}, and cannot be fetched from {place} "
        f"({type(error).__name__}: {error}). Do one of:\n"
        "  run once with --dry-run on a machine with internet that shares this cache, such as the login node: "
        "python -m raylab.train … --dry-run\n"
        f"  {setting}=/path/to/weights.safetensors\n"
        f"  {setting}=false"
    )


def _download(repo: str) -> Path:
    for file in _FILES:
        try:
            # A download would retry for minutes; this asks once and gives up.
            get_hf_file_metadata(hf_hub_url(repo, file), timeout=_CONNECT_SECONDS)
        except EntryNotFoundError:
            continue
        return Path(hf_hub_download(repo, file))
    raise FileNotFoundError(f"{repo} holds none of {', '.join(_FILES)}")
