"""What frozen networks say of clips, kept on disk: computed once for all epochs and all trials.

One file for each network, clip and augmentation: `FOLDER/<network>/ab/abcdef….safetensors`, float16. Its name is a
digest of all that decides the content, so a file is never out of date; what is no longer asked for may be deleted at
any time, a network's whole folder too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from raylab.data.augment import ClipTransform
from raylab.storage import replacing

DTYPE = torch.float16


@dataclass(frozen=True)
class OutputCache:
    """The outputs of several networks.

    Attributes:
        folder: where they are kept.
        networks: name → signature of the network, and the names of its outputs that are wanted.
        transform: what happens to a clip's pixels before a network sees them; needed to make keys.
    """

    folder: Path
    networks: Mapping[str, tuple[str, tuple[str, ...]]]
    transform: ClipTransform | None = None

    def key(self, id: str, draw: int, pixels: Iterable[Any]) -> str:
        """What a clip's files are called.

        Args:
            id: of the clip.
            draw: the number of its augmentation.
            pixels: its frames before the transform, as buffers.
        """
        assert self.transform is not None  # noqa: S101 - see above
        digest = blake2b(self.transform.signature(id, draw).encode(), digest_size=20)
        for part in pixels:
            digest.update(part)
        return digest.hexdigest()

    def read(
        self, keys: Sequence[str], empty: Callable[[tuple[int, ...], torch.dtype], Tensor]
    ) -> dict[str, Tensor] | None:
        """All that is wanted of a batch: `network/output` → float16 (B, …); None unless every clip has it.

        Args:
            keys: of the clips.
            empty: (shape, dtype) → a tensor to read into.
        """
        found: dict[str, Tensor] = {}
        try:
            with ExitStack() as stack:
                for network, (signature, wanted) in self.networks.items():
                    for index, key in enumerate(keys):
                        path = str(self._path(signature, key))
                        file = stack.enter_context(safe_open(path, "pt"))  # type: ignore[no-untyped-call]
                        for output in wanted:
                            value = file.get_tensor(output)
                            name = f"{network}/{output}"
                            if name not in found:
                                found[name] = empty((len(keys), *value.shape), DTYPE)
                            found[name][index] = value
        except (OSError, SafetensorError):  # not there, damaged, or without an output that is wanted now
            return None
        return found

    def write(self, network: str, key: str, outputs: Mapping[str, Tensor]) -> None:
        """Keep outputs of one clip, beside those that are kept already.

        Args:
            network: its name.
            key: of the clip.
            outputs: float16, on the CPU.

        Raises:
            OSError: they cannot be written.
        """
        path = self._path(self.networks[network][0], key)
        kept: dict[str, Tensor] = {}
        with suppress(OSError, SafetensorError):
            kept = load_file(path)
        with replacing(path) as writing:
            writing.write_bytes(save({**kept, **{name: value.contiguous() for name, value in outputs.items()}}))

    def _path(self, signature: str, key: str) -> Path:
        return self.folder / signature / key[:2] / f"{key}.safetensors"
