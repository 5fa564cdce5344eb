"""What a run takes of the machine: time and memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from raylab.data.dataset import Batch, EncodedBatch


def peak_memory(device: torch.device) -> int:
    """The most memory this process has held since it began, in bytes: on a GPU in tensors, else resident in all.

    The latter includes what Python, PyTorch and their libraries take by themselves, some hundred MB.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class StepClock:
    """Where an epoch's time goes: clips a second, and the share spent waiting for data."""

    def __init__(self) -> None:
        self.clips = 0
        self.waited = 0.0
        self.elapsed = 0.0
        self.grad_norm: Tensor | None = None
        self.started = time.monotonic()

    def watch(self, loader: DataLoader[Any]) -> Iterator[Batch | EncodedBatch]:
        batches = iter(loader)
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            self.waited += time.monotonic() - asked
            if batch is None:
                return
            yield batch

    def stop(self) -> None:
        self.elapsed = time.monotonic() - self.started

    def summary(self) -> dict[str, float]:
        return {
            "clips_per_second": self.clips / self.elapsed,
            "data_wait": self.waited / self.elapsed,
            "grad_norm": float(self.grad_norm) if self.grad_norm is not None else 0.0,
            "seconds": self.elapsed,
        }
