"""Handcrafted features kept on disk: computed once for all folds, models and runs.

One JSON file for each video and settings, `FOLDER/ab/abcdef….json`, with the names and values of the features. Its name
is a digest of the video's bytes and of all that decides the values, so a file is never out of date, and a video may be
renamed or moved; any of them may be deleted at any time.
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raylab.data.store.shards import digest
from raylab.errors import RaylabError
from raylab.handcrafted.extract import HandcraftedSettings
from raylab.handcrafted.measures import FEATURES, FORMAT
from raylab.storage import cache_folder, replacing

_NAMES = [feature.name for feature in FEATURES]


def default_folder() -> Path:
    return cache_folder() / "handcrafted"


@dataclass(frozen=True)
class FeatureCache:
    """Vectors of `FEATURES`, each under the key of its video.

    Attributes:
        folder: where they are kept.
        settings: that they are computed with.
    """

    folder: Path
    settings: HandcraftedSettings

    def key(self, video: Path) -> str:
        """40 hex digits that change with the bytes of the video, the settings and `FORMAT`.

        Raises:
            RaylabError: the file cannot be read.
        """
        try:
            content = digest(video)
        except OSError as error:
            raise RaylabError(f"{video}: cannot be read ({error.strerror}); check its path and permissions") from None
        made_of = json.dumps([FORMAT, self.settings.model_dump(mode="json"), content])
        return blake2b(made_of.encode(), digest_size=20).hexdigest()

    def read(self, key: str) -> NDArray[np.float64] | None:
        """What was written under a key; None where there is nothing, or nothing that can be used."""
        with suppress(OSError, ValueError):
            kept = json.loads(self._path(key).read_text(encoding="utf-8"))
            if isinstance(kept, dict) and list(kept) == _NAMES and all(map(_is_number, kept.values())):
                return np.array(list(kept.values()), np.float64)
        return None

    def write(self, key: str, vector: NDArray[np.float64]) -> None:
        """Keep a vector; readers see it whole or not at all.

        Raises:
            RaylabError: it cannot be written.
        """
        try:
            with replacing(self._path(key)) as writing:
                kept = dict(zip(_NAMES, vector.tolist(), strict=True))
                writing.write_text(json.dumps(kept, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise RaylabError(
                f"{self.folder}: cannot be written ({error.strerror or error}): free some space there, "
                "or set RAYLAB_CACHE=FOLDER"
            ) from None

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


def _is_number(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)
