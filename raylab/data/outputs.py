"""What frozen networks say of clips, kept on disk: computed once for all epochs and all trials.

One file for each network, clip and augmentation: `FOLDER/<network>/ab/abcdef….safetensors`. Its name is a digest of all
that decides the content, so a file is never out of date; what is no longer asked for may be deleted at any time, a
network's whole folder too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from raylab.data.augment import ClipTransform
from raylab.storage import replacing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OutputCache:
    """The outputs of several networks.

    Attributes:
        folder: where they are kept.
        networks: name → signature of the network, and the names of its outputs that are wanted.
        transform: what happens to a clip's pixels before a network sees them; needed to make keys.
        replaces: whether nobody looks at a clip's pixels where its outputs are kept.
    """

    folder: Path
    networks: Mapping[str, tuple[str, tuple[str, ...]]]
    transform: ClipTransform | None = None
    replaces: bool = False

    def key(self, id: str, draw: int, made_of: Iterable[Any]) -> str:
        """What a clip's files are called.

        Args:
            id: of the clip.
            draw: the number of its augmentation.
            made_of: all that decides its pixels before the transform, as buffers.
        """
        assert self.transform is not None  # noqa: S101 - see above
        digest = blake2b(self.transform.signature(id, draw).encode(), digest_size=20)
        for part in made_of:
            digest.update(part)
        return digest.hexdigest()

    def read(
        self, keys: Sequence[str], empty: Callable[[tuple[int, ...], torch.dtype], Tensor]
    ) -> tuple[dict[str, Tensor], list[int]]:
        """All that is wanted of a batch, and of which clips some of it is not there.

        Args:
            keys: of the clips.
            empty: (shape, dtype) → a tensor to read into.

        Returns:
            `network/output` → (B, …), where clips that lack any have arbitrary values, and the places of these clips.
            Where outputs do not replace pixels, all clips have theirs, or none has.
        """
        found: dict[str, Tensor] = {}
        missing: list[int] = []
        for place, key in enumerate(keys):
            try:
                for name, value in self._read(key).items():
                    if name not in found:
                        found[name] = empty((len(keys), *value.shape), value.dtype)
                    found[name][place] = value
            except (OSError, SafetensorError):  # not there, damaged, or without an output that is wanted now
                if not self.replaces:
                    return {}, list(range(len(keys)))
                missing.append(place)
        return found, missing

    def _read(self, key: str) -> dict[str, Tensor]:
        with ExitStack() as stack:
            files = {
                network: stack.enter_context(safe_open(str(self._path(signature, key)), "pt"))  # type: ignore[no-untyped-call]
                for network, (signature, _) in self.networks.items()
            }
            return {
                f"{network}/{output}": files[network].get_tensor(output)
                for network, (_, wanted) in self.networks.items()
                for output in wanted
            }

    def write(self, network: str, key: str, outputs: Mapping[str, Tensor]) -> None:
        """Keep outputs of one clip, beside those that are kept already.

        Args:
            network: its name.
            key: of the clip.
            outputs: on the CPU.

        Raises:
            OSError: they cannot be written.
        """
        path = self._path(self.networks[network][0], key)
        kept: dict[str, Tensor] = {}
        with suppress(OSError, SafetensorError):
            kept = load_file(path)
        with replacing(path) as writing:
            writing.write_bytes(save({**kept, **{name: value.contiguous() for name, value in outputs.items()}}))

    def keep(self, network: str, key: str, outputs: Mapping[str, Tensor]) -> None:
        """As `write`, from any device; where that cannot be, it is said once, and the outputs are computed again."""
        try:
            self.write(network, key, {name: value.cpu() for name, value in outputs.items()})
        except OSError as error:
            _warn_once(self.folder, error.strerror)

    def _path(self, signature: str, key: str) -> Path:
        return self.folder / signature / key[:2] / f"{key}.safetensors"


@cache
def _warn_once(folder: Path, reason: str) -> None:
    log.warning("%s: cannot be written (%s): what is not kept there is computed again", folder, reason)
