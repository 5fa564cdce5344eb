"""Published weights: where they come from, and reading them without running code."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import timm
import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from timm.models import clean_state_dict, get_pretrained_cfg, load_state_dict
from torch import Tensor, nn

from raylab.config import ModelConfig
from raylab.errors import RaylabError, unknown_name
from raylab.models.registry import find_model

HUB = "hf-hub:"
_FILES = ("model.safetensors", "pytorch_model.bin")
_CONFIG = ("config.json",)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_CONNECT_SECONDS = 5.0
_CONTAINERS = ("model_state", "model_state_dict")  # besides those that timm knows
_WITHOUT = {
    "model.student": "model.pretrained=false",
    "distill.teacher": "distill.teacher=null",
    "distill.assistant_model_path": "distill.assistant_feature_weight=0",
}
"""Setting that names a network → how to do without; others may be false."""


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
    if entry.repository:
        path = fetch_network(config, entry.repository)
        return path if config.pretrained else None
    if entry.weights:
        return fetch_published_weights(entry.weights, config.pretrained)
    if isinstance(config.pretrained, str):
        raise RaylabError(
            f"model.pretrained = {config.pretrained}: {entry.name} has no weights to start from: set false"
        )
    return None


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
    return _from_hub(repo, f"ImageNet weights for {encoder}", "model.pretrained")


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


def fetch_network(config: ModelConfig, repository: str) -> Path | None:
    """Where a student of transformers, or its structure alone, is to be read from; None where it has its own, random.

    Args:
        config: `student`, `pretrained` and `scale` are used.
        repository: what it starts from unless `student` says otherwise.

    Raises:
        RaylabError: as for `find_network`; or there are no weights of that scale.
    """
    if isinstance(config.pretrained, str):
        raise RaylabError(
            f"model.pretrained = {config.pretrained}: {config.name} takes its weights from model.student: "
            f"set model.student={config.pretrained.removeprefix(HUB)} and model.pretrained=true"
        )
    if config.student:
        return find_network(config.student, "model.student", weights=config.pretrained)
    if not config.pretrained:
        return None
    if config.scale != "full":
        raise RaylabError(f"model.scale = {config.scale}: no weights are published: set model.pretrained=false")
    return find_network(repository, "model.student")


def find_network(name: str, setting: str, weights: bool = True) -> Path:
    """Where a VideoMAE lies: a folder of transformers, or a checkpoint of the original code.

    Args:
        name: a folder, a file, or OWNER/NAME on the Hugging Face hub, from its cache or downloaded.
        setting: where that was said, for messages.
        weights: False if its structure will do.

    Raises:
        RaylabError: there is no such thing, or it is not in the cache and the hub does not answer.
    """
    path = Path(name)
    if path.is_file() or (path / "config.json").is_file():
        return path.absolute()
    if path.is_dir() or not _REPOSITORY.fullmatch(name):
        what = "has no config.json" if path.is_dir() else "no such folder or file"
        raise RaylabError(
            f"{setting} = {name}: {what}: name a folder that transformers' save_pretrained wrote, a checkpoint of the "
            "original code, or OWNER/NAME on the Hugging Face hub"
        )
    found = _from_hub(name, f"the files of the network that {setting} names", setting, _FILES if weights else _CONFIG)
    commit = found.parent.name
    for file in (*_CONFIG, "preprocessor_config.json"):
        if try_to_load_from_cache(name, file, revision=commit) is None:  # neither there nor known to be lacking
            with suppress(Exception):  # without the first, reading says so; the second may be lacking
                _download(name, file, commit)
    return found.parent


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

    PyTorch files may nest it under `state_dict`, `model`, `model_state` or `model_state_dict`. The prefixes of
    DataParallel, DDP and `torch.compile` are taken off.

    Raises:
        RaylabError: the file is damaged, would run code when loaded, or holds something else.
    """
    try:
        state: dict[str, Tensor] = load_state_dict(str(path), weights_only=True)
        nested: Any = next((state[name] for name in _CONTAINERS if isinstance(state.get(name), dict)), None)
        state = clean_state_dict(nested) if nested else state
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


def read_whole(config: ModelConfig) -> dict[str, Tensor]:
    """The state dict of a file that `config.pretrained` names, if it is one of a whole model with a `FrameEncoder`.

    Empty where the file has the weights of an encoder alone, or none is named.

    Raises:
        RaylabError: as `fetch_encoder_weights` and `read_weights`.
    """
    if not isinstance(config.pretrained, str):
        return {}
    state = read_weights(_named(config.pretrained))
    return state if any(key.startswith("encoder.encoder.") for key in state) else {}


def fill(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a model all its weights, under their own names or with the prefixes of DataParallel, DDP, `torch.compile`.

    Raises:
        RuntimeError: they are not those of the model.
    """
    model.load_state_dict(state if state.keys() == model.state_dict().keys() else clean_state_dict(dict(state)))


def _named(pretrained: str, setting: str = "model.pretrained") -> Path:
    """The file that a user named."""
    if pretrained.startswith(HUB):
        return _from_hub(pretrained.removeprefix(HUB), f"the weights that {setting} names", setting)
    path = Path(pretrained)
    if not path.is_file():
        raise RaylabError(f"{setting} = {pretrained}: no such file; set a weight file, {HUB}OWNER/NAME, true or false")
    return path


def _from_hub(repo: str, what: str, setting: str, files: Sequence[str] = _FILES) -> Path:
    """The first of these files that a repository has."""
    for file in files:
        cached = try_to_load_from_cache(repo, file)
        if isinstance(cached, str):
            return Path(cached)
    try:
        for file in files:
            with suppress(EntryNotFoundError):
                return _download(repo, file)
        raise FileNotFoundError(f"{repo} holds none of {', '.join(files)}")
    except Exception as error:  # the hub's HTTP library, and so its errors, differ from version to version
        where = constants.HF_HUB_CACHE
        raise _unreachable(f"{what} ({repo})", where, "the Hugging Face hub", error, setting) from None


def _unreachable(what: str, cache: str, place: str, error: Exception, setting: str) -> RaylabError:
    path = "folder" if setting in _WITHOUT else "weights.safetensors"
    return RaylabError(
        f"{what} are not in the cache {cache}, and cannot be fetched from {place} "
        f"({type(error).__name__}: {error}). Do one of:\n"
        "  run once with --dry-run on a machine with internet that shares this cache, such as the login node: "
        "python -m raylab.train … --dry-run\n"
        f"  {setting}=/path/to/{path}\n"
        f"  {_WITHOUT.get(setting, f'{setting}=false')}"
    )


def _download(repo: str, file: str, revision: str | None = None) -> Path:
    # A download would retry for minutes; this asks once and gives up.
    get_hf_file_metadata(hf_hub_url(repo, file, revision=revision), timeout=_CONNECT_SECONDS)
    return Path(hf_hub_download(repo, file, revision=revision))
