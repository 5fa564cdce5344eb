"""Reading clips where they were recorded: decoded from a video file, or from a folder of extracted frames."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from raylab.config import DataConfig
from raylab.data.clips import Clip, ClipTable
from raylab.data.extracted import extracted_paths
from raylab.data.footage import fit, positions, positions_at_rate, read_positions
from raylab.data.store.sources import fingerprint
from raylab.errors import RaylabError


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
        frames = read_positions(self._sources[clip.video], self._positions(clip, fractions), self._config.decoder)
        place.copy_(fit(frames, self._config.side, self._crops).permute(0, 2, 3, 1))

    def made_of(self, clip: Clip, fractions: Sequence[float] | None = None) -> Iterator[bytes]:
        """What decides the pixels of one clip as it was recorded: which frames of what."""
        source, wanted = self._sources[clip.video], self._positions(clip, fractions)
        if source.is_dir():
            yield from (path.read_bytes() for path in extracted_paths(source, [round(number) for number in wanted]))
        else:
            yield json.dumps([fingerprint(source), wanted]).encode()

    def _positions(self, clip: Clip, fractions: Sequence[float] | None) -> list[float]:
        source = self._sources[clip.video]
        if self._config.sampling == "rate":
            return positions_at_rate(clip, source, self._config.fps)
        return positions(clip, source, self._config.frames, fractions)
