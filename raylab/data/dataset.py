"""Clips to batches of uint8 frames: the data set that a loader asks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from math import prod
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, cast, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import get_worker_info

from raylab.config import DataConfig
from raylab.data.clips import Clip, ClipTable, Dataset
from raylab.data.importance import window_scores
from raylab.data.recorded import RecordedFrames
from raylab.data.sampling import sample_count, segment_fractions
from raylab.data.store.manifest import PREPARE
from raylab.data.store.reader import StoredFrames
from raylab.errors import RaylabError

if TYPE_CHECKING:
    from typing_extensions import NotRequired

    from raylab.data.importance import Importance
    from raylab.data.outputs import OutputCache


class Sample(TypedDict):
    """One clip: `video` uint8 (T, 3, S, S), its id, and head → class index."""

    video: Tensor
    id: str
    labels: dict[str, int]


@final
class Batch(TypedDict):
    """B clips: `video` uint8 (B, T, 3, S, S), head → int64 (B,), and the ids in the same order.

    Windows (`config.sampling` rate) that are shorter than T end in frames of zeros: `mask`, bool (B, T), is true where
    there is a frame. Their labels are `importance`, float32 (B, T), the frames' mean scores, 0 where there is no frame,
    and `window`, int64 (B,), the clip's number in its split.

    With an `OutputCache` also its keys of the clips, and `outputs` of frozen networks, where it has those of all. If
    these replace pixels: `outputs` of all but the clips at the places `missing`, and `video` of these alone, if any.
    """

    video: NotRequired[Tensor]
    labels: dict[str, Tensor]
    ids: list[str]
    mask: NotRequired[Tensor]
    keys: NotRequired[list[str]]
    outputs: NotRequired[dict[str, Tensor]]
    missing: NotRequired[list[int]]


@final
class EncodedBatch(TypedDict):
    """B clips still to be decoded: all their JPEG images, uint8 (bytes,), and the length of each, int64 (B, T).

    The length of a frame that is not there is 0; all else is as in `Batch`.
    """

    images: Tensor
    lengths: Tensor
    side: int
    labels: dict[str, Tensor]
    ids: list[str]
    mask: NotRequired[Tensor]
    keys: NotRequired[list[str]]
    outputs: NotRequired[dict[str, Tensor]]
    missing: NotRequired[list[int]]


class Drawn(NamedTuple):
    """A sample as it was asked for.

    Attributes:
        number: its place among those that can be read.
        clip: its annotation.
        fractions: of the clip, where its frames are; None where they are evenly spaced.
    """

    number: int
    clip: Clip
    fractions: list[float] | None


class ClipDataset(TorchDataset[Sample]):
    """Clips, their frames decoded when they are asked for.

    A loader asks by *sample number*, which counts on through the epochs: number `epoch · len + index`. The epoch
    matters only where frames are sampled at random.

    Args:
        clips: all with the same heads.
        sources: video id → video file, or folder of extracted frames (EPIC's `frame_0000000001.jpg`).
        config: `frames`, `sampling`, `fps`, `size`, `decoder` and `jpeg` are used.
        stored: their frames in a clip store, used in place of the sources. Clips that could not be read when the store
            was made are left out.
        train: with `config.sampling` segments, sample at random, by (seed, epoch, clip id) alone.
        seed: the experiment's seed.
        crops: squares of each frame, from one end of its longer side to the other; T is then crops · frames.
        cache: what frozen networks say of the clips, to be read with them.
        importance: of the clips' videos, where clips are windows.

    Raises:
        RaylabError: a clip's video has no source, or its frames are to be decoded on the GPU but are in no store, or in
            several crops; or windows are wanted in several crops.
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
        importance: Mapping[str, Importance] | None = None,
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
        if config.sampling == "rate" and crops > 1:
            raise RaylabError(f"data.sampling = rate: a frame has one score, not one of each of {crops} crops")
        self._scores: Tensor | None = None  # shared with loader processes
        if importance:
            self._scores = torch.from_numpy(window_scores(self._clips, importance, config.fps, config.frames))

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
        return cls(
            clips,
            dataset.sources,
            config,
            stored,
            train=train,
            seed=seed,
            crops=crops,
            cache=cache,
            importance=dataset.importance,
        )

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
        samples = [self._sample(number) for number in numbers]
        batch: Any = {**self._described(samples), **self._kept(numbers, samples)}
        wanted = [samples[place] for place in batch.get("missing", range(len(samples)))]
        if wanted and self._stored and self._config.jpeg == "gpu":
            batch |= self._encoded(self._stored, wanted)
        elif wanted:
            batch |= self._decoded(wanted)
        return cast("Batch | EncodedBatch", batch)

    def _decoded(self, samples: Sequence[Drawn]) -> dict[str, Tensor]:
        video = _empty((len(samples), *self.shape))
        for sample, place in zip(samples, video, strict=True):
            self._read(sample, place)
        return {"video": video.permute(0, 1, 4, 2, 3)}

    def _encoded(self, stored: StoredFrames, samples: Sequence[Drawn]) -> dict[str, Any]:
        images = [stored.images(sample.number, sample.fractions) for sample in samples]
        lengths = torch.zeros(len(images), self._config.frames, dtype=torch.int64)
        for row, clip in zip(lengths, images, strict=True):
            row[: len(clip)] = torch.tensor([len(image) for image in clip])
        content = _empty((int(lengths.sum()),))
        content.numpy()[:] = np.frombuffer(b"".join(chain.from_iterable(images)), np.uint8)
        return {"images": content, "lengths": lengths, "side": self._config.side}

    def _kept(self, numbers: Sequence[int], samples: Sequence[Drawn]) -> dict[str, Any]:
        """`keys`, `outputs` and `missing` of a batch, as far as the cache has something to say of it."""
        if self._cache is None:
            return {}
        keys = [
            self._cache.key(sample.clip.id, number // len(self), self._made_of(sample))
            for number, sample in zip(numbers, samples, strict=True)
        ]
        outputs, missing = self._cache.read(keys, _empty)
        kept: dict[str, Any] = {"keys": keys}
        if self._cache.replaces:
            kept["missing"] = missing
        if len(missing) < len(keys):
            kept["outputs"] = outputs
        return kept

    def _made_of(self, sample: Drawn) -> Iterator[Any]:
        """All that decides the pixels of a sample, found without decoding one."""
        config = self._config
        yield json.dumps([*self.shape, self._crops, config.jpeg if self._stored else config.decoder]).encode()
        with _naming(sample.clip):
            if self._stored:
                yield from self._stored.images(sample.number, sample.fractions)
            elif isinstance(self._frames, RecordedFrames):
                yield from self._frames.made_of(sample.clip, sample.fractions)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Frames, height, width and channels of one clip in memory."""
        return self._crops * self._config.frames, self._config.side, self._config.side, 3

    def decode(self, number: int, place: Tensor) -> Clip:
        """Decode one sample into `place`, uint8 of the shape `shape`; its annotation.

        Raises:
            RaylabError: its frames cannot be read; names the clip and the file.
        """
        sample = self._sample(number)
        self._read(sample, place)
        return sample.clip

    def _read(self, sample: Drawn, place: Tensor) -> None:
        shown = self._length(sample.clip)
        with _naming(sample.clip):
            self._frames.read(sample.number, sample.clip, place[:shown], sample.fractions)
        place[shown:] = 0

    def _length(self, clip: Clip) -> int:
        """How many frames of a clip there are; the rest of `shape` is padding."""
        windowed = self._config.sampling == "rate"
        return sample_count(clip.stop - clip.start, self._config.fps) if windowed else self.shape[0]

    def _described(self, samples: Sequence[Drawn]) -> dict[str, Any]:
        """Labels, ids and mask, as `Batch` has them."""
        clips = [sample.clip for sample in samples]
        labels = {head: torch.tensor([clip.labels[head] for clip in clips]) for head in clips[0].labels}
        if self._scores is not None:
            rows = self._frames.chosen[[sample.number for sample in samples]]
            labels |= {"importance": self._scores[rows], "window": rows}
        described: dict[str, Any] = {"labels": labels, "ids": [clip.id for clip in clips]}
        if self._config.sampling == "rate":
            lengths = torch.tensor([[self._length(clip)] for clip in clips])
            described["mask"] = torch.arange(self.shape[0]) < lengths
        return described

    def _sample(self, number: int) -> Drawn:
        epoch, index = divmod(number, len(self))
        clip = self.clip(index)
        if self._config.sampling != "segments":
            return Drawn(index, clip, None)
        random = Random(f"{self._seed}/{epoch}/{clip.id}/frames") if self._train else None
        return Drawn(index, clip, segment_fractions(self._config.frames, random))


@contextmanager
def _naming(clip: Clip) -> Iterator[None]:
    """Errors name the clip."""
    try:
        yield
    except RaylabError as error:
        raise RaylabError(f"clip {clip.id}: {error}") from error


def _empty(shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> Tensor:
    """A tensor to be filled: in a loader process in memory that the process it belongs to can map."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    storage = torch.UntypedStorage._new_shared(prod(shape) * dtype.itemsize)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)
