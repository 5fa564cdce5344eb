"""What a store is made of: its settings, its shards, and what could not be read."""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from raylab.config import DataConfig
from raylab.data.clips import Clip
from raylab.errors import RaylabError
from raylab.schema import Count, Positive, Section, validate
from raylab.storage import Folder

FORMAT = 1
MANIFEST = "manifest.json"
PREPARE = "run `raylab prepare` with the same sweep and settings"


class StoreSettings(Section):
    """Which frames a store keeps, and how."""

    frames: tuple[Count, ...] = Field((), description="evenly spaced frames of each clip, for each of these counts")
    fps: Positive | None = Field(None, description="instead: frames a second")
    rate: Positive | None = Field(None, description="instead: the samples of windows, so many a second")
    short_side: int = Field(256, ge=16, description="largest height and width of the centre square, in pixels")
    quality: Annotated[int, Field(ge=1, le=100)] = Field(90, description="of the JPEG compression")
    sides: bool = Field(True, description="keep also what lies beside the centre square")

    @model_validator(mode="after")
    def _one_rule(self) -> StoreSettings:
        if bool(self.frames) + (self.fps is not None) + (self.rate is not None) != 1:
            raise ValueError("give frames per clip, frames per second or samples of windows, one of the three")
        if list(self.frames) != sorted(set(self.frames)):
            raise ValueError(f"frames {list(self.frames)}: give each count once, in ascending order")
        return self

    @property
    def name(self) -> str:
        """The name of a store's folder."""
        if self.rate:
            rule = f"windows-{self.rate:g}fps"
        else:
            rule = f"{self.fps:g}fps" if self.fps else f"{'+'.join(map(str, self.frames))}f"
        return f"{rule}-{self.short_side}px-q{self.quality}" + ("" if self.sides else "-square")

    def refusal(self, config: DataConfig, crops: int = 1) -> str | None:
        """Why a store with these settings cannot serve `config`, with so many crops of a frame; None where it can."""
        if self.rate and (config.sampling, config.fps) != ("rate", self.rate):
            asked = f"data.sampling = {config.sampling}, data.fps = {config.fps:g}"
            return f"holds samples of windows, {self.rate:g} a second, not {asked}"
        if not self.rate and config.sampling == "rate":
            return "holds no samples of windows, as data.sampling = rate asks for"
        if self.frames and config.sampling != "uniform":
            return f"holds evenly spaced frames, not data.sampling = {config.sampling}: prepare one with --fps"
        if not self.sides and crops > 1:
            return f"holds the centre square alone, not {crops} crops: prepare one without --square"
        if self.frames and config.frames not in self.frames:
            return f"holds {' or '.join(map(str, self.frames))} frames of a clip, not data.frames = {config.frames}"
        if self.short_side < config.side:
            return f"short side {self.short_side}: data.size = {config.size} needs {config.side}"
        return None

    def content_key(self, fingerprint: str, clip: Clip) -> bytes:
        """16 bytes that change with the video, with the segment and with every setting."""
        segment = (clip.start, clip.stop, clip.start_frame, clip.stop_frame)
        settings = self.model_dump(mode="json", exclude=None if self.rate else {"rate"})  # older stores are without it
        made_of = json.dumps([FORMAT, fingerprint, segment, settings])
        return blake2b(made_of.encode(), digest_size=16).digest()


class Shard(Section):
    """One file of clips: how many, how long the file is, and the BLAKE2 digest of its bytes."""

    clips: int
    bytes: int
    digest: str


class Unreadable(Section):
    """A clip whose frames could not be read."""

    id: str
    video: str
    reason: str


class Manifest(Section):
    """The root of a store: what is not reached from here is not part of it."""

    format: int = FORMAT
    settings: StoreSettings
    index: Annotated[str, Field(pattern=r"^index-[0-9a-f]{16}\.arrow$")]
    clips: int
    shards: dict[Annotated[str, Field(pattern=r"^[0-9a-f]{24}$")], Shard]
    unreadable: list[Unreadable] = Field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest of a store; None where there is no complete store.

        Raises:
            RaylabError: it is damaged, or of another format.
        """
        try:
            data = Folder.open(folder).read_json(MANIFEST)
        except FileNotFoundError:
            return None
        found = data.get("format") if isinstance(data, dict) else None
        if found != FORMAT:
            raise RaylabError(
                f"{folder / MANIFEST}: format = {found}: this version reads clip stores of format {FORMAT}; "
                f"move the folder away and {PREPARE}"
            )
        return validate(cls, data, str(folder / MANIFEST))

    def write(self, folder: Path) -> None:
        Folder.open(folder).write_json(MANIFEST, self.model_dump(mode="json"))
