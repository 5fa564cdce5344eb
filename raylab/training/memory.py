"""Out of memory: a step that does not fit is begun again, its batches in smaller pieces.

The effective batch stays what it was: pieces are halved and their number doubled, and each piece's loss counts by its
clips, so that gradients are those of the whole batch, to rounding. Augmentation and sampling are drawn by clip and do
not change. What depends on which clips stand together does: batch norm in training takes the statistics of a piece, and
dropout makes other draws, of the same distribution.

What was found is kept in the cache folder, a file for each kind of model and device, and is where the next run begins.
"""

from __future__ import annotations

import gc
import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from raylab.config import Experiment
from raylab.data.dataset import Batch
from raylab.errors import RaylabError
from raylab.storage import cache_folder, replacing
from raylab.tasks.base import TaskOutput

# What libraries say instead of `torch.OutOfMemoryError`: cuBLAS, cuDNN, PyTorch's allocator of the host's memory.
SIGNS = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "DefaultCPUAllocator: can't allocate memory")
# Settings of a model that what it needs does not depend on, or hardly.
APART = {"pretrained", "flow_weights", "dropout", "drop_path"}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in SIGNS)


class Attempt:
    """One try at an optimiser step: what may count only if it succeeds, and what else must be undone.

    Args:
        trained: what the step goes through, in training mode.
        first: number of the step's first batch.

    Attributes:
        failed: whether memory did not suffice.
        outputs: of each piece, with its labels and its number of clips.
    """

    def __init__(self, trained: nn.Module, first: int) -> None:
        self.first = first
        self.failed = False
        self.outputs: list[tuple[TaskOutput, dict[str, Tensor], int]] = []
        changing = (buffer for module in trained.modules() if module.training for buffer in module.buffers(False))
        self._before = [(buffer, buffer.clone()) for buffer in changing]

    @contextmanager
    def trying(self) -> Iterator[None]:
        """Inside, an error that says that memory does not suffice makes the attempt `failed`."""
        try:
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self.failed = True

    def add(self, output: TaskOutput, labels: dict[str, Tensor], clips: int) -> None:
        """What a piece gave, without its graph."""
        self.outputs.append((TaskOutput(output.loss.detach(), output.losses, output.predictions), labels, clips))

    def undo(self) -> None:
        """Buffers as they were, e.g. the running statistics of batch norm."""
        self.outputs.clear()
        for buffer, before in self._before:
            buffer.copy_(before)


def pieces(batch: Batch, clips: int) -> Iterator[Batch]:
    """A batch as it is, or in pieces of at most so many clips where `clips` is not 0; their tensors are views."""
    whole = len(batch["ids"])
    if not 0 < clips < whole:
        yield batch
        return
    for start in range(0, whole, clips):
        yield _piece(batch, slice(start, start + clips))


def _piece(batch: Batch, part: slice) -> Batch:
    # Whatever stands in a batch has a row for each clip, by itself or under names; but where outputs replace pixels,
    # `video` has one for each of the places `missing` alone.
    missing = batch.get("missing", range(len(batch["ids"])))
    shown = slice(bisect_left(missing, part.start), bisect_left(missing, part.stop))

    def cut(name: str, value: Any) -> Any:
        if name == "missing":
            return [place - part.start for place in value[shown]]
        rows = shown if name == "video" else part
        return {name: its[rows] for name, its in value.items()} if isinstance(value, dict) else value[rows]

    return cast(Batch, {name: cut(name, value) for name, value in batch.items()})


def halved(clips: int, experiment: Experiment, device: torch.device) -> int:
    """Half as many clips at once.

    Raises:
        RaylabError: there is but one.
    """
    if clips == 1:
        raise RaylabError(
            f"out of memory on {_kind(device)} with one clip of {experiment.data.frames} frames at a time: lower "
            f"data.frames (now {experiment.data.frames}) or data.size (now {experiment.data.size}), keep more of the "
            "encoder fixed (model.frozen_blocks), set train.precision=bf16, or choose a smaller model or a larger GPU"
        )
    return clips // 2


def release(device: torch.device) -> None:
    """Give back what is not used any more, to whoever shares the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def recall(experiment: Experiment, device: torch.device) -> int:
    """How many clips at once an earlier run of this kind of model had to go down to; 0 where none did."""
    try:
        return int(json.loads(_file(experiment, device).read_text())["micro_batch"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def remember(experiment: Experiment, device: torch.device, clips: int) -> Path | None:
    """Keep how many clips at once are not too many, as far as is known; the file, or None if it cannot be written."""
    path = _file(experiment, device)
    try:
        with replacing(path) as writing:
            writing.write_text(json.dumps({**_about(experiment, device), "micro_batch": clips}, indent=1))
    except OSError:
        return None
    return path


def _file(experiment: Experiment, device: torch.device) -> Path:
    digest = hashlib.sha256(json.dumps(_about(experiment, device), sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / "micro-batches" / f"{experiment.model.name}-{digest}.json"


def _about(experiment: Experiment, device: torch.device) -> dict[str, Any]:
    """What decides how much memory a clip needs, and how much there is."""
    data = experiment.to_dict()
    return {
        "device": _kind(device),
        "task": data["task"],
        "model": {name: value for name, value in data["model"].items() if name not in APART},
        "distill": data["distill"] if data["task"] == "distillation" else None,
        "stages": [[stage.freeze, stage.unfreeze_blocks] for stage in experiment.train.stages],
        "frames": data["data"]["frames"],
        "size": data["data"]["size"],
        "precision": data["train"]["precision"],
    }


def _kind(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    about = torch.cuda.get_device_properties(device)
    return f"{about.name} ({about.total_memory / 2**30:.0f} GiB)"
