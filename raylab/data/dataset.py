"""Clips to batches of uint8 frames: the data set, the order of its batches, and the loader."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from math import ceil, prod
from pathlib import Path
from threading import Thread
from typing import Any, TypedDict, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, get_worker_info
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms.v2 import functional

from raylab.config import DataConfig
from raylab.data.clips import Clip, ClipTable, Dataset
from raylab.data.footage import positions, read_positions
from raylab.data.store.manifest import PREPARE
from raylab.data.store.reader import StoredFrames
from raylab.errors import RaylabError


class Sample(TypedDict):
    """One clip: `video` uint8 (T, 3, S, S), its id, and head → class index."""

    video: Tensor
    id: str
    labels: dict[str, int]


@final
class Batch(TypedDict):
    """B clips: `video` uint8 (B, T, 3, S, S), head → int64 (B,), and the ids in the same order."""

    video: Tensor
    labels: dict[str, Tensor]
    ids: list[str]


@final
class EncodedBatch(TypedDict):
    """B clips still to be decoded: all their JPEG images, uint8 (bytes,), and the length of each, int64 (B, T)."""

    images: Tensor
    lengths: Tensor
    side: int
    labels: dict[str, Tensor]
    ids: list[str]


def fit(frames: Tensor, side: int) -> Tensor:
    """The centre square of every frame.

    Args:
        frames: uint8 (T, 3, H, W).
        side: height and width wanted, in pixels.

    Returns:
        uint8 (T, 3, side, side).
    """
    resized = functional.resize(frames, [side], antialias=True)  # the short side
    square: Tensor = functional.center_crop(resized, [side, side])
    return square


class ClipDataset(TorchDataset[Sample]):
    """Clips, their frames decoded when they are asked for.

    Args:
        clips: all with the same heads.
        sources: video id → video file, or folder of extracted frames (EPIC's `frame_0000000001.jpg`).
        config: `frames`, `size`, `decoder` and `jpeg` are used.
        stored: their frames in a clip store, used in place of the sources. Clips that could not be read when the store
            was made are left out.

    Raises:
        RaylabError: a clip's video has no source, or its frames are to be decoded on the GPU but are in no store.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        sources: Mapping[str, Path],
        config: DataConfig,
        stored: StoredFrames | None = None,
    ) -> None:
        self._clips = ClipTable.of(clips)
        self._config = config
        self._stored = stored
        self._frames = stored or RecordedFrames(self._clips, sources, config)
        if config.jpeg == "gpu" and stored is None:
            raise RaylabError(
                f"data.jpeg = gpu: there is no clip store to read JPEG from: {PREPARE}, or set data.jpeg=cpu"
            )

    @classmethod
    def of(cls, dataset: Dataset, split: str, config: DataConfig) -> ClipDataset:
        """One split of a data set."""
        return cls(dataset.splits[split].clips, dataset.sources, config, dataset.stored.get(split))

    def __len__(self) -> int:
        return len(self._frames.chosen)

    def clip(self, index: int) -> Clip:
        """The annotation of one sample."""
        return self._clips[int(self._frames.chosen[index])]

    def __getitem__(self, index: int) -> Sample:
        """Decode one clip.

        Raises:
            RaylabError: its frames cannot be read; names the clip and the file.
        """
        video = torch.empty(self.shape, dtype=torch.uint8)
        clip = self.decode(index, video)
        return {"video": video.permute(0, 3, 1, 2), "id": clip.id, "labels": clip.labels}

    def __getitems__(self, indices: Sequence[int]) -> Batch | EncodedBatch:
        """The clips of one batch, each decoded into its place, or all as JPEG where `config.jpeg` says so.

        In a loader process that place is in shared memory. Frames stay as decoders deliver them, channels last in
        memory: bringing them in another order is slow.

        Raises:
            RaylabError: as for one clip.
        """
        if self._stored and self._config.jpeg == "gpu":
            return self._encoded(self._stored, indices)
        video = _empty((len(indices), *self.shape))
        clips = [self.decode(index, place) for index, place in zip(indices, video, strict=True)]
        return {"video": video.permute(0, 1, 4, 2, 3), **_described(clips)}

    def _encoded(self, stored: StoredFrames, indices: Sequence[int]) -> EncodedBatch:
        images = [stored.images(index) for index in indices]
        lengths = torch.tensor([[len(image) for image in clip] for clip in images])
        content = _empty((int(lengths.sum()),))
        content.numpy()[:] = np.frombuffer(b"".join(chain.from_iterable(images)), np.uint8)
        described = _described([self.clip(index) for index in indices])
        return {"images": content, "lengths": lengths, "side": self._config.side, **described}

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Frames, height, width and channels of one clip in memory."""
        return self._config.frames, self._config.side, self._config.side, 3

    def decode(self, index: int, place: Tensor) -> Clip:
        """Decode one clip into `place`, uint8 of the shape `shape`; its annotation.

        Raises:
            RaylabError: its frames cannot be read; names the clip and the file.
        """
        clip = self.clip(index)
        try:
            self._frames.read(index, clip, place)
        except RaylabError as error:
            raise RaylabError(f"clip {clip.id}: {error}") from error
        return clip


class RecordedFrames:
    """The frames of clips where they were recorded. Arguments and errors are those of `ClipDataset`.

    Attributes:
        chosen: int64, the positions of all clips.
    """

    def __init__(self, clips: ClipTable, sources: Mapping[str, Path], config: DataConfig) -> None:
        for video in clips.videos:
            if video not in sources:
                raise RaylabError(
                    f"video {video!r} has neither a file nor a folder of frames; "
                    "add it under data.root, or leave its clips out"
                )
        self.chosen = torch.arange(len(clips))
        self._sources = {video: sources[video] for video in clips.videos}
        self._config = config

    def read(self, number: int, clip: Clip, place: Tensor) -> None:
        """Decode one clip into `place`, uint8 (T, S, S, 3)."""
        source = self._sources[clip.video]
        frames = read_positions(source, positions(clip, source, self._config.frames), self._config.decoder)
        place.copy_(fit(frames, self._config.side).permute(0, 2, 3, 1))


class _Described(TypedDict):
    labels: dict[str, Tensor]
    ids: list[str]


def _described(clips: Sequence[Clip]) -> _Described:
    labels = {head: torch.tensor([clip.labels[head] for clip in clips]) for head in clips[0].labels}
    return {"labels": labels, "ids": [clip.id for clip in clips]}


def _empty(shape: tuple[int, ...]) -> Tensor:
    """An uint8 tensor to be filled: in a loader process in memory that the process it belongs to can map."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(prod(shape))  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


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
        collate_fn=_as_it_is,
        pin_memory=pin,
        persistent_workers=config.loader_workers > 0,
        multiprocessing_context=context,
        worker_init_fn=_end_with_parent,
        generator=torch.Generator(),  # or each iteration would draw a seed from the global one
    )


def _as_it_is(batch: Any) -> Any:  # typed as PyTorch does: a list of samples
    return batch


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
