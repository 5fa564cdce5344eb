"""Nested Python state to and from `safetensors` + JSON, so that reading it back never runs code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_TENSOR, _DICT, _TUPLE = "$tensor", "$dict", "$tuple"


def save_tree(tree: Any, stem: Path) -> None:
    """Write dicts, lists, tuples, numbers, strings and tensors to `stem`.json and `stem`.safetensors.

    Raises:
        TypeError: a value is of another type.
    """
    tensors: dict[str, Tensor] = {}
    plain = _pack(tree, tensors)
    save_file(tensors, stem.with_suffix(".safetensors"))
    stem.with_suffix(".json").write_text(json.dumps(plain))


def load_tree(stem: Path) -> Any:
    """What `save_tree` wrote, with tensors on the CPU and equal in every bit."""
    tensors = load_file(stem.with_suffix(".safetensors"))
    return _unpack(json.loads(stem.with_suffix(".json").read_text()), tensors)


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {_TENSOR: key}
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _pack(item, tensors) for key, item in value.items()}
        return {_DICT: [[_pack(key, tensors), _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {_TUPLE: [_pack(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_pack(item, tensors) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"state holds a {type(value).__name__}, which cannot be saved without running code on loading")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _DICT in value:
        return {_hashable(_unpack(key, tensors)): _unpack(item, tensors) for key, item in value[_DICT]}
    if _TUPLE in value:
        return tuple(_unpack(item, tensors) for item in value[_TUPLE])
    return {key: _unpack(item, tensors) for key, item in value.items()}


def _hashable(key: Any) -> Any:
    return tuple(key) if isinstance(key, list) else key
