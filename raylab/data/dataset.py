"""Clips to batches of uint8 frames: the data set, the order of its batches, and the loader."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from math import ceil
from pathlib import Path
from threading import Thread
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, default_collate
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms.v2 import functional

from raylab.config import DataConfig
from raylab.data.clips import Clip
from raylab.data.extracted import read_extracted
from raylab.data.sampling import frame_numbers, frame_times
from raylab.data.video import probe, read_frames
from raylab.errors import RaylabError

_probe = lru_cache(maxsize=1024)(probe)


class Sample(TypedDict):
    """One clip: `video` uint8 (T, 3, S, S), its id, and head → class index."""

    video: Tensor
    id: str
    labels: dict[str, int]


class Batch(TypedDict):
    """B clips: `video` uint8 (B, T, 3, S, S), head → int64 (B,), and the ids in the same order."""

    video: Tensor
    labels: dict[str, Tensor]
    ids: list[str]


def fit(frames: Tensor, size: int) -> Tensor:
    """The centre square of every frame, a little larger than the model's input to leave room for augmentation.

    Args:
        frames: uint8 (T, 3, H, W).
        size: what the model sees, in pixels.

    Returns:
        uint8 (T, 3, S, S) with S = round(size · 256 / 224), the ImageNet ratio of short side to crop.
    """
    side = round(size * 256 / 224)
    resized = functional.resize(frames, [side], antialias=True)  # the short side
    square: Tensor = functional.center_crop(resized, [side, side])
    return square


class ClipDataset(TorchDataset[Sample]):
    """Clips, decoded when they are asked for.

    Args:
        clips: all with the same heads.
        sources: video id → video file, or folder of extracted frames (EPIC's `frame_0000000001.jpg`).
        config: `frames`, `size` and `decoder` are used.

    Raises:
        RaylabError: a clip's video has no source.
    """

    def __init__(self, clips: Sequence[Clip], sources: Mapping[str, Path], config: DataConfig) -> None:
        for clip in clips:
            if clip.video not in sources:
                raise RaylabError(
                    f"clip {clip.id}: video {clip.video!r} has neither a file nor a folder of frames; "
                    "add it under data.root, or leave the clip out"
                )
        # Columns, since each loader process gets a copy: 67,000 rows pickle in 4 ms, as objects in 250 ms.
        self._clips = pa.table({field.name: [getattr(clip, field.name) for clip in clips] for field in fields(Clip)})
        self._sources = {video: sources[video] for video in {clip.video for clip in clips}}
        self._config = config

    def __len__(self) -> int:
        return int(self._clips.num_rows)

    def clip(self, index: int) -> Clip:
        """The annotation of one sample."""
        return Clip(**self._clips.slice(index, 1).to_pylist()[0])

    def __getitem__(self, index: int) -> Sample:
        """Decode one clip.

        Raises:
            RaylabError: its frames cannot be read; names the clip and the file.
        """
        clip = self.clip(index)
        try:
            frames = self._read(clip, self._sources[clip.video])
        except RaylabError as error:
            raise RaylabError(f"clip {clip.id}: {error}") from error
        return {"video": fit(frames, self._config.size), "id": clip.id, "labels": clip.labels}

    def _read(self, clip: Clip, source: Path) -> Tensor:
        n = self._config.frames
        if source.is_dir():
            return read_extracted(source, frame_numbers(clip.start_frame, clip.stop_frame, n))
        info = _probe(source)
        if clip.start >= info.duration:
            raise RaylabError(
                f"starts at {clip.start:.2f} s, but {source} ends at {info.duration:.2f} s; "
                "replace the file if it is cut short, or leave the clip out"
            )
        times = frame_times(clip.start, min(clip.stop, info.duration), info.fps, n)
        # The frame on screen half a frame later is the nearest one: what `frame_numbers` rounds to.
        return read_frames(source, [time + 0.5 / info.fps for time in times], self._config.decoder)


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples to one batch; in a loader process its frames are written straight into shared memory."""
    batch: dict[str, Any] = default_collate(list(samples))
    return {"video": batch["video"], "labels": batch["labels"], "ids": batch["id"]}


class TrainBatches(Sampler[list[int]]):
    """One rank's training batches: a pure function of (seed, epoch, position).

    Each epoch is a permutation of all clips. Global batch k is its k-th stretch of `world_size * batch_size`, and
    the ranks take turns in it: two workers of batch 4 see together what one of batch 8 sees. What is left at the
    end of an epoch, less than one global batch, is dropped.

    Args:
        clips: size of the data set.
        batch_size: clips a rank puts through the model at once.
        rank: of this worker, from 0.
        world_size: number of workers.
        seed: the experiment's seed.

    Raises:
        RaylabError: there are fewer clips than one global batch.
    """

    def __init__(self, clips: int, batch_size: int, rank: int, world_size: int, seed: int) -> None:
        if clips < batch_size * world_size:
            raise RaylabError(
                f"the training set has {clips} clips, less than the {batch_size * world_size} of one step "
                f"(data.batch_size {batch_size} × resources.workers {world_size}): lower either"
            )
        self.clips = clips
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.set_position(epoch=0)

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Where the next iteration starts: at batch number `batch` of an epoch."""
        self.epoch = epoch
        self.batch = batch

    def __len__(self) -> int:
        """Batches in a whole epoch, wherever the next iteration starts."""
        return self.clips // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.clips)
        step = self.batch_size * self.world_size
        starts = range(self.batch * step, len(self) * step, step)
        return (order[start + self.rank : start + step : self.world_size].tolist() for start in starts)


class EvalBatches(Sampler[list[int]]):
    """One rank's evaluation batches: every clip exactly once over all ranks, none repeated to fill up.

    Ranks may differ by one clip, and so by one batch; a rank has none when there are fewer clips than ranks.

    Args:
        clips: size of the data set.
        batch_size: clips a rank puts through the model at once.
        rank: of this worker, from 0.
        world_size: number of workers.
    """

    def __init__(self, clips: int, batch_size: int, rank: int, world_size: int) -> None:
        self.share = range(rank, clips, world_size)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return ceil(len(self.share) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        starts = range(0, len(self.share), self.batch_size)
        return (list(self.share[start : start + self.batch_size]) for start in starts)


def make_loader(dataset: ClipDataset, batches: Sampler[list[int]], config: DataConfig, pin: bool) -> DataLoader[Sample]:
    """A loader of `Batch`es, in the order of `batches`.

    The order is drawn in this process: `TrainBatches.set_position` before an iteration holds for loader processes
    that are already running. Iterating leaves torch's global generators as they are.

    Args:
        dataset: what to load.
        batches: the indices of each batch.
        config: `loader_workers` is used; 0 decodes in this process.
        pin: copy batches into page-locked memory, for a GPU.
    """
    context = None
    if config.loader_workers:
        # Not fork: threads of CUDA, Ray and gRPC would leave locked locks behind. The server imports once for all.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", __name__])
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=config.loader_workers,
        collate_fn=collate,
        pin_memory=pin,
        persistent_workers=config.loader_workers > 0,
        multiprocessing_context=context,
        worker_init_fn=_end_with_parent,
        generator=torch.Generator(),  # or each iteration would draw a seed from the global one
    )


def _end_with_parent(worker: int) -> None:
    """End this loader process when the process that trains is gone, even killed.

    PyTorch watches the operating system's parent, which is the fork server, and that lives as long as its children.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101 - loader processes have one

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()
