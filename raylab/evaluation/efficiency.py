"""What models cost: parameters, multiply-adds, memory, and how fast they are on this device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from statistics import median
from typing import TYPE_CHECKING

import torch

from raylab.evaluation.memory import peak_bytes
from raylab.evaluation.predictions import autocast
from raylab.models.flops import multiply_adds

if TYPE_CHECKING:
    from torch import Tensor, nn

SECONDS = 2.0
"""How long each model is timed, about; at least one batch in each round."""
ROUNDS = 5


@dataclass(frozen=True)
class Efficiency:
    """What one model costs.

    Attributes:
        name: of the model.
        parameters: how many it has, frozen ones included.
        bytes: that its parameters and buffers take.
        flops: multiply-adds of one clip.
        clips_per_second: the median over the rounds of measuring.
        seconds: for one clip alone, the median likewise.
        peak_bytes: that it holds at most for one clip alone, its parameters included, the clip not; nan where the
            operating system does not tell.
        conditions: of the measurement: clip, batch, precision, device.
    """

    name: str
    parameters: int
    bytes: int
    flops: int
    clips_per_second: float
    seconds: float
    peak_bytes: float
    conditions: str


def measure(
    models: Mapping[str, nn.Module],
    frames: int,
    size: int,
    batch_size: int,
    device: torch.device,
    precision: str,
) -> list[Efficiency]:
    """Compare models on clips that are on the device already: no decoding, no transforms.

    The models take turns, so that what else the machine does falls on all of them.

    Args:
        models: name → model: float (B, T, 3, H, W) → anything. They are moved to the device, into evaluation mode.
        frames, size: of a clip, in frames and pixels.
        batch_size: clips that go through a model at once.
        device: where.
        precision: `fp32`, `fp16` or `bf16`.
    """
    video = torch.rand(batch_size, frames, 3, size, size, device=device)
    runs = {name: _runner(model.to(device).eval(), video, precision) for name, model in models.items()}
    alone = {name: _runner(model, video[:1], precision) for name, model in models.items()}
    together, single = _rounds(runs, device), _rounds(alone, device)
    peaks = {name: peak_bytes(run, device) for name, run in alone.items()}
    sizes = {name: sum(t.nbytes for t in chain(m.parameters(), m.buffers())) for name, m in models.items()}
    conditions = f"{frames} × {size}², batches of {batch_size}, {precision}, {_named(device)}"
    return [
        Efficiency(
            name=name,
            parameters=sum(p.numel() for p in model.parameters()),
            bytes=sizes[name],
            flops=multiply_adds(model, frames, size),
            clips_per_second=batch_size / together[name],
            seconds=single[name],
            peak_bytes=sizes[name] + peaks[name],
            conditions=conditions,
        )
        for name, model in models.items()
    ]


def _runner(model: nn.Module, video: Tensor, precision: str) -> Callable[[], None]:
    @torch.no_grad()
    def run() -> None:
        with autocast(video.device, precision):
            model(video)

    return run


def _rounds(runs: Mapping[str, Callable[[], None]], device: torch.device) -> dict[str, float]:
    """Seconds of each, the median over rounds in which they take turns."""
    for run in runs.values():
        run()  # the first one is slow
    batches = {name: max(1, round(SECONDS / ROUNDS / _time(run, device))) for name, run in runs.items()}
    rounds = [{name: _time(run, device, batches[name]) for name, run in runs.items()} for _ in range(ROUNDS)]
    return {name: median(times[name] for times in rounds) for name in runs}


def _time(run: Callable[[], None], device: torch.device, batches: int = 1) -> float:
    """Seconds a batch."""
    _wait(device)
    began = time.perf_counter()
    for _ in range(batches):
        run()
    _wait(device)
    return (time.perf_counter() - began) / batches


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _named(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} with {torch.get_num_threads()} threads"
