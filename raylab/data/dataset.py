"""Clips to batches of uint8 frames: the data set, the order of its batches, and the loader."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from math import prod
from pathlib import Path
from random import Random
from threading import Thread
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from raylab.config import DataConfig
from raylab.data.clips import Clip, ClipTable, Dataset
from raylab.data.footage import fit, positions, read_positions
from raylab.data.sampling import segment_fractions
from raylab.data.store.manifest import PREPARE
from raylab.data.store.reader import StoredFrames
from raylab.errors import RaylabError

if TYPE_CHECKING:
    from typing_extensions import NotRequired

    from raylab.data.outputs import OutputCache


class Sample(TypedDict):
    """One clip: `video` uint8 (T, 3, S, S), its id, and head → class index."""

    video: Tensor
    id: str
    labels: dict[str, int]


@final
class Batch(TypedDict):
    """B clips: `video` uint8 (B, T, 3, S, S), head → int64 (B,), and the ids in the same order.

    With an `OutputCache` also its keys of the clips, and `outputs` of frozen networks, where it has those of all.
    """

    video: Tensor
    labels: dict[str, Tensor]
    ids: list[str]
    keys: NotRequired[list[str]]
    outputs: NotRequired[dict[str, Tensor]]


@final
class EncodedBatch(TypedDict):
    """B clips still to be decoded: all their JPEG images, uint8 (bytes,), and the length of each, int64 (B, T)."""

    images: Tensor
    lengths: Tensor
    side: int
    labels: dict[str, Tensor]
    ids: list[str]
    keys: NotRequired[list[str]]
    outputs: NotRequired[dict[str, Tensor]]


B = TypeVar("B", Batch, EncodedBatch)


class ClipDataset(TorchDataset[Sample]):
    """Clips, their frames decoded when they are asked for.

    A loader asks by *sample number*, which counts on through the epochs: number `epoch · len + index`. The epoch
    matters only where frames are sampled at random.

    Args:
        clips: all with the same heads.
        sources: video id → video file, or folder of extracted frames (EPIC's `frame_0000000001.jpg`).
        config: `frames`, `sampling`, `size`, `decoder` and `jpeg` are used.
        stored: their frames in a clip store, used in place of the sources. Clips that could not be read when the store
            was made are left out.
        train: with `config.sampling` segments, sample at random, by (seed, epoch, clip id) alone.
        seed: the experiment's seed.
        crops: squares of each frame, from one end of its longer side to the other; T is then crops · frames.
        cache: what frozen networks say of the clips, to be read with them.

    Raises:
        RaylabError: a clip's video has no source, or its frames are to be decoded on the GPU but are in no store, or in
            several crops.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        sources: Mapping[str, Path],
        config: DataConfig,
        stored: StoredFrames | None = None,
        *,
        train: bool = False,
        seed: int = 0,
        crops: int = 1,
        cache: OutputCache | None = None,
    ) -> None:
        self._clips = ClipTable.of(clips)
        self._config = config
        self._stored = stored
        self._train, self._seed, self._crops, self._cache = train, seed, crops, cache
        self._frames = stored or RecordedFrames(self._clips, sources, config, crops)
        if config.jpeg == "gpu" and stored is None:
            raise RaylabError(
                f"data.jpeg = gpu: there is no clip store to read JPEG from: {PREPARE}, or set data.jpeg=cpu"
            )
        if config.jpeg == "gpu" and crops > 1:
            raise RaylabError(f"data.jpeg = gpu: decodes the centre square alone, not {crops} crops: set data.jpeg=cpu")

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        split: str,
        config: DataConfig,
        *,
        train: bool = False,
        seed: int = 0,
        crops: int = 1,
        cache: OutputCache | None = None,
    ) -> ClipDataset:
        """One split of a data set. Its clip store, if it has one, was found for as many crops."""
        clips, stored = dataset.splits[split].clips, dataset.stored.get(split)
        return cls(clips, dataset.sources, config, stored, train=train, seed=seed, crops=crops, cache=cache)

    def __len__(self) -> int:
        return len(self._frames.chosen)

    def clip(self, index: int) -> Clip:
        """The annotation of one sample."""
        return self._clips[int(self._frames.chosen[index])]

    def __getitem__(self, index: int) -> Sample:
        """Decode one clip, as in the first epoch.

        Raises:
            IndexError: there are not so many.
            RaylabError: its frames cannot be read; names the clip and the file.
        """
        if index >= len(self):
            raise IndexError(index)
        video = torch.empty(self.shape, dtype=torch.uint8)
        clip = self.decode(index, video)
        return {"video": video.permute(0, 3, 1, 2), "id": clip.id, "labels": clip.labels}

    def __getitems__(self, numbers: Sequence[int]) -> Batch | EncodedBatch:
        """The samples of one batch, each decoded into its place, or all as JPEG where `config.jpeg` says so.

        In a loader process that place is in shared memory. Frames stay as decoders deliver them, channels last in
        memory: bringing them in another order is slow.

        Raises:
            RaylabError: as for one clip.
        """
        if self._stored and self._config.jpeg == "gpu":
            return self._encoded(self._stored, numbers)
        video = _empty((len(numbers), *self.shape))
        clips = [self.decode(number, place) for number, place in zip(numbers, video, strict=True)]
        labels, ids = _described(clips)
        batch: Batch = {"video": video.permute(0, 1, 4, 2, 3), "labels": labels, "ids": ids}
        return self._with_outputs(batch, numbers, [[place.numpy().data] for place in video])

    def _encoded(self, stored: StoredFrames, numbers: Sequence[int]) -> EncodedBatch:
        samples = [self._sample(number) for number in numbers]
        images = [stored.images(index, fractions) for index, _, fractions in samples]
        lengths = torch.tensor([[len(image) for image in clip] for clip in images])
        content = _empty((int(lengths.sum()),))
        content.numpy()[:] = np.frombuffer(b"".join(chain.from_iterable(images)), np.uint8)
        labels, ids = _described([clip for _, clip, _ in samples])
        side = self._config.side
        batch: EncodedBatch = {"images": content, "lengths": lengths, "side": side, "labels": labels, "ids": ids}
        return self._with_outputs(batch, numbers, images)

    def _with_outputs(self, batch: B, numbers: Sequence[int], pixels: Sequence[Iterable[Any]]) -> B:
        """The batch, with what the cache has to say of it."""
        if self._cache:
            draws = [number // len(self) for number in numbers]
            batch["keys"] = [self._cache.key(*clip) for clip in zip(batch["ids"], draws, pixels, strict=True)]
            outputs = self._cache.read(batch["keys"], _empty)
            if outputs is not None:
                batch["outputs"] = outputs
        return batch

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Frames, height, width and channels of one clip in memory."""
        return self._crops * self._config.frames, self._config.side, self._config.side, 3

    def decode(self, number: int, place: Tensor) -> Clip:
        """Decode one sample into `place`, uint8 of the shape `shape`; its annotation.

        Raises:
            RaylabError: its frames cannot be read; names the clip and the file.
        """
        index, clip, fractions = self._sample(number)
        try:
            self._frames.read(index, clip, place, fractions)
        except RaylabError as error:
            raise RaylabError(f"clip {clip.id}: {error}") from error
        return clip

    def _sample(self, number: int) -> tuple[int, Clip, list[float] | None]:
        """Index and clip of a sample, and at which fractions of the clip its frames are, if not evenly spaced."""
        epoch, index = divmod(number, len(self))
        clip = self.clip(index)
        if self._config.sampling == "uniform":
            return index, clip, None
        random = Random(f"{self._seed}/{epoch}/{clip.id}/frames") if self._train else None
        return index, clip, segment_fractions(self._config.frames, random)


class RecordedFrames:
    """The frames of clips where they were recorded. Arguments and errors are those of `ClipDataset`.

    Attributes:
        chosen: int64, the positions of all clips.
    """

    def __init__(self, clips: ClipTable, sources: Mapping[str, Path], config: DataConfig, crops: int = 1) -> None:
        for video in clips.videos:
            if video not in sources:
                raise RaylabError(
                    f"video {video!r} has neither a file nor a folder of frames; "
                    "add it under data.root, or leave its clips out"
                )
        self.chosen = torch.arange(len(clips))
        self._sources = {video: sources[video] for video in clips.videos}
        self._config = config
        self._crops = crops

    def read(self, number: int, clip: Clip, place: Tensor, fractions: Sequence[float] | None = None) -> None:
        """Decode one clip into `place`, uint8 (crops · T, S, S, 3); at these fractions of it, if given."""
        source = self._sources[clip.video]
        wanted = positions(clip, source, self._config.frames, fractions)
        frames = read_positions(source, wanted, self._config.decoder)
        place.copy_(fit(frames, self._config.side, self._crops).permute(0, 2, 3, 1))


def _described(clips: Sequence[Clip]) -> tuple[dict[str, Tensor], list[str]]:
    """Labels, head → int64 (B,), and ids."""
    labels = {head: torch.tensor([clip.labels[head] for clip in clips]) for head in clips[0].labels}
    return labels, [clip.id for clip in clips]


def _empty(shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> Tensor:
    """A tensor to be filled: in a loader process in memory that the process it belongs to can map."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    storage = torch.UntypedStorage._new_shared(prod(shape) * dtype.itemsize)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)


class TrainBatches(Sampler[list[int]]):
    """One rank's training batches: a pure function of (seed, epoch, position).

    What it yields are the sample numbers of `ClipDataset`. Each epoch is a permutation of all clips. Global batch k is
    its k-th stretch of `world_size * batch_size`, and the ranks take turns in it: two workers of batch 4 see together
    what one of batch 8 sees. What is left at the end of an epoch, less than one global batch, is dropped.

    Args:
        clips: size of the data set.
        batch_size: clips a rank puts through the model at once.
        rank: of this worker, from 0.
        world_size: number of workers.
        seed: the experiment's seed.
        draw: epoch → the number of the random draw its clips are sampled with, which sample numbers tell.

    Raises:
        RaylabError: there are fewer clips than one global batch.
    """

    def __init__(
        self,
        clips: int,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        draw: Callable[[int], int] = lambda epoch: epoch,
    ) -> None:
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
        self.draw = draw
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
        numbers = order + self.draw(self.epoch) * self.clips
        return (numbers[start + self.rank : start + step : self.world_size].tolist() for start in starts)


class EvalBatches(Sampler[list[int]]):
    """One rank's evaluation batches: every clip exactly once over all ranks, none repeated to fill up.

    Ranks take turns batch by batch, so a clip stands in the same batch, and its logits have the same bits, for any
    number of workers. A rank has none when there are fewer batches than ranks.

    Args:
        clips: size of the data set.
        batch_size: clips a rank puts through the model at once.
        rank: of this worker, from 0.
        world_size: number of workers.
    """

    def __init__(self, clips: int, batch_size: int, rank: int, world_size: int) -> None:
        self.clips = clips
        self.batch_size = batch_size
        self.starts = range(rank * batch_size, clips, world_size * batch_size)

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[list[int]]:
        return (list(range(start, min(start + self.batch_size, self.clips))) for start in self.starts)


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
