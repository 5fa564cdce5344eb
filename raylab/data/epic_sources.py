"""Where the frames of EPIC-KITCHENS-100's videos are: video files, or folders of extracted frames."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from raylab.data.files import scan
from raylab.errors import RaylabError

if TYPE_CHECKING:  # pydantic takes longer to import than the annotations to be read
    from raylab.config import DataConfig

SOURCE_FOLDERS = {
    "videos": ("videos", "{participant}/videos"),
    "frames": ("{participant}/rgb_frames", "rgb_frames", "frames"),
}
SOURCE_NAMES = {"videos": "<video_id>.MP4", "frames": "<video_id>/frame_0000000001.jpg"}

REMEDY = (
    "set data.root=PATH to the folder with the videos, data.annotations=PATH to the folder with the CSV files; "
    "--demo runs on the built-in data instead"
)


def find_sources(config: DataConfig, videos: Mapping[str, str]) -> dict[str, Path]:
    """Where the frames of each video come from.

    Folders under the root are listed once each, whatever the number of clips. Files are found by their name
    in those lists, so no annotation can point outside the root; links that stand under it are followed.

    Args:
        config: `root` and `source` are used; `auto`: for each video its file if there, else its frames.
        videos: video id → participant; they are looked for in the participants' `SOURCE_FOLDERS`.

    Returns:
        Video id → video file, or folder of `frame_%010d.jpg`.

    Raises:
        RaylabError: videos are missing, or a folder cannot be listed.
    """
    root = Path(config.root).absolute()
    kinds = list(SOURCE_FOLDERS) if config.source == "auto" else [config.source]
    places = [(kind, place) for kind in kinds for place in SOURCE_FOLDERS[kind]]
    listings: dict[Path, dict[str, Path]] = {}
    sources: dict[str, Path] = {}
    missing: list[str] = []
    for video, participant in sorted(videos.items()):
        for kind, place in places:
            folder = root / place.format(participant=participant)
            if folder not in listings:
                listings[folder] = {_VIDEO_SUFFIX.sub("", at.name): at for at in scan(folder, _IS_SOURCE[kind])}
            if video in listings[folder]:
                sources[video] = listings[folder][video]
                break
        else:
            missing.append(video)
    if missing:
        first = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        looked = [f"  {root / place.format(participant='<participant_id>')}/{SOURCE_NAMES[k]}" for k, place in places]
        raise RaylabError(
            f"{len(missing):,} of {len(missing) + len(sources):,} videos are missing: {first}\n"
            f"looked for (data.source={config.source}):\n" + "\n".join(looked) + f"\n{REMEDY}"
        )
    return sources


def _is_video(entry: os.DirEntry[str]) -> bool:
    return bool(_VIDEO_SUFFIX.search(entry.name)) and entry.is_file()


def _holds_frames(entry: os.DirEntry[str]) -> bool:
    if not entry.is_dir():
        return False
    with os.scandir(entry) as frames:  # stops at the first of what may be 100,000
        return any(frame.name.startswith("frame_") for frame in frames)


_VIDEO_SUFFIX = re.compile(r"\.mp4$", re.IGNORECASE)
_IS_SOURCE = {"videos": _is_video, "frames": _holds_frames}
